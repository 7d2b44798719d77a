"""Large steps first, small ones later: warm-up-then-decay schedules, equation (12.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from gradwise.errors import UserError

LAST_DECAY = 0.9  # of training: the second division by 10


@dataclass(frozen=True)
class WarmupThenDecay:
    """The factor by which to multiply the base learning rate at step t of T.

    With x = t / T, the first phase, x < q, is

        w > 1:  w^(100 x)                 exponential
        w = 1:  1 + (k - 1) x / 0.5       linear, towards k at x = 0.5
        w < 1:  1 + (100 x)^w             polynomial

    and afterwards the value P is divided by 10 for q <= x < 0.9 and by 100 from 0.9 on,

        w > 1:  P = w^(100 q),    w = 1:  P = k q / 0.5,    w < 1:  P = 1 + (100 q)^w.     (12.1)

    Andriushchenko, Varre, Pillaud-Vivien, Flammarion, SGD with Large Step Sizes Learns Sparse
    Features, ICML 2023, https://arxiv.org/abs/2210.05337; values as in the authors' code [V], which
    has q = 0.1, 0.3, 0.5. For w = 1 and q < 0.5, P is not where the first phase ends, there as
    here. The same holds after T, for training that goes on.

    An instance is a function for `LambdaLR`, whose `state_dict` then contains the settings.

    Args:
        total: T > 0, in the unit of t: scheduler steps, or epochs.
        decay_at: q, in (0, 0.9].
        warmup: w > 0.
        peak: k > 0, for w = 1 alone.

    Raises:
        UserError: where an argument is out of its bounds, or peak is given though w is not 1.

    Examples:
        >>> factor = WarmupThenDecay(total=100)
        >>> [round(0.75 * factor(t), 4) for t in (0, 49.99999999, 50, 90)]
        [0.75, 8.6005, 0.8601, 0.086]
    """

    total: float
    decay_at: float = 0.5
    warmup: float = 1.05
    peak: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.total < math.inf:
            raise UserError(f"expected 0 < total < inf, got total={self.total}")
        if not 0 < self.decay_at <= LAST_DECAY:
            raise UserError(f"expected 0 < decay_at <= {LAST_DECAY}, got decay_at={self.decay_at}")
        for name in ("warmup", "peak"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise UserError(f"expected 0 < {name} < inf, got {name}={value}")
        if self.warmup != 1 and self.peak != 1:
            raise UserError(
                f"expected peak with warmup=1 alone, got warmup={self.warmup} and peak={self.peak}"
            )

    def __call__(self, t: float) -> float:
        """The factor at step t >= 0."""
        x = t / self.total
        q = self.decay_at
        if x < q:
            return self._rise(x)
        held = self.peak * q / 0.5 if self.warmup == 1 else self._rise(q)
        return held / (10 if x < LAST_DECAY else 100)

    def _rise(self, x: float) -> float:
        if self.warmup > 1:
            return float(self.warmup ** (100 * x))
        if self.warmup == 1:  # as in the authors' interpolation, flat beyond 0.5
            return 1 + (self.peak - 1) * min(x, 0.5) / 0.5
        return float(1 + (100 * x) ** self.warmup)


def warmup_then_decay(
    optimizer: Optimizer,
    total: float,
    *,
    decay_at: float = 0.5,
    warmup: float = 1.05,
    peak: float = 1.0,
    last_epoch: int = -1,
) -> LambdaLR:
    """The schedule (12.1) for an optimizer, whose learning rate is the base lr0.

    Args:
        optimizer: all its parameter groups follow the schedule, each from its own lr0.
        total: T > 0, how many times `scheduler.step()` will be called.
        decay_at: q; see `WarmupThenDecay` for this and what follows.
        warmup: w.
        peak: k.
        last_epoch: as torch has it: steps done before, less 1.

    Returns:
        A torch scheduler; its `state_dict` resumes it, settings included.

    Raises:
        UserError: where an argument is out of its bounds.

    Examples:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = torch.optim.SGD([weight], lr=0.75)
        >>> scheduler = warmup_then_decay(optimizer, total=10)
        >>> rates = []
        >>> for _ in range(10):
        ...     rates.append(round(scheduler.get_last_lr()[0], 3))
        ...     optimizer.step()
        ...     scheduler.step()
        >>> rates
        [0.75, 1.222, 1.99, 3.241, 5.28, 0.86, 0.86, 0.86, 0.86, 0.086]
    """
    factor = WarmupThenDecay(total, decay_at, warmup, peak)
    return LambdaLR(optimizer, factor, last_epoch)
