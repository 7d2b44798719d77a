"""Apply: one affine map a segment, in place, with no pass that the map does not need."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradwise.affine import Affine
from gradwise.backends import native
from gradwise.backends.gpu import measuring
from gradwise.backends.segments import there
from gradwise.errors import UserError
from gradwise.layout import Layout, real_view

ON_HOST = ("native", "cpu")
_NATIVE = (torch.float32, torch.float64)


def apply_(
    tensors: Sequence[Tensor | None], affine: Affine, layout: Layout, *, backend: str
) -> None:
    """Map tensors of one device in place; see `gradwise.backends.apply`.

    Args:
        tensors: one a layout entry; None where there is nothing to map.
        affine: the map, on the tensors' device.
        layout: of the tensors.
        backend: what measures on that device; with one of `ON_HOST` the map's numbers lie in host
            memory, where reading them waits for nothing.

    Raises:
        UserError: where a sparse tensor would be shifted; no tensor is changed then.
    """
    if affine.is_identity:
        return
    whole, others = layout.cached(
        ("apply", affine.touched, affine.shift is None, affine.shifted),
        lambda: _routes(affine, layout),
    )
    if backend == "triton":
        left = set(measuring.apply(tensors, affine, layout, (*whole, *others)))
        whole, others = ([i for i in part if i in left] for part in (whole, others))
    if whole:
        chosen = [there(tensors[i]) for i in whole]
        if backend != "native" or not native.apply(chosen, affine, layout, whole):
            many = _apply_on_host if backend in ON_HOST else _apply_on_device
            many(chosen, affine, layout, whole)
    for i in others:
        tensor = there(tensors[i])
        if tensor.layout != torch.strided:
            _apply_sparse(tensor, affine, layout, i)
        elif tensor.is_conj():  # a lazy conjugate has no view as pairs of reals
            resolved = tensor.resolve_conj()
            _apply_one(real_view(resolved), affine, layout, i)
            tensor.copy_(resolved)
        else:
            _apply_one(real_view(tensor), affine, layout, i)


def _routes(affine: Affine, layout: Layout) -> tuple[list[int], list[int]]:
    """Which tensors the multi-tensor route takes, and which go one by one."""
    whole: list[int] = []
    others: list[int] = []
    for i, here in enumerate(layout.present):
        untouched = affine.touched is not None and not affine.touched[i]
        if not here or untouched or layout.numels[i] == 0:
            continue
        if affine.shifts(i) and not layout.dense[i]:
            raise UserError(
                f"gradient {layout.names[i]!r} is sparse: shifting it would make it dense, "
                "so use a transform that only scales"
            )
        plain = layout.dense[i] and layout.rows[i] == 1 and layout.dtypes[i] in _NATIVE
        (whole if plain else others).append(i)
    return whole, others


def _apply_on_device(
    tensors: list[Tensor], affine: Affine, layout: Layout, which: list[int]
) -> None:
    """The map's numbers stay where they are: no branch may depend on them."""
    scale, shift = affine.scale, affine.shift
    if scale is not None and shift is not None:
        # One launch and one read and write a tensor instead of two: scale * g - scale * shift.
        for kind in {tensor.dtype for tensor in tensors}:
            scales = _pick(scale.to(kind), layout, which)
            offsets = _pick((-scale * shift).to(kind), layout, which)
            for tensor, factor, offset in zip(tensors, scales, offsets, strict=True):
                if tensor.dtype == kind:
                    torch.addcmul(offset, tensor, factor, out=tensor)
    elif shift is not None:
        torch._foreach_sub_(tensors, _pick(shift, layout, which))
    elif scale is not None and scale.dim() == 0:
        for kind in {tensor.dtype for tensor in tensors}:
            torch._foreach_mul_([t for t in tensors if t.dtype == kind], scale.to(kind))
    elif scale is not None:
        torch._foreach_mul_(tensors, _pick(scale, layout, which))


def _apply_on_host(tensors: list[Tensor], affine: Affine, layout: Layout, which: list[int]) -> None:
    """The map's numbers lie in host memory: read them, and leave out what would change nothing.

    The numbers go back in as 0-d tensors, which cost a multi-tensor call less than Python floats.
    """
    scale, shift = affine.scale, affine.shift
    scales = None if scale is None else _floats(scale, layout, which)
    if scales is not None and all(factor == 1.0 for factor in scales):
        scale = scales = None
    if shift is not None and not any(_floats(shift, layout, which)):
        shift = None
    if scale is not None and scales is not None and shift is not None:
        offsets = _pick(-scale * shift, layout, which)
        for tensor, factor, offset in zip(tensors, scales, offsets, strict=True):
            if factor == 1.0:  # the difference is exact where mean and value are close
                tensor.sub_(-offset)
            else:  # one pass: offset + scale * g, rounded once
                torch.add(offset, tensor, alpha=factor, out=tensor)
    elif shift is not None:
        torch._foreach_sub_(tensors, _pick(shift, layout, which))
    elif scale is not None and scale.dim() == 0:
        torch._foreach_mul_(tensors, scale)
    elif scale is not None:
        torch._foreach_mul_(tensors, _pick(scale, layout, which))


def _floats(vector: Tensor, layout: Layout, which: list[int]) -> list[float]:
    if vector.dim() == 0:
        return [float(vector)] * len(which)
    values, offsets = vector.tolist(), layout.offsets
    return [values[offsets[i]] for i in which]


def _pick(vector: Tensor, layout: Layout, which: list[int]) -> list[Tensor]:
    """The 0-d entries of [S] (or of 0-d) that belong to whole tensors."""
    if vector.dim() == 0:
        return [vector] * len(which)
    entries, offsets = vector.unbind(), layout.offsets
    return [entries[offsets[i]] for i in which]


def _apply_one(tensor: Tensor, affine: Affine, layout: Layout, i: int) -> None:
    """One tensor by rows, or of a narrow type, where the map is computed in float32."""
    start, rows = layout.offsets[i], layout.rows[i]
    wide = tensor if tensor.dtype in _NATIVE else tensor.float()
    shape = (rows,) + (1,) * (tensor.dim() - 1) if rows > 1 else ()

    def part(vector: Tensor) -> Tensor:
        if vector.dim() == 0:
            return vector.to(wide.dtype)
        return vector[start : start + rows].reshape(shape).to(wide.dtype)

    if wide is tensor:
        if affine.shift is not None:
            tensor.sub_(part(affine.shift))
        if affine.scale is not None:
            tensor.mul_(part(affine.scale))
        return
    if affine.shift is not None:
        wide = wide.sub_(part(affine.shift))
    if affine.scale is not None:
        wide = wide.mul_(part(affine.scale))
    tensor.copy_(wide)


def _apply_sparse(tensor: Tensor, affine: Affine, layout: Layout, i: int) -> None:
    if affine.scale is not None:
        scale = affine.scale if affine.scale.dim() == 0 else affine.scale[layout.offsets[i]]
        values = tensor._values() if tensor.layout == torch.sparse_coo else tensor.values()
        values.mul_(scale.to(values.dtype))
