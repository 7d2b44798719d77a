"""The oracle of the noise scale: against a noise that is known, and against numbers by hand."""

from __future__ import annotations

import numpy as np
import pytest

from reference import noise as oracle

DRAWS = 4000


def test_by_hand() -> None:
    # |G|^2 + tr / 8 = 16.5 and |G|^2 + tr / 64 = 5.5625
    found = oracle.solve(16.5, 5.5625, 8, 64)
    assert found == pytest.approx((100.0, 4.0))
    assert found.scale == pytest.approx(25.0)
    # gradients (1, 0) and (3, 4): mean (2, 2), squared deviations 5 and 5
    assert oracle.exact(np.array([[1.0, 0.0], [3.0, 4.0]])) == (5.0, 8.0)
    # two micro-batches with (1, 0) and (3, 4): small (1 + 25) / 2, big 8; tr = 5 / (1 - 1/2)
    assert oracle.of_cycle([np.array([1.0, 0.0]), np.array([3.0, 4.0])], 1) == (
        pytest.approx((10.0, 3.0))
    )


def test_average_is_the_recursion() -> None:
    values, ema = [3.0, -1.0, 4.0, 1.0, 5.0], 0.0
    for value in values:
        ema = 0.9 * ema + 0.1 * value
    assert oracle.average(values, 0.9) == pytest.approx(ema / (1 - 0.9 ** len(values)))


@pytest.mark.parametrize("nested", [True, False], ids=["same samples", "other samples"])
def test_unbiased(nested: bool) -> None:
    # A known gradient and a known, anisotropic covariance, with correlations.
    rng = np.random.default_rng(7)
    mean = np.array([1.2, -0.8, 1.0, 0.6, 0.75])
    root = rng.normal(size=(5, 5)) @ np.diag([5.0, 3.0, 1.0, 0.5, 0.1])
    trace, signal = (root**2).sum(), (mean**2).sum()
    b, passes = 8, 8
    found = np.empty((DRAWS, 2))
    for k in range(DRAWS):
        micro = [mean + (rng.normal(size=(b, 5)) @ root.T).mean(0) for _ in range(passes)]
        if nested:
            found[k] = oracle.of_cycle(micro, b)
        else:
            big = mean + (rng.normal(size=(b * passes, 5)) @ root.T).mean(0)
            small = float((micro[0] ** 2).sum())
            found[k] = oracle.solve(small, float((big**2).sum()), b, b * passes)
    for values, truth in zip(found.T, (trace, signal), strict=True):
        error = values.std(ddof=1) / np.sqrt(DRAWS)
        assert abs(values.mean() - truth) < 3.5 * error
        assert error < 0.05 * truth  # or the line above would say nothing
    assert found[:, 1].min() < 0 < found[:, 1].max()  # why a single step's ratio means nothing


def test_all_passes_leave_less_to_chance_than_the_first() -> None:
    rng = np.random.default_rng(11)
    mean, b, passes = np.full(30, 0.3), 4, 8
    every, first = [], []
    for _ in range(600):
        micro = [mean + rng.normal(size=(b, 30)).mean(0) for _ in range(passes)]
        big = float((np.mean(micro, axis=0) ** 2).sum())
        every.append(oracle.of_cycle(micro, b).trace)
        first.append(oracle.solve(float((micro[0] ** 2).sum()), big, b, b * passes).trace)
    assert np.mean(every) == pytest.approx(30, rel=0.02)
    assert np.mean(first) == pytest.approx(30, rel=0.05)
    assert np.std(every) < 0.5 * np.std(first)
