"""Every transform against its float64 oracle, and what all of them have in common."""

from __future__ import annotations

import math
import os
from unittest.mock import patch

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

import gradwise as gw
from gradwise import backends
from gradwise.transforms import decide
from reference import transforms as ot
from reference.described import NAMES
from reference.pairs import PAIRS, assert_close, bad, run, table, weights
from reference.strategies import (
    ALL,
    COMMON,
    DOUBLE,
    FEW,
    SIZES,
    as_array,
    as_arrays,
    bits,
    gradients,
    sequences,
    values,
)


@pytest.mark.parametrize("name", PAIRS)
@FEW
@given(steps=sequences(shapes=SIZES))
def test_update_is_the_oracle(name: str, steps: list[list[Tensor]]) -> None:
    transform, oracle = PAIRS[name]
    params = weights(steps[0])
    outputs = run(transform, steps, params)
    wanted = ot.run(oracle, [as_arrays(grads) for grads in steps], as_arrays(params))
    for out, ref, grads in zip(outputs, wanted, steps, strict=True):
        assert_close(out, ref, grads, cancels=name == "autoscale-log")


@pytest.mark.parametrize("name", PAIRS)
@FEW
@given(
    grads=gradients(
        dtypes=ALL, kinds=("normal",), scales=(-3, 1), offsets=(0.0, 1.0), absent=False
    ),
    backend=st.sampled_from(NAMES),
)
def test_one_update_on_any_list(name: str, grads: list[Tensor], backend: str) -> None:
    transform, oracle = PAIRS[name]
    params = weights(grads)
    # The backend also decides how the map is applied: by numbers on the host or on the device.
    with patch.dict(os.environ, {backends.ENVIRONMENT_VARIABLE: backend}):
        out, _ = transform.update(grads, None, params)
    ref, _ = oracle.step(as_arrays(grads), oracle.init(), as_arrays(params))
    assert_close(out, ref, grads, cancels=name == "autoscale-log")


@pytest.mark.parametrize("name", PAIRS)
@FEW
@given(grads=gradients(dtypes=(torch.float32,), kinds=("normal",), scales=(-3, 1)), data=st.data())
def test_measure_decide_apply_with_gaps(
    name: str, grads: list[Tensor | None], data: st.DataObject
) -> None:
    # A parameter without a gradient still has weights, of any shape.
    transform, oracle = PAIRS[name]
    shapes = [data.draw(SIZES) if g is None else g.shape for g in grads]
    params = weights([torch.zeros(shape) for shape in shapes])
    moments = gw.measure(grads, per=transform.per, params=params)
    affine, _ = decide(transform, moments, transform.init(moments))
    out = [None if g is None else g.clone() for g in grads]
    backends.apply(out, affine, moments.layout)
    ref, _ = oracle.step(as_arrays(grads), oracle.init(), as_arrays(params))
    assert_close(out, ref, grads, cancels=name == "autoscale-log")


@pytest.mark.parametrize("name", PAIRS)
@FEW
@given(steps=sequences(shapes=SIZES, steps=(2, 4)))
def test_update_writes_nothing_that_it_was_given(name: str, steps: list[list[Tensor]]) -> None:
    transform, _ = PAIRS[name]
    params = weights(steps[0])
    state = transform.init(gw.measure(steps[0], params=params))
    for grads in steps:
        frozen = {key: value.clone() for key, value in state.items()}
        before = [bits(g) for g in [*grads, *params]]
        same = transform.update(grads, state, params)
        again = transform.update(grads, state, params)
        assert [bits(g) for g in [*grads, *params]] == before
        assert state.keys() == frozen.keys()
        assert all(bits(state[key]) == bits(frozen[key]) for key in state)
        assert [bits(g) for g in same[0]] == [bits(g) for g in again[0]]
        assert {k: bits(v) for k, v in same[1].items()} == {k: bits(v) for k, v in again[1].items()}
        state = same[1]


@pytest.mark.parametrize(
    "name", [n for n in PAIRS if n.startswith(("autoscale-center", "center", "znorm"))]
)
@COMMON
@given(steps=sequences(steps=(2, 2)))
def test_what_is_not_eligible_keeps_its_bits(name: str, steps: list[list[Tensor]]) -> None:
    for grads, out in zip(steps, run(PAIRS[name][0], steps), strict=True):
        for g, new in zip(grads, out, strict=True):
            if not ot.eligible(as_array(g)):
                assert bits(new) == bits(g)


