"""How noisy a step's direction is: gradient noise, and what momentum makes of it.

Section 10 of methods.md: Sato and Iiduka, "Momentum Does Not Reduce Stochastic Noise in SGD", arXiv
2402.02325. A step x_{t+1} = x_t - lr d_t goes along (10.1) [V]

    SGD      d_t = g_t
    SHB      d_t = g_t + beta d_{t-1}                 (heavy ball, torch's momentum)
    NSHB     d_t = (1 - beta) g_t + beta d_{t-1}      (normalised heavy ball)

and its search-direction noise is omega_t = d_t - grad f(x_t) (10.2) [V]. The mean square of omega
has two parts that mean different things, and are told apart here (this library's choice):

    E|omega|^2 = |E d - grad f|^2 + E|d - E d|^2 = lag^2 + spread

Both are measured with the point held still, in evaluation mode and on data as they are given, so
leave augmentation out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from gradwise.analysis._batch_size import (
    CriticalBatch,
    NoiseScaleEstimate,
    c2_bound,
    critical_batch_size,
    gradient_noise_scale,
)
from gradwise.analysis._direction import Direction
from gradwise.analysis._frozen import squared_norm, trainable
from gradwise.analysis._gradient_noise import GradientNoise, gradient_noise, measured_noise
from gradwise.analysis._passes import LossFn, Progress

__all__ = [
    "CriticalBatch",
    "Direction",
    "DirectionNoise",
    "GradientNoise",
    "NoiseScaleEstimate",
    "c2_bound",
    "critical_batch_size",
    "gradient_noise",
    "gradient_noise_scale",
    "search_direction_noise",
]


@dataclass(frozen=True)
class DirectionNoise:
    """Search-direction noise of one rule at one point; norms in units of the gradient norm.

    Attributes:
        lag: |E d - G|, what a mean over batches leaves of omega.
        spread: E|d - E d|^2, what varies from batch to batch, in squared units.
        inherited: the spread that a buffer collects from batches at this very point, in squared
            units. It is part of `spread` where the buffer was not given; of lag^2 where it was,
            since a given buffer is a fact: lag^2 well above it tells that the gradient moved.
        gradient: the gradient noise that this rests on.
    """

    lag: float
    spread: float
    inherited: float
    gradient: GradientNoise

    @classmethod
    def at_rest(
        cls, measured: GradientNoise, direction: Direction, norm: float | None = None
    ) -> DirectionNoise:
        """What a rule makes of gradient noise after many steps at one point.

        So one measurement serves many rules; the formulas are those of `search_direction_noise`.

        Args:
            measured: at the point.
            direction: the rule; its buffer plays no part.
            norm: of the gradient that weight decay is part of; None for the measured one.

        Examples:
            >>> noise = GradientNoise(1.0, None, 4.0, 2.0, 0.5, 4, 1, 100)
            >>> DirectionNoise.at_rest(noise, Direction.heavy_ball(0.5)).lag
            2.0
        """
        w, beta = direction.weight, direction.beta
        fresh = w**2 * measured.variance
        inherited = fresh * beta**2 / (1 - beta**2)
        lag = abs(w / (1 - beta) - 1) * (measured.norm if norm is None else norm)
        return cls(lag, fresh + inherited, inherited, measured)

    @property
    def noise(self) -> float:
        """E|omega|^2 = lag^2 + spread, in squared units of the gradient norm."""
        return self.lag**2 + self.spread

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values, the gradient noise nested."""
        return {
            "lag": self.lag,
            "spread": self.spread,
            "inherited": self.inherited,
            "noise": self.noise,
            "gradient": self.gradient.to_dict(),
        }


def search_direction_noise(
    model: nn.Module,
    loss_fn: LossFn,
    data: Iterable[Any],
    direction: Direction,
    *,
    batch_size: int | None = None,
    batches: int = 32,
    replacement: bool = False,
    chunk_size: int = 512,
    seed: int = 0,
    progress: Progress | None = None,
) -> DirectionNoise:
    """Measure the search-direction noise of a rule d_t = w g_t + beta d_{t-1} at one point.

    Without a buffer it is that of many steps at this point, whose batches are independent of each
    other. With s^2 the variance of a batch gradient [D]:

        lag = |w / (1 - beta) - 1| |G|        SGD 0, SHB beta/(1 - beta) |G|, NSHB 0
        spread = w^2 s^2 / (1 - beta^2)       SGD s^2, SHB s^2/(1 - beta^2),
                                              NSHB s^2 (1 - beta)/(1 + beta)

    With the buffer d_{t-1} of a run it is that of the run's coming step,

        lag = |(w - 1) G + beta d_{t-1}|      spread = w^2 s^2

    taken before the step and at the point where the step begins. Weight decay belongs to the
    objective: its gradient is added to G.

    The paper's claim that momentum does not reduce the noise concerns bounds along a run; at a
    fixed point NSHB does reduce the spread, nineteen-fold at beta = 0.9.

    Args:
        model: measured in evaluation mode, left as it was.
        loss_fn: of outputs and targets, the mean over a batch.
        data: as for `gradient_noise`.
        direction: the rule, with or without a buffer.
        batch_size: b, for tensors; a loader has its own.
        batches: R.
        replacement: whether a sample may come twice in a batch; for tensors.
        chunk_size: samples in one forward and backward pass, for tensors.
        seed: of the draws.
        progress: told (passes done, all passes).

    Raises:
        UserError: as `gradient_noise`, and where the buffer does not fit the model.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> model, loss_fn = nn.Linear(3, 1), nn.MSELoss()
        >>> data = torch.randn(40, 3), torch.randn(40, 1)
        >>> found = search_direction_noise(
        ...     model, loss_fn, data, Direction.normalized(0.9), batch_size=4
        ... )
        >>> round(found.spread / found.gradient.variance, 4), round(found.lag, 4)
        (0.0526, 0.0)
    """
    params = list(trainable(model).values())
    direction.check(params)
    noise, mean = measured_noise(
        model,
        loss_fn,
        data,
        batch_size=batch_size,
        batches=batches,
        replacement=replacement,
        chunk_size=chunk_size,
        seed=seed,
        progress=progress,
    )
    w, beta = direction.weight, direction.beta
    goal = direction.with_decay(mean, params)
    at_rest = DirectionNoise.at_rest(noise, direction, math.sqrt(squared_norm(goal)))
    if direction.buffer is None:
        return at_rest
    gap = [(w - 1) * g + beta * held.to(g) for g, held in zip(goal, direction.buffer, strict=True)]
    return DirectionNoise(
        math.sqrt(squared_norm(gap)), w**2 * noise.variance, at_rest.inherited, noise
    )
