"""Diagonal linear networks f(x) = <u * v, x> under large steps, as in the authors' notebooks.

Steps of so few numbers are fastest in plain numpy on the CPU, whatever the device is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gradwise.analysis.sparsity import numerical_rank

START = 0.1  # of u; v starts at 0 [V]
TEST = 1000  # test samples [V]
CHECK = 500  # steps between looks for divergence

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Regression:
    """A noiseless regression whose solution has r entries > 0 and norm 1 [V].

    Attributes:
        inputs: X, (n, d), standard normal.
        targets: y, (n,).
        test_inputs: (1000, d).
        test_targets: (1000,).
        order: the sample of each step of SGD, (steps,).
    """

    inputs: Array
    targets: Array
    test_inputs: Array
    test_targets: Array
    order: NDArray[np.int64]


def regression(n: int, d: int, r: int, steps: int, seed: int) -> Regression:
    """Make one.

    Args:
        n: samples.
        d: coordinates.
        r: those of them that count, <= d.
        steps: of SGD.
        seed: of everything.
    """
    generator = np.random.default_rng(seed)
    inputs, test = generator.standard_normal((n, d)), generator.standard_normal((TEST, d))
    solution = np.abs(generator.standard_normal(d))
    solution[r:] = 0
    solution /= np.linalg.norm(solution)
    order = generator.integers(n, size=steps)
    return Regression(inputs, inputs @ solution, test, test @ solution, order)


def descend(
    problem: Regression,
    rate: float,
    *,
    decay_at: float | None,
    factor: float,
    stochastic: bool,
    records: int,
    least: float,
) -> dict[str, Any] | None:
    """Train by SGD with one sample a step, or by gradient descent, from u = 0.1 and v = 0.

        L(u, v) = |y - X (u * v)|^2 / 2n                                              (12.6) [V]

    Args:
        problem: data, and the order of samples; as many steps as that is long.
        rate: step size.
        decay_at: share of the steps after which it is divided; None for never.
        factor: by which it is divided.
        stochastic: whether one sample a step, or all.
        records: about how many points of the course to keep.
        least: a coordinate of u * v counts as not zero above it.

    Returns:
        Training and test loss, the number of coordinates that are not zero and the rank of the
        Jacobian at the end, and the course of the first and third; None where it diverged.
    """
    x, y, order = problem.inputs, problem.targets, problem.order
    n, d = x.shape
    u, v, steps = np.full(d, START), np.zeros(d), len(order)
    cut = -1 if decay_at is None else int(decay_at * steps)
    every = max(steps // records, 1)
    at: list[int] = []
    losses: list[float] = []
    counts: list[int] = []
    rates: list[float] = []
    with np.errstate(all="ignore"):  # a run may diverge
        for step in range(steps + 1):
            if step == cut:
                rate /= factor
            if step % CHECK == 0 and not np.abs(u).max() < 1e10:
                return None
            if step % every == 0 or step == steps:
                at.append(step)
                losses.append(_loss(x, y, u * v))
                counts.append(_count(u * v, least))
                rates.append(rate)
            if step < steps:
                if stochastic:
                    row = x[order[step]]
                    push = rate * (row @ (u * v) - y[order[step]]) * row
                else:
                    push = rate / n * ((x @ (u * v) - y) @ x)
                u, v = u - push * v, v - push * u
    if not np.isfinite(losses[-1]):
        return None
    jacobian = torch.from_numpy(np.hstack([x * u, x * v]))
    return {
        "train_loss": losses[-1],
        "test_loss": _loss(problem.test_inputs, problem.test_targets, u * v),
        "nonzero": counts[-1],
        "rank": numerical_rank(jacobian),
        "at": at,
        "losses": losses,
        "counts": counts,
        "rates": rates,
    }


def largest(
    train: Callable[[float], dict[str, Any] | None], rates: Sequence[float]
) -> tuple[float, dict[str, Any]] | None:
    """The largest rate at which training does not diverge, and what it gave.

    The authors' rates sit at that edge of their one data set; every other has its own.

    Args:
        train: by rate; None where it diverged.
        rates: to try, from the largest.
    """
    for rate in rates:
        found = train(rate)
        if found is not None:
            return rate, found
    return None


def _loss(x: Array, y: Array, beta: Array) -> float:
    return float(np.mean((x @ beta - y) ** 2) / 2)


def _count(beta: Array, least: float) -> int:
    return int((np.abs(beta) > least).sum())
