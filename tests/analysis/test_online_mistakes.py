"""What a user can do wrong with the online learners, and what it then says."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from analysis.online_games import UNIT, learners
from gradwise.analysis.online import (
    AdaptMLProd,
    Ball,
    Box,
    OptimisticOMD,
    Projection,
    UniversalLearner,
)
from gradwise.errors import UserError


def test_a_failing_round_leaves_the_learner_as_it_was() -> None:
    for learner in learners(20).values():
        learner.update(lambda x: x - 0.3)
        before = learner.predict()
        calls = []

        def late(x: Tensor, calls: list[int] = calls) -> Tensor:
            calls.append(1)
            return x - 0.1 if len(calls) < 2 else x * math.nan

        with pytest.raises(UserError, match="norm nan"):
            learner.update(late)
        assert torch.equal(learner.predict(), before)
        assert learner.rounds == 1


@pytest.mark.parametrize(
    ("settings_", "words"),
    [
        ({"c": 4.0}, "expected ell wherever c is given"),
        ({"c": 0.0, "ell": 1.0}, "c=0.0"),
        ({"ell": -1.0}, "ell=-1.0"),
        ({"ell": lambda u: math.nan}, "ell=nan at 0.0"),
        ({"strong_convexity": 0.0}, "strong_convexity=0.0"),
        ({"delta": 0.0}, "delta=0.0"),
        ({"gradient_bound": -1.0}, "0 <= gradient_bound < inf"),
        ({"delta": 2.0, "strong_convexity": 1.0}, "no delta beside strong_convexity"),
        ({"gradient_bound": 2.0, "strong_convexity": 1.0}, "no gradient_bound beside"),
        ({"start": torch.zeros(2)}, r"start of shape \(5,\), got \(2,\)"),
    ],
)
def test_settings_are_checked(settings_: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        OptimisticOMD(UNIT, **settings_)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Ball(0.0, torch.zeros(2)), "radius=0.0"),
        (lambda: Ball(1.0, torch.tensor([math.nan])), "center to be finite"),
        (lambda: Ball(1.0, torch.zeros(2, dtype=torch.cfloat)), "center to be real"),
        (lambda: Box(torch.zeros(2), torch.zeros(3)), "low and high of one shape"),
        (lambda: Box(torch.zeros(2), torch.zeros(2)), "low < high somewhere"),
        (lambda: Box(torch.zeros(2), torch.tensor([1.0, -1.0])), "low <= high everywhere"),
        (lambda: Projection(lambda x: x, 0.0, torch.zeros(2)), "diameter=0.0"),
        (lambda: Projection(lambda x: x[:1], 1.0, torch.zeros(2)), "keep the shape"),
        (lambda: Projection(lambda x: x / 0, 1.0, torch.zeros(2)), "projection to be finite"),
        (lambda: UniversalLearner(UNIT), "either rounds or curvatures"),
        (lambda: UniversalLearner(UNIT, 3, curvatures=[1.0]), "either rounds or curvatures"),
        (lambda: UniversalLearner(UNIT, 0), "rounds=0"),
        (lambda: UniversalLearner(UNIT, curvatures=[-1.0]), "strong_convexity=-1.0"),
        (lambda: AdaptMLProd(0), "count=0"),
    ],
)
def test_what_is_built_is_checked(make: Callable[[], object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()


@pytest.mark.parametrize(
    ("slope", "words"),
    [
        (lambda x: x[:2], r"gradient of shape \(5,\), got \(2,\)"),
        (lambda x: x * math.inf, "norm nan"),
        (lambda x: x + 1e101, "norm at most 1e\\+100"),
        (lambda x: x.to(torch.cdouble), "real gradient"),
    ],
)
def test_gradients_are_checked(slope: Callable[[Tensor], Tensor], words: str) -> None:
    for learner in learners(8).values():
        with pytest.raises(UserError, match=words):
            learner.update(slope)


def test_foreign_states_are_refused_and_change_nothing() -> None:
    one = OptimisticOMD(UNIT)
    good = one.state_dict()
    for bad, words in [
        ({}, "got nothing"),
        ({**good, "anchor": torch.zeros(2)}, r"anchor to be a tensor of shape \(5,\)"),
        ({**good, "hint": torch.full((5,), math.nan)}, "hint to be finite"),
        ({**good, "squares": -1.0}, "sound squares"),
        ({**good, "round": 0}, "sound round"),
        (OptimisticOMD(UNIT, strong_convexity=1.0).state_dict(), "strong_convexity=None, got 1.0"),
    ]:
        with pytest.raises(UserError, match=words):
            one.load_state_dict(bad)
    both = UniversalLearner(UNIT, 8)
    both.update(lambda x: x - 0.3)
    kept, state = both.predict(), both.state_dict()
    weights = {**state["weights"], "bound": torch.tensor(math.nan)}
    for bad, words in [
        ({}, "got nothing"),
        (UniversalLearner(UNIT, 99).state_dict(), "5 base learners, got 9"),
        ({**state, "hint": torch.zeros(2)}, "hint to be a tensor"),
        ({**state, "hint": None}, "a hint in the state exactly where"),
        ({**state, "weights": {}}, "log_weights of 5 values"),
        ({**state, "weights": weights}, "finite bound"),
    ]:
        with pytest.raises(UserError, match=words):
            both.load_state_dict(bad)
        assert torch.equal(both.predict(), kept)
