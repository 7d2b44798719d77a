"""Search-direction noise of several rules from one measurement."""

from __future__ import annotations

from gradwise.analysis.noise import Direction, DirectionNoise, GradientNoise

__all__ = ["of_rule"]


def of_rule(measured: GradientNoise, direction: Direction) -> DirectionNoise:
    """What a rule without a buffer makes of gradient noise, as `search_direction_noise` says.

    One measurement serves all rules this way.

    Args:
        measured: at a point.
        direction: without buffer and decay.
    """
    w, beta = direction.weight, direction.beta
    fresh = w**2 * measured.variance
    inherited = fresh * beta**2 / (1 - beta**2)
    lag = abs(w / (1 - beta) - 1) * measured.norm
    return DirectionNoise(lag, fresh + inherited, inherited, measured)
