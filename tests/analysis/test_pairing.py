"""Paired runs: all randomness in pairs, any form of training, and mistakes."""

from __future__ import annotations

import contextlib
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
from torch.optim import AdamW, Optimizer
from torch.utils.data import DataLoader, TensorDataset

from analysis.paired_models import DATA, FRESH, TEST, D, Data, Linear, N, Noisy, pairs, samples, sgd
from gradwise.analysis._neighbours import seeded
from gradwise.analysis.stability import (
    index_sequence,
    neighbour,
    on_average_stability,
)
from gradwise.errors import UserError


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
        inside = [random.random(), float(np.random.random()), torch.rand(()).item()]
    assert random.getstate() == python
    torch.rand(3), random.random(), np.random.random()  # whatever came before
    python, before = random.getstate(), streams()
    with contextlib.suppress(KeyError), seeded(3):
        assert [random.random(), float(np.random.random()), torch.rand(()).item()] == inside
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
        # Elementwise and a mean: a solver's last bits may depend on where its matrix lies.
        return (data[0] * data[1][:, None]).mean(0)

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
    iterator = on_average_stability(
        forms[2], DATA, FRESH, evaluate=lambda value, d: float(sum(value)), test=TEST
    )
    assert iterator.train_loss is not None
    assert iterator.train_loss.item() == pytest.approx(fit(DATA).sum().item())
    assert iterator.gap.item() == 0
    results = [on_average_stability(form, DATA, FRESH) for form in forms]
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
