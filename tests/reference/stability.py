"""Oracle for paired runs, in numpy, from section 14's equations alone."""

from __future__ import annotations

import math

import numpy as np

Array = np.ndarray


def least_squares(x: Array, y: Array, start: Array, lr: float, steps: int) -> Array:
    """Gradient descent on (1/2n) |X w - y|^2 in closed form, by the eigenvectors of X^T X / n."""
    n = len(x)
    values, vectors = np.linalg.eigh(x.T @ x / n)
    shrink = (1 - lr * values) ** steps
    # lr * sum_{s<steps} (1 - lr h)^s, which is lr * steps where h = 0
    gain = np.where(values > 1e-12, (1 - shrink) / np.maximum(values, 1e-12), lr * steps)
    return vectors @ (shrink * (vectors.T @ start) + gain * (vectors.T @ (x.T @ y / n)))


def on_average(points: list[Array], base: Array) -> float:
    """(14.3) over these neighbours' parameters."""
    return math.fsum(float(((p - base) ** 2).sum()) for p in points) / len(points)


def shallow_step(weight: Array, x: Array, y: Array, lr: float) -> Array:
    """One step (14.2) of (14.1) with tanh, on these samples, weight by weight."""
    m, d = weight.shape
    mu = [(1 if k % 2 == 0 else -1) / math.sqrt(m) for k in range(m)]
    new = weight.copy()
    for row, target in zip(x, y, strict=True):
        pre = [math.fsum(float(weight[k, j]) * float(row[j]) for j in range(d)) for k in range(m)]
        f = math.fsum(mu[k] * math.tanh(pre[k]) for k in range(m))
        for k in range(m):
            slope = (f - float(target)) * mu[k] * (1 - math.tanh(pre[k]) ** 2) / len(x)
            for j in range(d):
                new[k, j] -= lr * slope * float(row[j])
    return new


def bound(eps_squared: float, train_loss: float, smoothness: float) -> float:
    """The right side of (14.4)."""
    return smoothness / 2 * eps_squared + math.sqrt(2 * smoothness * train_loss) * math.sqrt(
        eps_squared
    )
