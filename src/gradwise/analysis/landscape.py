"""The loss around a point: along an update, how far a step may go, how sharp it curves.

A step of length s goes from theta to theta(s) = theta - s d. Everything is of the mean loss over
all data given, in evaluation mode, with the point held still.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradwise.analysis._frozen import device_of, frozen, squared_norm
from gradwise.analysis._line import Line, Update, UpdateRecorder, record_update
from gradwise.analysis._passes import LossFn, Progress, Source
from gradwise.analysis._sharpness import Sharpness, sharpness
from gradwise.errors import UserError

__all__ = [
    "LearningRateMargin",
    "LossLine",
    "Sharpness",
    "Update",
    "UpdateRecorder",
    "learning_rate_margin",
    "loss_along",
    "record_update",
    "sharpness",
]

MOST = 100  # times the step grows or shrinks in search of where the loss rises


@dataclass(frozen=True, eq=False)
class LossLine:
    """The loss along a line.

    Attributes:
        steps: [K] float64, the s; learning rates where the direction is the gradient, multiples of
            the step taken where an update was recorded.
        losses: [K] float64, mean loss at theta - s d; not finite where it overflows.
    """

    steps: Tensor
    losses: Tensor

    def to_dict(self) -> dict[str, Any]:
        """Both as lists."""
        return {"steps": self.steps.tolist(), "losses": self.losses.tolist()}


def loss_along(
    model: nn.Module,
    loss_fn: LossFn,
    data: Iterable[Any],
    steps: Sequence[float],
    *,
    update: Update | None = None,
    chunk_size: int = 512,
    progress: Progress | None = None,
) -> LossLine:
    """The mean loss at theta - s d for several s: one forward pass over the data for each.

    Args:
        model: measured in evaluation mode, left as it was.
        loss_fn: of outputs and targets, the mean over a batch.
        data: inputs and targets [n, ...] as two tensors, or a loader that gives the same samples in
            each pass, without augmentation.
        steps: the s, finite; negative ones lie behind theta.
        update: theta and d, as from `record_update`. None: the model as it is, and its gradient.
        chunk_size: samples in one forward pass, for tensors.
        progress: told (steps done, all steps).

    Raises:
        UserError: where an argument is out of its bounds or does not fit the model.

    Examples:
        >>> import torch
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> data = torch.ones(4, 1), torch.zeros(4, 1)
        >>> line = loss_along(model, torch.nn.MSELoss(), data, [0.0, 0.25, 0.5, 1.0])
        >>> line.losses
        tensor([1.0000, 0.2500, 0.0000, 1.0000], dtype=torch.float64)
    """
    if not steps or not all(map(math.isfinite, steps)):
        raise UserError(f"expected at least one step and all finite, got steps={list(steps)}")
    source = Source(data, device_of(model), chunk_size)
    losses = []
    with frozen(model, data):
        line = Line(model, loss_fn, source, update)
        for step in steps:
            losses.append(line.loss(step))
            if progress is not None:
                progress(len(losses), len(steps))
    return LossLine(
        torch.tensor(list(steps), dtype=torch.float64), torch.tensor(losses, dtype=torch.float64)
    )


@dataclass(frozen=True)
class LearningRateMargin:
    """How far a step may go before the loss is higher than where it began.

    Attributes:
        step: the margin, in units of s: learning rates where the direction is the gradient,
            multiples of the step taken where an update was recorded (below 1: that step raised the
            loss). 0 where the direction does not descend, infinity where no step was found that
            raises the loss.
        loss: mean loss at s = 0.
        slope: -dL/ds at s = 0, positive where the direction descends.
        length: |d|.
        evaluations: passes over the data for it.
    """

    step: float
    loss: float
    slope: float
    length: float
    evaluations: int

    @property
    def curvature(self) -> float:
        """2 slope / (step |d|^2), loss over squared parameter.

        On a quadratic it is d^T H d / |d|^2 exactly, elsewhere what such a quadratic would need.
        """
        return 2 * self.slope / self.step / self.length**2 if self.step > 0 else math.inf

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return {
            "step": self.step,
            "loss": self.loss,
            "slope": self.slope,
            "length": self.length,
            "curvature": self.curvature,
            "evaluations": self.evaluations,
        }


def learning_rate_margin(
    model: nn.Module,
    loss_fn: LossFn,
    data: Iterable[Any],
    *,
    update: Update | None = None,
    growth: float = 2.0,
    tolerance: float = 1e-2,
    chunk_size: int = 512,
    progress: Progress | None = None,
) -> LearningRateMargin:
    """The largest stable step: where along the update the loss comes back to what it was.

    A probe grows by factors of `growth` from a tenth of the way to zero loss (by the slope; it
    shrinks first where that raises the loss) to the first s with L(theta - s d) > L(theta), and
    bisects. On a quadratic with Hessian H, along the gradient g,

        margin = 2 |g|^2 / (g^T H g) >= 2 / lambda_max                                       [D]

    with equality where g is an eigenvector of lambda_max, as gradient descent near its limit makes
    it; 2 / lambda_max itself comes from `sharpness`. The definition is this library's choice.

    Args:
        model: measured in evaluation mode, left as it was.
        loss_fn: of outputs and targets, the mean over a batch.
        data: as for `loss_along`.
        update: theta and d, as from `record_update`. None: the model as it is, and its gradient.
        growth: > 1; a barrier that a factor of this size steps over is not seen.
        tolerance: > 0, relative error of the margin.
        chunk_size: samples in one pass, for tensors.
        progress: told (evaluations done, 0), as their number is not known before.

    Raises:
        UserError: where an argument is out of its bounds or does not fit the model, the loss or
            gradient at the start is not finite, or the direction is zero.

    Examples:
        >>> import torch
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> data = torch.ones(4, 1), torch.zeros(4, 1)  # L = theta^2, whose curvature is 2
        >>> found = learning_rate_margin(model, torch.nn.MSELoss(), data, tolerance=1e-6)
        >>> round(found.step, 4), round(found.curvature, 4)
        (1.0, 2.0)
    """
    if not 1 < growth < math.inf:
        raise UserError(f"expected 1 < growth < inf, got growth={growth}")
    if not 0 < tolerance < math.inf:
        raise UserError(f"expected 0 < tolerance < inf, got tolerance={tolerance}")
    source = Source(data, device_of(model), chunk_size)
    count = 0
    with frozen(model, data):
        line = Line(model, loss_fn, source, update)
        length = math.sqrt(squared_norm(line.direction))
        if length == 0:
            raise UserError("expected a direction that is not zero, got |d| = 0")
        start, slope = line.at_start()
        slack = 4 * line.eps * abs(start)  # what rounding may add to a loss that has not risen

        def rises(step: float) -> bool:
            nonlocal count
            count += 1
            rise = line.loss(step) - start
            if progress is not None:
                progress(count, 0)
            return not rise <= slack  # a loss that is not a number has risen

        margin = _crossing(rises, start, slope, growth, tolerance) if slope > 0 else 0.0
    return LearningRateMargin(margin, start, slope, length, count)


def _crossing(
    rises: Callable[[float], bool], start: float, slope: float, growth: float, tolerance: float
) -> float:
    """The first step at which the loss rises, to a relative tolerance."""
    high = 0.1 * (abs(start) or 1.0) / slope
    low = 0.0
    for _ in range(MOST):
        if rises(high):
            break
        low, high = high, high * growth
    else:
        return math.inf
    for _ in range(MOST):
        if low > 0:
            break
        if rises(high / growth):
            high /= growth
        else:
            low = high / growth
    else:
        return 0.0
    while high > low * (1 + tolerance):
        middle = math.sqrt(low) * math.sqrt(high)
        if not low < middle < high:  # nothing between the two
            break
        if rises(middle):
            high = middle
        else:
            low = middle
    return low
