"""What `measure` does with NaN, narrow types, views, sparse tensors, and odd surroundings."""

from __future__ import annotations

import math
import sys
import threading

import hypothesis.strategies as st
import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from hypothesis import given
from torch import Tensor

import gradwise as gw
from gradwise.moments import with_params
from reference import moments as oracle
from reference.described import BACKENDS, NAMES, PER, assert_described, pieces
from reference.strategies import ALL, COMMON, SOLID, as_array, bits, gradients, values


@COMMON
@given(
    gradients(shapes=SOLID, dtypes=ALL, kinds=("normal",), offsets=(0.0,), absent=False),
    BACKENDS,
    st.data(),
)
def test_nonfinite_values_are_counted(
    grads: list[Tensor], backend: str | None, data: st.DataObject
) -> None:
    per = data.draw(PER)
    wanted, zeros = [], []
    for g in grads:
        if data.draw(st.booleans()):
            where = data.draw(st.integers(0, g.shape[0] - 1))
            index = (where,) + (0,) * (g.ndim - 1)
            g[index] = data.draw(st.sampled_from([math.nan, math.inf, -math.inf]))
        parts = oracle.rows(as_array(g)) if per == "row" else [as_array(g)]
        wanted += [oracle.nonfinite(oracle.reals(p)) for p in parts]
        zeros += [oracle.zeros(oracle.reals(p)) for p in parts]
    moments = gw.measure(grads, per=per, backend=backend)
    assert moments.nonfinite.tolist() == wanted
    assert moments.zeros.tolist() == zeros
    for i, bad in enumerate(wanted):
        # What has a non-finite value has no finite mean to be trusted, and nobody else is hurt.
        assert bool(torch.isfinite(moments.mean[i])) is (bad == 0)
        assert bool(torch.isfinite(moments.m2[i])) is (bad == 0)


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_low_precision_is_summed_in_more(dtype: torch.dtype, backend: str) -> None:
    # In its own precision a sum of ones stops growing at 2048 (float16) or 256 (bfloat16), and
    # the square of 1000 overflows float16.
    grads = [torch.ones(5000, dtype=dtype), torch.full((7,), 1000.0, dtype=dtype)]
    moments = gw.measure(grads, backend=backend)
    assert moments.mean.tolist() == [1.0, 1000.0]
    assert moments.m2.tolist() == [0.0, 0.0]
    assert moments.norm[0].item() == pytest.approx(math.sqrt(5000), rel=1e-6)
    assert moments.norm[1].item() == pytest.approx(1000 * math.sqrt(7), rel=1e-6)


@pytest.mark.parametrize("backend", NAMES)
def test_large_mean_keeps_the_digits_of_the_variance(backend: str) -> None:
    x = values((64, 64), torch.float32, 3, 1.0, 1e4, "normal")
    want = oracle.describe(oracle.reals(as_array(x)))
    assert gw.measure([x], backend=backend).var.item() == pytest.approx(want.var, rel=1e-4)
    rows = gw.measure([x], per="row", backend=backend).per_tensor()
    assert rows.var.item() == pytest.approx(want.var, rel=1e-4)


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("per", ["tensor", "row"])
def test_conjugated_and_shared_memory(per: str, backend: str) -> None:
    z = values((4, 3), torch.complex64, 1, 1.0, 0.5, "normal")
    wide = torch.tensor([[1.0], [2.0]]).expand(2, 5)
    grads = [z.conj(), z.mH, wide, torch.tensor(3.0).expand(2, 2)]
    assert_described(gw.measure(grads, per=per, backend=backend), pieces(grads, per))


def test_no_tensors_at_all() -> None:
    assert gw.measure([]).mean.shape == (0,)
    nothing = gw.measure([None, torch.zeros(0)])
    assert nothing.count.tolist() == [0, 0]
    assert nothing.pooled().norm.item() == 0.0
    assert gw.measure([]).pooled().norm.item() == 0.0


def test_names() -> None:
    grads = [torch.ones(2, 2), None]
    assert gw.measure(grads, ["a", "b"], per="row").names == ("a", "b")
    with pytest.raises(gw.errors.UserError, match="2"):
        gw.measure(grads, ["a"])
    # Where calls are type-checked, the check speaks first.
    with pytest.raises((gw.errors.UserError, BeartypeCallHintViolation), match="per"):
        gw.measure(grads, per="column")


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("per", ["tensor", "row"])
def test_sparse_tensors_count_their_zeros(per: str, backend: str) -> None:
    # Index 1 is there twice: the value is the sum, 5, as it is for the optimizer.
    where = torch.tensor([[1, 1, 3]])
    g = torch.sparse_coo_tensor(where, torch.tensor([2.0, 3.0, -1.0]), (4,), check_invariants=False)
    table = torch.sparse_coo_tensor(
        where, torch.arange(6.0).view(3, 2), (4, 2), check_invariants=False
    )
    got = gw.measure([g, table], per=per, backend=backend)
    assert_described(got, pieces([g.to_dense(), table.to_dense()], "tensor"))


@pytest.mark.parametrize("backend", NAMES)
def test_few_distinct_values_in_many_places(backend: str) -> None:
    # What a ReLU network with hot units leaves: two values, so that roundings do not average out.
    generator = torch.Generator().manual_seed(5)
    x = torch.where(torch.rand(300_000, generator=generator) < 0.2, 4e-3, 1e-3)
    assert_described(gw.measure([x], backend=backend), pieces([x], "tensor"))


