"""Oracle for diagonal linear networks, in numpy and plain loops, from (13.1) to (13.5) alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Array = np.ndarray


def residuals(x: Array, y: Array, plus: Array, minus: Array) -> list[float]:
    """<beta, x_i> - y_i of each sample, (13.1)."""
    beta = [float(p) ** 2 - float(m) ** 2 for p, m in zip(plus, minus, strict=True)]
    return [
        math.fsum(b * float(v) for b, v in zip(beta, row, strict=True)) - float(target)
        for row, target in zip(x, y, strict=True)
    ]


def loss(x: Array, y: Array, plus: Array, minus: Array) -> float:
    """L of (13.2)."""
    return math.fsum(r * r for r in residuals(x, y, plus, minus)) / (4 * len(x))


def train(
    x: Array, y: Array, alpha: float, gamma: float, batches: Sequence[Sequence[int]]
) -> tuple[Array, Array, float]:
    """(13.2) on these batches in turn: w+, w-, and gamma times the sum of the losses before."""
    plus, minus, integral = np.full(x.shape[1], alpha), np.full(x.shape[1], alpha), 0.0
    for batch in batches:
        r = residuals(x, y, plus, minus)
        integral += gamma * loss(x, y, plus, minus)
        for j in range(x.shape[1]):
            g = math.fsum(r[i] * float(x[i, j]) for i in batch) / len(batch)
            plus[j] -= gamma * g * plus[j]
            minus[j] += gamma * g * minus[j]
    return plus, minus, integral


def flow(
    x: Array, y: Array, alpha: float, gamma: float, dt: float, increments: Array
) -> tuple[Array, Array]:
    """Euler-Maruyama on w+- themselves: (13.3) as it stands. Increments (steps, n) have var dt."""
    n, d = x.shape
    plus, minus = np.full(d, alpha), np.full(d, alpha)
    for db in increments:
        r = np.array(residuals(x, y, plus, minus))
        noise = 2 * math.sqrt(gamma * loss(x, y, plus, minus) / n) * (x.T @ db)
        grad = x.T @ r / n
        plus = plus + plus * (-grad * dt + noise)
        minus = minus + minus * (grad * dt - noise)
    return plus, minus


def potential(beta: Sequence[float], alpha: Sequence[float]) -> float:
    """phi_alpha of (13.5), for alphas of ordinary size."""
    return 0.25 * math.fsum(
        b * math.asinh(b / (2 * a * a)) - math.sqrt(b * b + 4 * a**4)
        for b, a in zip(beta, alpha, strict=True)
    )


def interpolator(x: Array, y: Array, alpha: Array) -> Array:
    """The beta of the smallest phi_alpha with X beta = y, by Newton's method on the dual.

    beta = 2 alpha^2 sinh(X^T nu), with the nu that makes it interpolate: the minimum of the convex
    function sum_j 2 alpha_j^2 cosh((X^T nu)_j) - <nu, y>. Steps are halved until that falls.
    """

    def dual(nu: Array) -> float:
        with np.errstate(over="ignore"):
            return float((2 * alpha**2 * np.cosh(x.T @ nu)).sum() - nu @ y)

    nu = np.zeros(len(x))
    for _ in range(500):
        z = x.T @ nu
        grad = x @ (2 * alpha**2 * np.sinh(z)) - y
        if np.abs(grad).max() < 1e-13:
            break
        step = np.linalg.solve((x * (2 * alpha**2 * np.cosh(z))) @ x.T, grad)
        t = 1.0
        while not dual(nu - t * step) <= dual(nu) - 1e-4 * t * float(grad @ step) and t > 1e-12:
            t /= 2
        nu = nu - t * step
    beta = 2 * alpha**2 * np.sinh(x.T @ nu)
    assert np.abs(x @ beta - y).max() < 1e-9, "Newton's method got stuck"
    return beta
