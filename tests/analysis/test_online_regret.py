"""The experiment of section 9: regret against the variation of the gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from analysis.online_games import DIM, UNIT, grad, independent, learners, loss, unit
from gradwise.analysis.online import Ball, OptimisticOMD

# --- worlds: centers c_t of f_t(x) = f(x - c_t) ---


def static(rounds: int) -> Tensor:
    return 0.8 * unit(DIM, seed=0).expand(rounds, DIM)


def alternating(rounds: int) -> Tensor:
    signs = torch.ones(rounds, 1, dtype=torch.float64)
    signs[1::2] = -1
    return static(rounds) * signs


def drifting(rounds: int) -> Tensor:
    """Once around a circle."""
    plane = torch.linalg.qr(torch.stack([unit(DIM, seed=0), unit(DIM, seed=1)], 1)).Q
    angle = torch.linspace(0, 2 * math.pi, rounds, dtype=torch.float64)
    return 0.8 * torch.stack([angle.cos(), angle.sin()], 1) @ plane.T


World = Callable[[int], Tensor]
WORLDS: list[World] = [static, alternating, independent, drifting]


def comparator(centers: Tensor) -> Tensor:
    """The best fixed point, by projected gradient descent."""
    x = torch.zeros(DIM, dtype=torch.float64)
    for _ in range(300):
        z = x - centers
        slopes = z * (z.square().sum(1, keepdim=True) + 1)
        x = UNIT.project(x - 0.1 * slopes.mean(0))
    return x


@cache
def regret(name: str, world: World, rounds: int) -> float:
    """Of one of the three learners, against the best fixed point."""
    learner, centers = learners(rounds)[name], world(rounds)
    suffered = 0.0
    for center in centers:
        suffered += loss(learner.predict() - center)
        learner.update(lambda x, center=center: grad(x - center))
    best = comparator(centers)
    return suffered - sum(loss(best - center) for center in centers)


def variation(centers: Tensor) -> float:
    """V_T from below: the supremum over 64 points of the sphere."""
    z = unit(64, DIM, seed=3) - centers[:, None]
    slopes = z * (z.square().sum(2, keepdim=True) + 1)
    return float(slopes.diff(dim=0).square().sum(2).amax(1).sum())


# --- the experiment of section 9 ---


NAMES = ["convex", "strongly", "universal"]


@pytest.mark.parametrize("name", NAMES)
class TestRegret:
    def test_static_world(self, name: str) -> None:
        """V_T = 0: what is lost is lost at the beginning."""
        short, long = regret(name, static, 200), regret(name, static, 800)
        assert 0 < short < 8
        assert long - short < 0.05

    def test_alternating_world(self, name: str) -> None:
        lost = regret(name, alternating, 800)
        assert 0 < lost < math.sqrt(variation(alternating(800))) / 2

    def test_independent_world(self, name: str) -> None:
        """Nearly flat: 16 times the rounds, a few units of regret, a tenth of sqrt(V_T)."""
        short, long = regret(name, independent, 50), regret(name, independent, 800)
        assert long - short < 4
        assert long < math.sqrt(variation(independent(800))) / 10

    def test_drifting_world(self, name: str) -> None:
        """Who follows beats whoever stays."""
        assert regret(name, drifting, 800) < -100

    @pytest.mark.parametrize("world", WORLDS)
    @pytest.mark.parametrize("rounds", [50, 200, 800])
    def test_within_the_root_of_the_variation(self, name: str, world: World, rounds: int) -> None:
        """One C for all worlds and lengths."""
        assert regret(name, world, rounds) <= 6 * (1 + math.sqrt(variation(world(rounds))))


def test_strong_convexity_pays() -> None:
    """Logarithmic against linear growth in the alternating world, where V_T grows as T."""
    convex, *others = (
        regret(name, alternating, 800) - regret(name, alternating, 200) for name in NAMES
    )
    assert max(others) < convex / 3


@pytest.mark.parametrize("world", WORLDS)
def test_the_universal_learner_is_near_the_best_of_both(world: World) -> None:
    convex, strongly, universal = (regret(name, world, 800) for name in NAMES)
    assert universal < min(convex, strongly) + 1


def test_the_hint_pays_where_functions_change_slowly() -> None:
    quadratic = [torch.full((1,), 0.9 * math.sin(t / 40), dtype=torch.float64) for t in range(400)]

    def lost(hint: Any) -> float:
        learner = OptimisticOMD(Ball(1.0, torch.zeros(1)), hint=hint)
        total = 0.0
        for center in quadratic:
            total += float((learner.predict() - center).square().sum())
            learner.update(lambda x, center=center: 2 * (x - center))
        return total

    assert lost("lookahead") < lost("none")
