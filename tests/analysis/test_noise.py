"""Search-direction noise: its closed forms, its bias by enumeration, what it leaves alone."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from analysis.measured_models import Wandering, per_sample, regression, shuffled, untouched
from gradwise import optim
from gradwise.analysis._frozen import frozen
from gradwise.analysis.noise import (
    Direction,
    DirectionNoise,
    c2_bound,
    critical_batch_size,
    gradient_noise,
    gradient_noise_scale,
    search_direction_noise,
)
from gradwise.errors import UserError
from reference import noise as scale_oracle
from reference import search_noise as oracle

MSE = nn.MSELoss()
RULES = {"sgd": Direction.sgd, "shb": Direction.heavy_ball, "nshb": Direction.normalized}


def linear(d: int = 4) -> nn.Module:
    return nn.Linear(d, 1, bias=False, dtype=torch.float64)


# --- the noise of gradients ---


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("b", [1, 2, 3])
def test_enumerated_batches_have_the_expected_noise(b: int, replacement: bool) -> None:
    """The factor between a batch's variance and C^2, against every batch there is."""
    model, data = linear(2), regression(6, 2)
    rows = per_sample(model, data)
    c2 = ((rows - rows.mean(0)) ** 2).sum(1).mean()
    factor = 1.0 if replacement else 5 / (6 - b)
    assert b * oracle.variance(rows, b, replacement=replacement) * factor == pytest.approx(c2)
    found = gradient_noise(
        model, MSE, data, batch_size=b, batches=3000, replacement=replacement, seed=b
    )
    assert found.error is not None
    assert found.c2 == pytest.approx(b * found.variance * factor)
    assert abs(found.c2 - c2) < 4 * b * found.error * factor
    assert found.error < 0.05 * found.variance
    assert found.norm == pytest.approx(np.linalg.norm(rows.mean(0)))
    assert found.noise_scale == pytest.approx(found.c2 / found.norm**2)


def test_the_factor_tells_drawing_with_from_without_replacement() -> None:
    """At b = n/2 the factor is almost 2: an estimate without it would be far off."""
    model, data = linear(), regression(24)
    rows = per_sample(model, data)
    c2 = ((rows - rows.mean(0)) ** 2).sum(1).mean()
    found = gradient_noise(model, MSE, data, batch_size=12, batches=2000)
    assert found.c2 == pytest.approx(c2, rel=0.1)
    assert 12 * found.variance < 0.6 * c2


def test_standard_error_covers_the_spread_of_repetitions() -> None:
    model, data = linear(), regression()
    found = [gradient_noise(model, MSE, data, batch_size=3, batches=40, seed=s) for s in range(60)]
    spread = np.std([x.variance for x in found], ddof=1)
    assert np.mean([x.error for x in found]) == pytest.approx(spread, rel=0.3)
    one, two = (gradient_noise(model, MSE, data, batch_size=3, batches=r) for r in (1, 2))
    assert two.error == pytest.approx(abs(two.variance - one.variance))  # |a - b| / 2


def test_a_full_batch_has_no_noise() -> None:
    model, data = linear(), regression()
    found = search_direction_noise(model, MSE, data, Direction.sgd(), batch_size=24, batches=2)
    assert found.noise == pytest.approx(0, abs=1e-28)
    assert found.gradient.c2 is None
    assert found.gradient.noise_scale is None
    json.dumps(found.to_dict())
    assert gradient_noise(model, MSE, data, batch_size=4, batches=1).error is None


def test_parts_do_not_change_the_result() -> None:
    model, data = linear(), regression()
    whole = gradient_noise(model, MSE, data, batch_size=7, batches=5)
    seen: list[tuple[int, int]] = []
    cut = gradient_noise(
        model, MSE, data, batch_size=7, batches=5, chunk_size=3, progress=lambda *x: seen.append(x)
    )
    assert cut.to_dict() == pytest.approx(whole.to_dict())
    assert seen == [(k, 8 + 5 * 3) for k in range(1, 24)]
    assert gradient_noise(model, MSE, data, batch_size=7, batches=5, seed=1) != whole


