"""Oracle for the implicit step (7.1), where it has a closed form: quadratics in float64."""

from __future__ import annotations

import numpy as np

from reference.moments import Array


def quadratic(
    a: Array, b: Array, theta: Array, rate: Array | float, shift: Array | float = 0.0
) -> Array:
    """``theta' = theta - rate (A theta' - b - shift)``, solved as the linear system that it is.

    ``rate`` is the learning rate times a scale, one number or one for each coordinate.
    """
    rates = np.broadcast_to(np.asarray(rate, dtype=np.float64), theta.shape)
    return np.linalg.solve(np.eye(len(theta)) + rates[:, None] * a, theta + rates * (b + shift))


def one_sample(x: Array, y: float, theta: Array, alpha: float) -> Array:
    """The step on ``(x . theta - y)^2 / 2``: along x, by Sherman and Morrison."""
    return theta - alpha / (1 + alpha * float(x @ x)) * float(x @ theta - y) * x


def explicit(a: Array, b: Array, theta: Array, alpha: float) -> Array:
    """What plain SGD does on the quadratic."""
    return theta - alpha * (a @ theta - b)


def proximal(loss: float, moved: Array, alpha: float) -> float:
    """The quantity that a step may not increase: ``L + ||theta' - theta||^2 / (2 alpha)``."""
    return loss + float(moved @ moved) / (2 * alpha)
