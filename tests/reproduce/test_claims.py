"""Judging claims about means."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwise.errors import UserError
from gradwise.reproduce.claims import (
    INCONCLUSIVE,
    NOT_REPRODUCED,
    REPRODUCED,
    Claim,
    Conclusion,
    judge_equal,
    judge_greater,
)

VALUES = st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=8)


def test_the_interval_is_students():
    judged = judge_greater([1.0, 2.0, 3.0])
    half = 4.302652729911275 * 1.0 / math.sqrt(3)  # t(0.975, 2) s / sqrt(n)
    assert judged.ci95 == pytest.approx((2 - half, 2 + half))
    assert judged.verdict == INCONCLUSIVE
    assert judge_greater([1.9, 2.0, 2.1]).verdict == REPRODUCED


@given(VALUES, st.floats(-10, 10), st.floats(0, 10))
def test_above_and_below_exclude_each_other(values, than, negligible):
    judged = judge_greater(values, than=than, negligible=negligible)
    assert judged.ci95 is not None
    low, high = judged.ci95
    assert (judged.verdict == REPRODUCED) == (low > than)
    if judged.verdict == NOT_REPRODUCED:
        assert high <= than + negligible
    mirrored = judge_greater([-v for v in values], than=-than)
    assert {judged.verdict, mirrored.verdict} != {REPRODUCED}


@given(VALUES, st.floats(0.1, 100))
def test_equality_does_not_know_a_sign(values, within):
    judged = judge_equal(values, within=within)
    assert judged.verdict == judge_equal([-v for v in values], within=within).verdict
    if judged.verdict == REPRODUCED:
        assert abs(judged.mean) < within


def test_one_value_proves_nothing():
    for judged in (judge_greater([5.0]), judge_equal([0.0], within=1.0)):
        assert judged.verdict == INCONCLUSIVE
        assert judged.words() == f"{judged.mean:g} (no interval, n = 1)"


@pytest.mark.parametrize(
    "call",
    [
        lambda: judge_greater([]),
        lambda: judge_greater([math.nan, 1.0]),
        lambda: judge_greater([1.0, 2.0], negligible=-1.0),
        lambda: judge_equal([1.0, 2.0], within=0.0),
        lambda: Claim("a", "b", "maybe"),
        lambda: Conclusion(()),
    ],
)
def test_mistakes(call):
    with pytest.raises(UserError, match="expected"):
        call()


def test_one_claim_that_fails_fails_all():
    good, bad, open_ = (Claim("a", "b", v) for v in (REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE))
    assert Conclusion((good, good)).verdict == REPRODUCED
    assert Conclusion((good, open_)).verdict == INCONCLUSIVE
    assert Conclusion((good, open_, bad)).verdict == NOT_REPRODUCED