def test_a_loader_gives_the_same_noise() -> None:
    model, data = linear(), regression(50)
    rows = per_sample(model, data)
    seen: list[tuple[int, int]] = []
    c2 = []
    loader = shuffled(data, 4)
    for _ in range(150):
        found = gradient_noise(model, MSE, loader, progress=lambda *x: seen.append(x))
        c2.append(found.c2)
        next(iter(loader))  # the analysis itself leaves the loader's stream where it was
    assert (found.batch_size, found.batches, found.samples) == (4, 12, 50)  # 13th has 2 samples
    assert seen[-1] == (26, 26)
    assert found.norm == pytest.approx(np.linalg.norm(rows.mean(0)))
    assert np.mean(c2) == pytest.approx(((rows - rows.mean(0)) ** 2).sum(1).mean(), rel=0.05)
    assert gradient_noise(model, MSE, list(loader), batches=2).batches == 2


# --- what momentum makes of it ---


@pytest.mark.parametrize("rule", RULES)
def test_steady_lag_and_spread(rule: str) -> None:
    model, data = linear(), regression()
    direction = RULES[rule]() if rule == "sgd" else RULES[rule](0.9)
    found = search_direction_noise(model, MSE, data, direction, batch_size=4)
    mean, var = per_sample(model, data).mean(0), found.gradient.variance
    assert (found.lag, found.spread) == pytest.approx(
        oracle.steady(mean, var, rule, 0.9), rel=1e-9, abs=1e-12
    )
    ratio = {"sgd": 1.0, "shb": 5.263, "nshb": 0.0526}[rule]
    assert found.spread / var == pytest.approx(ratio, rel=1e-3)
    lag = {"sgd": 0.0, "shb": 9.0, "nshb": 0.0}[rule]
    assert found.lag == pytest.approx(lag * found.gradient.norm, abs=1e-12)
    assert found.noise == pytest.approx(found.lag**2 + found.spread)


@pytest.mark.parametrize(("rule", "ratio"), [("sgd", 1.0), ("shb", 5.263), ("nshb", 0.0526)])
def test_a_long_run_of_the_recursion_spreads_like_this(rule: str, ratio: float) -> None:
    noise = np.random.default_rng(0).standard_normal((200_000, 1))
    assert oracle.directions(noise, rule, 0.9)[500:].var() == pytest.approx(ratio, rel=0.03)


def test_a_constant_gradient_leaves_only_the_lag() -> None:
    grads = np.ones((400, 1)) * 3.0
    assert oracle.directions(grads, "shb", 0.9)[-1] - 3 == pytest.approx(27.0)
    assert oracle.directions(grads, "nshb", 0.9)[-1] - 3 == pytest.approx(0.0)
    x, y = regression(1)
    data = x.expand(24, -1), y.expand(24, -1)
    for direction, factor in ((Direction.heavy_ball(0.9), 9.0), (Direction.normalized(0.9), 0.0)):
        found = search_direction_noise(linear(), MSE, data, direction, batch_size=4)
        assert found.spread == pytest.approx(0, abs=1e-25)
        assert found.lag == pytest.approx(factor * found.gradient.norm, abs=1e-12)


