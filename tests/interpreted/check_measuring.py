"""Measure by the Triton kernels, in Triton's interpreter, against the float64 reference."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gradwise as gw
from gradwise.backends.gpu import measuring, tables
from gradwise.layout import layout_of
from interpreted.common import CPU, TYPES, close, launches, truth

BLOCK = measuring.BLOCK
SHAPES = [(), (1,), (7,), (0,), (0, 4), (3, 5), (BLOCK - 1,), (BLOCK,), (BLOCK + 1,), (5, BLOCK)]


def measured(tensors, per="tensor", extremes=True):
    return gw.measure(tensors, per=per, backend="triton", extremes=extremes)


@pytest.mark.parametrize("per", ["tensor", "row"])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_many_shapes_at_once(dtype, per):
    grads = [(3 * torch.randn(shape) + 2).to(dtype) for shape in SHAPES]
    close(measured(grads, per), truth(grads, per))


@pytest.mark.parametrize("shape", SHAPES)
def test_each_shape_alone(shape):
    grads = [torch.randn(shape).relu()]
    close(measured(grads), truth(grads))


def test_types_in_any_order_and_what_is_not_there():
    grads = [torch.randn(30).to(dtype) for _ in range(3) for dtype in (*TYPES, torch.float64)]
    grads[2] = grads[7] = None
    close(measured(grads), truth(grads))
    close(measured([]), truth([]))


@pytest.mark.parametrize("blocks", [1, 3, 24])
def test_a_chunk_may_have_several_blocks(blocks, monkeypatch):
    values = torch.randn(18 * BLOCK + 100) * torch.linspace(0.1, 5, 18 * BLOCK + 100) + 3
    monkeypatch.setattr(tables, "PROGRAMS", max(24 // blocks, 1))  # of 24 blocks in all
    grads = [values, torch.randn(50), values[: 2 * BLOCK + 1].clone(), torch.randn(7)]
    layout = layout_of(grads, [f"{blocks}.{i}" for i in range(4)])  # another one each time
    found = gw.moments.measure_layout(grads, layout, "triton")
    close(found, truth(grads))
    plan = next(iter(layout.cached(("triton plan", grads[0].device), dict).values()))
    size = min(blocks, tables.MOST) * BLOCK
    chunks = [math.ceil(grad.numel() / size) for grad in grads]
    assert plan.all.count == sum(chunks)
    assert plan.all.most == max(chunks)
    assert (plan.all.begin[1] - plan.all.begin[0]).tolist() == chunks


@pytest.mark.parametrize("size", [1e-44, 1e-38, 1e-25, 1e-6, 1e6, 1e20, 1e30, 3e37])
def test_squares_do_not_leave_the_range(size):
    grads = [torch.randn(300) * size, torch.randn(BLOCK + 5) * size]
    grads.append(torch.cat([torch.zeros(BLOCK), grads[1]]))  # a block of zeros comes first
    close(measured(grads), truth(grads))


@pytest.mark.parametrize("ratio", [1e1, 1e3, 1e5, 1e6])
def test_digits_are_left_where_the_mean_is_far_above_the_spread(ratio):
    far = [torch.randn(n) + ratio for n in (40, 3 * BLOCK + 9)]
    step = torch.cat([torch.zeros(BLOCK), torch.randn(BLOCK) + ratio])  # only in the second half
    close(measured([*far, step]), truth([*far, step]))


@pytest.mark.parametrize("value", [0.0, -0.0, 1.7, -1e-30, 3e38])
def test_a_constant_has_no_spread(value):
    found = measured([torch.full((n,), value) for n in (1, 100, BLOCK + 100)])
    assert found.m2.tolist() == [0.0] * 3
    exact = torch.tensor(value).double().item()
    torch.testing.assert_close(found.mean, torch.full_like(found.mean, exact), rtol=1e-12, atol=0)
    assert found.zeros.tolist() == ([1, 100, BLOCK + 100] if value == 0 else [0] * 3)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize(
    "bad", [[torch.nan], [torch.inf], [-torch.inf, torch.inf], [torch.nan] * 3]
)
def test_what_is_not_finite_is_counted_where_it_is(bad, dtype):
    grads = [torch.randn(n).to(dtype) for n in (20, BLOCK + 20, 3)]
    grads[1][torch.arange(len(bad)) * 4097] = torch.tensor(bad, dtype=dtype)
    found = measured(grads)
    close(found, truth(grads))
    assert found.nonfinite.tolist() == [0, len(bad), 0]
    assert torch.isfinite(found.mean).tolist() == [True, False, True]
    assert not found.all_finite


def test_without_extremes_they_are_not_there():
    grads = [torch.randn(20), torch.tensor([torch.nan, 1.0])]
    found, whole = measured(grads, extremes=False), measured(grads)
    assert found.min is found.max is found.zeros is None
    for name in ("mean", "m2", "nonfinite"):
        torch.testing.assert_close(
            getattr(found, name), getattr(whole, name), rtol=0, atol=0, equal_nan=True
        )


def test_memory_is_read_where_it_lies():
    base = torch.randn(300)
    odd = base[1:]  # 4 bytes beyond a multiple of 16
    assert odd.data_ptr() % 16
    sparse = torch.sparse_coo_tensor([[1, 1, 4]], [1.0, 2.0, -3.0], (9,), check_invariants=True)
    grads = [
        torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last),
        torch.randn(2, 3, 4, 4, 4).to(memory_format=torch.channels_last_3d),
        torch.randn(6, 4).t(),
        torch.randn(8, 8)[:, ::2],
        torch.randn(5).expand(4, 5),
        torch._neg_view(torch.randn(10)),
        torch.view_as_complex(torch.randn(10, 2)),
        torch.randn(10, dtype=torch.float64),
        odd,
        sparse,
        torch.nn.Parameter(torch.randn(12)),
    ]
    for per in ("tensor", "row"):
        close(measured(grads, per), truth(grads, per))


def test_the_same_gradients_give_the_same_bits():
    grads = [torch.randn(n).to(kind) for n in (9, 40_000) for kind in TYPES]
    first, again = measured(grads), measured([grad.clone() for grad in grads])
    for name in ("mean", "m2", "min", "max", "zeros", "nonfinite"):
        assert torch.equal(getattr(first, name), getattr(again, name)), name


def test_launches_do_not_grow_with_the_number_of_tensors(monkeypatch):
    names = launches(monkeypatch)
    for count in (3, 200):
        measured([torch.randn(4) for _ in range(count)])
        assert names == ["measure_chunks", "combine_chunks"]
        names.clear()
    measured([torch.randn(4).to(kind) for kind in TYPES for _ in range(20)])
    assert names == ["measure_chunks"] * 3 + ["combine_chunks"]


def test_other_tensors_of_the_same_layout_are_found_where_they_are():
    layout = layout_of([torch.zeros(9), torch.zeros(3, 4)], ["here", "there"])
    for size in (1.0, 2.0, 3.0):
        grads = [size * torch.randn(9), size * torch.randn(3, 4)]
        close(gw.moments.measure_layout(grads, layout, "triton"), truth(grads))


def test_tensors_of_another_size_are_refused_before_they_are_read():
    layout = layout_of([torch.ones(8)])
    with pytest.raises(ValueError, match="not those of the layout"):
        measuring.measure([torch.ones(4)], layout, True)
    with pytest.raises(ValueError, match="not those of the layout"):
        measuring.measure([], layout, True)


def test_what_a_captured_graph_looks_at_stays_as_it_is(monkeypatch):
    monkeypatch.setattr(tables, "_captured", {})
    table = tables.Table(2, torch.int64, CPU)
    eager = table([1, 2])
    assert table([1, 2]) is eager
    assert tables._captured == {}
    monkeypatch.setattr(tables, "capturing", lambda device: True)
    assert table([1, 2]) is eager  # it is there, and kept from now on
    first, again = table([3, 4]), table([3, 4])  # each is filled when its graph runs
    assert first is not again
    monkeypatch.undo()
    kept = [*map(id, (eager, first, again))]
    for values in ([3, 4], [5, 6], [1, 2]):
        assert id(table(values)) not in kept
        assert table(values).tolist() == values
    assert [eager.tolist(), first.tolist(), again.tolist()] == [[1, 2], [3, 4], [3, 4]]


def test_a_graph_is_not_captured_of_a_first_step(monkeypatch):
    monkeypatch.setattr(tables, "_captured", {})
    grads = [torch.randn(5), torch.randn(6)]
    layout = layout_of(grads, ["graph", "capture"])
    monkeypatch.setattr(tables, "capturing", lambda device: True)
    with pytest.raises(gw.UserError, match="before one is captured in a CUDA graph"):
        measuring.measure(grads, layout, True)
    monkeypatch.setattr(tables, "capturing", lambda device: False)
    measuring.measure(grads, layout, True)
    monkeypatch.setattr(tables, "capturing", lambda device: True)
    close(gw.moments.measure_layout(grads, layout, "triton"), truth(grads))
    plan = layout.cached(("triton plan", CPU), dict)["plan"]
    assert id(plan.all) in tables._captured


numbers = st.floats(-(2.0**100), 2.0**100, width=32)


@settings(max_examples=20)
@given(st.lists(st.lists(numbers, max_size=6), max_size=4), st.sampled_from(TYPES[:2]))
def test_any_numbers(values, dtype):
    grads = [torch.tensor(each, dtype=dtype) for each in values]
    close(measured(grads), truth(grads))


@settings(max_examples=10)
@given(st.lists(numbers, min_size=2, max_size=9), st.randoms(use_true_random=False))
def test_the_order_within_a_tensor_is_of_no_consequence(values, draw):
    mixed = draw.sample(values, len(values))
    grads = [torch.tensor(values), torch.tensor(mixed)]
    found = measured(grads)
    assert found.max_abs[0] == found.max_abs[1]
    torch.testing.assert_close(*found.m2, rtol=1e-5, atol=0.0)
