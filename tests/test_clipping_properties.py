"""Clipping by the norm, its percentile, its z-score, and row by row."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from gradwise.transforms import AGC, AutoClip, ClipNorm, ZClip
from reference.pairs import length, lengths, of_length, weights
from reference.strategies import COMMON, DOUBLE, SIZES, WIDE, bits, gradients, sequences, values


@COMMON
@given(
    gradients(dtypes=WIDE, kinds=("normal",), scales=(-6, 6), absent=False),
    st.floats(1e-4, 1e4),
)
def test_clip_is_torch(grads: list[Tensor], max_norm: float) -> None:
    out, _ = ClipNorm(max_norm).update(grads)
    params = [torch.nn.Parameter(torch.zeros_like(g)) for g in grads]
    for p, g in zip(params, grads, strict=True):
        p.grad = g.clone()
    torch.nn.utils.clip_grad_norm_(params, max_norm)
    for new, p in zip(out, params, strict=True):
        torch.testing.assert_close(new, p.grad, rtol=1e-6, atol=1e-37)


def test_short_gradients_keep_their_bits() -> None:
    grads = [values((3, 4), torch.float32, 1, 0.1, 0.0, "normal"), torch.ones(3)]
    out, _ = ClipNorm(100.0).update(grads)
    assert [bits(g) for g in out] == [bits(g) for g in grads]


@COMMON
@given(st.lists(st.floats(1e-2, 1e3), min_size=1, max_size=40), st.floats(0, 100))
def test_autoclip_clips_to_the_percentile_of_all_lengths(norms: list[float], p: float) -> None:
    got = lengths(AutoClip(p), norms)
    seen = [length(of_length(n)) for n in norms]
    # The first length is its own percentile: nothing is clipped but by the 1e-6 of the formula.
    assert got[0] == pytest.approx(seen[0] * min(1, seen[0] / (seen[0] + 1e-6)), rel=1e-9)
    for t, n in enumerate(seen):
        limit = float(np.percentile(seen[: t + 1], p))
        assert got[t] == pytest.approx(n * min(1.0, limit / (n + 1e-6)), rel=1e-6)


@COMMON
@given(st.lists(st.floats(0.05, 5), min_size=25, max_size=25), st.floats(0.1, 2))
def test_zclip_only_clips_to_the_ceiling_while_it_warms_up(
    norms: list[float], ceiling: float
) -> None:
    got = lengths(ZClip(max_norm=ceiling), norms)
    for n, after in zip(norms, got, strict=True):
        want = n * min(1.0, ceiling / (n + 1e-6))
        assert after == pytest.approx(want, rel=1e-6)


@COMMON
@given(st.lists(st.floats(0.5, 2), min_size=5, max_size=5), st.sampled_from([1.0, 2.5, 4.0]))
def test_zclip_starts_gently_and_bites_harder(norms: list[float], threshold: float) -> None:
    transform = ZClip(warmup=5, threshold=threshold, max_norm=1e9)
    state = None
    for n in norms:
        _, state = transform.update(of_length(n), state)
    mean, std = float(np.mean(norms)), float(np.std(norms))

    def after(z: float) -> tuple[float, float]:
        n = mean + z * (std + 1e-6)
        return n, length(transform.update(of_length(n), state)[0])

    below, at_least = after(threshold * (1 - 1e-9))
    assert at_least == pytest.approx(below, rel=1e-12)
    above, shortened = after(threshold * (1 + 1e-6))
    # Nothing jumps at the threshold, but for the eps in the z-score.
    assert shortened == pytest.approx(above, rel=1e-5, abs=1e-5)
    # Further out the limit itself falls towards the mean: c = mean + threshold^2 std / z.
    for z in (1.5 * threshold, 3 * threshold, 50 * threshold):
        n, clipped = after(z)
        limit = mean + threshold**2 * std / z
        assert clipped == pytest.approx(n * limit / (n + 1e-6), rel=1e-6)


@COMMON
@given(sequences(shapes=SIZES, dtypes=DOUBLE, steps=(1, 1)), st.floats(1e-3, 1.0))
def test_agc_bounds_every_row(steps: list[list[Tensor]], clipping: float) -> None:
    (grads,) = steps
    params = weights(grads)
    out, _ = AGC(clipping=clipping).update(grads, None, params)
    for g, new, w in zip(grads, out, params, strict=True):
        parts = zip(*(x.flatten(1) if x.ndim >= 2 else x[None] for x in (g, new, w)), strict=True)
        for before, after, row in parts:
            limit = clipping * max(row.norm().item(), 1e-3)
            if before.norm().item() > limit * (1 + 1e-9):
                assert after.norm().item() == pytest.approx(limit, rel=1e-9)
            elif before.norm().item() < limit * (1 - 1e-9):
                assert torch.equal(after, before)