@settings(max_examples=10)
@given(beta=st.floats(0, 0.99), k=st.floats(1e-3, 1e3), rule=st.sampled_from(["shb", "nshb"]))
def test_a_scaled_loss_scales_the_noise(beta: float, k: float, rule: str) -> None:
    model, data = linear(), regression(8)

    def noise(factor: float) -> DirectionNoise:
        def loss_fn(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return factor * MSE(a, b)

        return search_direction_noise(
            model, loss_fn, data, RULES[rule](beta), batch_size=2, batches=3
        )

    one, scaled = noise(1.0), noise(k)
    assert scaled.lag == pytest.approx(k * one.lag, abs=1e-9 * k * one.gradient.norm)
    assert scaled.spread == pytest.approx(k**2 * one.spread)
    assert scaled.inherited == pytest.approx(k**2 * one.inherited)


@pytest.mark.parametrize("rule", RULES)
def test_a_given_buffer_against_all_batches(rule: str) -> None:
    model, data = linear(2), regression(6, 2)
    before = np.array([0.7, -1.3])
    rows = per_sample(model, data)
    lag, spread = oracle.lag_and_spread(rows, 2, rule, 0.8, before)
    kind = RULES[rule]() if rule == "sgd" else RULES[rule](0.8)
    direction = Direction(kind.weight, kind.beta, (torch.tensor(before)[None],))
    found = search_direction_noise(model, MSE, data, direction, batch_size=2, batches=3000)
    assert found.lag == pytest.approx(lag, abs=1e-12)
    assert found.spread == pytest.approx(spread, rel=0.08)


@pytest.mark.parametrize("dampening", [0.0, 0.8])
@pytest.mark.parametrize("make", [torch.optim.SGD, optim.SGD])
def test_buffers_of_runs_at_one_point_add_up_to_the_steady_noise(
    make: Callable[..., torch.optim.Optimizer], dampening: float
) -> None:
    """With lr=0 a run stays put: on average its noise must be that of the closed form."""
    model, (x, y) = linear(), regression()
    optimizer = make(model.parameters(), lr=0.0, momentum=0.8, dampening=dampening)
    generator = torch.Generator().manual_seed(0)
    noise, lags = [], []
    for k in range(1200):
        batch = torch.randperm(24, generator=generator)[:4]
        optimizer.zero_grad()
        MSE(model(x[batch]), y[batch]).backward()
        optimizer.step()
        if k >= 60 and k % 12 == 0:
            found = search_direction_noise(
                model, MSE, (x, y), Direction.of(optimizer, model), batch_size=4, batches=40, seed=k
            )
            noise.append(found.noise)
            lags.append(found.lag**2)
    kind = Direction(1 - dampening, 0.8)
    steady = search_direction_noise(model, MSE, (x, y), kind, batch_size=4, batches=3000)
    assert np.mean(noise) == pytest.approx(steady.noise, rel=0.2)
    assert np.mean(lags) == pytest.approx(steady.lag**2 + steady.inherited, rel=0.25)


def test_weight_decay_is_part_of_the_objective() -> None:
    """The decay of one group only: the same as if the loss held it."""
    model, (x, y) = nn.Linear(4, 1, dtype=torch.float64), regression()
    groups = [{"params": [model.weight], "weight_decay": 0.5}, {"params": [model.bias]}]
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9)
    MSE(model(x), y).backward()
    optimizer.step()
    direction = Direction.of(optimizer, model)
    assert direction.weight_decay == (0.5, 0.0)
    found = search_direction_noise(model, MSE, (x, y), direction, batch_size=4)
    full = MSE(model(x), y) + 0.25 * (model.weight**2).sum()
    w, b = torch.autograd.grad(full, [model.weight, model.bias])
    held = [optimizer.state[p]["momentum_buffer"] for p in model.parameters()]
    gap = torch.cat([(0.9 * held[0]).flatten(), 0.9 * held[1]])
    assert found.lag == pytest.approx(float(gap.norm()))  # (w - 1) G is 0
    steady = Direction(0.1, 0.5, weight_decay=(0.5, 0.0))
    found = search_direction_noise(model, MSE, (x, y), steady, batch_size=4)
    assert found.lag == pytest.approx(0.8 * float(torch.cat([w.flatten(), b]).norm()))


# --- the scale and the sweep ---


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


# --- what it leaves alone, what it refuses ---


def test_nothing_of_the_model_changes() -> None:
    model, (x, y) = Wandering(), regression()
    data = x.float(), y.float()
    MSE(model(data[0]), data[1]).backward()
    model.net[0].weight.requires_grad_(False)
    model.net[3].eval()
    loader = shuffled(data, 4)
    for source, size in ((loader, None), (data, 4)):
        with untouched(model, loader):
            first = gradient_noise(model, MSE, source, batch_size=size)
        with untouched(model, loader), torch.no_grad():
            assert gradient_noise(model, MSE, source, batch_size=size) == first

    def fails(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("on the way")

    with untouched(model, loader), pytest.raises(RuntimeError, match="on the way"):
        gradient_noise(model, fails, loader)


def test_streams_that_are_not_torchs_go_on_where_they_were() -> None:
    """Looked at without calls in between whose checked annotations draw from Python's stream."""
    model, (x, _) = Wandering(), regression()
    measuring = frozen(model)
    python, numpy = random.getstate(), np.random.get_state()[2]
    with measuring:
        model(x.float())
        changed = random.getstate() != python and np.random.get_state()[2] != numpy
    assert changed
    assert random.getstate() == python
    assert np.random.get_state()[2] == numpy


def test_norm_layers_use_their_running_statistics() -> None:
    model, (x, y) = Wandering(), regression()
    data = x.float(), y.float()
    frozen_rows = per_sample(model.eval(), data)  # single samples make sense only like this
    found = gradient_noise(model.train(), MSE, data, batch_size=1, batches=400)
    assert found.norm == pytest.approx(np.linalg.norm(frozen_rows.mean(0)), rel=1e-5)


def test_nested_batches_sparse_and_complex_gradients() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(5, 3, sparse=True)
            self.turn = nn.Parameter(torch.ones(3, dtype=torch.complex64))

        def forward(self, inputs: dict[str, Any]) -> torch.Tensor:
            return (self.table(inputs["words"]) * self.turn).abs().sum(1)

    batches = [({"words": torch.tensor([k, 1])}, torch.zeros(2)) for k in range(5)]
    found = gradient_noise(Words(), lambda out, _: out.mean(), batches)
    assert found.samples == 10
    assert 0 < found.variance < math.inf


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": None}, "1 <= batch_size <= 24, got batch_size=None"),
        ({"batch_size": 25}, "batch_size=25"),
        ({"batch_size": 0, "replacement": True}, "batch_size=0"),
        ({"batches": 0}, "batches=0"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"data": (torch.ones(3), torch.ones(4))}, "3 inputs and 4 targets"),
        ({"data": (torch.ones(3),)}, "got 1 tensors"),
        ({"data": iter([]), "batch_size": None}, "iterated again"),
        ({"data": [], "batch_size": None}, "got 0 tensors"),
        ({"data": [3], "batch_size": None}, "batches \\(inputs, targets\\)"),
        ({"data": [("a", "b")], "batch_size": None}, "got one with none"),
        ({"data": {}, "batch_size": None}, "at least one batch"),
        ({"data": [regression()]}, "neither batch_size nor replacement"),
        ({"loss_fn": lambda a, b: a - b}, "one real number, got shape"),
        ({"loss_fn": lambda a, b: b.mean()}, "got a constant"),
        ({"loss_fn": lambda a, b: a.mean() / 0}, "finite loss and gradient"),
        ({"model": nn.Flatten()}, "requires a gradient, got none"),
        ({"model": nn.LazyLinear(1)}, "without a shape"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], words: str) -> None:
    given_ = {"model": linear(), "loss_fn": MSE, "data": regression(), "batch_size": 4, **change}
    with pytest.raises(UserError, match=words):
        gradient_noise(**given_)


