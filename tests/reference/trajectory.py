"""Oracle for the hallmarks of trajectories, in numpy, from equations (11.1) to (11.4) alone.

Checkpoints are the rows of a float64 array; everything is computed from the vectors themselves.
"""

from __future__ import annotations

import math

import numpy as np

Array = np.ndarray


def cosine_map(points: Array) -> tuple[list[int], Array]:
    """(11.1): which rows have a direction, and their cosines, entry by entry."""
    kept = [i for i, p in enumerate(points) if math.sqrt(math.fsum(p * p)) > 0]
    cosines = np.empty((len(kept), len(kept)))
    for a, i in enumerate(kept):
        for b, j in enumerate(kept):
            dot = math.fsum(points[i] * points[j])
            lengths = math.sqrt(math.fsum(points[i] ** 2)) * math.sqrt(math.fsum(points[j] ** 2))
            cosines[a, b] = dot / lengths
    return kept, cosines


def mds(cosines: Array) -> float:
    """(11.2)."""
    return math.fsum(cosines.flatten()) / cosines.size


def mds_off_diagonal(cosines: Array) -> float:
    """(11.2) without the diagonal."""
    m = len(cosines)
    return math.fsum(cosines[i, j] for i in range(m) for j in range(m) if i != j) / (m * (m - 1))


def angle(a: Array, b: Array) -> float:
    """Between two vectors, accurate at both ends; NaN where one is 0."""
    a, b = unit(a), unit(b)
    if a is None or b is None:
        return math.nan
    return 2 * math.atan2(float(np.linalg.norm(a - b)), float(np.linalg.norm(a + b)))


def unit(a: Array) -> Array | None:
    length = float(np.linalg.norm(a))
    return a / length if length > 0 else None


def turns(points: Array) -> list[float]:
    """omega of (11.3)."""
    steps = np.diff(points, axis=0)
    return [angle(steps[t + 1], steps[t]) for t in range(len(steps) - 1)]


def apexes(points: Array, apex: Array) -> list[float]:
    """Angles at `apex` between consecutive checkpoints."""
    return [angle(points[t] - apex, points[t + 1] - apex) for t in range(len(points) - 1)]


def path_length(points: Array) -> float:
    """(11.4)."""
    return math.fsum(float(np.linalg.norm(step)) for step in np.diff(points, axis=0))
