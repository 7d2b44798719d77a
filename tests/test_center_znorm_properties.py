"""Centring and z-scores: what their equations promise."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from gradwise import backends
from gradwise.transforms import Autoscale, Center, ZNorm, chain
from reference import moments as om
from reference import transforms as ot
from reference.described import NAMES
from reference.pairs import run, weights
from reference.strategies import (
    COMMON,
    DOUBLE,
    SIZES,
    SOLID,
    as_array,
    largest,
    rounding,
    sequences,
)


@COMMON
@given(sequences(shapes=SIZES, steps=(1, 1), offsets=(0.0, 5.0)))
def test_center_row_is_gradient_centralization(steps: list[list[Tensor]]) -> None:
    (grads,) = steps
    ((out),) = run(Center("row"), steps)
    for g, new in zip(grads, out, strict=True):
        if ot.eligible(as_array(g)):
            want = g - g.mean(dim=tuple(range(1, g.ndim)), keepdim=True)
            atol = 8 * rounding(g.dtype) * largest(as_array(g))
            torch.testing.assert_close(new, want, rtol=0, atol=atol)


@pytest.mark.parametrize("per", ["tensor", "row"])
@COMMON
@given(steps=sequences(shapes=SIZES, dtypes=DOUBLE, steps=(1, 1), offsets=(0.0, 5.0)))
def test_center_is_idempotent_and_shortens(per: str, steps: list[list[Tensor]]) -> None:
    (once,) = run(Center(per), steps)
    (twice,) = run(Center(per), [once])
    for g, a, b in zip(steps[0], once, twice, strict=True):
        torch.testing.assert_close(b, a, rtol=0, atol=1e-14 * (1 + largest(as_array(g))))
        assert a.norm() <= g.norm() * (1 + 1e-14)
        if ot.eligible(as_array(g)):
            sums = a.flatten(1).sum(1) if per == "row" else a.sum()
            assert sums.abs().max().item() <= 1e-13 * (1 + g.abs().sum().item())


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@COMMON
@given(steps=sequences(shapes=SOLID, dtypes=DOUBLE, steps=(3, 6), offsets=(0.0, 5.0)))
def test_sgd_with_row_centring_keeps_every_fan_mean(
    momentum: float, steps: list[list[Tensor]]
) -> None:
    # Weight decay is added before the projection, so it cannot move the means either.
    theta = [p.clone() for p in weights(steps[0], seed=7)]
    start = [p.flatten(1).mean(1) for p in theta]
    buffers = [torch.zeros_like(p) for p in theta]
    for grads in steps:
        decayed = [g + 0.1 * p for g, p in zip(grads, theta, strict=True)]
        out, _ = Center("row").update(decayed)
        for p, buffer, g in zip(theta, buffers, out, strict=True):
            buffer.mul_(momentum).add_(g)
            p.sub_(buffer, alpha=0.05)
    for p, mean in zip(theta, start, strict=True):
        torch.testing.assert_close(p.flatten(1).mean(1), mean, rtol=0, atol=1e-10)


@COMMON
@given(steps=sequences(shapes=SOLID, dtypes=DOUBLE, steps=(3, 6), offsets=(0.0, 5.0)))
def test_sgd_with_autoscale_keeps_every_tensor_mean(steps: list[list[Tensor]]) -> None:
    theta = [p.clone() for p in weights(steps[0], seed=7)]
    start = [p.mean() for p in theta]
    for out in run(Autoscale(), steps):
        for p, g in zip(theta, out, strict=True):
            p.sub_(g, alpha=0.05)
    for p, mean in zip(theta, start, strict=True):
        torch.testing.assert_close(p.mean(), mean, rtol=0, atol=1e-10)


@COMMON
@given(sequences(shapes=SOLID, dtypes=(torch.float32, torch.float64), steps=(1, 3), spread=6))
def test_inverse_on_one_tensor_is_znorm(steps: list[list[Tensor]]) -> None:
    single = [[grads[0]] for grads in steps]
    for a, b in zip(run(Autoscale("inverse"), single), run(ZNorm(), single), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


@COMMON
@given(sequences(shapes=SOLID, dtypes=DOUBLE, steps=(1, 1)), st.floats(0.01, 100), st.floats(-9, 9))
def test_znorm_forgets_scale_and_offset(steps: list[list[Tensor]], a: float, b: float) -> None:
    (grads,) = steps
    (straight,) = run(ZNorm(), [grads])
    (mapped,) = run(ZNorm(), [[a * g + b for g in grads]])
    for g, x, y in zip(grads, straight, mapped, strict=True):
        std = g.std(correction=0).item()
        # 1/(1 + eps/std) against 1/(1 + eps/(a std)), and the rounding of a g + b
        rounded = 1e-14 * (1 + (abs(b) + a * largest(as_array(g))) / (a * std))
        slack = 1e-8 / min(std, a * std) + rounded
        torch.testing.assert_close(y, x, rtol=0, atol=slack * largest(as_array(x)))
        assert x.mean().item() == pytest.approx(0, abs=1e-12)
        assert x.std(correction=0).item() == pytest.approx(1, abs=1e-8 / std + 1e-12)


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("shape", [(3, 4), (700, 800)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("value", [0.0, 3.0, -0.3, 1e6])
def test_znorm_of_a_constant_is_zero(
    value: float,
    dtype: torch.dtype,
    shape: tuple[int, int],
    backend: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # 1 / eps is 1e8: a mean that is rounded, or scale * g - scale * mean, would show.
    monkeypatch.setenv(backends.ENVIRONMENT_VARIABLE, backend)
    for transform in (ZNorm(), Autoscale("inverse"), ZNorm("global"), chain(Center(), ZNorm())):
        out, _ = transform.update([torch.full(shape, value, dtype=dtype)])
        assert out[0].abs().max().item() <= 1e-6 * max(1.0, abs(value))


def test_znorm_without_eps_writes_no_nan() -> None:
    for per in ("tensor", "global"):
        out, _ = ZNorm(per, eps=0.0).update([torch.zeros(2, 3)])
        assert out[0].tolist() == [[0.0] * 3] * 2


@COMMON
@given(sequences(shapes=SIZES, dtypes=DOUBLE, steps=(1, 1), offsets=(0.0, 2.0)))
def test_znorm_global_is_one_vector(steps: list[list[Tensor]]) -> None:
    (out,) = run(ZNorm("global"), steps)
    chosen = [x for x in out if ot.eligible(as_array(x))]
    together = torch.cat([x.flatten() for x in chosen])
    std = math.sqrt(om.pooled([as_array(g) for g in steps[0] if ot.eligible(as_array(g))]).var)
    assert together.mean().item() == pytest.approx(0, abs=1e-12)
    assert together.std(correction=0).item() == pytest.approx(1, abs=1e-8 / std + 1e-12)
