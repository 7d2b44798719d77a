"""`play` and `best_fixed_point`: oracle, closed forms, invariants, mistakes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from analysis.online_games import DIM, UNIT, ell, unit
from analysis.online_losses import linears, one, quadratics
from gradwise.analysis.online import (
    Ball,
    GradFn,
    Loss,
    OptimisticOMD,
    Regret,
    UniversalLearner,
    play,
)
from gradwise.errors import UserError
from reference import regret as oracle


class Fixed:
    """Plays given points, asks for a gradient at each, learns nothing."""

    def __init__(self, domain: Any, points: Tensor) -> None:
        self.domain, self.points, self.at = domain, points, 0

    def predict(self) -> Tensor:
        return self.points[self.at].clone()

    def update(self, grad_fn: GradFn) -> None:
        grad_fn(self.points[self.at])
        self.at += 1


def signs(rounds: int) -> Tensor:
    return torch.tensor([(-1.0) ** t for t in range(rounds)], dtype=torch.float64)[:, None]


@st.composite
def quadratic_games(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, float]:
    """Weights, centers, played points and a radius."""
    seed, rounds, dim = (
        draw(st.integers(0, 10**6)),
        draw(st.integers(1, 12)),
        draw(st.integers(1, 4)),
    )
    radius = draw(st.floats(0.1, 3))
    stream = torch.Generator().manual_seed(seed)
    weights = 0.1 + torch.rand(rounds, generator=stream, dtype=torch.float64)
    centers = draw(st.floats(0, 4)) * torch.randn(rounds, dim, generator=stream).double()
    points = torch.randn(rounds, dim, generator=stream).double()
    points = points / points.norm(dim=1, keepdim=True).clamp(min=radius) * radius
    return weights, centers, points, radius


# --- against the definitions ---


@given(quadratic_games(), st.booleans())
def test_agrees_with_the_oracle(game: tuple[Tensor, Tensor, Tensor, float], total: bool) -> None:
    weights, centers, points, radius = game
    a, c, x = weights.numpy(), centers.numpy(), points.numpy()
    domain = Ball(radius, torch.zeros(centers.shape[1]))

    def supremum(t: int) -> float:
        return oracle.variation(a[t - 2 : t], c[t - 2 : t], radius)

    def whole(x: Tensor) -> Tensor:
        return (weights / 2 * (x - centers).square().sum(1)).sum()

    got = play(
        Fixed(domain, points),
        quadratics(weights, centers),
        suprema=supremum,
        total=whole if total else None,
        tolerance=1e-10,
    )
    u = oracle.best_point(a, c, radius)
    assert got.comparator.gap is not None
    assert 0 <= got.comparator.gap <= 1e-10
    assert got.regret == pytest.approx(oracle.regret(x, a, c, u), abs=1e-9)
    np.testing.assert_allclose(got.comparator.point.numpy(), u, atol=1e-4)
    assert got.gradient_variation is not None
    assert got.played_variation is not None
    assert got.gradient_variation[-1].item() == pytest.approx(oracle.variation(a, c, radius))
    played = oracle.played_variation(x, a, c)
    assert got.played_variation[-1].item() == pytest.approx(played, abs=1e-12)
    assert bool((got.played_variation <= got.gradient_variation + 1e-9).all())


# --- closed forms ---


def test_static_losses_have_no_variation_and_bounded_regret() -> None:
    center = 0.8 * unit(DIM, seed=0)
    games = []
    for rounds in (100, 400):
        learner = OptimisticOMD(UNIT, ell=1.0)
        games.append(play(learner, quadratics(torch.ones(rounds), center.expand(rounds, DIM))))
    short, long = games
    assert short.played_variation is not None
    assert short.played_variation[-1].item() == 0
    assert short.comparator.point.allclose(center, atol=1e-5)
    assert 0 < short.regret <= long.regret < short.regret + 1e-3


def test_alternating_linear_losses() -> None:
    """V_T = 4 |a|^2 (T - 1); an even number of rounds adds up to 0 at every point."""
    slope = torch.tensor([3.0, 0.0, 4.0], dtype=torch.float64)
    losses, gradients = linears(signs(40) * slope)
    learner = OptimisticOMD(Ball(1.0, torch.zeros(3)), hint="none")
    game = play(learner, losses, gradients=gradients, suprema=lambda t: 100.0)
    assert game.played_variation is not None
    expected = 100.0 * torch.arange(40, dtype=torch.float64)
    torch.testing.assert_close(game.played_variation, expected)
    assert game.gradient_variation is not None
    torch.testing.assert_close(game.gradient_variation, expected)
    assert game.comparator_losses.sum().item() == pytest.approx(0, abs=1e-9)
    assert game.regret == pytest.approx(game.losses.sum().item(), abs=1e-6)
    assert 0 < game.regret < 2 * math.sqrt(3900)


def test_an_odd_alternation_leaves_one_loss_over() -> None:
    slope = torch.tensor([3.0, 4.0], dtype=torch.float64)
    losses, gradients = linears(signs(7) * slope)
    game = play(
        Fixed(Ball(2.0, torch.zeros(2)), torch.zeros(7, 2).double()), losses, gradients=gradients
    )
    assert game.comparator.point.tolist() == pytest.approx([-1.2, -1.6], abs=1e-3)
    assert game.regret == pytest.approx(10.0, abs=1e-6)
    torch.testing.assert_close(
        game.cumulative[:3], torch.tensor([10.0, 0.0, 10.0], dtype=torch.float64), atol=1e-5, rtol=0
    )


def test_a_learner_that_plays_the_comparator_has_no_regret() -> None:
    points = torch.full((6, 2), 0.3, dtype=torch.float64)
    losses = quadratics(torch.ones(6), signs(6) * torch.ones(6, 2))
    game = play(Fixed(UNIT2, points), losses, comparator=points[0])
    assert game.regret == 0
    assert game.comparator.gap is None
    assert game.comparator.loss == pytest.approx(game.losses.sum().item())


UNIT2 = Ball(1.0, torch.zeros(2))


# --- invariants ---


def both(losses: list[Loss], comparator: Tensor | None = None) -> Regret:
    return play(OptimisticOMD(UNIT, ell=1.0), losses, comparator=comparator, tolerance=1e-9)


@given(st.integers(0, 10**6), st.integers(1, 8), st.floats(-100, 100))
def test_constants_do_not_count(seed: int, rounds: int, constant: float) -> None:
    centers = torch.randn(rounds, DIM, generator=torch.Generator().manual_seed(seed)).double()
    losses = quadratics(torch.ones(rounds), centers)
    moved: list[Loss] = [lambda x, f=f: f(x) + constant for f in losses]
    one, other = both(losses), both(moved)
    assert other.regret == pytest.approx(one.regret, abs=1e-8)
    assert other.played_variation is not None
    assert one.played_variation is not None
    torch.testing.assert_close(other.played_variation, one.played_variation)


@given(st.integers(0, 10**6), st.integers(1, 8))
def test_no_comparator_asks_for_more_than_the_best_one(seed: int, rounds: int) -> None:
    stream = torch.Generator().manual_seed(seed)
    losses = quadratics(torch.ones(rounds), torch.randn(rounds, DIM, generator=stream).double())
    other = UNIT.project(torch.randn(DIM, generator=stream).double())
    assert both(losses, comparator=other).regret <= both(losses).regret + 1e-9


def test_the_learner_is_left_where_playing_by_hand_leaves_it() -> None:
    centers = torch.randn(9, DIM, generator=torch.Generator().manual_seed(0)).double()
    losses = quadratics(torch.ones(9), centers)
    for make in (
        lambda: OptimisticOMD(UNIT, ell=ell),
        lambda: UniversalLearner(UNIT, rounds=9, ell=ell),
    ):
        played, by_hand = make(), make()
        game = play(played, losses)
        suffered = []
        for f in losses:
            suffered.append(float(f(by_hand.predict())))
            by_hand.update(torch.func.grad(f))
        assert game.losses.tolist() == suffered
        assert torch.equal(played.predict(), by_hand.predict())
        assert played.rounds == 9


def test_gradients_at_a_decision_are_computed_once() -> None:
    calls: list[Tensor] = []

    def gradient(x: Tensor) -> Tensor:
        calls.append(x)
        return x

    def losses(count: int) -> list[Loss]:
        return [lambda x: x.square().sum() / 2] * count

    learner = OptimisticOMD(UNIT, hint="last", start=torch.ones(DIM))
    play(learner, losses(5), gradients=[gradient] * 5, comparator=torch.zeros(DIM))
    assert len(calls) == 5 + 4  # and one of the function before, from the second round on
    calls.clear()
    play(
        learner,
        losses(5),
        gradients=[gradient] * 5,
        comparator=torch.zeros(DIM),
        played_variation=False,
    )
    assert len(calls) == 5


def test_progress_and_plain_values() -> None:
    told: list[tuple[int, int]] = []
    losses = quadratics(torch.ones(3), torch.ones(3, DIM).double())
    game = play(
        OptimisticOMD(UNIT, ell=1.0),
        losses,
        suprema=lambda t: float(t),
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
    plain = json.loads(json.dumps(game.to_dict()))
    assert plain["regret"] == game.regret
    assert plain["gradient_variation"] == [0.0, 2.0, 5.0]
    assert plain["comparator"]["gap"] == game.comparator.gap
    assert plain["cumulative"][-1] == pytest.approx(game.regret)
    told.clear()
    without = play(
        OptimisticOMD(UNIT, ell=1.0),
        losses,
        comparator=torch.zeros(DIM),
        played_variation=False,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert without.to_dict()["played_variation"] is None


# --- mistakes ---


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (lambda: {"losses": []}, "at least one function"),
        (lambda: {"losses": [one], "gradients": []}, "expected 1 gradients"),
        (lambda: {"losses": [one], "comparator": torch.ones(3)}, "comparator of shape"),
        (lambda: {"losses": [one], "comparator": torch.full((DIM,), 2.0)}, "inside the domain"),
        (lambda: {"losses": [one], "comparator": torch.full((DIM,), math.nan)}, "finite"),
        (lambda: {"losses": [one] * 2, "suprema": lambda t: -1.0}, r"got -1.0 for t=2"),
        (lambda: {"losses": [lambda x: x]}, "one real number"),
        (lambda: {"losses": [one, lambda x: x.sum() / 0]}, "loss of round 2 to be finite"),
        (lambda: {"losses": [lambda x: 1.0]}, "a tensor, or gradients beside it"),
        (lambda: {"losses": [one], "tolerance": 0.0}, "0 < tolerance"),
        (lambda: {"losses": [one], "total": lambda x: x}, "one real number"),
        (
            lambda: {"losses": [one], "gradients": [lambda x: x[:1]]},
            r"gradient of shape \(5,\)",
        ),
    ],
)
def test_mistakes(arguments: Callable[[], dict[str, Any]], words: str) -> None:
    given = arguments()
    with pytest.raises(UserError, match=words):
        play(OptimisticOMD(UNIT, ell=1.0), given.pop("losses"), **given)


def test_constant_losses_are_losses() -> None:
    game = play(OptimisticOMD(UNIT, ell=1.0), [lambda x: torch.tensor(3.0)] * 2)
    assert game.regret == 0
    assert game.comparator.gap == 0
