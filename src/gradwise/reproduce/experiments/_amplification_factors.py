"""What transforms multiply the gradients of layers with, from the records of trainings."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradwise.reproduce.experiments._cifar import Matrix, Trace
from gradwise.transforms import ZNorm

__all__ = ["Factors", "factors"]


@dataclass(frozen=True)
class Factors:
    """What the layers' gradients of one training were multiplied with.

    Attributes:
        by_layer: [K, E] at each recorded step; NaN where there was nothing to multiply.
        layers: [E] their names.
    """

    by_layer: Matrix
    layers: tuple[str, ...]

    @property
    def ratio(self) -> float | None:
        """Largest over smallest factor of a step, as a power of ten, the median of the steps."""
        return _median(np.log10(_of_steps(np.max, self) / _of_steps(np.min, self)))

    @property
    def ends(self) -> tuple[float, float]:
        """Smallest and largest factor of a step, the medians of the steps."""
        found = [_median(_of_steps(reduce, self)) for reduce in (np.min, np.max)]
        low, high = (math.nan if one is None else one for one in found)
        return low, high

    @property
    def profile(self) -> list[float]:
        """[E] the median of each layer's factors."""
        found = [_median(column[np.isfinite(column)]) for column in self.by_layer.T]
        return [math.nan if one is None else one for one in found]


def _of_steps(reduce: Any, one: Factors) -> Matrix:
    """What a reduction makes of each step that has factors for at least two layers."""
    rows = [row[np.isfinite(row)] for row in one.by_layer]
    return np.array([reduce(row) for row in rows if len(row) > 1], np.float64)


def _median(values: Matrix) -> float | None:
    return float(np.median(values)) if len(values) else None


def factors(trace: Trace, method: str) -> Factors:
    """What each layer's gradient was multiplied with, std after over std before.

    Args:
        trace: what a training recorded.
        method: "znorm" or "autoscale".
    """
    usable = np.isfinite(trace.std) & (trace.std > 0)
    if method == "znorm":  # (1.6); a layer without spread it leaves alone
        scale = 1.0 / (np.where(usable, trace.std, 1.0) + ZNorm().eps)
    else:
        scale = np.repeat(trace.alpha[:, None], trace.std.shape[1], axis=1)
    return Factors(np.where(usable & np.isfinite(scale), scale, np.nan), trace.layers)
