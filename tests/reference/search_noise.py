"""Search-direction noise by its definition, in float64: recursions run and batches enumerated."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def batch_means(per_sample: Array, b: int, *, replacement: bool) -> Array:
    """The mean gradients [K, d] of all batches of b of the gradients [n, d], equally likely."""
    n = len(per_sample)
    draws = (
        itertools.product(range(n), repeat=b)
        if replacement
        else itertools.combinations(range(n), b)
    )
    return np.array([per_sample[list(draw)].mean(0) for draw in draws])


def variance(per_sample: Array, b: int, *, replacement: bool) -> float:
    """E|g_b - G|^2 over all batches."""
    means = batch_means(per_sample, b, replacement=replacement)
    return float(((means - per_sample.mean(0)) ** 2).sum(1).mean())


def directions(grads: Array, rule: str, beta: float, before: Array | None = None) -> Array:
    """(10.1), step by step: d_1 ... d_T from the gradients [T, d], the buffer zero unless given."""
    held = np.zeros(grads.shape[1]) if before is None else before
    found = []
    for grad in grads:
        if rule == "sgd":
            held = grad
        elif rule == "shb":
            held = grad + beta * held
        else:
            held = (1 - beta) * grad + beta * held
        found.append(held)
    return np.array(found)


def lag_and_spread(
    per_sample: Array, b: int, rule: str, beta: float, before: Array
) -> tuple[float, float]:
    """|E d - G| and E|d - E d|^2 of the next step, over all batches without replacement."""
    batches = batch_means(per_sample, b, replacement=False)
    d = np.array([directions(g[None], rule, beta, before)[0] for g in batches])
    mean = d.mean(0)
    gap = mean - per_sample.mean(0)
    return float(np.sqrt((gap**2).sum())), float(((d - mean) ** 2).sum(1).mean())


def steady(
    mean: Array, var: float, rule: str, beta: float, steps: int = 4000
) -> tuple[float, float]:
    """Lag and spread after many steps: both from the weights that the recursion gives a pulse."""
    pulse = np.zeros((steps, 1))
    pulse[0] = 1.0
    weights = directions(pulse, rule, beta)[:, 0]
    return float(abs(weights.sum() - 1) * np.sqrt((mean**2).sum())), float((weights**2).sum() * var)


def samples_to_threshold(runs: Sequence[tuple[int, int]]) -> int:
    """The batch size with the fewest samples, one run each."""
    return min(runs, key=lambda run: (run[0] * run[1], run[0]))[0]
