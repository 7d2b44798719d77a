"""Warm-up-then-decay schedules, (12.1)."""

from __future__ import annotations

import io
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from gradwise.analysis.schedules import WarmupThenDecay, warmup_then_decay
from gradwise.errors import UserError

JUST = 1 - 1e-12


def phase(w: float, q: float, k: float) -> tuple[float, float, float]:
    """Values at t = 0, at the end of the first phase, and the P of (12.1)."""
    if w > 1:
        return 1.0, w ** (100 * q), w ** (100 * q)
    if w == 1:
        return 1.0, 1 + (k - 1) * min(q, 0.5) / 0.5, k * q / 0.5
    return 1.0, 1 + (100 * q) ** w, 1 + (100 * q) ** w


@pytest.mark.parametrize("q", [0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize(("w", "k"), [(1.05, 1.0), (1.2, 1.0), (1.0, 1.0), (1.0, 7.5), (0.4, 1.0)])
@pytest.mark.parametrize("total", [1.0, 70.0, 100.0, 39_100.0])
def test_values_at_the_joints(q: float, w: float, k: float, total: float) -> None:
    factor = WarmupThenDecay(total, q, w, k)
    start, end, held = phase(w, q, k)
    assert factor(0) == start
    assert factor(q * total * JUST) == pytest.approx(end, rel=1e-9)
    assert factor(0.9 * total) == factor(total) == factor(2 * total) == pytest.approx(held / 100)
    if q < 0.9:
        assert factor(q * total) == factor(0.9 * total * JUST) == pytest.approx(held / 10)


def test_values_of_the_paper() -> None:
    factor = WarmupThenDecay(100.0, 0.5, 1.05)
    assert 0.75 * factor(50 * JUST) == pytest.approx(8.60, abs=5e-3)
    assert factor(25) == pytest.approx(1.05**25)
    linear = WarmupThenDecay(10, 0.3, 1.0, 5.0)
    assert [linear(t) for t in range(4)] == pytest.approx([1, 1.8, 2.6, 0.3])
    assert WarmupThenDecay(10, 0.5, 0.5)(4) == pytest.approx(1 + 40**0.5)
    # a base learning rate that is held, then decayed
    assert [WarmupThenDecay(10, 0.5, 1.0)(t) for t in (0, 4, 5, 9)] == [1, 1, 0.1, 0.01]


@given(st.integers(1, 500), st.sampled_from([0.1, 0.3, 0.5]), st.integers(0, 600))
def test_whole_steps_fall_on_the_right_side(total: int, q: float, t: int) -> None:
    tenths = round(10 * q)
    value = WarmupThenDecay(total, q, 1.0)(t)
    early, late = 10 * t < tenths * total, 10 * t >= 9 * total
    assert value == (1.0 if early else q / 0.5 / (100 if late else 10))


@given(st.floats(0.05, 1.5), st.floats(0.05, 0.9), st.integers(2, 50))
def test_it_rises_and_then_falls(w: float, q: float, total: int) -> None:
    factor = WarmupThenDecay(total, q, w)
    values = [factor(t) for t in range(total)]
    rise = [v for t, v in enumerate(values) if t / total < q]
    assert rise == sorted(rise)
    assert values[len(rise) :] == sorted(values[len(rise) :], reverse=True)


def made(lr: float = 0.5, **kwargs: float) -> tuple[torch.optim.Optimizer, object]:
    weights = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    groups = [{"params": [weights[0]]}, {"params": [weights[1]], "lr": 2 * lr}]
    optimizer = torch.optim.SGD(groups, lr=lr)
    return optimizer, warmup_then_decay(optimizer, **kwargs)


def rates(optimizer: torch.optim.Optimizer, scheduler: object, steps: int) -> list[list[float]]:
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return found


def test_every_group_follows_from_its_own_rate() -> None:
    found = rates(*made(total=20, decay_at=0.3, warmup=1.0, peak=4.0), 20)
    factor = WarmupThenDecay(20, 0.3, 1.0, 4.0)
    assert found == [[0.5 * factor(t), factor(t)] for t in range(20)]


def test_a_saved_schedule_goes_on() -> None:
    settings = {"total": 20, "decay_at": 0.3, "warmup": 1.1}
    expected = rates(*made(**settings), 20)
    optimizer, scheduler = made(**settings)
    rates(optimizer, scheduler, 5)
    buffer = io.BytesIO()
    torch.save([optimizer.state_dict(), scheduler.state_dict()], buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    fresh, other = made(total=999)  # other settings: the saved ones hold
    fresh.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    assert rates(fresh, other, 15) == expected[5:]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"total": 0}, "0 < total < inf, got total=0"),
        ({"total": math.nan}, "got total=nan"),
        ({"total": 1, "decay_at": 0.0}, "0 < decay_at <= 0.9, got decay_at=0.0"),
        ({"total": 1, "decay_at": 0.95}, "got decay_at=0.95"),
        ({"total": 1, "warmup": 0.0}, "0 < warmup < inf, got warmup=0.0"),
        ({"total": 1, "warmup": 1.0, "peak": -1.0}, "got peak=-1.0"),
        ({"total": 1, "peak": 2.0}, "peak with warmup=1 alone, got warmup=1.05 and peak=2.0"),
    ],
)
def test_mistakes(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(**arguments)
