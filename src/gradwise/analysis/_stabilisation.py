"""A training loss that hovers at a level instead of falling, (12.2)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from gradwise.errors import UserError


@dataclass(frozen=True)
class Plateau:
    """Consecutive steps at a high learning rate whose averaged loss stays within a band.

    Attributes:
        first: index of the first step.
        last: index of the last one.
        level: delta, the mean loss of these steps, > 0.
        lr: their mean learning rate.
    """

    first: int
    last: int
    level: float
    lr: float


@dataclass(frozen=True)
class LossStabilisation:
    """Where the loss stabilised, (12.2).

    Attributes:
        plateaus: in order, not overlapping.
        high_steps: how many steps had a high learning rate.
        share: steps in plateaus over high_steps, in [0, 1].
        level: mean loss of all steps in plateaus, the delta of the noise sqrt(lr delta) in (12.3);
            None where there is none.
    """

    plateaus: tuple[Plateau, ...]
    high_steps: int
    share: float
    level: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists."""
        return {**asdict(self), "plateaus": [asdict(p) for p in self.plateaus]}


def loss_stabilisation(
    losses: Sequence[float] | Tensor,
    learning_rates: Sequence[float] | Tensor,
    *,
    window: int = 100,
    span: int | None = None,
    tolerance: float = 0.25,
    high: float = 0.5,
) -> LossStabilisation:
    """Find where the loss hovers at a level while the learning rate is high, (12.2).

    With m_k the mean of `window` losses up to step k, a plateau begins where over `span`
    consecutive m_k

        max m - min m <= tolerance * mean m,    mean m > 0,

    and goes on while m_k stays within tolerance / 2 of the mean of its m so far; the next one
    begins after it. No m_k has a loss at a learning rate below `high` times the largest. The
    phenomenon is described in words by Andriushchenko et al. (ICML 2023,
    https://arxiv.org/abs/2210.05337) [V]; this detector is ours [X]. Scaling all losses, or all
    rates, changes nothing. An exponential fall has no plateau where the loss falls by more than
    the tolerance within `span`: with the default, by more than a factor e in the whole phase. NaN
    and infinite losses are in none. Steps of a warm-up count from where it exceeds `high`.

    Args:
        losses: [n] one a step, of batches or of all the data.
        learning_rates: [n] >= 0.
        window: losses in an average, >= 1: enough to make their noise small against the band.
        span: averages in a row, >= 2; None is a quarter of all steps with a high learning rate, but
            at least 5 windows.
        tolerance: width of the band over the level, in (0, 1).
        high: in (0, 1].

    Raises:
        UserError: where lengths differ, a rate is negative or not finite, or an argument is out
            of its bounds.

    Examples:
        >>> losses = [0.3 + 0.01 * (-1) ** t for t in range(600)] + [0.9**t for t in range(400)]
        >>> found = loss_stabilisation(losses, [1.0] * 600 + [0.1] * 400, window=20)
        >>> plateau, = found.plateaus
        >>> plateau.first, plateau.last, round(plateau.level, 6), found.share
        (0, 599, 0.3, 1.0)
    """
    if window < 1:
        raise UserError(f"expected window >= 1, got window={window}")
    if span is not None and span < 2:
        raise UserError(f"expected span >= 2, got span={span}")
    if not 0 < tolerance < 1:
        raise UserError(f"expected 0 < tolerance < 1, got tolerance={tolerance}")
    if not 0 < high <= 1:
        raise UserError(f"expected 0 < high <= 1, got high={high}")
    loss = torch.as_tensor(losses).detach().to("cpu", torch.float64)
    rate = torch.as_tensor(learning_rates).detach().to("cpu", torch.float64)
    if loss.ndim != 1 or loss.shape != rate.shape:
        raise UserError(
            "expected as many learning rates as losses, got shapes "
            f"{tuple(rate.shape)} and {tuple(loss.shape)}"
        )
    if not bool(((rate >= 0) & rate.isfinite()).all()):
        raise UserError("expected learning rates >= 0 and finite")
    is_high = rate >= high * rate.max() if len(rate) else rate > 0
    high_steps = int(is_high.sum())
    span = max(5 * window, high_steps // 4) if span is None else span
    plateaus, covered = [], []
    for first, last in _flat_runs(loss, is_high, window, span, tolerance):
        part = loss[first : last + 1]
        covered.append(part)
        rates = rate[first : last + 1]
        plateaus.append(Plateau(first, last, float(part.mean()), float(rates.mean())))
    return LossStabilisation(
        plateaus=tuple(plateaus),
        high_steps=high_steps,
        share=sum(map(len, covered)) / high_steps if high_steps else 0.0,
        level=float(torch.cat(covered).mean()) if covered else None,
    )


def _flat_runs(
    loss: Tensor, is_high: Tensor, window: int, span: int, tolerance: float
) -> Iterator[tuple[int, int]]:
    """First and last losses of plateaus, in order."""
    if len(loss) < window + span - 1:
        return
    means = loss.unfold(0, window, 1).mean(1)
    usable = is_high.unfold(0, window, 1).all(1) & means.isfinite()
    values = means.where(usable, math.nan)  # comparisons with NaN are false
    spans = values.unfold(0, span, 1)
    flat = (spans.amax(1) - spans.amin(1) <= tolerance * spans.mean(1)) & (spans.mean(1) > 0)
    starts, listed, free = flat.nonzero().flatten().tolist(), values.tolist(), 0
    for start in starts:
        if start < free:
            continue
        end = start + span
        total = math.fsum(listed[start:end])
        while end < len(listed):
            mean = total / (end - start)
            if not abs(listed[end] - mean) <= tolerance / 2 * mean:
                break
            total, end = total + listed[end], end + 1
        free = end + window - 1  # the first loss that no average of this one has
        yield start, free - 1
