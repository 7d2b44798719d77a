"""Symmetric alpha-stable values, held to their law and to the formula."""

from __future__ import annotations

import math
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from scipy import stats
from torch import Tensor

from gradwise.errors import UserError
from gradwise.federated import alpha_stable

DRAWS = 200_000
HEAVY = [0.5, 0.8, 1.0, 1.2, 1.5, 1.9, 2.0]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(alpha: float, scale: float = 1.0, seed: int = 0) -> Tensor:
    return alpha_stable((DRAWS,), alpha, scale, generator=seeded(seed), dtype=torch.float64)


@pytest.mark.parametrize("alpha", HEAVY)
@pytest.mark.parametrize("scale", [0.3, 2.0])
def test_characteristic_function(alpha: float, scale: float) -> None:
    x = drawn(alpha, scale)
    for u in (0.1, 0.5, 1.0, 2.0):
        wanted = math.exp(-(abs(scale * u) ** alpha))
        # 5 standard errors of a mean of cosines, whose variance is at most 1/2 here and below
        assert abs(float((u * x).cos().mean()) - wanted) < 5 * math.sqrt(0.5 / DRAWS)
        assert abs(float((u * x).sin().mean())) < 5 * math.sqrt(0.5 / DRAWS)


@pytest.mark.parametrize("alpha", [1.2, 1.5, 1.8])
def test_quantiles_are_scipys(alpha: float) -> None:
    x = drawn(alpha, 0.7, seed=1)
    for q in (0.05, 0.25, 0.5, 0.75, 0.95):
        wanted = float(stats.levy_stable.ppf(q, alpha, 0.0, scale=0.7))
        density = float(stats.levy_stable.pdf(wanted, alpha, 0.0, scale=0.7))
        error = math.sqrt(q * (1 - q) / DRAWS) / density
        assert abs(float(x.quantile(q)) - wanted) < 5 * error


def test_alpha_2_is_normal_of_variance_2_scale_squared() -> None:
    x = drawn(2.0, 1.5)
    assert float(x.var()) == pytest.approx(2 * 1.5**2, rel=0.02)
    assert stats.kstest(x.numpy(), "norm", args=(0, 1.5 * math.sqrt(2))).pvalue > 1e-3


def test_alpha_1_is_cauchy() -> None:
    x = drawn(1.0, 3.0)
    assert float(x.quantile(0.75)) == pytest.approx(3.0, rel=0.03)
    assert float(x.quantile(0.25)) == pytest.approx(-3.0, rel=0.03)
    assert stats.kstest(x.numpy(), "cauchy", args=(0, 3.0)).pvalue > 1e-3


def test_no_variance_below_2() -> None:
    """The hill of the sample variance: heavier tails than any normal's."""
    assert float(drawn(1.5).abs().max()) > 100 * float(drawn(2.0).abs().max())


@pytest.mark.parametrize("alpha", HEAVY)
def test_equals_the_formula_on_the_same_draws(alpha: float) -> None:
    generator = seeded(7)
    uniform = torch.rand(1000, generator=generator, dtype=torch.float64)
    w = torch.empty(1000, dtype=torch.float64).exponential_(generator=generator).numpy()
    u = (uniform.numpy() - 0.5) * np.pi
    wanted = np.sin(alpha * u) / np.cos(u) ** (1 / alpha)
    wanted *= (np.cos(u - alpha * u) / w) ** ((1 - alpha) / alpha)
    got = alpha_stable((1000,), alpha, 0.4, generator=seeded(7), dtype=torch.float64)
    np.testing.assert_allclose(got.numpy(), 0.4 * wanted, rtol=1e-9)


def test_near_alpha_1_goes_over_into_cauchy() -> None:
    same = [
        alpha_stable((1000,), a, generator=seeded(), dtype=torch.float64) for a in (1, 1 + 1e-9)
    ]
    torch.testing.assert_close(same[0], same[1], rtol=1e-6, atol=0)


@given(
    st.floats(0.01, 2.0),
    st.floats(0, 1e30),
    st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
    st.lists(st.integers(0, 4), max_size=3),
    st.integers(0, 2**31),
)
def test_always_finite(
    alpha: float, scale: float, dtype: torch.dtype, shape: list[int], seed: int
) -> None:
    x = alpha_stable(shape, alpha, scale, generator=seeded(seed), dtype=dtype)
    assert (x.dtype, list(x.shape)) == (dtype, shape)
    assert bool(x.isfinite().all())


def test_tails_beyond_the_dtype_saturate() -> None:
    x = alpha_stable((1000,), 0.05, generator=seeded(), dtype=torch.float32)
    assert float(x.abs().max()) == torch.finfo(torch.float32).max
    assert {float(s) for s in x[x.abs() > 1e30].sign()} == {-1.0, 1.0}


@given(st.floats(0.1, 2.0), st.floats(1e-3, 1e3), st.integers(0, 2**31))
def test_scale_is_a_factor(alpha: float, scale: float, seed: int) -> None:
    one, scaled = (
        alpha_stable((5,), alpha, s, generator=seeded(seed), dtype=torch.float64)
        for s in (1.0, scale)
    )
    torch.testing.assert_close(scaled, scale * one, rtol=1e-9, atol=0)


def test_defaults_follow_torch() -> None:
    torch.manual_seed(3)
    first = alpha_stable((4,), 1.5)
    torch.manual_seed(3)
    assert torch.equal(first, alpha_stable((4,), 1.5))
    assert first.dtype == torch.get_default_dtype()
    assert not alpha_stable((4,), 1.5, 0.0).any()


@pytest.mark.parametrize(
    ("alpha", "scale", "dtype", "words"),
    [
        (0.0, 1.0, None, "alpha=0.0"),
        (2.1, 1.0, None, "0 < alpha <= 2"),
        (float("nan"), 1.0, None, "alpha=nan"),
        (1.5, -1.0, None, "scale=-1.0"),
        (1.5, math.inf, None, "scale=inf"),
        (1.5, 1.0, torch.int64, "floating dtype"),
    ],
)
def test_sampler_refuses(alpha: float, scale: float, dtype: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        alpha_stable((2,), alpha, scale, dtype=dtype)
