"""Oracle for *measure*: count, mean, M2, extremes, zeros and non-finite count, in float64 loops.

A complex array counts as pairs of real numbers. An empty array has mean 0 and M2 0. ``math.fsum``
adds exactly, so the only rounding left is one division and one subtraction per element.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Segment:
    """What is known about one tensor, or one row of it."""

    count: int
    mean: float
    m2: float
    min: float
    max: float
    nonfinite: int
    zeros: int

    @property
    def var(self) -> float:
        return self.m2 / self.count if self.count else 0.0

    @property
    def std(self) -> float:
        return math.sqrt(self.var)

    @property
    def norm(self) -> float:
        return math.sqrt(self.m2 + self.count * self.mean**2)

    @property
    def max_abs(self) -> float:
        return max(abs(self.min), abs(self.max)) if self.count else 0.0


EMPTY = Segment(count=0, mean=0.0, m2=0.0, min=0.0, max=0.0, nonfinite=0, zeros=0)


def reals(g: Array) -> list[float]:
    """Every number of an array as one flat list; a complex number gives two."""
    flat = g.reshape(-1)
    if np.iscomplexobj(flat):
        return [float(part) for z in flat for part in (z.real, z.imag)]
    return [float(x) for x in flat]


def describe(values: list[float]) -> Segment:
    """The segment of a list of numbers by the textbook two passes; numbers must be finite."""
    n = len(values)
    if n == 0:
        return EMPTY
    mean = math.fsum(values) / n
    m2 = math.fsum((x - mean) ** 2 for x in values)
    return Segment(
        count=n,
        mean=mean,
        m2=m2,
        min=min(values),
        max=max(values),
        nonfinite=0,
        zeros=zeros(values),
    )


def zeros(values: list[float]) -> int:
    """How many numbers are 0, of either sign."""
    return sum(1 for x in values if x == 0)


def nonfinite(values: list[float]) -> int:
    """How many numbers are NaN or infinite."""
    return sum(1 for x in values if not math.isfinite(x))


def rows(g: Array) -> list[Array]:
    """The rows along dim 0; an array with fewer than two dimensions is one row."""
    return [g] if g.ndim < 2 else [g[i] for i in range(g.shape[0])]


def tensor_segments(grads: list[Array | None]) -> list[Segment]:
    """One segment a tensor."""
    return [EMPTY if g is None else describe(reals(g)) for g in grads]


def row_segments(grads: list[Array | None]) -> list[list[Segment]]:
    """For each tensor, one segment a row."""
    return [[EMPTY] if g is None else [describe(reals(r)) for r in rows(g)] for g in grads]


def merge(parts: list[Segment]) -> Segment:
    """The segment of the concatenation, by the law of total variance."""
    parts = [p for p in parts if p.count]
    if not parts:
        return EMPTY
    n = sum(p.count for p in parts)
    mean = math.fsum(p.count * p.mean for p in parts) / n
    within = math.fsum(p.m2 for p in parts)
    between = math.fsum(p.count * (p.mean - mean) ** 2 for p in parts)
    return Segment(
        count=n,
        mean=mean,
        m2=within + between,
        min=min(p.min for p in parts),
        max=max(p.max for p in parts),
        nonfinite=sum(p.nonfinite for p in parts),
        zeros=sum(p.zeros for p in parts),
    )


def pooled(grads: list[Array | None]) -> Segment:
    """All tensors as one long vector."""
    return describe([x for g in grads if g is not None for x in reals(g)])


def affine(g: Array, scale: float, shift: float) -> Array:
    """``scale * (g - shift)`` on every real number of ``g``."""
    return scale * (g - shift * (1 + 1j)) if np.iscomplexobj(g) else scale * (g - shift)
