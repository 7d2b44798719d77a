"""A chain is one transform after the other, each measured afresh, in one pass."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from gradwise.transforms import AutoClip, Autoscale, Center, ClipNorm, chain
from reference import transforms as ot
from reference.pairs import PAIRS, gain, lengths, run, table, weights
from reference.strategies import (
    COMMON,
    DOUBLE,
    SIZES,
    SOLID,
    as_array,
    as_arrays,
    bits,
    largest,
    sequences,
    values,
)

# Without "log": after a link that makes sigma 1 its factor is the logarithm's rounding error.
LINKS = st.sampled_from([name for name in PAIRS if name != "autoscale-log"])


@COMMON
@given(
    st.lists(LINKS, min_size=2, max_size=3),
    sequences(shapes=st.one_of(SOLID, st.just((4,))), dtypes=DOUBLE, steps=(1, 3)),
)
def test_chain_is_one_after_the_other(names: list[str], steps: list[list[Tensor]]) -> None:
    params = weights(steps[0])
    links = [PAIRS[name][0] for name in names]
    together = run(chain(*links), steps, params)
    apart = steps
    for link in links:
        apart = run(link, apart, params)
    oracle = ot.Chain(*(PAIRS[name][1] for name in names))
    wanted = ot.run(oracle, [as_arrays(g) for g in steps], as_arrays(params))
    for out, one_by_one, ref, grads in zip(together, apart, wanted, steps, strict=True):
        for x, y, z, g in zip(out, one_by_one, ref, grads, strict=True):
            scale = gain(as_array(g), z) * largest(as_array(g))
            slack = 1e-11 * (scale + largest(z))
            torch.testing.assert_close(x, y, rtol=0, atol=slack)
            np.testing.assert_allclose(as_array(x), z, rtol=0, atol=slack)


@COMMON
@given(LINKS, sequences(shapes=SIZES, steps=(1, 3)))
def test_chain_of_one_is_that_one(name: str, steps: list[list[Tensor]]) -> None:
    params = weights(steps[0])
    alone, chained = (run(t, steps, params) for t in (PAIRS[name][0], chain(PAIRS[name][0])))
    for a, b in zip(alone, chained, strict=True):
        assert [bits(x) for x in a] == [bits(x) for x in b]


@COMMON
@given(st.lists(LINKS, min_size=3, max_size=3), sequences(shapes=SIZES, steps=(1, 2)))
def test_chain_is_associative(names: list[str], steps: list[list[Tensor]]) -> None:
    params = weights(steps[0])
    a, b, c = (PAIRS[name][0] for name in names)
    flat = run(chain(a, b, c), steps, params)
    for nested in (chain(chain(a, b), c), chain(a, chain(b, c))):
        for x, y in zip(flat, run(nested, steps, params), strict=True):
            for left, right in zip(x, y, strict=True):
                scale = largest(as_array(left))
                torch.testing.assert_close(left, right, rtol=0, atol=1e-5 * scale)


def test_chain_keeps_the_state_of_every_link() -> None:
    # Two of a kind must not share: the second sees lengths that the first has cut.
    twice = chain(AutoClip(50), AutoClip(50))
    norms = [8.0, 1.0, 4.0, 2.0, 9.0]
    once = lengths(AutoClip(50), norms)
    want = lengths(AutoClip(50), once)
    assert lengths(twice, norms) == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("name", [name for name in PAIRS if not name.startswith("agc")])
def test_what_was_scaled_to_zero_stays_zero(name: str) -> None:
    # sigma is above 1: "log" gives 0, and no later shift can be divided by that.
    grads = [values((3, 4), torch.float32, s, 50.0, 1.0, "normal") for s in (1, 2)]
    transform = PAIRS[name][0]
    for both in (chain(Autoscale("log"), transform), chain(Autoscale("log"), transform, Center())):
        out, _ = both.update(grads)
        for new in out:
            assert new.count_nonzero() == 0
            assert torch.isfinite(new).all()


def test_a_chain_shifts_no_sparse_gradient() -> None:
    # Autoscale leaves the embedding alone; written out for all tensors, its shift there is 0.
    dense = values((3, 4), torch.float32, 1, 1.0, 1.0, "normal")
    grads = [table(), dense]
    out, _ = chain(Autoscale("damped"), ClipNorm(0.5)).update(grads)
    oracle = ot.Chain(ot.Autoscale("damped"), ot.ClipNorm(0.5))
    # One row for the oracle: with fewer than two dimensions it is not eligible either.
    rows = as_array(table().to_dense())
    (flat, want), _ = oracle.step([rows.ravel(), as_array(dense)], oracle.init())
    assert out[0].layout == torch.sparse_coo
    np.testing.assert_allclose(as_array(out[0].to_dense()).ravel(), flat, rtol=1e-6)
    np.testing.assert_allclose(as_array(out[1]), want, rtol=1e-5, atol=1e-7)
