"""Paired runs: zeros where nothing differs, closed forms, pairing of all randomness."""

from __future__ import annotations

import json
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from analysis.paired_models import DATA, FRESH, TEST, Linear, N, Noisy, pairs, samples, sgd
from gradwise.analysis.stability import (
    Stability,
    index_sequence,
    on_average_stability,
)
from gradwise.errors import UserError
from reference import stability as oracle

# Nothing differs


@pytest.mark.parametrize("model", [Linear, Noisy])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_the_same_sample_in_its_place_changes_nothing(
    model: type[nn.Module], batch_size: int | None
) -> None:
    same = (DATA[0][[2, 5]], DATA[1][[2, 5]])
    same_runs, other = (
        pairs(
            make_model=model,
            replacements=replacements,
            indices=[2, 5],
            batch_size=batch_size,
            seeds=[0, 1],
        )
        for replacements in (same, samples(2, 9))
    )
    assert bool((same_runs.squared_distances == 0).all())
    assert same_runs.squared_distances.shape == (3, 2, 2)
    assert bool((other.squared_distances[2] > 0).all())


def test_no_step_and_no_step_size_change_nothing() -> None:
    assert bool((pairs().squared_distances[0] == 0).all())
    assert bool((pairs().squared_distances[1:] > 0).all())
    assert bool((pairs(make_optimizer=sgd(0.0)).squared_distances == 0).all())


def test_sgd_runs_are_one_until_they_draw_the_sample() -> None:
    indices, steps = [1, 4, 6, 7], 30
    result = pairs(indices=indices, steps=range(steps + 1), batch_size=1, seeds=[3, 4])
    for s, seed in enumerate([3, 4]):
        drawn = index_sequence(N, steps, 1, seed)[:, 0].tolist()
        for k, index in enumerate(indices):
            first = drawn.index(index)  # step `first` is the first to take it
            moved = result.squared_distances[:, s, k] > 0
            assert moved.tolist() == [t > first for t in range(steps + 1)]


# Closed forms


@pytest.mark.parametrize("steps", [1, 7, 80])
def test_least_squares_has_its_closed_form(steps: int) -> None:
    indices = [6, 0, 3, 2]
    result = pairs(indices=indices, steps=steps, seeds=[5], test=TEST)
    torch.manual_seed(5)
    start = Linear().w.detach().numpy()
    x, y = (t.numpy() for t in DATA)
    base = oracle.least_squares(x, y, start, 0.1, steps)
    points = []
    for k, i in enumerate(indices):
        other_x, other_y = x.copy(), y.copy()
        other_x[i], other_y[i] = FRESH[0][k], FRESH[1][k]
        points.append(oracle.least_squares(other_x, other_y, start, 0.1, steps))
    assert result.eps_squared.item() == pytest.approx(oracle.on_average(points, base), rel=1e-9)
    train, test = (float(((a.numpy() @ base - b.numpy()) ** 2).mean() / 2) for a, b in (DATA, TEST))
    assert result.train_loss is not None
    assert result.train_loss.item() == pytest.approx(train)
    assert result.gap.item() == pytest.approx(test - train)


@given(st.integers(2, 12), st.floats(-10, 10), st.floats(-10, 10))
def test_the_mean_moves_by_a_share_of_the_sample(n: int, old: float, new: float) -> None:
    data = (torch.full((n,), old, dtype=torch.float64), torch.zeros(n))
    result = on_average_stability(
        lambda d, seed: d[0].mean(),
        data,
        (torch.full((n,), new, dtype=torch.float64), torch.zeros(n)),
    )
    expected = ((new - old) / n) ** 2
    assert result.eps_squared.item() == pytest.approx(expected, rel=1e-9, abs=1e-25)
    assert result.indices == tuple(range(n))
    assert result.samples == n


# The result


def made(distances: Tensor, train: Tensor | None = None, test: Tensor | None = None) -> Stability:
    t, s, k = distances.shape
    return Stability(
        tuple(range(t)), tuple(range(k)), 9, tuple(range(s)), distances.double(), train, test
    )


@given(
    st.lists(st.floats(0, 10), min_size=12, max_size=12),
    st.lists(st.floats(0, 10), min_size=4, max_size=4),
    st.floats(0.01, 100),
)
def test_bound_and_means_equal_the_formulas(
    distances: list[float], losses: list[float], smoothness: float
) -> None:
    d = torch.tensor(distances, dtype=torch.float64).reshape(2, 2, 3)
    train = torch.tensor(losses, dtype=torch.float64).reshape(2, 2)
    result = made(d, train, train + torch.tensor([[1.0, 3.0], [0.0, -1.0]]))
    for t in range(2):
        eps_squared = float(np.mean(d[t].numpy()))
        assert result.eps_squared[t].item() == pytest.approx(eps_squared)
        expected = oracle.bound(eps_squared, float(np.mean(train[t].numpy())), smoothness)
        assert result.bound(smoothness)[t].item() == pytest.approx(expected)
    np.testing.assert_allclose(result.gap.numpy(), [2.0, -0.5], atol=1e-12)
    by_seed = d.numpy().mean(2)
    assert result.error is not None
    np.testing.assert_allclose(
        result.error.numpy(), by_seed.std(1, ddof=1) / math.sqrt(2), atol=1e-12
    )


def test_error_of_one_seed_is_of_the_samples_and_of_one_sample_none() -> None:
    one = made(torch.tensor([[[1.0, 2.0, 6.0]]]))
    assert one.error is not None
    assert one.error.item() == pytest.approx(np.std([1, 2, 6], ddof=1) / math.sqrt(3))
    assert made(torch.ones(2, 1, 1)).error is None


def test_plain_values() -> None:
    plain = json.loads(json.dumps(pairs(test=TEST).to_dict()))
    assert plain["steps"] == [0, 5, 12]
    assert plain["bound"] is None  # as G is not known
    assert len(plain["gap"]) == 3
    lone = on_average_stability(lambda d, seed: d[0].mean(), DATA, FRESH).to_dict()
    assert lone["steps"] is lone["gap"] is lone["train_loss"] is None
    assert json.loads(json.dumps(lone))["samples"] == N


def test_mistakes_with_a_result_are_told() -> None:
    bare, judged = made(torch.ones(1, 1, 2)), made(torch.ones(1, 1, 2), torch.ones(1, 1))
    for call, message in [
        (lambda: bare.gap, "test samples"),
        (lambda: judged.gap, "test samples"),
        (lambda: bare.bound(1.0), "training loss"),
        (lambda: judged.bound(), "smoothness"),
        (lambda: judged.bound(-1.0), "smoothness"),
    ]:
        with pytest.raises(UserError, match=message):
            call()
