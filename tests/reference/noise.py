"""The gradient noise scale by its definition, in float64.

A batch of size b, drawn with replacement, has the gradient g_b = G + e with E e = 0 and
E|e|^2 = tr(Sigma) / b, so E|g_b|^2 = |G|^2 + tr(Sigma) / b. Two sizes give two equations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


class Noise(NamedTuple):
    """tr(Sigma), the spread of one sample's gradient, and |G|^2, the squared norm of their mean."""

    trace: float
    signal: float

    @property
    def scale(self) -> float:
        """B_simple."""
        return self.trace / self.signal


def exact(per_sample: Array) -> Noise:
    """From the gradients [N, d] of all samples there are; the population's covariance."""
    mean = per_sample.mean(0)
    return Noise(float(((per_sample - mean) ** 2).sum(1).mean()), float((mean**2).sum()))


def solve(small: float, big: float, b: float, big_b: float) -> Noise:
    """The two equations |G|^2 + tr / b = small and |G|^2 + tr / B = big, solved as they stand."""
    signal, trace = np.linalg.solve([[1.0, 1.0 / b], [1.0, 1.0 / big_b]], [small, big])
    return Noise(float(trace), float(signal))


def of_cycle(micro: Sequence[Array], b: float) -> Noise:
    """One step's estimate from the gradients of its M micro-batches of size b each."""
    small = float(np.mean([(g**2).sum() for g in micro]))
    big = float((np.mean(micro, axis=0) ** 2).sum())
    return solve(small, big, b, b * len(micro))


def average(values: Sequence[float], decay: float) -> float:
    """The exponential moving average with bias correction, by the sum that it is."""
    weights = [decay ** (len(values) - 1 - i) for i in range(len(values))]
    return float(np.dot(weights, values) / np.sum(weights))


def compatible(traces: Array, signals: Array, decay: float, ratio: float, z: float = 1.96) -> bool:
    """Whether a ratio tr / |G|^2 fits the samples: is the mean of tr - ratio |G|^2 within z
    standard errors of 0? The interval of the noise scale is the set of those that do.
    """
    weights = decay ** np.arange(len(traces) - 1, -1, -1.0)
    weights /= weights.sum()
    gap = traces - ratio * signals
    mean = float(weights @ gap)
    squares = float((weights**2).sum())
    variance = float(weights @ (gap - mean) ** 2) / (1 - squares)
    return mean**2 <= z**2 * variance * squares
