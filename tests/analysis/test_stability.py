"""Paired runs: zeros where nothing differs, closed forms, pairing of all randomness."""

from __future__ import annotations

import contextlib
import json
import math
import random
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.utils.data import DataLoader, TensorDataset

from gradwise.analysis._neighbours import seeded
from gradwise.analysis.stability import (
    Stability,
    half_squared_error,
    index_sequence,
    neighbour,
    on_average_stability,
    paired_runs,
)
from gradwise.errors import UserError
from reference import stability as oracle

Data = tuple[Tensor, Tensor]
N, D = 8, 3


def samples(count: int, seed: int) -> Data:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, D, generator=generator, dtype=torch.float64)
    return x, x.sum(1) + torch.randn(count, generator=generator, dtype=torch.float64)


DATA, FRESH, TEST = samples(N, 1), samples(4, 2), samples(50, 3)


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(D, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w


class Noisy(nn.Module):
    """Dropout and batch norm, and noise in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(D, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 1)
        ).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)[:, 0] + 0.01 * torch.randn(len(x), dtype=torch.float64)


def sgd(lr: float) -> Callable[[nn.Module], Optimizer]:
    return lambda model: SGD(model.parameters(), lr=lr)


def pairs(**changes: Any) -> Stability:
    given: dict[str, Any] = {
        "make_model": Linear,
        "loss_fn": half_squared_error,
        "data": DATA,
        "replacements": FRESH,
        "make_optimizer": sgd(0.1),
        "steps": [0, 5, 12],
        "batch_size": None,
    }
    return paired_runs(**{**given, **changes})


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


# Randomness


def streams() -> list[Any]:
    """Without Python's, from which the type checks of these tests draw on their own."""
    return [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()]


def test_streams_are_paired_and_left_as_they_were() -> None:
    def train(data: Data, seed: int) -> Tensor:
        noise = torch.rand(()) + random.random() + float(np.random.random())
        return data[0].mean() + noise

    before = streams()
    same = on_average_stability(train, DATA, (DATA[0][:2], DATA[1][:2]), seeds=[1, 2**40])
    assert bool((same.squared_distances == 0).all())
    pairs(make_model=Noisy, batch_size=3, test=TEST, steps=3)
    assert streams() == before
    python = random.getstate()
    with seeded(3):
        inside = random.random()
    assert random.getstate() == python
    with contextlib.suppress(KeyError), seeded(3):
        assert random.random() == inside
        raise KeyError
    assert random.getstate() == python
    assert streams() == before


def test_what_is_random_by_itself_is_refused() -> None:
    own = torch.Generator().manual_seed(0)

    def train(data: Data, seed: int) -> Tensor:
        return torch.rand(2, generator=own)

    with pytest.raises(UserError, match="two runs on the same data with seed=3"):
        on_average_stability(train, DATA, FRESH, seeds=[3])
    unchecked = on_average_stability(train, DATA, FRESH, seeds=[3], check=False)
    assert bool((unchecked.squared_distances > 0).all())


def test_measuring_takes_no_part_in_the_run() -> None:
    often = pairs(make_model=Noisy, steps=[0, 2, 9], batch_size=4, test=TEST)
    seldom = pairs(make_model=Noisy, steps=9, batch_size=4)
    assert torch.equal(often.squared_distances[2], seldom.squared_distances[0])
    assert often.train_loss is not None
    assert seldom.train_loss is not None
    assert often.train_loss[2] == seldom.train_loss[0]


def test_index_sequences() -> None:
    long, short = index_sequence(50, 4000, 2, seed=1), index_sequence(50, 13, 2, seed=1)
    assert torch.equal(long[:13], short)
    assert not torch.equal(index_sequence(50, 13, 2, seed=2), short)
    counts = long.flatten().bincount(minlength=50).double()  # each expected 160 times
    chi2 = ((counts - 160) ** 2 / 160).sum().item()
    assert 20 < chi2 < 85  # 49 degrees of freedom


# What training functions and loops may be


def test_train_fn_may_give_parameters_in_any_form() -> None:
    live = nn.Linear(D, 1, bias=False, dtype=torch.float64)

    def fit(data: Data) -> Tensor:
        solution: Tensor = torch.linalg.lstsq(data[0], data[1][:, None]).solution[:, 0]
        return solution

    def into_module(data: Data, seed: int) -> nn.Module:  # the same module for all runs
        with torch.no_grad():
            live.weight.copy_(fit(data)[None])
        return live

    forms: list[Callable[[Data, int], Any]] = [
        lambda d, seed: fit(d),
        lambda d, seed: list(fit(d)),
        lambda d, seed: iter(list(fit(d))),
        lambda d, seed: {"w": fit(d)},
        lambda d, seed: {7: [fit(d)]},
        into_module,
    ]
    results = [
        on_average_stability(form, DATA, FRESH, evaluate=lambda value, d: 0.5, test=TEST)
        for form in forms
    ]
    for result in results[1:]:
        torch.testing.assert_close(result.squared_distances, results[0].squared_distances)
    assert results[0].steps is None
    assert results[4].steps == (7,)


def test_evaluate_sees_what_training_gave_on_s() -> None:
    result = on_average_stability(
        lambda d, seed: {1: d[0].mean(0) + seed, 2: d[0].sum(0)},
        DATA,
        FRESH,
        seeds=[0, 5],
        evaluate=lambda value, d: float(value.sum() + 100 * len(d[0])),
        test=TEST,
    )
    mean, total = DATA[0].mean(0).sum().item(), DATA[0].sum().item()
    expected = [[mean + 800, mean + 5 * D + 800], [total + 800, total + 800]]
    assert result.train_loss is not None
    np.testing.assert_allclose(result.train_loss.numpy(), expected)
    np.testing.assert_allclose(result.gap.numpy(), [4200, 4200])


def test_batches_are_joined_and_the_data_left_alone() -> None:
    kept = DATA[0].clone()
    loader = DataLoader(TensorDataset(*DATA), batch_size=3)
    assert torch.equal(pairs(data=loader).squared_distances, pairs().squared_distances)
    assert torch.equal(DATA[0], kept)


@pytest.mark.parametrize(
    "make_optimizer",
    [
        lambda model: AdamW(model.parameters(), lr=0.01),
        lambda model: torch.optim.LBFGS(model.parameters(), max_iter=2),
    ],
)
def test_any_optimizer(make_optimizer: Callable[[nn.Module], Optimizer]) -> None:
    result = pairs(make_optimizer=make_optimizer)
    assert bool((result.squared_distances[1:] > 0).all())


def test_progress_counts_runs() -> None:
    calls: list[tuple[int, int]] = []
    pairs(seeds=[0, 0], progress=lambda *a: calls.append(a))
    assert calls == [(i, 11) for i in range(1, 12)]
    calls.clear()
    pairs(seeds=[0], check=False, progress=lambda *a: calls.append(a))
    assert calls == [(i, 5) for i in range(1, 6)]


@given(st.integers(1, 9), st.data())
def test_a_neighbour_differs_in_one_place(n: int, data: st.DataObject) -> None:
    whole, other = samples(n, 4), samples(1, 5)
    index = data.draw(st.integers(0, n - 1))
    new = neighbour(whole, index, (other[0][0], other[1][0]))
    for a, b, c in zip(new, whole, other, strict=True):
        assert torch.equal(a[index], c[0])
        rest = [i for i in range(n) if i != index]
        assert torch.equal(a[rest], b[rest])


def test_mistakes_are_told() -> None:
    same = Linear()
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"steps": []}, "rising order"),
        ({"steps": [3, 3]}, "rising order"),
        ({"steps": -1}, "steps >= 0"),
        ({"batch_size": 0}, "batch_size >= 1"),
        ({"indices": [1]}, "one index"),
        ({"indices": [1, 2, 3, N]}, f"0 <= i < {N}"),
        ({"seeds": []}, "at least one seed"),
        ({"replacements": samples(N + 1, 0)}, "one index"),
        ({"replacements": (torch.ones(2, D + 1), torch.ones(2))}, "a sample of shape"),
        ({"make_model": lambda: same}, "new model each time"),
        ({"make_optimizer": sgd(1e40)}, "stay finite"),
        ({"loss_fn": lambda f, y: (f - y) ** 2}, "one real number"),
        ({"data": [([1.0], torch.ones(1))]}, "data to hold tensors"),
        ({"data": iter([DATA])}, "iterated again"),
    ]
    for change, message in wrong:
        with pytest.raises(UserError, match=message):
            pairs(**change)
    returned: list[tuple[Callable[[Data, int], Any], str]] = [
        (lambda d, seed: 3.0, "expected parameters"),
        (lambda d, seed: {}, "expected parameters"),
        (lambda d, seed: ["w"], "expected parameters"),
        (lambda d, seed: torch.ones(1 if bool((d[0] == DATA[0]).all()) else 2), "same shapes"),
        (lambda d, seed: {int(d[0][0, 0] == DATA[0][0, 0]): d[0]}, "same steps"),
        (lambda d, seed: d[0].mean() * math.nan, "stay finite"),
    ]
    for form, message in returned:
        with pytest.raises(UserError, match=message):
            on_average_stability(form, DATA, FRESH)
    with pytest.raises(UserError, match="evaluate"):
        on_average_stability(lambda d, seed: d[0], DATA, FRESH, test=TEST)
    for call in (
        lambda: index_sequence(0, 1, 1, seed=0),
        lambda: index_sequence(1, -1, 1, seed=0),
        lambda: neighbour(DATA, N, (DATA[0][0], DATA[1][0])),
    ):
        with pytest.raises(UserError, match=r"^expected"):
            call()
