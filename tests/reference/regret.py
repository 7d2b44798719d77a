"""Oracle for regret and gradient variation, in numpy, from their definitions alone.

Functions are f_t(x) = a_t |x - c_t|^2 / 2, on a ball around 0: the best fixed point, and the
supremum in V_T, are closed forms then.
"""

from __future__ import annotations

import math

import numpy as np

Array = np.ndarray


def value(a: float, c: Array, x: Array) -> float:
    """f_t(x)."""
    return a / 2 * sum(float(d) ** 2 for d in x - c)


def best_point(weights: Array, centers: Array, radius: float) -> Array:
    """Where sum_t f_t is smallest: its level sets are spheres around the weighted mean."""
    mean = np.array([math.fsum(weights * column) for column in centers.T]) / math.fsum(weights)
    norm = math.sqrt(math.fsum(mean**2))
    return mean if norm <= radius else mean * (radius / norm)


def regret(points: Array, weights: Array, centers: Array, u: Array) -> float:
    """sum_t f_t(x_t) - f_t(u)."""
    return math.fsum(
        value(a, c, x) - value(a, c, u) for a, c, x in zip(weights, centers, points, strict=True)
    )


def variation(weights: Array, centers: Array, radius: float) -> float:
    """V_T: the gradient's change is (a - a') x - (a c - a' c'), largest at the ball's edge."""
    total = []
    for t in range(1, len(weights)):
        slope = abs(weights[t] - weights[t - 1])
        shift = weights[t] * centers[t] - weights[t - 1] * centers[t - 1]
        total.append((slope * radius + math.sqrt(math.fsum(shift**2))) ** 2)
    return math.fsum(total)


def played_variation(points: Array, weights: Array, centers: Array) -> float:
    """The same at the points that were played, not the supremum."""
    total = []
    for t in range(1, len(weights)):
        now = weights[t] * (points[t] - centers[t])
        before = weights[t - 1] * (points[t] - centers[t - 1])
        total.append(math.fsum((now - before) ** 2))
    return math.fsum(total)