def test_foreign_optimizers_and_buffers_are_refused() -> None:
    model = nn.Linear(4, 1, dtype=torch.float64)
    params = list(model.parameters())
    sgd = torch.optim.SGD
    several = [{"params": params[:1], "momentum": 0.5}, {"params": params[1:]}]
    for optimizer, words in [
        (torch.optim.Adam(params), "got Adam"),
        (sgd(params, momentum=0.9, nesterov=True), "nesterov=False"),
        (sgd(params, maximize=True), "maximize=False"),
        (sgd(several), "got several"),
        (sgd(params[:1]), "'bias' is not there"),
        (sgd(params, momentum=0.9), "has made a step"),
    ]:
        with pytest.raises(UserError, match=words):
            Direction.of(optimizer, model)
    assert Direction.of(sgd(params), model).buffer is None
    for direction, words in [
        (Direction(buffer=(torch.ones(2),)), "a buffer of the shapes"),
        (Direction(weight_decay=(0.1,)), "2 numbers for weight_decay, got 1"),
    ]:
        with pytest.raises(UserError, match=words):
            search_direction_noise(model, MSE, regression(), direction, batch_size=4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Direction.heavy_ball(1.0), "beta=1.0"),
        (lambda: Direction(weight=0.0), "weight=0.0"),
        (lambda: critical_batch_size([(8, 3)]), "at least two batch sizes, got 1"),
        (lambda: critical_batch_size([(8, 0), (4, 1)]), r"got \(8, 0\)"),
        (lambda: critical_batch_size([(8, None), (4, None)]), "got none"),
        (lambda: c2_bound(0, threshold=1.0, lr=1.0), "batch_size=0"),
        (lambda: c2_bound(1, threshold=0.0, lr=1.0), "threshold=0.0"),
        (lambda: c2_bound(1, threshold=1.0, lr=math.inf), "lr=inf"),
        (lambda: c2_bound(1, threshold=1.0, lr=1.0, beta=1.0), "beta=1.0"),
        (lambda: gradient_noise_scale([], 1), "at least two batches, got 0"),
        (lambda: gradient_noise_scale([[torch.ones(1)]] * 2, 0), "batch_size=0"),
        (lambda: gradient_noise_scale([[torch.ones(1)]] * 2, 4, samples=7), "samples=7"),
        (lambda: gradient_noise_scale([[torch.ones(1)], [torch.ones(2)]], 1), "batch 1"),
        (lambda: gradient_noise_scale([[torch.tensor([math.nan])]] * 2, 1), "batch 0 are not"),
    ],
)
def test_numbers_out_of_bounds(call: Callable[[], object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        call()
