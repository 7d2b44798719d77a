"""Search-direction noise: its closed forms, its bias by enumeration, what it leaves alone."""

from __future__ import annotations

import json
from collections.abc import Callable

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import nn

from analysis.measured_models import linear, per_sample, regression, shuffled
from gradwise import optim
from gradwise.analysis.noise import (
    Direction,
    DirectionNoise,
    gradient_noise,
    search_direction_noise,
)
from reference import search_noise as oracle

MSE = nn.MSELoss()
RULES = {"sgd": Direction.sgd, "shb": Direction.heavy_ball, "nshb": Direction.normalized}


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
