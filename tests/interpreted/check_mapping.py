"""Apply by the Triton kernels, in Triton's interpreter."""

from __future__ import annotations

import mmap
import warnings

import pytest
import torch

import gradwise as gw
from gradwise import backends
from gradwise.affine import Affine
from gradwise.backends.gpu import measuring
from gradwise.layout import layout_of
from interpreted.common import TYPES, launches

BLOCK = measuring.BLOCK
SHAPES = [(), (1,), (7,), (0,), (3, 5), (BLOCK,), (BLOCK + 1,), (3, BLOCK + 4)]


@pytest.fixture(autouse=True)
def _forced(monkeypatch):
    monkeypatch.setenv("GRADWISE_BACKEND", "triton")


def plain(tensors, affine, layout):
    """The map in float32, rounded once; segment by segment."""
    found = []
    for i, tensor in enumerate(tensors):
        if affine.touched is not None and not affine.touched[i]:
            found.append(tensor.clone())
            continue
        place = slice(layout.offsets[i], layout.offsets[i] + layout.rows[i])
        rows = tensor.float().reshape(layout.rows[i], -1)
        for vector, do in ((affine.shift, torch.sub), (affine.scale, torch.mul)):
            if vector is not None:
                each = vector if vector.dim() == 0 else vector[place][:, None]
                rows = do(rows, each.float())
        found.append(rows.reshape(tensor.shape).to(tensor.dtype))
    return found


@pytest.mark.parametrize("per", ["tensor", "row"])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("how", ["scale", "shift", "both", "one scale", "one of each"])
def test_the_map_to_the_last_bit(how, dtype, per):
    grads = [torch.randn(shape).to(dtype) for shape in SHAPES]
    layout = layout_of(grads, per=per)
    each = torch.rand(2, layout.segments, dtype=torch.float64) + 0.3
    affine = {
        "scale": Affine(each[0]),
        "shift": Affine(None, each[1]),
        "both": Affine(each[0], each[1]),
        "one scale": Affine(each[0, 0]),
        "one of each": Affine(each[0, 0].float(), each[1, 1]),
    }[how]
    right = plain(grads, affine, layout)
    backends.apply(grads, affine, layout)
    for grad, other in zip(grads, right, strict=True):
        if dtype == torch.bfloat16:  # the interpreter cuts off where a GPU rounds
            torch.testing.assert_close(grad, other, rtol=2**-7, atol=0)
        else:
            assert torch.equal(grad, other)


def test_what_is_not_touched_keeps_its_bits():
    grads = [torch.randn(9), torch.randn(3, 4), torch.randn(5)]
    layout, before = layout_of(grads), [grad.clone() for grad in grads]
    touched = (False, True, False)
    affine = Affine(torch.tensor(0.5), torch.tensor([1.0, 2.0, 3.0]), touched)
    backends.apply(grads, affine, layout)
    for grad, other in zip(grads, plain(before, affine, layout), strict=True):
        assert torch.equal(grad, other)
    assert torch.equal(grads[0], before[0])


def test_a_map_that_changes_nothing_writes_nothing():
    # Memory that the system lets nobody write: a kernel that did would not live to tell.
    room = mmap.mmap(-1, 4096, prot=mmap.PROT_READ)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        still = torch.frombuffer(room, dtype=torch.float32)
    moved = torch.randn(100)
    layout, right = layout_of([still, moved]), (moved - 1) * 0.5
    scale = torch.tensor([1.0, 0.5], dtype=torch.float64)
    backends.apply([still, moved], Affine(scale, torch.tensor([0.0, 1.0])), layout)
    assert torch.equal(moved, right)
    assert not still.any()


def test_all_memory_formats_and_types():
    def made():
        torch.manual_seed(1)
        return [
            torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last),
            torch.randn(6, 4).t(),
            torch.randn(8, 8)[:, ::2],
            torch._neg_view(torch.randn(10)),
            torch.view_as_complex(torch.randn(10, 2)),
            torch.randn(10, dtype=torch.float64),
            torch.randn(300)[1:],
            torch.randn(50).bfloat16(),
        ]

    for per in ("tensor", "row"):
        grads, others = made(), made()
        layout = layout_of(grads, per=per)
        each = torch.rand(2, layout.segments, dtype=torch.float64) + 0.3
        addresses = [grad.data_ptr() for grad in grads]
        backends.apply(grads, Affine(each[0], each[1]), layout)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("GRADWISE_BACKEND", "reference")
            backends.apply(others, Affine(each[0], each[1]), layout)
        assert [grad.data_ptr() for grad in grads] == addresses
        for grad, other in zip(grads, others, strict=True):
            rtol = 2**-7 if grad.dtype == torch.bfloat16 else 1e-6
            torch.testing.assert_close(grad, other, rtol=rtol, atol=1e-6)


def test_sparse_gradients_are_scaled_and_never_shifted():
    sparse = torch.sparse_coo_tensor([[1, 4]], [1.0, -3.0], (9,), check_invariants=True).coalesce()
    dense = torch.ones(4)
    layout = layout_of([dense, sparse], ["dense", "sparse"])
    with pytest.raises(gw.UserError, match=r"^gradient 'sparse' is sparse"):
        backends.apply([dense, sparse], Affine(None, torch.ones(2)), layout)
    assert torch.equal(dense, torch.ones(4))
    backends.apply([dense, sparse], Affine(torch.tensor([3.0, 2.0])), layout)
    assert torch.equal(dense, torch.full((4,), 3.0))
    assert sparse.values().tolist() == [2.0, -6.0]


def test_one_launch_for_any_number_of_tensors(monkeypatch):
    names = launches(monkeypatch)
    for count in (3, 200):
        grads = [torch.randn(4) for _ in range(count)]
        backends.apply(grads, Affine(torch.tensor(0.5)), layout_of(grads))
        assert names == ["map_chunks"]
        names.clear()


def test_autograd_is_told():
    weight = torch.randn(5, requires_grad=True)
    grad = weight * 2
    kept = grad.exp()  # keeps itself for backward, not what it is of
    squared = grad.square()  # keeps `grad`
    with torch.no_grad():
        backends.apply([grad], Affine(torch.tensor(0.5)), layout_of([grad]))
    kept.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squared.sum().backward()


def test_a_map_of_another_layout_is_refused():
    grads = [torch.ones(3), torch.ones(4)]
    with pytest.raises(ValueError, match="not one of the layout"):
        backends.apply(grads, Affine(torch.ones(3)), layout_of(grads))
