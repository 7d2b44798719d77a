"""What the online learners are made of: weights over experts, the grid, projections."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from analysis.online_games import UNIT, unit
from gradwise.analysis.online import AdaptMLProd, Ball, Box, UniversalLearner, geometric_grid

# --- the weights ---


@given(
    st.lists(st.lists(st.floats(-50, 50), min_size=3, max_size=3), min_size=1, max_size=15),
    st.lists(st.floats(-50, 50), min_size=3, max_size=3),
)
def test_weights_and_guesses_meet(rounds: list[list[float]], guess: list[float]) -> None:
    meta = AdaptMLProd(3)
    for losses in rounds:
        p, m = meta.weights(guess)
        assert math.fsum(p) == pytest.approx(1)
        mean = sum(q * z for q, z in zip(p, guess, strict=True))
        assert m == pytest.approx([mean - z for z in guess], abs=1e-9)
        rates, prior = meta.rates, meta.weights()[0]  # the prior is eta W, normalised
        logs = [math.log(q) + e * g for q, e, g in zip(prior, rates, m, strict=True) if q > 0]
        total = math.fsum(math.exp(x - max(logs)) for x in logs)
        tilted = [math.exp(x - max(logs)) / total for x in logs]
        assert [q for q, w in zip(p, prior, strict=True) if w > 0] == pytest.approx(
            tilted, abs=1e-9
        )
        lost = sum(q * x for q, x in zip(p, losses, strict=True))
        meta.update([lost - x for x in losses], m)
        assert all(new <= old for new, old in zip(meta.rates, rates, strict=True))


def test_a_true_guess_leads_at_once() -> None:
    meta = AdaptMLProd(2)
    p, m = meta.weights([0.0, 2.0])
    assert p[0] > 0.5
    assert m[0] > 0 > m[1]


def test_the_first_surprise_moves_nothing_and_any_size_is_survived() -> None:
    meta = AdaptMLProd(2)
    meta.update([5e8, -5e8], [0.0, 0.0])
    assert meta.weights()[0] == pytest.approx([0.5, 0.5])
    for _ in range(100):
        p, m = meta.weights()
        meta.update([1e8 * (1 - p[0]), -1e8 * p[0]], m)
    assert meta.weights()[0][0] > 0.99


def test_the_grid() -> None:
    assert geometric_grid(1) == [1.0]
    for rounds in (2, 7, 8, 1000):
        grid = geometric_grid(rounds)
        assert len(grid) == math.ceil(math.log2(rounds)) + 1
        assert grid[0] == 1 / rounds
        assert 1 <= grid[-1] < 2
    assert len(UniversalLearner(UNIT, 1000).learners) == 12


# --- domains ---


@given(st.lists(st.floats(-1e200, 1e200), min_size=3, max_size=3), st.floats(1e-3, 1e3))
def test_projections_are_nearest_points(values: list[float], radius: float) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    for domain in (Ball(radius, torch.ones(3)), Box(torch.zeros(3), torch.full((3,), radius))):
        y = domain.project(x)
        torch.testing.assert_close(domain.project(y), y)
        inside = domain.start + 0.3 * (unit(3, seed=1) * radius).clamp(-radius / 3, radius / 3)
        # the obtuse angle that characterises a projection
        away = (x - y) / max(1.0, float((x - y).abs().max()))
        assert float(away @ (inside - y)) <= 1e-9 * radius