@COMMON
@given(gradients(kinds=("normal",), absent=False), PER, BACKENDS, st.data())
def test_zeros_of_either_sign_are_counted(
    grads: list[Tensor], per: str, backend: str | None, data: st.DataObject
) -> None:
    # What a ReLU leaves: zeros beside values so small that their square is 0.
    for g in grads:
        real = torch.view_as_real(g) if g.is_complex() else g
        small = torch.finfo(g.dtype).tiny
        kinds = torch.tensor([0.0, -0.0, small, -small, 1.0, 2.0], dtype=real.dtype)
        generator = torch.Generator().manual_seed(data.draw(st.integers(0, 1000)))
        real.copy_(kinds[torch.randint(6, real.shape, generator=generator)])
    got = gw.measure(grads, per=per, backend=backend)
    assert got.zeros.dtype == torch.int64
    wanted = [oracle.zeros(oracle.reals(a)) for a, _ in pieces(grads, per)]
    assert got.zeros.tolist() == wanted
    assert got.pooled().zeros.tolist() == [sum(wanted)]
    whole = [oracle.zeros(oracle.reals(a)) for a, _ in pieces(grads, "tensor")]
    assert got.per_tensor().zeros.tolist() == whole


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("per", ["tensor", "row"])
def test_a_factor_of_zero_makes_zeros_of_what_is_finite(per: str, backend: str) -> None:
    grads = [torch.tensor([[0.0, math.nan, 3.0], [math.inf, -0.0, 0.0]]), torch.ones(2)]
    moments = gw.measure(grads, per=per, backend=backend)
    assert moments.per_tensor().zeros.tolist() == [3, 0]
    zero = torch.zeros((), dtype=torch.float64)
    first_only = gw.affine.Affine(scale=zero, touched=(True, False))
    assert moments.through(first_only).per_tensor().zeros.tolist() == [4, 0]
    assert moments.through(gw.affine.Affine(scale=zero)).per_tensor().zeros.tolist() == [4, 2]


@pytest.mark.parametrize("backend", ["foreach", "cpu", "reference"])
def test_zeros_come_with_the_extremes(backend: str) -> None:
    assert gw.measure([torch.zeros(3)], backend=backend).zeros.tolist() == [3]
    without = gw.measure([torch.zeros(3)], backend=backend, extremes=False)
    assert without.zeros is without.min is None
    assert without.pooled().zeros is None
    rows = gw.measure([torch.zeros(2, 3)], per="row", backend=backend, extremes=False)
    assert rows.per_tensor().zeros is None
    assert with_params(without, [torch.zeros(3)], backend).params.zeros is None


class _Elsewhere(Tensor):
    """Host memory that says it is another device."""

    @property
    def device(self) -> torch.device:
        return torch.device("cpu", 1)


def test_a_model_on_several_devices_is_measured_as_one() -> None:
    grads = [torch.tensor([0.0, 1.0, 0.0]), torch.zeros(4), None, torch.tensor([[-3.0, 0.0]])]
    spread = [grads[0], grads[1].as_subclass(_Elsewhere), None, grads[3].as_subclass(_Elsewhere)]
    assert_described(gw.measure(spread), pieces(grads, "tensor"))
    without = gw.measure(spread, backend="foreach", extremes=False)
    assert without.zeros is without.min is None
    assert without.mean.tolist() == gw.measure(grads).mean.tolist()


@COMMON
@given(gradients(), PER, BACKENDS)
def test_leaving_out_the_extremes_changes_nothing_else(
    grads: list[Tensor | None], per: str, backend: str | None
) -> None:
    with_all = gw.measure(grads, per=per, backend=backend)
    without = gw.measure(grads, per=per, backend=backend, extremes=False)
    for name in ("count", "mean", "m2", "nonfinite"):
        assert bits(getattr(without, name)) == bits(getattr(with_all, name))


@pytest.mark.parametrize("backend", NAMES)
@pytest.mark.parametrize("per", ["tensor", "row"])
def test_parameters_make_no_graph(per: str, backend: str) -> None:
    # Measuring weights every step must not keep every step's graph alive.
    params = [torch.nn.Parameter(torch.ones(4, 5)), torch.nn.Parameter(torch.ones(200, 100))]
    moments = gw.measure(params, per=per, backend=backend)
    assert not moments.mean.requires_grad
    assert not moments.m2.requires_grad


@pytest.mark.parametrize("backend", NAMES)
def test_inference_mode_leaves_nothing_behind(backend: str) -> None:
    x = torch.ones(11, 13)  # a shape that no other test has measured yet
    with torch.inference_mode():
        inside = gw.measure([x], backend=backend)
    assert gw.measure([x], backend=backend).mean.item() == inside.mean.item() == 1.0


@pytest.mark.parametrize("backend", NAMES)
def test_threads_do_not_share_scratch(backend: str) -> None:
    wrong = []

    def work(value: float) -> None:
        grads = [torch.full((64, 64), value)] * 10
        for _ in range(300):
            if gw.measure(grads, backend=backend, extremes=False).mean.tolist() != [value] * 10:
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(value,)) for value in (1.0, 2.0, 3.0)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert wrong == []
