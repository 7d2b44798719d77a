"""When moments count as equal to the oracle's: a tolerance that follows from the dtype."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from torch import Tensor

import gradwise as gw
from gradwise import backends
from gradwise.moments import Moments
from reference import moments as oracle
from reference.strategies import as_array, gamma

PER = st.sampled_from(["tensor", "row"])


def runs_here(backend: str) -> bool:
    """Whether a backend measures tensors in host memory."""
    try:
        backends.choose(torch.device("cpu"), backend)
    except gw.errors.UserError:
        return False
    return True


NAMES = [name for name in backends.available() if runs_here(name)]
BACKENDS = st.sampled_from([None, *NAMES])


def tolerance(
    g: np.ndarray, dtype: torch.dtype, merged: bool = False
) -> tuple[float, float, float]:
    """Largest admissible error of mean, M2 and norm of one segment.

    Five digits of M2 are asked of float32 sums, which leaves room for a cancellation of fifty
    between sums of squares but for no more; float64 has to keep what its sums keep.

    With accumulators of relative error `e`, the mean is off by `d <= e mean|x|`. Deviations from
    a mean that is off by d add `n d^2` to M2, which is why M2 keeps its digits where |mean| is
    much larger than the std; a difference of large sums of squares would not pass here. Merging
    parts squares differences of means that are each off by `d`: at most `2 d sqrt(n M2)` more.
    """
    numbers = np.array(oracle.reals(g))
    n = numbers.size
    if n == 0:
        return 0.0, 0.0, 0.0
    e = gamma(n, dtype)
    s = oracle.describe(oracle.reals(g))
    d = e * float(np.abs(numbers).mean())
    # The oracle's own rounding of a large mean: one ulp of float64 in every deviation.
    own = n * (2.0**-50 * s.max_abs) ** 2
    between = 4 * d * math.sqrt(n * s.m2) if merged else 0.0
    digits = 4 * e if dtype == torch.float64 else max(4 * e, 1e-5)
    return d, digits * s.m2 + 2 * n * d**2 + own + between, 4 * e * s.norm


def pieces(grads: list[Tensor | None], per: str) -> list[tuple[np.ndarray, torch.dtype]]:
    """The segments' values in order, with the dtype that they are stored in."""
    found = []
    for g in grads:
        a = as_array(g)
        if g is None or a is None:
            found.append((np.zeros(0), torch.float32))
        elif per == "row" and a.size:
            found += [(r, g.dtype) for r in oracle.rows(a)]
        else:
            found.append((a, g.dtype))
    return found


def assert_described(
    moments: Moments, segments: list[tuple[np.ndarray, torch.dtype]], merged: bool = False
) -> None:
    """The moments equal the oracle's within what the dtype admits."""
    assert moments.mean.shape == (len(segments),)
    for i, (g, dtype) in enumerate(segments):
        s = oracle.describe(oracle.reals(g))
        for_mean, for_m2, for_norm = tolerance(g, dtype, merged)
        assert moments.count[i].item() == s.count
        assert moments.mean[i].item() == pytest.approx(s.mean, rel=1e-15, abs=for_mean)
        assert moments.m2[i].item() == pytest.approx(s.m2, rel=0, abs=for_m2)
        assert moments.norm[i].item() == pytest.approx(s.norm, rel=1e-14, abs=for_norm)
        assert moments.min[i].item() == s.min
        assert moments.max[i].item() == s.max
        assert moments.max_abs[i].item() == s.max_abs
        assert moments.nonfinite[i].item() == 0
        assert moments.zeros[i].item() == s.zeros
        if s.count:
            for_var = for_m2 / s.count
            assert moments.var[i].item() == pytest.approx(s.var, rel=1e-14, abs=for_var)
            # |sqrt(a) - sqrt(b)| <= sqrt|a - b|, and far smaller away from 0
            for_std = min(math.sqrt(for_var), for_var / s.std if s.std else math.inf)
            assert moments.std[i].item() == pytest.approx(s.std, rel=1e-14, abs=for_std)
        else:
            assert moments.mean[i].item() == moments.m2[i].item() == 0.0
            assert moments.var[i].item() == moments.std[i].item() == 0.0
