"""Autoscale: the four properties that any default rule must have, and what follows from them."""

from __future__ import annotations

import inspect
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from hypothesis import given
from torch import Tensor

import gradwise as gw
from gradwise.transforms import Autoscale
from reference import transforms as ot
from reference.pairs import NEVER_AMPLIFIES, RULES, UNIT_FREE, bad, factors, run
from reference.strategies import (
    COMMON,
    DOUBLE,
    FEW,
    SIZES,
    SOLID,
    as_array,
    as_arrays,
    sequences,
    values,
)


def test_autoscale_has_no_knob() -> None:
    parameters = inspect.signature(Autoscale).parameters
    assert list(parameters) == ["rule"]
    assert parameters["rule"].default == "trend"
    # Where calls are type-checked, the check speaks first.
    with pytest.raises((gw.errors.UserError, BeartypeCallHintViolation), match="rule"):
        Autoscale("faster")


@pytest.mark.parametrize("rule", RULES)
@FEW
@given(steps=sequences(shapes=SIZES, steps=(1, 8)))
def test_autoscale_factors_are_the_rule(rule: str, steps: list[list[Tensor]]) -> None:
    oracle = ot.Autoscale(rule)
    sigmas = [oracle.sigma(as_arrays(grads)) for grads in steps]
    wanted = ot.alphas(rule, sigmas)
    # log10 of a sigma near 1 is near 0, and keeps only the absolute error of the logarithm
    assert factors(Autoscale(rule), steps) == pytest.approx(wanted, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("rule", UNIT_FREE)
@FEW
@given(
    steps=sequences(shapes=SIZES, dtypes=DOUBLE, steps=(1, 8)),
    power=st.integers(-8, 8),
    digit=st.floats(1, 9),
)
def test_autoscale_is_unit_free(
    rule: str, steps: list[list[Tensor]], power: int, digit: float
) -> None:
    k = digit * 10.0**power
    scaled = [[k * g for g in grads] for grads in steps]
    want = factors(Autoscale(rule), steps)
    assert factors(Autoscale(rule), scaled) == pytest.approx(want, rel=1e-6)


@pytest.mark.parametrize("rule", UNIT_FREE)
@FEW
@given(steps=sequences(shapes=SIZES, steps=(1, 8)), power=st.integers(-20, 20))
def test_a_loss_scale_changes_no_factor(rule: str, steps: list[list[Tensor]], power: int) -> None:
    # Powers of two, as loss scalers use them, round nothing, in float32 either.
    scaled = [[2.0**power * g for g in grads] for grads in steps]
    want = factors(Autoscale(rule), steps)
    assert factors(Autoscale(rule), scaled) == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("rule", sorted(set(RULES) - set(UNIT_FREE)))
def test_rules_that_read_absolute_sigma_are_not_unit_free(rule: str) -> None:
    steps = [[values((4, 4), torch.float64, 1, 0.1, 0.0, "normal")]]
    scaled = [[8 * g for g in grads] for grads in steps]
    want = factors(Autoscale(rule), steps)
    assert factors(Autoscale(rule), scaled) != pytest.approx(want, rel=1e-2)


@pytest.mark.parametrize("rule", NEVER_AMPLIFIES)
@COMMON
@given(steps=sequences(shapes=SIZES, steps=(1, 8), spread=6))
def test_autoscale_never_amplifies(rule: str, steps: list[list[Tensor]]) -> None:
    assert all(0 < alpha <= 1 for alpha in factors(Autoscale(rule), steps))
    for grads, out in zip(steps, run(Autoscale(rule), steps), strict=True):
        for g, new in zip(grads, out, strict=True):
            before = float(np.linalg.norm(as_array(g)))
            assert float(np.linalg.norm(as_array(new))) <= before * (1 + 1e-6)


@pytest.mark.parametrize("rule", RULES)
@FEW
@given(steps=sequences(shapes=SIZES, dtypes=DOUBLE, steps=(1, 5)))
def test_autoscale_has_one_factor_for_all(rule: str, steps: list[list[Tensor]]) -> None:
    alphas = factors(Autoscale(rule), steps)
    for grads, out, alpha in zip(steps, run(Autoscale(rule), steps), alphas, strict=True):
        for g, new in zip(grads, out, strict=True):
            if g.ndim >= 2 and g.numel() >= 2:
                centred = (g - g.mean()).norm().item()
                assert new.norm().item() == pytest.approx(alpha * centred, rel=1e-10)
            else:
                torch.testing.assert_close(new, alpha * g, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("rule", RULES)
@FEW
@given(steps=sequences(shapes=SIZES, dtypes=DOUBLE, steps=(1, 5), offsets=(0.0, 10.0)))
def test_autoscale_sums_to_zero_and_never_turns_back(rule: str, steps: list[list[Tensor]]) -> None:
    alphas = factors(Autoscale(rule), steps)
    for grads, out, alpha in zip(steps, run(Autoscale(rule), steps), alphas, strict=True):
        for g, new in zip(grads, out, strict=True):
            if g.ndim >= 2 and g.numel() >= 2:
                size = alpha * g.abs().sum().item()
                assert new.sum().item() == pytest.approx(0, abs=1e-13 * size)
                along = (new * g).sum().item()
                projected = (g - g.mean()).square().sum().item()
                noise = 1e-13 * alpha * g.square().sum().item()
                assert along == pytest.approx(alpha * projected, rel=1e-9, abs=noise)


@COMMON
@given(st.integers(0, 10_000), st.integers(2, 5), st.integers(2, 5), st.floats(0.05, 1.0))
def test_autoscale_descends_on_a_quadratic(
    seed: int, rows: int, columns: int, fraction: float
) -> None:
    # f(W, b) = 1/2 <x, A x> - <c, x> on x = (W, V) flattened; L is A's largest eigenvalue.
    n = 2 * rows * columns
    root = values((n, n), torch.float64, seed, 1.0, 0.0, "normal")
    a = root @ root.T / n
    c = values((n,), torch.float64, seed + 1, 1.0, 0.0, "normal")
    x = values((n,), torch.float64, seed + 2, 3.0, 0.0, "normal")
    eta = fraction / torch.linalg.eigvalsh(a)[-1].item()
    transform, state = Autoscale(), None

    def f(at: Tensor) -> float:
        return (0.5 * at @ a @ at - c @ at).item()

    for _ in range(6):
        g = a @ x - c
        tensors = [part.view(rows, columns) for part in g.chunk(2)]
        if state is None:
            state = transform.init(gw.measure(tensors))
        affine, _ = transform(gw.measure(tensors), state)
        out, state = transform.update(tensors, state)
        moved = x - eta * torch.cat([part.flatten() for part in out])
        projected = sum((t - t.mean()).square().sum().item() for t in tensors)
        fall = eta * affine.scale.item() / 2 * projected
        assert f(moved) <= f(x) - fall + 1e-10 * (1 + abs(f(x)))
        x = moved


@pytest.mark.parametrize("rule", RULES)
@FEW
@given(
    steps=sequences(shapes=SOLID, steps=(1, 5)),
    value=st.sampled_from([math.nan, math.inf, -math.inf, 0.0]),
    at=st.integers(0, 5),
)
def test_a_bad_step_leaves_no_trace(
    rule: str, steps: list[list[Tensor]], value: float, at: int
) -> None:
    at = min(at, len(steps))
    broken = [bad(steps[0][0], value), *steps[0][1:]]
    if value == 0.0:
        broken = [torch.zeros_like(g) for g in steps[0]]
    with_bad = factors(Autoscale(rule), [*steps[:at], broken, *steps[at:]])
    assert with_bad[at] == 1.0
    assert with_bad[:at] + with_bad[at + 1 :] == factors(Autoscale(rule), steps)
