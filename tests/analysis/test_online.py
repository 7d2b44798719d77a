"""The online learners: equal to the oracle round by round, inside X, resumable."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from analysis.online_games import DIM, UNIT, Learner, ell, games, grad, independent, learners
from gradwise.analysis.online import (
    Ball,
    OptimisticOMD,
    Projection,
    UniversalLearner,
)
from reference import online as oracle


def follow(learner: Learner, twin: Any, rounds: Sequence[Callable[[Any], Any]]) -> None:
    for round_ in rounds:
        np.testing.assert_allclose(learner.predict().numpy(), twin.x, rtol=1e-9, atol=1e-9)
        learner.update(round_)
        twin.play(round_)
    np.testing.assert_allclose(learner.predict().numpy(), twin.x, rtol=1e-9, atol=1e-9)


@given(
    games(),
    st.sampled_from(["lookahead", "last", "none"]),
    st.sampled_from([None, ell, lambda u: u * u]),
    st.floats(1, 16),
    st.none() | st.floats(0.01, 10),
)
def test_omd_is_the_oracles(game: Any, hint: Any, smooth: Any, c: float, lam: Any) -> None:
    domain, view, rounds, start = game
    learner = OptimisticOMD(
        domain,
        ell=smooth,
        c=None if smooth is None else c,
        hint=hint,
        start=start,
        strong_convexity=lam,
    )
    twin = oracle.OMD(*view, ell=smooth, c=c, lam=lam, hint=hint)
    assert learner.step_size == pytest.approx(twin.eta, rel=1e-12)
    follow(learner, twin, rounds)
    assert learner.step_size == pytest.approx(twin.eta, rel=1e-9)
    assert learner.rounds == len(rounds)


@given(games(), st.floats(0.1, 10), st.floats(0, 10))
def test_the_step_of_ordinary_smoothness(game: Any, delta: float, bound: float) -> None:
    """Hint g_{t-1}, and D / sqrt(delta + 4 G^2 + sum)."""
    domain, view, rounds, start = game
    learner = OptimisticOMD(domain, hint="last", delta=delta, gradient_bound=bound, start=start)
    follow(learner, oracle.OMD(*view, hint="last", delta=delta, bound=bound), rounds)


@given(
    games(),
    st.lists(st.floats(0.01, 10), max_size=4),
    st.sampled_from(["lookahead", "last", "none"]),
    st.sampled_from([None, ell]),
)
def test_the_universal_learner_is_the_oracles(
    game: Any, grid: list[float], hint: Any, smooth: Any
) -> None:
    domain, view, rounds, start = game
    learner = UniversalLearner(domain, curvatures=grid, ell=smooth, hint=hint, start=start)
    bases = [oracle.OMD(*view, ell=smooth, lam=lam, hint=hint) for lam in (None, *grid)]
    follow(learner, oracle.Universal(bases, hint != "none"), rounds)


# --- properties ---


@given(games(), st.sampled_from(["lookahead", "last", "none"]), st.none() | st.floats(0.01, 10))
def test_iterates_stay_inside_and_steps_never_grow(game: Any, hint: Any, lam: Any) -> None:
    domain, _, rounds, start = game
    smooth = None if hint == "last" else ell
    one = OptimisticOMD(domain, ell=smooth, hint=hint, strong_convexity=lam, start=start)
    both = UniversalLearner(domain, curvatures=[0.1, 1.0], ell=smooth, hint=hint, start=start)
    for round_ in rounds:
        before = one.step_size
        for learner in (one, both):
            x = learner.predict()
            torch.testing.assert_close(domain.project(x), x, rtol=0, atol=1e-13)
            learner.update(round_)
        assert 0 < one.step_size <= before


@given(games())
def test_without_hint_it_is_projected_descent_with_adagrads_norm_step(game: Any) -> None:
    domain, _, rounds, start = game
    learner = OptimisticOMD(domain, hint="none", start=start)
    x, squares = domain.project(start), 1.0
    for round_ in rounds:
        torch.testing.assert_close(learner.predict(), x)
        learner.update(round_)
        g = round_(x)
        x = domain.project(x - domain.diameter / math.sqrt(squares) * g)
        squares += float(g.square().sum())


@given(games(), st.sampled_from(["lookahead", "last", "none"]))
def test_a_single_base_learner_is_the_whole(game: Any, hint: Any) -> None:
    domain, _, rounds, start = game
    one = OptimisticOMD(domain, ell=ell, hint=hint, start=start)
    both = UniversalLearner(domain, curvatures=[], ell=ell, hint=hint, start=start)
    for round_ in rounds:
        assert both.weights == (1.0,)
        assert torch.equal(one.predict(), both.predict())
        one.update(round_)
        both.update(round_)
    assert torch.equal(one.predict(), both.predict())


def test_constant_smoothness_is_the_constant_function() -> None:
    one, other = OptimisticOMD(UNIT, ell=7.0), OptimisticOMD(UNIT, ell=lambda u: 7.0)
    for center in independent(20):
        for learner in (one, other):
            learner.update(lambda x, center=center: grad(x - center))
    assert torch.equal(one.predict(), other.predict())
    assert one.step_size <= 1 / 28


def test_equal_curvatures_share_the_weight_equally() -> None:
    learner = UniversalLearner(UNIT, curvatures=[1.0, 1.0, 1.0])
    for center in independent(30):
        learner.update(lambda x, center=center: grad(x - center))
    _, *twins = learner.weights
    assert twins == pytest.approx([twins[0]] * 3, rel=1e-12)


@pytest.mark.parametrize(
    ("settings_", "gradients"),
    [
        ({}, 2),
        ({"ell": ell, "hint": "last"}, 2),
        ({"ell": 3.0, "hint": "last"}, 1),
        ({"hint": "none"}, 1),
    ],
)
def test_gradients_and_projections_a_round(settings_: dict[str, Any], gradients: int) -> None:
    calls = {"grad": 0, "project": 0}

    def project(x: Tensor) -> Tensor:
        calls["project"] += 1
        return x.clamp(-1, 1)

    def slope(x: Tensor) -> Tensor:
        calls["grad"] += 1
        return x - 0.5

    learner = OptimisticOMD(Projection(project, 2.0, torch.zeros(1)), **settings_)
    calls["project"] = 0
    learner.predict()
    learner.update(slope)
    assert calls == {"grad": gradients, "project": 2}


def test_any_shape_and_autograd() -> None:
    target = torch.full((2, 3), 0.1, dtype=torch.float64)
    slope = torch.func.grad(lambda x: (x - target).square().sum())

    def backward(x: Tensor) -> Tensor:
        x.requires_grad_()
        return torch.autograd.grad((x - target).square().sum(), x)[0]

    one, other = (UniversalLearner(Ball(1.0, torch.zeros(2, 3)), 50) for _ in range(2))
    for _ in range(50):
        one.update(slope)
        other.update(backward)
    assert torch.equal(one.predict(), other.predict())
    torch.testing.assert_close(one.predict(), target, rtol=0, atol=0.02)


def test_decisions_and_gradients_are_copies() -> None:
    for learner in learners(20).values():
        held = torch.zeros(DIM, dtype=torch.float64)

        def slope(x: Tensor, held: Tensor = held) -> Tensor:
            held.copy_(x - 0.3)
            x.zero_()  # a careless user
            return held

        before = learner.predict().clone()
        learner.predict().fill_(9.0)
        assert torch.equal(learner.predict(), before)
        learner.update(slope)
        after = learner.predict().clone()
        held.fill_(9.0)
        assert torch.equal(learner.predict(), after)


def test_a_single_precision_gradient_is_taken_in_double() -> None:
    one, other = OptimisticOMD(UNIT), OptimisticOMD(UNIT)
    one.update(lambda x: torch.full_like(x, 0.25, dtype=torch.float32))
    other.update(lambda x: torch.full_like(x, 0.25))
    assert one.predict().dtype == torch.float64
    assert torch.equal(one.predict(), other.predict())


# --- resuming ---


@pytest.mark.parametrize("name", ["convex", "strongly", "universal"])
def test_resuming(name: str) -> None:
    learner = learners(30)[name]
    centers = independent(30)
    rounds = [lambda x, center=center: grad(x - center) for center in centers]
    for round_ in rounds[:15]:
        learner.update(round_)
    file = io.BytesIO()
    saved = learner.state_dict()
    torch.save(saved, file)
    for round_ in rounds[15:]:
        learner.update(round_)
    file.seek(0)
    resumed = learners(30)[name]
    resumed.load_state_dict(torch.load(file, weights_only=True))
    other = learners(30)[name]
    other.load_state_dict(saved)  # not touched by going on
    for round_ in rounds[15:]:
        resumed.update(round_)
        other.update(round_)
    assert torch.equal(resumed.predict(), learner.predict())
    assert torch.equal(other.predict(), learner.predict())
    assert resumed.rounds == 30
