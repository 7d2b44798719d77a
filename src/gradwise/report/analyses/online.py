"""A model's batches as an online game: regret of methods, and how much the gradients vary."""

from __future__ import annotations

import math
from collections.abc import Mapping

from gradwise.analysis.online import Regret
from gradwise.report.article import Picture, Table
from gradwise.report.drawing import axes, svg

OPTIMISTIC, PLAIN = "optimistic", "no hint"
NAMES = {OPTIMISTIC: "optimistic mirror descent", PLAIN: "projected gradient descent"}


def lead(games: Mapping[str, Regret]) -> str:
    """The answer in two sentences.

    Args:
        games: by method, all on the same rounds and against the same point.
    """
    hinted, plain = games[OPTIMISTIC], games[PLAIN]
    better = "less" if hinted.regret < plain.regret else "more"
    difference = abs(plain.regret - hinted.regret)
    return (
        f"Over {hinted.rounds} rounds the regret is {hinted.regret:.4g} with a hint (the last "
        f"batch's gradient) and {plain.regret:.4g} without: the hint leaves {difference:.3g} "
        f"{better}. From one batch to the next gradients vary by {_change(hinted):.3g} (root mean "
        "square)."
    )


def tables(games: Mapping[str, Regret], radius: float, at_edge: bool) -> tuple[Table, ...]:
    """A row for each method.

    Args:
        games: by method.
        radius: of the ball.
        at_edge: whether the best fixed point lies on its edge.
    """
    rows = []
    for name, game in games.items():
        varied = _total(game)
        root = math.sqrt(varied)
        rows.append(
            (
                NAMES.get(name, name),
                f"{game.regret:.4g}",
                f"{game.regret / game.rounds:.4g}",
                f"{game.losses.mean().item():.4g}",
                f"{game.comparator_losses.mean().item():.4g}",
                f"{varied:.4g}",
                f"{game.regret / (1 + root):.3g}",
            )
        )
    note = (
        f"Parameters stay within {radius:g} of where they were. Regret is against the best fixed "
        "parameters in hindsight that a projected gradient method found; for a model whose loss "
        "is not convex they are approximate, and below 0 the method that moves has done better. "
        "The variation is measured at the parameters that were played, a lower bound of V_T."
    )
    if at_edge:
        note += " The best fixed parameters lie on the edge of the ball: a larger one has better."
    header = (
        "method",
        "regret",
        "a round",
        "mean loss",
        "of the best fixed",
        "variation",
        "regret / (1 + sqrt variation)",
    )
    return (Table("Regret", header, tuple(rows), note),)


def pictures(games: Mapping[str, Regret]) -> tuple[Picture, ...]:
    """Cumulative regret, and cumulative variation.

    Args:
        games: by method.
    """
    with axes(1, 2) as (figure, (left, right)):
        for name, game in games.items():
            rounds = range(1, game.rounds + 1)
            left.plot(rounds, game.cumulative.tolist(), label=NAMES.get(name, name))
            if game.played_variation is not None:
                right.plot(rounds, game.played_variation.tolist(), label=NAMES.get(name, name))
        left.set_ylabel("regret so far")
        right.set_ylabel("variation so far")
        for axis in (left, right):
            axis.set_xlabel("round")
            axis.legend()
        return (
            Picture(
                "online-regret",
                "Left: regret over the batches; where it is level, the method does as well as the "
                "best fixed parameters. Right: squared differences between the gradients of "
                "consecutive batches at the parameters played.",
                "Two panels of lines over rounds, regret and variation, one line a method.",
                svg(figure),
            ),
        )


def _total(game: Regret) -> float:
    return 0.0 if game.played_variation is None else game.played_variation[-1].item()


def _change(game: Regret) -> float:
    """Root mean square of the change from one round's gradient to the next."""
    return math.sqrt(_total(game) / max(game.rounds - 1, 1))
