"""Apply: one affine map a segment, in place, with no pass that the map does not need."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradwise.affine import Affine
from gradwise.errors import UserError
from gradwise.layout import Layout, real_view

_NATIVE = (torch.float32, torch.float64)
IN_CACHE = 1 << 16  # values that a second pass still finds in a CPU cache


def apply_(
    tensors: Sequence[Tensor | None], affine: Affine, layout: Layout, *, on_host: bool
) -> None:
    """Map tensors of one device in place; see `gradwise.backends.apply`.

    Args:
        tensors: one a layout entry; None where there is nothing to map.
        affine: the map, on the tensors' device.
        layout: of the tensors.
        on_host: whether the map's numbers lie in host memory, where reading them waits for nothing.

    Raises:
        UserError: where a sparse tensor would be shifted; no tensor is changed then.
    """
    if affine.is_identity:
        return
    touched = affine.touched or (True,) * len(layout)
    chosen = [i for i, tensor in enumerate(tensors) if tensor is not None and touched[i]]
    for i in chosen:
        if affine.shifts(i) and not layout.dense[i]:
            raise UserError(
                f"gradient {layout.names[i]!r} is sparse: shifting it would make it dense, "
                "so use a transform that only scales"
            )
    whole, plain = [], []  # indices and real tensors that the multi-tensor route takes
    for i in chosen:
        tensor = tensors[i]
        assert tensor is not None
        if tensor.layout != torch.strided:
            _apply_sparse(tensor, affine, layout, i)
        elif tensor.is_conj():  # a lazy conjugate has no view as pairs of reals
            resolved = tensor.resolve_conj()
            _apply_one(real_view(resolved), affine, layout, i)
            tensor.copy_(resolved)
        elif layout.rows[i] > 1 or tensor.dtype not in _NATIVE:
            _apply_one(real_view(tensor), affine, layout, i)
        else:
            whole.append(i)
            plain.append(real_view(tensor))
    if plain:
        many = _apply_on_host if on_host else _apply_on_device
        many(plain, affine, layout, whole)


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
    """The map's numbers lie in host memory: read them, and leave out what would change nothing."""
    scales = _floats(affine.scale, 1.0, layout, which)
    shifts = _floats(affine.shift, 0.0, layout, which)
    if all(scale == 1.0 for scale in scales):
        if any(shifts):
            torch._foreach_sub_(tensors, shifts)
    elif not any(shifts):
        torch._foreach_mul_(tensors, scales)
    else:
        small = [i for i, tensor in enumerate(tensors) if tensor.numel() <= IN_CACHE]
        if small:  # calls cost more than passes
            torch._foreach_sub_([tensors[i] for i in small], [shifts[i] for i in small])
            torch._foreach_mul_([tensors[i] for i in small], [scales[i] for i in small])
        for tensor, scale, shift in zip(tensors, scales, shifts, strict=True):
            if tensor.numel() > IN_CACHE:  # one pass: offset + scale * g, rounded once
                offset = torch.tensor(-scale * shift, dtype=tensor.dtype)
                torch.add(offset, tensor, alpha=scale, out=tensor)


def _floats(vector: Tensor | None, default: float, layout: Layout, which: list[int]) -> list[float]:
    if vector is None:
        return [default] * len(which)
    if vector.dim() == 0:
        return [float(vector)] * len(which)
    values = vector.tolist()
    return [values[layout.offsets[i]] for i in which]


def _pick(vector: Tensor, layout: Layout, which: list[int]) -> list[Tensor]:
    """The 0-d entries of [S] (or of 0-d) that belong to whole tensors."""
    if vector.dim() == 0:
        return [vector] * len(which)
    entries = vector.unbind()
    return [entries[layout.offsets[i]] for i in which]


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
