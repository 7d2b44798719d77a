"""Oracles for R-Kalman: the filter, its regularised noise and Bayesian linear regression.

Written from the equations with explicit inverses, in float64, on plain vectors: the mean [d], the
covariance [d, d], the Jacobian H = df/dtheta [m, d] and the innovation e = y - f [m].
"""

from __future__ import annotations

import numpy as np

from reference.moments import Array


def regularised_noise(noise: float, h: Array, rho: float) -> Array:
    """``R_rho = (R^-1 + rho R^-1 H H^T R^-1)^-1`` with R = noise I."""
    inverse = np.eye(len(h)) / noise
    return np.linalg.inv(inverse + rho * inverse @ h @ h.T @ inverse)


def gain(p: Array, h: Array, r: Array) -> Array:
    """``K = P H^T (H P H^T + R)^-1``."""
    return p @ h.T @ np.linalg.inv(h @ p @ h.T + r)


def plain_update(mean: Array, p: Array, h: Array, e: Array, noise: float) -> tuple[Array, Array]:
    """The textbook filter: ``mu + K e`` and ``(I - K H) P``."""
    k = gain(p, h, noise * np.eye(len(h)))
    return mean + k @ e, (np.eye(len(p)) - k @ h) @ p


def update(
    mean: Array,
    p: Array,
    h: Array,
    e: Array,
    noise: float,
    rho: float = 0.0,
    lr: Array | float = 1.0,
    drift: Array | float = 0.0,
) -> tuple[Array, Array]:
    """The filter with a gain scaled by lr, regularised noise and process noise.

    For a gain that is not the best one the covariance of the error is
    ``(I - K H) P (I - K H)^T + K R K^T``; lr and drift may be one number a parameter.
    """
    d = len(p)
    r = regularised_noise(noise, h, rho)
    k = np.diag(np.broadcast_to(lr, d)) @ gain(p, h, r)
    left = np.eye(d) - k @ h
    new = left @ p @ left.T + k @ r @ k.T + np.diag(np.broadcast_to(drift, d))
    return mean + k @ e, new


def diagonal_update(
    mean: Array,
    variance: Array,
    h: Array,
    e: Array,
    noise: float,
    rho: float = 0.0,
    lr: Array | float = 1.0,
    drift: Array | float = 0.0,
) -> tuple[Array, Array]:
    """As `update` from a diagonal P, of which only the diagonal is kept afterwards."""
    mean, p = update(mean, np.diag(variance), h, e, noise, rho, lr, drift)
    return mean, np.diag(p).copy()


def bayesian_regression(
    mean: Array, p: Array, h: Array, y: Array, noise: float
) -> tuple[Array, Array]:
    """Posterior of theta ~ N(mean, P) after y ~ N(H theta, noise I), from its precision."""
    before = np.linalg.inv(p)
    after = np.linalg.inv(before + h.T @ h / noise)
    return after @ (before @ mean + h.T @ y / noise), after
