"""The gradient noise scale from gradients, the critical batch size, and what bounds follow."""

from __future__ import annotations

import json

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import nn

from analysis.measured_models import linear, per_sample, regression
from gradwise.analysis.noise import (
    c2_bound,
    critical_batch_size,
    gradient_noise_scale,
)
from reference import noise as scale_oracle
from reference import search_noise as oracle

MSE = nn.MSELoss()


@pytest.mark.parametrize("samples", [None, 24])
def test_the_scale_from_gradients_is_unbiased(samples: int | None) -> None:
    """Over independent draws of single samples; over random partitions of the set."""
    rows = per_sample(linear(), regression())
    exact = scale_oracle.exact(rows)
    rng = np.random.default_rng(1)
    found = []
    for _ in range(1500):
        order = rng.permutation(24)[:18] if samples else rng.integers(24, size=18)
        grads = [[torch.tensor(rows[part].mean(0))] for part in np.split(order, 6)]
        found.append(gradient_noise_scale(grads, 3, samples=samples))
    assert np.mean([x.trace for x in found]) == pytest.approx(exact.trace, rel=0.04)
    assert np.mean([x.signal for x in found]) == pytest.approx(exact.signal, rel=0.08)


@given(st.integers(2, 6), st.integers(1, 50), st.floats(0.01, 100))
def test_the_scale_is_that_of_two_batch_sizes(count: int, b: int, offset: float) -> None:
    grads = np.random.default_rng(count).standard_normal((count, 5)) + offset
    want = scale_oracle.of_cycle(list(grads), b)
    tensors = [[torch.tensor(g[:2]), None, torch.tensor(g[2:])] for g in grads]
    found = gradient_noise_scale(tensors, b)
    assert (found.trace, found.signal) == pytest.approx(want, rel=1e-6, abs=1e-9)
    assert found.scale == (pytest.approx(want.scale, rel=1e-5) if found.signal > 0 else None)
    json.dumps(found.to_dict())


def test_the_watch_estimates_the_same() -> None:
    noise = pytest.importorskip("gradwise.watch.noise")
    grads = np.random.default_rng(0).standard_normal((4, 3)) + 2
    small, big = float((grads**2).sum(1).mean()), float((grads.mean(0) ** 2).sum())
    watch = noise.NoiseScale(batch_size=8)
    for k in range(12):  # not quite the same each time
        watch.add(small * (1 + 1e-9 * k), big, 4.0)
    found = gradient_noise_scale([[torch.tensor(g)] for g in grads], 8)
    assert found.scale == pytest.approx(watch.value, rel=1e-5)


def test_gradients_that_cancel_have_no_scale() -> None:
    found = gradient_noise_scale([[torch.ones(3)], [-torch.ones(3)]], 2)
    assert found.scale is None
    assert found.signal < 0


@given(
    st.lists(
        st.tuples(st.integers(1, 512), st.integers(1, 10**6)),
        min_size=2,
        max_size=8,
        unique_by=lambda run: run[0],
    )
)
def test_the_critical_batch_size_needs_the_fewest_samples(sweep: list[tuple[int, int]]) -> None:
    found = critical_batch_size(sweep)
    assert found.batch_size == oracle.samples_to_threshold(sweep)
    assert found.sizes == tuple(sorted(size for size, _ in sweep))
    assert found.bracketed == (found.sizes[0] < found.batch_size < found.sizes[-1])
    assert critical_batch_size(sweep[::-1]) == found


def test_repeated_and_failed_runs_of_a_sweep() -> None:
    found = critical_batch_size([(8, 100), (8, 200), (16, 90), (16, 70), (32, 1), (32, None)])
    assert found.costs == (1200.0, 1280.0, None)
    assert (found.batch_size, found.bracketed) == (8, False)
    json.dumps(found.to_dict())


def test_bounds_fit_the_reported_numbers() -> None:
    settings_ = {"threshold": 0.5, "lr": 0.1}
    assert c2_bound(2**9, **settings_) == pytest.approx(1280)
    assert c2_bound(2**9, rule="nshb", **settings_) == pytest.approx(128)
    assert c2_bound(2**10, rule="shb", **settings_) == pytest.approx(25.3, abs=0.05)
    assert c2_bound(4, **settings_) == pytest.approx(10)
