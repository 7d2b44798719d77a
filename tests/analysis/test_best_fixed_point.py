"""`best_fixed_point`: what its certificate promises."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from analysis.online_games import DIM, UNIT
from analysis.online_losses import one, quadratics
from gradwise.analysis.online import Ball, Box, Projection, best_fixed_point
from gradwise.errors import UserError

DOMAINS: list[Any] = [
    Ball(1.0, torch.ones(4)),
    Box(torch.zeros(4), torch.tensor([1.0, 2.0, 0.0, 5.0])),
    Projection(lambda x: x.clamp(-1, 1) if x.ndim else x, diameter=4.0, start=torch.zeros(4)),
]


@pytest.mark.parametrize("domain", DOMAINS, ids=lambda domain: type(domain).__name__)
@given(st.integers(0, 10**6), st.floats(-2, 3))
def test_no_point_is_better_by_more_than_the_gap(domain: Any, seed: int, size: float) -> None:
    """Ill-conditioned, quartic, of any size: what is certified holds for random points."""
    stream = torch.Generator().manual_seed(seed)
    root = torch.randn(4, 4, generator=stream).double() * torch.logspace(0, 1, 4).double()
    target = torch.randn(4, generator=stream).double()

    def f(x: Tensor) -> Tensor:
        z = (x - target) @ root
        return 10**size * (z.square().sum() + z.pow(4).sum() / 100)

    best = best_fixed_point(f, domain, tolerance=1e-3 * 10**size)
    assert best.gap is not None
    assert best.gap <= 1e-3 * 10**size
    torch.testing.assert_close(domain.project(best.point), best.point, rtol=0, atol=1e-14)
    near = best.point + 10.0 ** torch.randint(-4, 1, (64, 1), generator=stream) * torch.randn(
        64, 4, generator=stream
    )
    for x in near:
        assert f(domain.project(x)).item() >= best.loss - best.gap - 1e-9 * abs(best.loss)


def test_a_search_cut_short_says_how_good_it_is() -> None:
    scales = torch.logspace(0, 4, 5).double()
    goal = torch.full((5,), 0.3, dtype=torch.float64)
    best = best_fixed_point(
        lambda x: (scales * (x - goal).square()).sum(), UNIT, max_iterations=3, tolerance=1e-12
    )
    assert best.iterations == 3
    assert best.gap is not None
    assert best.gap >= best.loss > 1e-12  # the smallest value is 0


def test_more_iterations_are_never_worse() -> None:
    """Values may rise on the way; what is given is the best point seen, and the best bound."""
    scales = torch.logspace(0, 3, 5).double()
    goal = torch.full((5,), 0.3, dtype=torch.float64)
    found = [
        best_fixed_point(
            lambda x: (scales * (x - goal).square()).sum() + (x - goal).pow(4).sum(),
            UNIT,
            max_iterations=k,
            tolerance=1e-12,
        )
        for k in range(1, 30)
    ]
    losses, floors = [f.loss for f in found], [f.loss - (f.gap or 0.0) for f in found]
    assert losses == sorted(losses, reverse=True)
    assert all(b >= a - 1e-9 * abs(a) for a, b in pairwise(floors))
    assert len(set(losses)) < len(losses)  # or this would not have been put to the test


def test_functions_are_summed_and_iterations_told() -> None:
    centers = torch.randn(7, DIM, generator=torch.Generator().manual_seed(5)).double()
    losses = quadratics(torch.arange(1, 8), centers)
    told: list[tuple[int, int]] = []
    best = best_fixed_point(
        losses, UNIT, max_iterations=50, progress=lambda done, most: told.append((done, most))
    )
    whole = best_fixed_point(
        lambda x: sum((f(x) for f in losses), torch.zeros(())), UNIT, max_iterations=50
    )
    torch.testing.assert_close(best.point, whole.point, rtol=0, atol=1e-9)
    assert told == [(k + 1, 50) for k in range(best.iterations)]
    for total, gradient in (([], None), (losses, lambda x: x)):
        with pytest.raises(UserError, match="at least one function"):
            best_fixed_point(total, UNIT, gradient=gradient)


def test_a_good_start_needs_no_iteration() -> None:
    goal = torch.full((5,), 0.1, dtype=torch.float64)
    best = best_fixed_point(lambda x: (x - goal).square().sum(), UNIT, start=goal)
    assert best.iterations == 0
    assert best.gap == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"max_iterations": 0}, "max_iterations >= 1"),
        ({"tolerance": math.inf}, "0 < tolerance < inf"),
        ({"start": torch.zeros(2)}, "start of shape"),
    ],
)
def test_mistakes_of_the_search(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        best_fixed_point(one, UNIT, **arguments)
