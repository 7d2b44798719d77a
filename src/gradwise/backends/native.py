"""Measure and apply on the CPU through compiled kernels: one read, then one read and write.

Where there is no C compiler, `gradwise.backends.cpu` does the same with torch's own calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from gradwise.affine import Affine
from gradwise.backends import reference
from gradwise.backends.compiler import kernels
from gradwise.backends.launch import PIECE, addresses, in_one_piece, launch, plainly_laid_out
from gradwise.backends.segments import Stats, as_rows, tell_autograd, there
from gradwise.layout import Layout

_NO_SCALE = torch.ones((), dtype=torch.float64)
_NO_SHIFT = torch.zeros((), dtype=torch.float64)
_KERNEL_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.complex64)


def available() -> bool:
    """Whether the kernels run here; compiles them at the first call."""
    return not isinstance(kernels(), str)


def threaded() -> bool:
    """Whether the kernels, which are there, use the threads of torch's own calls."""
    library = kernels()
    return not isinstance(library, str) and bool(library.gradwise_threaded())


class _Plan:
    """Which tensors the kernels take, and where their segments are; made once a layout."""

    def __init__(self, layout: Layout) -> None:
        there = [i for i, n in enumerate(layout.numels) if layout.present[i] and n > 0]
        self.taken = [i for i in there if layout.dense[i] and layout.dtypes[i] in _KERNEL_TYPES]
        taken = set(self.taken)
        self.other = [i for i in there if i not in taken]
        self.numels = tuple(layout.numels[i] for i in self.taken)  # a complex value counts two
        self.total = sum(self.numels)
        self.real = all(layout.dtypes[i] == torch.float32 for i in self.taken)
        self.rows = [layout.rows[i] for i in self.taken]
        pieces, slots = _cut(layout, self.taken)
        self.pieces = torch.tensor(pieces, dtype=torch.int64).reshape(-1, 6)
        self.slots = sum(slots)
        self.first = torch.tensor([0, *accumulate(slots)], dtype=torch.int64)
        self.numel = torch.tensor(layout.segment_numels, dtype=torch.int64)

    def values(self, tensors: Sequence[Tensor | None]) -> list[Tensor]:
        """The taken tensors as float32 in one piece of memory, copied only where they are not."""
        found = [tensor for i in self.taken if (tensor := tensors[i]) is not None]
        if self.real and plainly_laid_out(found):
            return found
        return [
            tensor
            if self.real and in_one_piece(tensor, rows)
            else as_rows(tensor.resolve_neg(), rows).float().contiguous()
            for tensor, rows in zip(found, self.rows, strict=True)
        ]

    def launch(self, kernel: str, values: list[Tensor], *rest: int) -> None:
        """Run a kernel on the values of the taken tensors."""
        # The kernels trust the plan: what is not as large as it says would be read beyond its end.
        if tuple(map(Tensor.numel, values)) != self.numels:
            raise ValueError("the tensors are not those of the layout")
        lists = (addresses(values), self.pieces.data_ptr())
        launch(kernel, self.total, len(self.pieces), lists, *rest)


def _cut(layout: Layout, taken: list[int]) -> tuple[list[tuple[int, ...]], list[int]]:
    """The taken tensors in pieces (`struct piece`), and how many slots each segment has."""
    pieces: list[tuple[int, ...]] = []
    slots = [0] * layout.segments
    slot = 0
    for owner, i in enumerate(taken):
        rows, first = layout.rows[i], layout.offsets[i]
        length = layout.numels[i] // rows
        starts = range(0, length, PIECE)
        slots[first : first + rows] = [len(starts)] * rows
        together = max(PIECE // length, 1)  # rows that fit into one piece
        for row in range(0, rows, together):
            held = min(together, rows - row)
            for at in starts:
                values = min(PIECE, length - at)
                pieces.append((owner, row * length + at, held, values, first + row, slot))
                slot += held
    return pieces, slots


def measure(tensors: Sequence[Tensor | None], layout: Layout, extremes: bool) -> Stats:
    """Measure every segment; see `gradwise.backends.measure`."""
    plan = layout.cached("native plan", lambda: _Plan(layout))
    segments = layout.segments
    out = torch.empty(4, segments, dtype=torch.float64)
    counts = torch.empty(3, segments, dtype=torch.int64)
    part = torch.empty(plan.slots, 6, dtype=torch.float64)
    values = plan.values(tensors)  # kept until the kernels have read them
    plan.launch("gradwise_measure", values, extremes, part.data_ptr())
    lists = (part.data_ptr(), plan.first.data_ptr(), plan.numel.data_ptr())
    into = (out.data_ptr(), counts.data_ptr())
    unsound = launch("gradwise_collect", plan.slots, segments, lists, *into)
    mean, m2, low, high = out.unbind()
    nonfinite, zeros, poor = counts.unbind()
    if unsound or plan.other:
        for i in {*plan.other, *_owners(layout, poor.tolist())}:
            again = reference.tensor_stats(there(tensors[i]), layout.rows[i], extremes=True)
            place = slice(layout.offsets[i], layout.offsets[i] + layout.rows[i])
            for vector, right in zip((mean, m2, nonfinite, low, high, zeros), again, strict=True):
                vector[place] = there(right)
    if not extremes:
        return Stats(mean, m2, nonfinite, None, None, None)
    return Stats(mean, m2, nonfinite, low, high, zeros)


def apply(tensors: list[Tensor], affine: Affine, layout: Layout, which: list[int]) -> bool:
    """Map whole float32 tensors in place; False where memory is laid out so that it cannot."""
    key = ("native apply", tuple(which))
    plan = layout.cached(key, lambda: _Plan(layout.only(_flags(which, len(layout)))))
    if not plan.real or plan.other:
        return False
    if not plainly_laid_out(tensors) and not all(map(in_one_piece, tensors)):
        return False
    scale = _NO_SCALE if affine.scale is None else affine.scale.double().contiguous()
    shift = _NO_SHIFT if affine.shift is None else affine.shift.double().contiguous()
    map_ = (scale.data_ptr(), scale.dim(), shift.data_ptr(), shift.dim())
    plan.launch("gradwise_apply", tensors, *map_)
    tell_autograd([tensor for tensor in tensors if tensor.requires_grad])
    return True


def _flags(which: list[int], count: int) -> tuple[bool, ...]:
    chosen = set(which)
    return tuple(i in chosen for i in range(count))


def _owners(layout: Layout, poor: list[int]) -> list[int]:
    """The tensors that have a segment of which the sums do not tell enough."""
    return [
        i
        for i, (start, rows) in enumerate(zip(layout.offsets, layout.rows, strict=True))
        if any(poor[start : start + rows])
    ]
