"""`measure` and the algebra of `Moments` against the float64 oracle, on any tensor there may be."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

import gradwise as gw
from gradwise.affine import Affine
from reference import moments as oracle
from reference.described import BACKENDS, NAMES, PER, assert_described, pieces, tolerance
from reference.strategies import (
    ALL,
    COMMON,
    as_arrays,
    bits,
    gradients,
    laid_out,
    largest,
    tensors,
    values,
)


@COMMON
@given(gradients(), PER, BACKENDS)
def test_measure_is_the_oracle(grads: list[Tensor | None], per: str, backend: str | None) -> None:
    assert_described(gw.measure(grads, per=per, backend=backend), pieces(grads, per))


@pytest.mark.parametrize("per", ["tensor", "row"])
@pytest.mark.parametrize("dtype", ALL, ids=str)
@pytest.mark.parametrize("backend", NAMES)
def test_long_tensors(backend: str, dtype: torch.dtype, per: str) -> None:
    # Longer than the blocks that kernels work in, with ends that do not fill one.
    grads = [
        values((70_001,), dtype, 1, 0.1, 3.0, "normal"),
        values((3, 20_011), dtype, 2, 10.0, -1.0, "normal"),
        values((2_111, 3), dtype, 3, 10.0, 1e3, "normal"),
    ]
    assert_described(gw.measure(grads, per=per, backend=backend), pieces(grads, per))


@COMMON
@given(gradients(max_size=3), st.permutations(range(3)))
def test_order_of_tensors_only_orders_the_result(
    grads: list[Tensor | None], order: list[int]
) -> None:
    grads = [*grads, None, None][:3]
    straight, shuffled = gw.measure(grads), gw.measure([grads[i] for i in order])
    for i, j in enumerate(order):
        assert shuffled.count[i] == straight.count[j]
        for name in ("mean", "m2", "min", "max"):
            got, want = getattr(shuffled, name)[i].item(), getattr(straight, name)[j].item()
            assert got == pytest.approx(want, rel=1e-12, abs=1e-300)


@COMMON
@given(
    tensors(kinds=("normal", "spiky")),
    st.sampled_from(("permuted", "strided", "shifted")),
    PER,
    BACKENDS,
)
def test_memory_layout_does_not_matter(
    x: Tensor, layout: str, per: str, backend: str | None
) -> None:
    got = gw.measure([laid_out(x, layout)], per=per, backend=backend)
    assert_described(got, pieces([x], per))


@COMMON
@given(gradients(), PER, BACKENDS)
def test_inputs_keep_their_bits(grads: list[Tensor | None], per: str, backend: str | None) -> None:
    before = [bits(g) for g in grads]
    gw.measure(grads, per=per, backend=backend)
    assert [bits(g) for g in grads] == before


@COMMON
@given(gradients(), BACKENDS)
def test_merged_rows_are_the_tensors(grads: list[Tensor | None], backend: str | None) -> None:
    merged = gw.measure(grads, per="row", backend=backend).per_tensor()
    assert_described(merged, pieces(grads, "tensor"), merged=True)
    assert merged.names == gw.measure(grads).names


@COMMON
@given(gradients(), st.data())
def test_pooled_is_one_vector(grads: list[Tensor | None], data: st.DataObject) -> None:
    per = data.draw(PER)
    flags = data.draw(st.lists(st.booleans(), min_size=len(grads), max_size=len(grads)))
    mask = data.draw(st.sampled_from([None, flags]))
    chosen = [g for g, on in zip(grads, mask or [True] * len(grads), strict=True) if on]
    want = oracle.pooled(as_arrays(chosen))
    got = gw.measure(grads, per=per).pooled(mask)
    every = [x for g in as_arrays(chosen) if g is not None for x in oracle.reals(g)]
    double = all(g is None or g.dtype == torch.float64 for g in chosen)
    dtype = torch.float64 if double else torch.float32
    for_mean, for_m2, for_norm = tolerance(np.array(every), dtype, merged=True)
    assert got.count.sum().item() == want.count
    assert got.mean.item() == pytest.approx(want.mean, rel=1e-15, abs=for_mean)
    assert got.m2.item() == pytest.approx(want.m2, rel=0, abs=for_m2)
    assert got.norm.item() == pytest.approx(want.norm, rel=1e-14, abs=for_norm)
    if want.count:
        assert got.var.item() == pytest.approx(want.var, rel=0, abs=for_m2 / want.count)
        assert got.min.item() == want.min
        assert got.max.item() == want.max
    assert got.zeros.tolist() == [want.zeros]


@COMMON
@given(gradients(dtypes=(torch.float64, torch.complex128), offsets=(0.0, 2.0)), st.data())
def test_through_is_measuring_the_mapped(grads: list[Tensor | None], data: st.DataObject) -> None:
    per = data.draw(PER)
    moments = gw.measure(grads, per=per)
    segments = pieces(grads, per)
    factors = st.sampled_from([0.0, 1.0, -1.0, 1e-6, -250.0, 3.7])
    shifts = st.sampled_from([0.0, 1.0, -4.0, 1e-9, 1e5])
    size = len(segments)
    scale = data.draw(st.lists(factors, min_size=size, max_size=size))
    shift = data.draw(st.lists(shifts, min_size=size, max_size=size))
    part = data.draw(st.sampled_from(["both", "scale", "shift", "neither", "one scale"]))
    if part in ("shift", "neither"):
        scale = [1.0] * size
    if part in ("scale", "neither"):
        shift = [0.0] * size
    if part == "one scale":
        scale = [scale[0]] * size
    one = torch.tensor(scale[0], dtype=torch.float64)
    vector = one if part == "one scale" else torch.tensor(scale, dtype=torch.float64)
    affine = Affine(
        None if part in ("shift", "neither") else vector,
        None if part in ("scale", "neither") else torch.tensor(shift, dtype=torch.float64),
    )
    got = moments.through(affine)
    for i, (g, _) in enumerate(segments):
        want = oracle.describe(oracle.reals(oracle.affine(g, scale[i], shift[i])))
        # Mapping rounds every number once or twice; what is left of a cancellation is that noise.
        noise = 2.0**-48 * abs(scale[i]) * (largest(g) * math.sqrt(2) + abs(shift[i]))
        assert got.count[i].item() == want.count
        assert got.mean[i].item() == pytest.approx(want.mean, rel=1e-12, abs=noise)
        slack = want.count * noise**2 + 2 * noise * math.sqrt(want.count * want.m2)
        assert got.m2[i].item() == pytest.approx(want.m2, rel=1e-12, abs=slack)
        assert got.min[i].item() == pytest.approx(want.min, rel=1e-12, abs=noise)
        assert got.max[i].item() == pytest.approx(want.max, rel=1e-12, abs=noise)
        if affine.shift is None:
            assert got.zeros[i].item() == want.zeros
    assert (got.zeros is None) == (affine.shift is not None)


@COMMON
@given(gradients(dtypes=(torch.float64,), offsets=(0.0, 2.0)), st.data())
def test_through_leaves_untouched_tensors(grads: list[Tensor | None], data: st.DataObject) -> None:
    flags = data.draw(st.lists(st.booleans(), min_size=len(grads), max_size=len(grads)))
    two, five = torch.tensor(2.0, dtype=torch.float64), torch.tensor(5.0, dtype=torch.float64)
    before = gw.measure(grads)
    after = before.through(Affine(two, five, tuple(flags)))
    for i, on in enumerate(flags):
        mean = before.mean[i].item()
        if before.count[i] == 0 or not on:
            assert after.mean[i].item() == mean
            assert after.m2[i].item() == before.m2[i].item()
        else:
            assert after.mean[i].item() == pytest.approx(2 * (mean - 5), rel=1e-12, abs=1e-300)
            assert after.m2[i].item() == pytest.approx(4 * before.m2[i].item(), rel=1e-12)
