"""Functions, learners and whole games that the tests of the online learners share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import torch
from torch import Tensor

from gradwise.analysis.online import (
    Ball,
    Box,
    Domain,
    OptimisticOMD,
    UniversalLearner,
)
from reference import online as oracle

DIM = 5
UNIT = Ball(1.0, torch.zeros(DIM))
Learner = OptimisticOMD | UniversalLearner


def ell(u: float) -> float:
    """Of f below: ||Hess f|| = 1 + 3 |z|^2 <= 4 + 3 ||grad f||."""
    return 4 + 3 * u


def loss(z: Tensor) -> float:
    """|z|^4 / 4 + |z|^2 / 2: 1-strongly convex, not smooth in the ordinary sense."""
    square = float(z.square().sum())
    return square**2 / 4 + square / 2


def grad(z: Any) -> Any:
    return z * ((z * z).sum() + 1)


def unit(*shape: int, seed: int) -> Tensor:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x / x.norm(dim=-1, keepdim=True)


def independent(rounds: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return 0.3 * torch.randn(rounds, DIM, generator=generator, dtype=torch.float64)


def learners(rounds: int) -> dict[str, Learner]:
    return {
        "convex": OptimisticOMD(UNIT, ell=ell),
        "strongly": OptimisticOMD(UNIT, ell=ell, strong_convexity=1.0),
        "universal": UniversalLearner(UNIT, rounds, ell=ell),
    }


@st.composite
def games(draw: st.DrawFn) -> tuple[Domain, tuple[Any, ...], list[Callable[[Any], Any]], Tensor]:
    """A domain, the oracle's view of it, gradient functions for arrays and tensors, a start."""
    dim = draw(st.integers(1, 4))
    numbers = st.lists(st.floats(-3, 3), min_size=dim, max_size=dim).map(np.array)
    start = draw(numbers)
    if draw(st.booleans()):
        center, radius = draw(numbers), draw(st.floats(0.1, 10))
        domain: Domain = Ball(radius, torch.from_numpy(center))
        view = (oracle.ball(radius, center), 2 * radius, start)
    else:
        low = draw(numbers)
        high = low + np.abs(draw(numbers)) + 0.1
        domain = Box(torch.from_numpy(low), torch.from_numpy(high))
        view = (oracle.box(low, high), float(np.sqrt(np.sum((high - low) ** 2))), start)
    size = 10 ** draw(st.floats(-3, 3))
    targets = draw(st.lists(numbers, min_size=1, max_size=12))

    def slope(target: Any) -> Callable[[Any], Any]:
        def at(x: Any) -> Any:
            z = x - (torch.from_numpy(target) if isinstance(x, Tensor) else target)
            return size * z * ((z * z).sum() + 1)

        return at

    return domain, view, [slope(target) for target in targets], torch.from_numpy(start)
