"""The hyperbolic entropy: formula, limits, shape, and the optimality condition it gives."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from gradwise.analysis.implicit_bias import (
    hyperbolic_entropy,
    hyperbolic_entropy_gradient,
    kkt_residual,
)
from reference import diagonal as oracle


@given(
    st.lists(st.floats(-100, 100), min_size=1, max_size=5),
    st.floats(0.01, 30),
)
def test_potential_and_gradient_equal_the_formula(beta: list[float], alpha: float) -> None:
    b = torch.tensor(beta, dtype=torch.float64, requires_grad=True)
    value = hyperbolic_entropy(b, alpha)
    expected = oracle.potential(beta, [alpha] * len(beta))
    scale = 1 + sum(map(abs, beta)) + alpha**2 * len(beta)
    assert value.item() == pytest.approx(expected, abs=1e-13 * scale)
    shifted = hyperbolic_entropy(b, alpha, from_zero=True)
    zero = oracle.potential([0.0] * len(beta), [alpha] * len(beta))
    assert shifted.item() == pytest.approx(expected - zero, abs=1e-12 * scale)
    formula = hyperbolic_entropy_gradient(b, alpha)
    by_hand = [math.asinh(x / (2 * alpha**2)) / 4 for x in beta]
    np.testing.assert_allclose(formula.detach().numpy(), by_hand, rtol=1e-12)
    for phi in (value, shifted):
        (grad,) = torch.autograd.grad(phi, b)
        torch.testing.assert_close(grad, formula.detach(), rtol=1e-9, atol=1e-12)


@given(st.floats(1e-3, 1e3), st.floats(1e-2, 10), st.integers(0, 2**31))
def test_potential_scales_with_its_alpha_and_is_convex(c: float, alpha: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        hyperbolic_entropy(c**2 * a, c * alpha), c**2 * hyperbolic_entropy(a, alpha)
    )
    ends = (hyperbolic_entropy(a, alpha) + hyperbolic_entropy(b, alpha)) / 2
    assert hyperbolic_entropy((a + b) / 2, alpha) < ends
    torch.testing.assert_close(hyperbolic_entropy(-a, alpha), hyperbolic_entropy(a, alpha))


@pytest.mark.parametrize("alpha", [1e-8, 1e-100, 1e-200, 1e-300])
def test_small_alpha_is_the_l1_norm(alpha: float) -> None:
    beta = torch.tensor([3.0, 0.0, -4.0, 1e-3], dtype=torch.float64)
    l1 = beta.abs().sum()
    # arcsinh(z) = ln 2z: the next order is exact enough to be compared with all digits
    rest = (beta.abs() * (beta.abs().clamp(min=1e-9).log() - 1)).sum() / 4
    for from_zero in (False, True):
        value = hyperbolic_entropy(beta, alpha, from_zero=from_zero)
        torch.testing.assert_close(value, 0.5 * math.log(1 / alpha) * l1 + rest, rtol=1e-12, atol=0)
    b = beta.clone().requires_grad_()
    (grad,) = torch.autograd.grad(hyperbolic_entropy(b, alpha), b)
    torch.testing.assert_close(grad, hyperbolic_entropy_gradient(beta, alpha))
    assert grad[1] == 0


@pytest.mark.parametrize("alpha", [1e2, 1e4, 1e8, 1e100])
def test_large_alpha_is_the_l2_norm(alpha: float) -> None:
    beta = torch.tensor([3.0, 0.0, -4.0], dtype=torch.float64)
    value = hyperbolic_entropy(beta, alpha, from_zero=True)
    expected = torch.tensor(25 / 16, dtype=torch.float64) / alpha / alpha
    torch.testing.assert_close(value, expected, rtol=1e-7, atol=0)
    torch.testing.assert_close(
        hyperbolic_entropy_gradient(beta, alpha), beta / 8 / alpha / alpha, rtol=1e-7, atol=0
    )


def test_the_branches_meet_and_the_gradient_rises_everywhere() -> None:
    beta = torch.logspace(-12, 12, 2000, dtype=torch.float64)
    grad = hyperbolic_entropy_gradient(beta, 0.02)
    assert bool((grad.diff() > 0).all())
    expected = np.arcsinh(beta.numpy() / (2 * 0.02**2)) / 4
    np.testing.assert_allclose(grad.numpy(), expected, rtol=1e-13)


def test_kkt_residual_is_a_share_of_the_length_and_minds_rank() -> None:
    x = torch.tensor([[1.0, 1.0, 0.0], [2.0, 2.0, 0.0]])  # rank 1
    alpha = torch.tensor([0.1, 0.2, 0.3]).double()
    v = torch.tensor([[1.0, 1.0, 0.0], [1.0, -1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]).double()
    beta = 2 * alpha**2 * v.sinh()
    expected = torch.tensor([0.0, 1.0, 1 / math.sqrt(3), 0.0]).double()
    torch.testing.assert_close(kkt_residual(x, beta, alpha), expected)
