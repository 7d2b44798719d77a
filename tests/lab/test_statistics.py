"""Paired statistics against scipy and statsmodels, the resolution floor, and invariants."""

import dataclasses
import json
import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from gradwise.errors import UserError
from gradwise.lab.statistics import NO_DIFFERENCE, Comparison, compare, mean_ci

STEP = 1 / 1000


@pytest.fixture(scope="module", autouse=True)
def _no_garbage_collection():
    """Statsmodels collects garbage on every call: 0.2 s each in a process with torch in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gc.collect", lambda *args: 0)
        yield


def seeds(values):
    return dict(enumerate(values))


def one(baseline, method, **options):
    """Compare a single method, given as lists by seed, with the baseline."""
    (result,) = compare("base", {"base": seeds(baseline), "m": seeds(method)}, **options)
    return result


# Accuracies as they come: counts of right answers among 1000, 2 to 8 seeds, paired.
counts = st.integers(0, 1000)
pairs = st.lists(st.tuples(counts, counts), min_size=2, max_size=8)
several = st.integers(2, 6).flatmap(
    lambda n: st.lists(st.lists(counts, min_size=n, max_size=n), min_size=2, max_size=5)
)


def accuracies(pairs_of_counts):
    return [[count * STEP for count in side] for side in zip(*pairs_of_counts, strict=True)]


# --- intervals of a mean --------------------------------------------------------------------


def test_mean_ci_is_students():
    values = [0.91, 0.93, 0.92, 0.95]
    mean, interval = mean_ci(values)
    expected = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert mean == pytest.approx(np.mean(values))
    assert interval == pytest.approx(expected)


def test_mean_ci_from_the_table():
    # Standard deviation 1, three values; the t quantile for two degrees of freedom is 4.303.
    mean, interval = mean_ci([1.0, 2.0, 3.0])
    half = 4.303 / math.sqrt(3)
    assert mean == 2.0
    assert interval == pytest.approx((2 - half, 2 + half), abs=1e-3)


def test_mean_ci_of_one_and_of_equal_values():
    assert mean_ci([0.9]) == (0.9, None)
    assert mean_ci([0.5, 0.5, 0.5]) == (0.5, (0.5, 0.5))


@pytest.mark.parametrize("values", [[], [0.9, math.nan], [math.inf], [1e200, 0.0]])
def test_mean_ci_refuses(values):
    with pytest.raises(UserError, match="expected"):
        mean_ci(values)


# --- against the libraries ------------------------------------------------------------------


@given(pairs)
def test_equals_scipys_paired_test_above_the_floor(data):
    base, method = accuracies(data)
    differences = np.subtract(method, base)
    assume(np.std(differences, ddof=1) > STEP / 2)  # the floor is STEP / sqrt(6) = 0.41 STEP
    result = one(base, method, resolution=STEP)
    expected = stats.ttest_rel(method, base)
    interval = expected.confidence_interval(0.95)
    assert result.p == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    assert result.ci95 == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-9)
    assert result.difference == pytest.approx(differences.mean(), abs=1e-12)
    assert result.note == f"{len(data)} pairs"


@given(several)
def test_holms_correction_is_statsmodels(table):
    values = {f"m{i}": seeds([c * STEP for c in row]) for i, row in enumerate(table)}
    together = compare("m0", values, resolution=STEP)
    alone = [
        compare("m0", {"m0": values["m0"], name: values[name]}, resolution=STEP)[0]
        for name in list(values)[1:]
    ]
    raw = [result.p for result in alone]
    assert [r.p for r in together] == pytest.approx(multipletests(raw, method="holm")[1].tolist())
    for corrected, single in zip(together, alone, strict=True):
        assert 0 <= single.p <= corrected.p <= 1
        # Nothing but p and what follows from it depends on the other methods.
        assert dataclasses.replace(corrected, p=single.p, verdict=single.verdict) == single
    by_raw = [r.p for _, r in sorted(zip(raw, together, strict=True), key=lambda pair: pair[0])]
    assert by_raw == sorted(by_raw)


def test_holm_by_hand_and_methods_without_p_do_not_count():
    base = seeds([0.900, 0.910, 0.905])
    values = {
        "base": base,
        "clear": seeds([0.951, 0.960, 0.954]),
        "alone": {0: 0.99},
        "middling": seeds([0.905, 0.925, 0.912]),
        "same": dict(base),
    }
    results = {r.method: r for r in compare("base", values, resolution=STEP)}
    assert list(results) == ["clear", "alone", "middling", "same"]
    raw = {
        name: compare("base", {"base": base, name: values[name]}, resolution=STEP)[0].p
        for name in ("clear", "middling", "same")
    }
    assert raw["clear"] < raw["middling"] < raw["same"] == 1.0
    assert results["alone"].p is None
    # Three tests, not four: factors 3, 2, 1.
    assert results["clear"].p == pytest.approx(3 * raw["clear"])
    assert results["middling"].p == pytest.approx(2 * raw["middling"])
    assert results["same"].p == 1.0


def test_correction_can_take_a_verdict_back():
    base = [0.900, 0.910, 0.905, 0.890]
    good = [0.912, 0.917, 0.921, 0.897]
    alone = one(base, good, resolution=STEP)
    assert 0.01 < alone.p < 0.05
    assert alone.verdict == "better"
    others = {f"other{i}": seeds(np.add(base, [0.01, -0.01, 0.01, -0.01])) for i in range(4)}
    values = {"base": seeds(base), "m": seeds(good), **others}
    crowd = compare("base", values, resolution=STEP)[0]
    assert crowd.p == pytest.approx(5 * alone.p)
    assert crowd.verdict == NO_DIFFERENCE
    assert compare("base", values, resolution=STEP, alpha=0.3)[0].verdict == "better"


# --- the floor ------------------------------------------------------------------------------


def test_equal_differences_are_as_uncertain_as_their_rounding():
    base = [0.900, 0.910, 0.905]
    result = one(base, [b + 2 * STEP for b in base], resolution=STEP)
    error = STEP / math.sqrt(6) / math.sqrt(3)
    assert result.difference == pytest.approx(2 * STEP)
    assert result.p == pytest.approx(2 * stats.t.sf(2 * STEP / error, 2))
    half = stats.t.ppf(0.975, 2) * error
    assert result.ci95 == pytest.approx((2 * STEP - half, 2 * STEP + half))
    assert "less than the metric's resolution" in result.note
    # One step in three seeds is not enough, many are.
    assert one(base, [b + STEP for b in base], resolution=STEP).verdict == NO_DIFFERENCE
    assert one(base, [b + 10 * STEP for b in base], resolution=STEP).verdict == "better"


def test_floor_is_the_rounding_error_of_a_difference():
    """Where the formula comes from: round two numbers to whole steps and look."""
    rng = np.random.default_rng(0)
    a, b = rng.uniform(0, 100, (2, 200_000))
    error = (np.round(a) - np.round(b)) - (a - b)
    assert error.std() == pytest.approx(1 / math.sqrt(6), rel=0.01)


@given(pairs, st.floats(0, 0.1))
def test_a_coarser_metric_is_never_more_certain(data, more):
    base, method = accuracies(data)
    fine = one(base, method, resolution=STEP)
    coarse = one(base, method, resolution=STEP + more)
    assert coarse.p >= fine.p - 1e-12
    assert coarse.ci95[0] <= fine.ci95[0] + 1e-12
    assert coarse.ci95[1] >= fine.ci95[1] - 1e-12


def test_equal_results():
    base = [0.9, 0.8, 0.85]
    exact = one(base, base)
    assert (exact.difference, exact.ci95, exact.p) == (0.0, (0.0, 0.0), 1.0)
    assert exact.verdict == NO_DIFFERENCE
    assert "the same" in exact.note
    floored = one(base, base, resolution=STEP)
    assert (floored.difference, floored.p, floored.verdict) == (0.0, 1.0, NO_DIFFERENCE)
    assert floored.ci95[0] == -floored.ci95[1] < 0


@pytest.mark.parametrize("shift", [0.2, -0.2])
def test_equal_differences_of_a_metric_without_resolution_prove_nothing(shift):
    base = [0.9, 0.7, 0.1]
    method = [round(b + shift, 1) for b in base]
    # As floats the differences are not quite equal, which must not be taken for a spread.
    assert len({m - b for m, b in zip(method, base, strict=True)}) > 1
    result = one(base, method)
    assert result.difference == pytest.approx(shift)
    assert result.ci95 is None
    assert result.p is None
    assert result.verdict == NO_DIFFERENCE
    assert "spread cannot be judged" in result.note


def test_rounding_in_the_last_bit_is_no_difference():
    result = one([0.3, 0.6, 0.9], [0.1 + 0.2, 0.6, 0.9])
    assert result.difference > 0
    assert result.p == 1.0
    assert "the same" in result.note


def test_the_smallest_floats_do_not_underflow_to_a_division_by_zero():
    result = one([0.0] * 16, [5e-324, -5e-324] * 8)
    assert (result.p, result.verdict) == (1.0, NO_DIFFERENCE)


# --- seeds ----------------------------------------------------------------------------------


def test_only_common_seeds_are_paired_and_the_note_says_which_are_missing():
    base = {0: 0.90, 1: 0.91, 2: 0.92, 3: 0.10}
    method = {1: 0.95, 0: 0.93, 2: 0.99, 7: 0.10, 8: 0.2}
    (result,) = compare("base", {"m": method, "base": base}, resolution=STEP)
    expected = one([0.90, 0.91, 0.92], [0.93, 0.95, 0.99], resolution=STEP)
    assert dataclasses.replace(result, note="") == dataclasses.replace(expected, note="")
    assert result.note == "3 pairs; m has no result for seed 3; base has no result for seeds 7, 8"


@pytest.mark.parametrize(
    ("method", "difference", "note"),
    [({0: 0.75}, 0.25, "1 pair; m has no"), ({}, None, "0 pairs; m has no"), ({5: 0.5}, None, "0")],
)
def test_fewer_than_two_pairs(method, difference, note):
    (result,) = compare("base", {"base": {0: 0.5, 1: 0.5}, "m": method})
    assert result.difference == difference
    assert (result.ci95, result.p, result.verdict) == (None, None, NO_DIFFERENCE)
    assert result.note.startswith(note)
    assert result.note.endswith("two seeds are the least that an interval and a test need")


def test_baseline_without_any_result():
    (result,) = compare("base", {"base": {}, "m": {0: 0.5, 1: 0.6}})
    assert result.difference is None
    assert "base has no result for seeds 0, 1" in result.note


def test_baseline_alone_has_nothing_to_compare():
    assert compare("base", {"base": {0: 0.5}}) == []


# --- invariants -----------------------------------------------------------------------------


@given(pairs)
def test_swapping_the_sides_flips_everything(data):
    base, method = accuracies(data)
    there = one(base, method, resolution=STEP)
    back = one(method, base, resolution=STEP)
    assert back.p == pytest.approx(there.p)
    assert back.difference == pytest.approx(-there.difference)
    assert back.ci95 == pytest.approx((-there.ci95[1], -there.ci95[0]))
    flipped = {"better": "worse", "worse": "better", NO_DIFFERENCE: NO_DIFFERENCE}
    assert back.verdict == flipped[there.verdict]
    # So does the direction of the metric, and it leaves the numbers alone.
    loss = one(base, method, resolution=STEP, higher_is_better=False)
    assert loss.verdict == flipped[there.verdict]
    assert dataclasses.replace(loss, verdict=there.verdict) == there


@given(pairs, st.integers(-2000, 2000))
def test_a_constant_on_both_sides_changes_nothing(data, shift):
    base, method = accuracies(data)
    plain = one(base, method, resolution=STEP)
    moved = one(
        [b + shift * STEP for b in base], [m + shift * STEP for m in method], resolution=STEP
    )
    assert moved.p == pytest.approx(plain.p, rel=1e-6, abs=1e-9)
    assert moved.difference == pytest.approx(plain.difference, abs=1e-9)
    assert moved.ci95 == pytest.approx(plain.ci95, abs=1e-9)


@given(pairs, st.integers(1, 500))
def test_a_larger_difference_is_more_certain(data, more):
    base, method = accuracies(data)
    near = one(base, method, resolution=STEP)
    assume(near.difference >= 0)
    far = one(base, [m + more * STEP for m in method], resolution=STEP)
    assert far.p <= near.p + 1e-12
    assert far.difference > near.difference
    assert near.verdict != "better" or far.verdict == "better"


@given(
    st.lists(
        st.tuples(*[st.floats(allow_nan=False, min_value=-1e150, max_value=1e150)] * 2),
        max_size=5,
    ),
    st.sampled_from([0.0, 5e-324, 1e-300, STEP, 1e300]),
)
def test_whatever_comes_in_json_goes_out(data, resolution):
    base, method = [a for a, _ in data], [b for _, b in data]
    result = one(base, method, resolution=resolution)
    json.dumps(dataclasses.asdict(result), allow_nan=False)
    assert result.p is None or 0 <= result.p <= 1
    assert (result.p is None) == (result.ci95 is None)
    assert result.ci95 is None or result.ci95[0] <= result.difference <= result.ci95[1]
    assert result.verdict in ("better", "worse", NO_DIFFERENCE)
    for value in (result.difference, result.p):
        assert value is None or type(value) is float


def test_level_of_the_verdicts_holds_when_there_is_nothing_to_find():
    """5 % of the comparisons of equals may be called different; 400 tries allow 2.4 to 8.6 %."""
    rng = np.random.default_rng(1)
    found = 0
    for _ in range(400):
        base, method = np.round(rng.normal(0.9, 0.02, (2, 5)) / STEP) * STEP
        result = one(base.tolist(), method.tolist(), resolution=STEP)
        found += result.verdict != NO_DIFFERENCE
    assert 0.024 <= found / 400 <= 0.086


# --- mistakes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("baseline", "options", "message"),
    [
        ("sdg", {}, "got 'sdg': did you mean 'sgd'"),
        ("sgd", {"resolution": -0.1}, "resolution=-0.1"),
        ("sgd", {"resolution": math.nan}, "resolution=nan"),
        ("sgd", {"resolution": math.inf}, "resolution=inf"),
        ("sgd", {"alpha": 0.0}, "0 < alpha < 1, got alpha=0.0"),
        ("sgd", {"alpha": 1.0}, "got alpha=1.0"),
    ],
)
def test_mistakes_in_the_arguments(baseline, options, message):
    with pytest.raises(UserError, match=message):
        compare(baseline, {"sgd": {0: 0.5, 1: 0.6}, "clip": {0: 0.5, 1: 0.6}}, **options)


def test_no_values_at_all():
    with pytest.raises(UserError, match="got 'sgd', there are no values"):
        compare("sgd", {})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e151])
@pytest.mark.parametrize("where", ["sgd", "clip"])
def test_values_that_are_not_finite_are_named(where, value):
    values = {"sgd": {0: 0.5, 4: 0.6}, "clip": {0: 0.5, 4: 0.6}}
    values[where][4] = value
    with pytest.raises(UserError, match=f"finite values of '{where}' at seed 4") as caught:
        compare("sgd", values)
    assert str(caught.value).endswith(f"got {value}")


def test_a_comparison_is_a_frozen_value():
    result = Comparison("m", 0.1, (0.0, 0.2), 0.04, "better", "3 pairs")
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.p = 0.5
