"""The detector of a loss that hovers, (12.2)."""

from __future__ import annotations

import json
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from gradwise.analysis.sparsity import LossStabilisation, loss_stabilisation
from gradwise.errors import UserError


def noisy(level: float, n: int, spread: float = 0.3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return level * (1 + spread * (2 * torch.rand(n, generator=generator).double() - 1))


def find(losses: Tensor, rates: Tensor | None = None, **kwargs: float) -> LossStabilisation:
    rates = torch.ones(len(losses)) if rates is None else rates
    return loss_stabilisation(losses, rates, **{"window": 50, **kwargs})


def falling(tau: float, n: int) -> Tensor:
    return torch.exp(-torch.arange(n) / tau).double()


def test_a_fall_a_plateau_and_a_fall_at_a_low_rate() -> None:
    losses = torch.cat([2 * falling(50, 300) + 0.4, noisy(0.4, 1500), 0.4 * falling(60, 500)])
    rates = torch.cat([torch.full((1800,), 0.5), torch.full((500,), 0.05)])
    found = find(losses, rates)
    (plateau,) = found.plateaus
    assert 100 < plateau.first < 320
    assert plateau.last == 1799
    assert plateau.level == pytest.approx(0.4, rel=0.05)
    assert plateau.lr == pytest.approx(0.5)
    assert found.level == plateau.level
    assert found.high_steps == 1800
    assert found.share == (1800 - plateau.first) / 1800
    json.dumps(found.to_dict(), allow_nan=False)


@pytest.mark.parametrize("tau", [10, 100, 1000, 10_000])
def test_an_exponential_fall_is_none(tau: int) -> None:
    assert find(falling(tau, 8 * tau)).plateaus == ()
    assert find(falling(tau, 2 * tau)).plateaus == ()


def test_a_plateau_at_a_low_rate_alone_is_none() -> None:
    losses = torch.cat([falling(100, 500), noisy(0.01, 1500)])
    rates = torch.cat([torch.ones(500), torch.full((1500,), 0.1)])
    assert find(losses, rates).plateaus == ()
    assert find(losses, rates, high=0.1).plateaus != ()


def test_a_loss_of_zero_is_converged_not_stabilised() -> None:
    found = find(torch.zeros(2000))
    assert (found.plateaus, found.share, found.level) == ((), 0.0, None)


def test_two_plateaus_and_what_breaks_them() -> None:
    losses = torch.cat([noisy(1.0, 1000), noisy(0.3, 1000, seed=1)])
    first, second = find(losses).plateaus
    assert first.level == pytest.approx(1, rel=0.05)
    assert second.level == pytest.approx(0.3, rel=0.05)
    assert (first.first, second.last) == (0, 1999)
    assert 999 <= first.last < second.first < 1050
    losses[1500] = math.nan
    assert [p.last for p in find(losses, span=250).plateaus][-2:] == [1499, 1999]
    rates = torch.ones(2000)
    rates[500] = 0.1
    assert [p.first for p in find(losses, rates, span=250).plateaus][:2] == [0, 501]


@given(st.integers(0, 999), st.floats(1e-6, 1e6), st.floats(1e-6, 1e6))
def test_units_do_not_matter(seed: int, loss_unit: float, rate_unit: float) -> None:
    losses = torch.cat([falling(100, 300) + 0.5, noisy(0.5, 400, seed=seed), falling(50, 200)])
    rates = torch.cat([torch.linspace(0.1, 1, 700), torch.full((200,), 0.1)]).double()
    one, other = find(losses, rates), find(loss_unit * losses, rate_unit * rates)
    assert [(p.first, p.last) for p in one.plateaus] == [(p.first, p.last) for p in other.plateaus]


def test_sgd_at_a_large_step_stabilises_and_then_falls() -> None:
    """Steps too large for the minimum of a noisy quadratic, then small ones."""
    torch.manual_seed(0)
    x, losses, rates = torch.full((20,), 3.0).double(), [], []
    for t in range(3000):
        rate = 0.5 if t < 2000 else 0.02
        losses.append(float(x.square().sum() / 2))
        rates.append(rate)
        x = x - rate * (x + 0.3 * torch.randn(20).double())
    found = loss_stabilisation(losses, rates, window=100)
    assert found.share > 0.8
    # the stationary variance of each of 20 coordinates is rate * s^2 / (2 - rate)
    assert found.level == pytest.approx(10 * 0.5 * 0.09 / 1.5, rel=0.05)
    assert sum(losses[-100:]) / 100 < found.level / 10


def test_short_and_empty_records() -> None:
    assert find(torch.ones(298)).plateaus == ()
    assert [(p.first, p.last) for p in find(torch.ones(299)).plateaus] == [(0, 298)]
    assert loss_stabilisation([], []).to_dict() == {
        "plateaus": [], "high_steps": 0, "share": 0.0, "level": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": 0}, "window >= 1"),
        ({"span": 1}, "span >= 2"),
        ({"tolerance": 1.0}, "0 < tolerance < 1"),
        ({"high": 0.0}, "0 < high <= 1"),
        ({"rates": torch.ones(3)}, "as many learning rates"),
        ({"rates": -torch.ones(9)}, "rates >= 0"),
    ],
)
def test_mistakes(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find(torch.ones(9), **arguments)