@pytest.mark.parametrize("name", PAIRS)
@FEW
@given(steps=sequences(shapes=SIZES, dtypes=DOUBLE), data=st.data())
def test_order_of_tensors_does_not_matter(
    name: str, steps: list[list[Tensor]], data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(steps[0]))))
    params = weights(steps[0])
    straight = run(PAIRS[name][0], steps, params)
    shuffled = run(
        PAIRS[name][0], [[g[i] for i in order] for g in steps], [params[i] for i in order]
    )
    for a, b in zip(straight, shuffled, strict=True):
        for i, j in enumerate(order):
            torch.testing.assert_close(b[i], a[j], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", PAIRS)
@FEW
@given(
    grads=gradients(dtypes=ALL, kinds=("normal",), scales=(-2, 2), absent=False),
    value=st.sampled_from([math.nan, math.inf, -math.inf]),
    at=st.integers(0, 4),
)
def test_a_step_that_is_not_finite_passes_as_it_is(
    name: str, grads: list[Tensor], value: float, at: int
) -> None:
    at = min(at, len(grads) - 1)
    grads[at] = bad(grads[at].contiguous(), value) if grads[at].numel() else torch.tensor(value)
    out, _ = PAIRS[name][0].update(grads, None, weights(grads))
    for g, new in zip(grads, out, strict=True):
        torch.testing.assert_close(new, g, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", PAIRS)
@FEW
@given(
    steps=sequences(shapes=SIZES, steps=(1, 4)),
    value=st.sampled_from([math.nan, math.inf]),
    at=st.integers(0, 4),
    index=st.integers(0, 1),
)
def test_a_step_that_is_not_finite_is_forgotten(
    name: str, steps: list[list[Tensor]], value: float, at: int, index: int
) -> None:
    # The last tensor is eligible for everything, the first may be a bias.
    at, params = min(at, len(steps)), weights(steps[0])
    broken = list(steps[0])
    broken[-index] = bad(broken[-index], value)
    with_bad = run(PAIRS[name][0], [*steps[:at], broken, *steps[at:]], params)
    del with_bad[at]
    for a, b in zip(with_bad, run(PAIRS[name][0], steps, params), strict=True):
        assert [bits(g) for g in a] == [bits(g) for g in b]


@pytest.mark.parametrize("name", PAIRS)
def test_a_step_that_the_host_loop_skips_is_forgotten(name: str) -> None:
    # Finite gradients, but the loss scaler found an overflow elsewhere.
    transform = PAIRS[name][0]
    good, skipped = ([values((4, 4), torch.float64, s, 1.0, 1.0, "normal")] for s in (1, 2))
    params = weights(good)

    def moments(grads: list[Tensor]) -> gw.Moments:
        return gw.measure(grads, per=transform.per, params=params)

    _, state = decide(transform, moments(good), transform.init(moments(good)))
    nothing, after = decide(transform, moments(skipped), state, torch.tensor(False))
    out = [g.clone() for g in skipped]
    backends.apply(out, nothing, moments(skipped).layout)
    assert bits(out[0]) == bits(skipped[0])
    larger = [3 * g for g in good]
    want, _ = transform.update(larger, state, params)
    got, _ = transform.update(larger, after, params)
    assert bits(got[0]) == bits(want[0])


def test_nothing_eligible() -> None:
    grads = [torch.tensor([1.0, 2.0]), torch.zeros(0, 3), torch.tensor([[5.0]])]
    for name in PAIRS:
        if name.startswith(("autoscale", "center", "znorm")):
            out, _ = PAIRS[name][0].update(grads)
            assert [bits(g) for g in out] == [bits(g) for g in grads]


@pytest.mark.parametrize("name", PAIRS)
def test_sparse_gradients(name: str) -> None:
    # Nobody shifts them; whoever clips counts them in, duplicates added up, and scales them, as
    # autoscale does by what it finds in the others.
    transform, oracle = PAIRS[name]
    dense = values((3, 4), torch.float32, 1, 1.0, 0.0, "normal")
    out, _ = transform.update([table(), dense], None, weights([torch.zeros(5, 2), dense]))
    assert out[0].layout == torch.sparse_coo
    if name.startswith(("autoscale", "center", "znorm")):
        alone, state = transform.update([dense])
        factor = state["alpha"].item() if name.startswith("autoscale") else 1.0
        torch.testing.assert_close(out[0].to_dense(), factor * table().to_dense())
        assert bits(out[1]) == bits(alone[0])
    elif not name.startswith("agc"):
        grads = [as_array(table().to_dense()), as_array(dense)]
        ref, _ = oracle.step(grads, oracle.init())
        for new, want in zip(out, ref, strict=True):
            np.testing.assert_allclose(as_array(new.to_dense()), want, rtol=1e-6)
    else:
        # The table is one unit, for its rows are not laid out; the dense weight has three.
        w = as_arrays(weights([torch.zeros(5, 2), dense]))
        flat = as_array(table().to_dense()).ravel()
        (unit, rows), _ = oracle.step([flat, as_array(dense)], {}, [w[0].ravel(), w[1]])
        np.testing.assert_allclose(as_array(out[0].to_dense()).ravel(), unit, rtol=1e-6)
        np.testing.assert_allclose(as_array(out[1]), rows, rtol=1e-5)
