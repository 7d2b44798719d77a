"""How the standard deviations of gradients change over a training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from gradwise.reproduce.experiments._cifar import Matrix, Trace

__all__ = ["PARTS", "Trends", "apart", "sound", "trends_of"]

PARTS = 10
"""The first and the last of so many parts of a training are compared."""


@dataclass(frozen=True)
class Trends:
    """How the gradients of a model changed under one method, seed by seed, as powers of ten.

    Attributes:
        fall: [S] how far the global std fell from the first tenth of training to the last.
        lower: [S] of all pairs of stretches, the share where the later one has the lower std.
        layers: the tensors' names whose gradient was never zero for a whole tenth.
        change: [S, E] what each of these tensors' std changed by between the same two tenths.
        spread: [S, 2] the largest std of a tensor over the smallest, in the two tenths.
        ends: [S, 2] the global std in the two tenths.
    """

    fall: Matrix
    lower: Matrix
    layers: tuple[str, ...]
    change: Matrix
    spread: Matrix
    ends: Matrix


def sound(one: Trace) -> bool:
    """Whether a training is long enough, and its global std always a positive number.

    Args:
        one: the training.
    """
    return bool(len(one.steps) >= PARTS and np.all(np.isfinite(one.sigma) & (one.sigma > 0)))


def trends_of(ones: list[Trace], stretches: int) -> Trends | None:
    """What became of the standard deviations; None without a training.

    Means are those of logarithms, so that a burst counts no more than a lull.

    Args:
        ones: trainings of one model with one method, of at least ten records each.
        stretches: parts of a training that are compared in pairs.
    """
    if not ones:
        return None
    fall, lower, change, spread, ends = [], [], [], [], []
    for one in ones:
        count = len(one.steps) // PARTS
        log = np.log10(one.sigma)
        first, last = log[:count].mean(), log[-count:].mean()
        means = [float(part.mean()) for part in np.array_split(log, min(stretches, len(log)))]
        tau = float(stats.kendalltau(range(len(means)), means).statistic)
        early, late = _tenth(one.std[:count]), _tenth(one.std[-count:])
        fall.append(first - last)
        lower.append((1 - tau) / 2)
        change.append(late - early)
        spread.append([np.nanmax(tenth) - np.nanmin(tenth) for tenth in (early, late)])
        ends.append([10**first, 10**last])
    kept = np.flatnonzero(np.isfinite(np.array(change)).all(axis=0))
    names = tuple(ones[0].layers[place] for place in kept)
    return Trends(
        np.array(fall),
        np.array(lower),
        names,
        np.array(change)[:, kept],
        np.array(spread),
        np.array(ends),
    )


def _tenth(std: Matrix) -> Matrix:
    """[E] mean logarithms; NaN for a tensor whose gradient was zero or no number all the time."""
    usable = np.isfinite(std) & (std > 0)
    total = np.where(usable, np.log10(np.where(usable, std, 1.0)), 0.0).sum(axis=0)
    count = usable.sum(axis=0)
    found: Matrix = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return found


def apart(change: Matrix) -> list[float]:
    """How far layers that change differently go apart, seed by seed.

    The quarter of the layers that rose most and the quarter that fell most are chosen by the other
    seeds, so that chance alone gives 0 on average. Empty for fewer than two seeds or layers.

    Args:
        change: [S, E] of each layer, as powers of ten.

    Examples:
        >>> apart(np.array([[0.0, 1.0], [0.5, 1.5]]))
        [1.0, 1.0]
        >>> apart(np.array([[0.0, 1.0], [1.0, 0.0]]))
        [-1.0, -1.0]
    """
    seeds, layers = change.shape
    if seeds < 2 or layers < 2:
        return []
    group = max(1, layers // 4)
    found = []
    for seed in range(seeds):
        order = np.argsort(np.delete(change, seed, axis=0).mean(axis=0), kind="stable")
        own = change[seed, order]
        found.append(float(own[-group:].mean() - own[:group].mean()))
    return found
