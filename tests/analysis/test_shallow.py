"""The shallow network: its paired runs against autograd and loops, and the experiment."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor
from torch.optim import SGD

from gradwise.analysis._shallow import descend
from gradwise.analysis.stability import (
    ShallowNetwork,
    half_squared_error,
    index_sequence,
    paired_runs,
    shallow_smoothness,
    shallow_stability,
)
from gradwise.errors import UserError
from reference import stability as oracle

N, D, M = 6, 3, 4
GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(N + 3, D, generator=GENERATOR, dtype=torch.float64)
Y = torch.randn(N + 3, generator=GENERATOR, dtype=torch.float64)
START = torch.randn(M, D, generator=GENERATOR, dtype=torch.float64)
DATA, FRESH = (X[:N], Y[:N]), (X[N:], Y[N:])


def runs(fresh: tuple[Tensor, Tensor], batch_size: int | None, at: list[int]) -> list[Tensor]:
    batches = None if batch_size is None else index_sequence(N, at[-1], batch_size, 7)
    return descend(DATA, fresh, START, 0.5, batches, at, None, (0, 1))


@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_runs_equal_the_oracle_and_those_of_the_module(batch_size: int | None) -> None:
    at = [0, 1, 12]
    points = runs(FRESH, batch_size, at)
    sequence = index_sequence(N, 12, batch_size or 1, 7).tolist()
    for k in range(4):
        x, y = (t.numpy().copy() for t in DATA)
        if k > 0:
            x[k - 1], y[k - 1] = FRESH[0][k - 1], FRESH[1][k - 1]
        weight = START.numpy()
        for step in range(12):
            rows = [*range(N)] if batch_size is None else sequence[step]
            weight = oracle.shallow_step(weight, x[rows], y[rows], 0.5)
        np.testing.assert_allclose(points[2][k].numpy(), weight, rtol=1e-9, atol=1e-12)
    assert bool((points[0] == START).all())

    def make() -> ShallowNetwork:
        network = ShallowNetwork(D, M, dtype=torch.float64)
        with torch.no_grad():
            network.weight.copy_(START)
        return network

    result = paired_runs(
        make,
        half_squared_error,
        DATA,
        FRESH,
        make_optimizer=lambda model: SGD(model.parameters(), lr=0.5),
        steps=at,
        batch_size=batch_size,
        seeds=[7],
    )
    side_by_side = torch.stack([(w[1:] - w[0]).square().sum((1, 2)) for w in points])
    torch.testing.assert_close(result.squared_distances[:, 0], side_by_side, rtol=1e-8, atol=1e-15)


@pytest.mark.parametrize("batch_size", [None, 1])
def test_the_same_sample_in_its_place_changes_nothing(batch_size: int | None) -> None:
    points = runs((X[:3], Y[:3]), batch_size, [40])
    assert bool((points[0] == points[0][0]).all())
    assert not bool((points[0] == START).all())


def test_runs_are_one_until_they_draw_the_sample() -> None:
    drawn = index_sequence(N, 30, 1, 7)[:, 0].tolist()
    points = runs(FRESH, 1, list(range(31)))
    for i in range(3):
        moved = [bool((w[i + 1] != w[0]).any()) for w in points]
        assert moved == [t > drawn.index(i) for t in range(31)]


def test_no_step_and_no_step_size_change_nothing() -> None:
    still = shallow_stability(5, steps=[0, 10], lr=0.0, test_samples=5)
    assert bool((still.squared_distances == 0).all())
    moving = shallow_stability(5, steps=[0, 10], test_samples=5)
    assert bool((moving.squared_distances[0] == 0).all())
    assert bool((moving.squared_distances[1] > 0).all())


def check_the_claims(sizes: tuple[int, ...], steps: list[int], replaced: int, draws: int) -> None:
    results = {n: shallow_stability(n, steps=steps, replaced=replaced, draws=draws) for n in sizes}
    for result in results.values():
        assert bool((result.eps_squared.diff() > 0).all())  # it grows with t
        assert bool((result.bound() >= result.gap).all())  # (14.4)
    gaps = torch.stack([result.gap for result in results.values()])
    assert bool((gaps.diff(dim=0) < 0).all())  # the gap falls with n at each step
    scaled = torch.stack([n**2 * r.eps_squared for n, r in results.items()])
    ratio = scaled.max(0).values / scaled.min(0).values
    assert bool((ratio < math.sqrt(sizes[-1] / sizes[0])).all())  # nearer to 1/n^2 than to 1/n


def test_the_experiment_in_little() -> None:
    check_the_claims((25, 50), [25, 100], replaced=10, draws=6)


@pytest.mark.slow
def test_the_experiment() -> None:
    check_the_claims((25, 50, 100), [100, 400], replaced=20, draws=6)


def test_what_a_result_holds() -> None:
    calls: list[tuple[int, int]] = []
    state = torch.get_rng_state()
    result = shallow_stability(
        4, steps=[2, 5], draws=2, test_samples=3, progress=lambda *a: calls.append(a)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert calls == [(2, 10), (5, 10), (7, 10), (10, 10)]
    assert result.squared_distances.shape == (2, 2, 4)  # the 4 there are, not 20
    assert result.indices == (0, 1, 2, 3)
    assert result.samples == 4
    again = shallow_stability(4, steps=[5], draws=3, test_samples=3)
    torch.testing.assert_close(again.squared_distances[0, :2], result.squared_distances[1])
    assert not torch.equal(result.squared_distances[:, 0], result.squared_distances[:, 1])
    assert result.smoothness is not None
    assert 1.77 < result.smoothness < 2.5
    by_samples = shallow_stability(4, steps=[5], batch_size=1, test_samples=3)
    assert not torch.equal(by_samples.squared_distances[0, 0], result.squared_distances[1, 0])


@given(
    st.lists(st.floats(-3, 3), min_size=M * D + D + 1, max_size=M * D + D + 1),
)
def test_no_hessian_is_larger_than_the_smoothness(values: list[float]) -> None:
    numbers = torch.tensor(values, dtype=torch.float64)
    x, y, w = numbers[:D][None], numbers[D][None], numbers[D + 1 :].reshape(M, D)
    network = ShallowNetwork(D, M, dtype=torch.float64)

    def loss(flat: Tensor) -> Tensor:
        weights = {"weight": flat.reshape(M, D)}
        outputs = torch.func.functional_call(network, weights, (x,))
        return half_squared_error(outputs, y)

    hessian = torch.autograd.functional.hessian(loss, w.flatten())
    assert isinstance(hessian, Tensor)
    largest = torch.linalg.eigvalsh(hessian).abs().max().item()
    assert largest <= shallow_smoothness(x, y, M) + 1e-12


def test_smoothness_by_hand() -> None:
    x, y = torch.tensor([[3.0, 4.0], [0.1, 0.0]]), torch.tensor([2.0, -50.0])
    expected = 25 * (1 + 4 / (3 * math.sqrt(3)) * (1 + 2 / 2))
    assert shallow_smoothness(x, y, 4) == pytest.approx(expected)


def test_the_network_is_the_formula() -> None:
    network = ShallowNetwork(D, 5)
    w = network.weight.detach()
    expected = sum((-1) ** k * torch.tanh(X.float() @ w[k]) for k in range(5)) / math.sqrt(5)
    torch.testing.assert_close(network(X.float()), expected)
    assert [name for name, _ in network.named_parameters()] == ["weight"]


def test_mistakes_are_told() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"n": 0}, "n >= 1"),
        ({"steps": [4, 2]}, "rising"),
        ({"replaced": 0}, "replaced >= 1"),
        ({"draws": 0}, "draws >= 1"),
        ({"batch_size": 0}, "batch_size >= 1"),
        ({"width": 0}, "width >= 1"),
        ({"test_samples": 0}, "test_samples >= 1"),
        ({"lr": -0.1}, "0 <= lr"),
        ({"noise": math.nan}, "0 <= noise"),
        ({"lr": 1e308, "width": 1, "dimension": 1}, "stay finite"),
    ]
    for change, message in wrong:
        with pytest.raises(UserError, match=message):
            shallow_stability(**{"n": 5, "steps": [3], "test_samples": 4, **change})
    with pytest.raises(UserError, match="width >= 1"):
        ShallowNetwork(3, 0)
    with pytest.raises(UserError, match="targets"):
        shallow_smoothness(X, Y[:2], 4)
