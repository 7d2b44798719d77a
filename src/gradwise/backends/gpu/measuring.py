"""Measure and apply on a GPU: one read, then one read and write, whatever the number of tensors.

A launch goes through all tensors of one type, so a model in one type is measured by two launches
(its chunks, then their combination) and mapped by one. What the kernels do not take (float64,
complex or sparse tensors, strides with gaps) goes through torch's own calls one by one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradwise.affine import Affine
from gradwise.backends import foreach
from gradwise.backends.gpu import launching
from gradwise.backends.gpu.launching import KernelError, kind_of, launch
from gradwise.backends.gpu.tables import (
    LEFT,
    Chunks,
    Table,
    how_it_lies,
)
from gradwise.backends.segments import Stats, tell_autograd, there
from gradwise.layout import Layout, layout_of

BLOCK, WARPS = 8192, 8  # a program's values at once, and its warps, where segments are tensors
ROW_BLOCK, ROW_WARPS = 1024, 4  # where they are rows, which are shorter
NONE, SINGLE, EACH = range(3)  # as in kernels.py


class _Plan:
    """The tables of one layout on one device, for tensors that lie as they do now."""

    def __init__(self, layout: Layout, device: torch.device, lies: tuple[int, ...]) -> None:
        self.layout, self.device, self.lies = layout, device, lies
        self.block, self.warps = (BLOCK, WARPS) if layout.by_tensor else (ROW_BLOCK, ROW_WARPS)
        self.addresses = Table(len(layout), torch.int64, device)
        self.all = self._chunks(lies)
        self._some: dict[tuple[int, ...], Chunks] = {}
        there = zip(layout.numels, layout.present, lies, strict=True)
        self.others = [i for i, (n, here, how) in enumerate(there) if here and n and how == LEFT]

    def some(self, which: Sequence[int]) -> Chunks:
        """The chunks of some of the tensors."""
        key = tuple(which)
        if key not in self._some:
            if len(self._some) == 8:
                self._some.clear()
            chosen = set(which)
            lies = tuple(how if i in chosen else LEFT for i, how in enumerate(self.lies))
            self._some[key] = self.all if lies == self.lies else self._chunks(lies)
        return self._some[key]

    def _chunks(self, lies: tuple[int, ...]) -> Chunks:
        layout = self.layout
        kinds = [(kind or torch.float32,) for kind in layout.dtypes]
        return Chunks(
            layout.numels,
            layout.rows,
            layout.offsets,
            kinds,
            lies,
            layout.segments,
            self.block,
            self.device,
        )


def _planned(
    tensors: Sequence[Tensor | None], layout: Layout, device: torch.device
) -> tuple[_Plan, Tensor]:
    """The plan and the addresses of these tensors."""
    if len(tensors) != len(layout):
        raise ValueError("the tensors are not those of the layout")
    lies = tuple(
        [
            how_it_lies(*each, device)
            for each in zip(tensors, layout.numels, layout.dtypes, layout.rows, strict=True)
        ]
    )
    held: dict[str, _Plan] = layout.cached(("triton plan", device), dict)
    plan = held.get("plan")
    if plan is None or plan.lies != lies:
        plan = held["plan"] = _Plan(layout, device, lies)
    where = [
        0 if tensor is None or how == LEFT else tensor.data_ptr()
        for tensor, how in zip(tensors, lies, strict=True)
    ]
    return plan, plan.addresses(where)


def measure(tensors: Sequence[Tensor | None], layout: Layout, extremes: bool) -> Stats:
    """Measure every segment; see `gradwise.backends.measure`. Extremes cost no read here."""
    if launching.broken() is None:
        try:
            return _measure(tensors, layout, extremes)
        except KernelError:
            pass
    return foreach.measure(tensors, layout, extremes)


def _measure(tensors: Sequence[Tensor | None], layout: Layout, extremes: bool) -> Stats:
    device = next((t.device for t in tensors if t is not None), torch.device("cpu"))
    plan, addresses = _planned(tensors, layout, device)
    chunks, segments = plan.all, layout.segments
    chunks.used(device)
    ends = 4 if extremes else 2
    partial = torch.empty(ends * max(chunks.count, 1), dtype=torch.float64, device=device)
    counted = torch.empty(max(chunks.count, 1), dtype=torch.int64, device=device)
    out = torch.empty(ends, segments, dtype=torch.float64, device=device)
    counts = torch.empty(ends // 2, segments, dtype=torch.int64, device=device)
    tables = (chunks.tensor, chunks.start, chunks.length)
    for group in chunks.groups:
        launch(
            "measure_chunks",
            group.size,
            device,
            addresses,
            *tables,
            partial,
            counted,
            group.first,
            chunks.count,
            warps=plan.warps,
            KIND=kind_of(group.kinds[0]),
            BLOCK=plan.block,
            EXTREMES=extremes,
            ALIGNED=group.aligned,
        )
    tile = min(max(16, 1 << (chunks.most - 1).bit_length()), 1024) if chunks.most else 16
    launch(
        "combine_chunks",
        segments,
        device,
        chunks.length,
        chunks.begin,
        partial,
        counted,
        out,
        counts,
        chunks.count,
        segments,
        warps=4 if tile > 128 else 1,
        TILE=tile,
        EXTREMES=extremes,
    )
    for i in plan.others:
        found = foreach.tensor_stats(there(tensors[i]), layout.rows[i], extremes)
        place = slice(layout.offsets[i], layout.offsets[i] + layout.rows[i])
        wide = [found.mean, found.m2, *([found.min, found.max] if extremes else [])]
        whole = [found.nonfinite, *([found.zeros] if extremes else [])]
        for into, values in ((out, wide), (counts, whole)):
            for row, value in zip(into, values, strict=True):
                assert value is not None
                row[place].copy_(value)
    low, high = (out[2], out[3]) if extremes else (None, None)
    return Stats(out[0], out[1], counts[0], low, high, counts[1] if extremes else None)


def apply(
    tensors: Sequence[Tensor | None], affine: Affine, layout: Layout, which: Sequence[int]
) -> list[int]:
    """Map tensors of one device in place, in float32 and rounded once.

    Args:
        tensors: one a layout entry.
        affine: the map, on the tensors' device.
        layout: of the tensors.
        which: the places of those to map.

    Returns:
        The places of those that were left as they are, for torch's own calls.
    """
    if launching.broken() is not None or not which:
        return list(which)
    device = next(t.device for t in tensors if t is not None)
    scale, scales = numbers_of(affine.scale, layout)
    shift, shifts = numbers_of(affine.shift, layout)
    plan, addresses = _planned(tensors, layout, device)
    chunks = plan.some(which)
    chunks.used(device)
    left = [i for i in which if plan.lies[i] == LEFT]
    written: list[Tensor] = []
    for done, group in enumerate(chunks.groups):
        try:
            launch(
                "map_chunks",
                group.size,
                device,
                addresses,
                chunks.tensor,
                chunks.start,
                chunks.length,
                chunks.segment,
                addresses if scale is None else scale,
                addresses if shift is None else shift,
                group.first,
                warps=plan.warps,
                KIND=kind_of(group.kinds[0]),
                BLOCK=plan.block,
                SCALES=scales,
                SHIFTS=shifts,
                ALIGNED=group.aligned,
            )
        except KernelError:  # what earlier launches have mapped must not be mapped again
            left += [i for other in chunks.groups[done:] for i in other.members]
            break
        written += [t for i in group.members if (t := tensors[i]) is not None and t.requires_grad]
    tell_autograd(written)
    return sorted(left)


def numbers_of(vector: Tensor | None, layout: Layout) -> tuple[Tensor | None, int]:
    """A map's factors or shifts as a kernel reads them, and how many there are."""
    if vector is None:
        return None, NONE
    if vector.dim() == 0:
        return vector, SINGLE
    if vector.numel() != layout.segments:
        raise ValueError("the map is not one of the layout")
    return vector.contiguous(), EACH


_proven: dict[torch.device, bool] = {}


def proven(device: torch.device) -> bool:
    """Whether the kernels work on a device: compiled and tried there once, numbers compared.

    That waits for the device, the first time only. False while a CUDA graph is being captured and
    nothing is known yet: steps should run a few times before they are captured.
    """
    if device not in _proven:
        if launching.missing() is not None or launching.refused(device) is not None:
            return False
        if launching.capturing(device):
            return False
        _proven[device] = _try(device)
    return _proven[device] and launching.broken() is None


def _try(device: torch.device) -> bool:
    """Measure two tensors and map them, by the kernels and by torch's own calls."""
    values = [torch.linspace(-3, 4, n, device=device) for n in (7, BLOCK + 100)]
    layout = layout_of(values)
    factor = torch.tensor([0.5, 1.0], dtype=torch.float64, device=device)
    mapped = [value.clone() for value in values]
    plain = foreach.measure(values, layout, extremes=False)
    try:
        found = _measure(values, layout, extremes=False)
    except KernelError:
        return False
    if apply(mapped, Affine(factor, plain.mean), layout, (0, 1)):
        return False
    right = torch.allclose(found.m2, plain.m2, rtol=1e-5)
    for value, mean, scale, new in zip(values, plain.mean, factor, mapped, strict=True):
        right = right and torch.allclose(((value - mean) * scale).float(), new, atol=1e-5)
    if not right:
        launching.give_up("measure_chunks", ArithmeticError("its numbers are wrong"))
    return right
