"""Measure and apply on the CPU through compiled kernels: one read, then one read and write.

Where there is no C compiler, `gradwise.backends.cpu` does the same with torch's own calls.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradwise.affine import Affine
from gradwise.backends import reference
from gradwise.backends.compiler import kernels
from gradwise.backends.launch import addresses, in_one_piece, launch
from gradwise.backends.segments import Stats, as_rows
from gradwise.layout import Layout

# Share of the sum of squares that has to be left after the mean is taken out; float64 sums are good
# to 1e-15, so what is left is good to 1e-9. Below that, and for constants, the reference measures.
CANCELLED = 1e-6
_KERNEL_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.complex64)


def available() -> bool:
    """Whether the kernels run here; compiles them at the first call."""
    return not isinstance(kernels(), str)


class _Plan:
    """Which tensors the kernels take, and where their segments are; made once a layout."""

    def __init__(self, layout: Layout) -> None:
        there = [i for i, n in enumerate(layout.numels) if layout.present[i] and n > 0]
        self.taken = [i for i in there if layout.dense[i] and layout.dtypes[i] in _KERNEL_TYPES]
        taken = set(self.taken)
        self.other = [i for i in there if i not in taken]
        self.numels = tuple(layout.numels[i] for i in self.taken)  # a complex value counts two
        self.real = all(layout.dtypes[i] == torch.float32 for i in self.taken)
        rows = [layout.rows[i] for i in self.taken]
        lengths = [n // r for n, r in zip(self.numels, rows, strict=True)]
        self.row_counts = rows
        self.rows = torch.tensor(rows, dtype=torch.int64)
        self.length = torch.tensor(lengths, dtype=torch.int64)
        self.first = torch.tensor([layout.offsets[i] for i in self.taken], dtype=torch.int64)
        self.pointers = (self.rows.data_ptr(), self.length.data_ptr(), self.first.data_ptr())

    def values(self, tensors: Sequence[Tensor | None]) -> list[Tensor]:
        """The taken tensors as float32 in one piece of memory, copied only where they are not."""
        found = []
        for i, rows in zip(self.taken, self.row_counts, strict=True):
            tensor = tensors[i]
            assert tensor is not None
            if not self.real or not in_one_piece(tensor, rows):
                tensor = as_rows(tensor.resolve_neg(), rows).float().contiguous()
            found.append(tensor)
        return found

    def launch(self, kernel: str, values: list[Tensor], *rest: int) -> None:
        """Run a kernel on the values of the taken tensors."""
        # The kernels trust the plan: what is not as large as it says would be read beyond its end.
        if tuple(value.numel() for value in values) != self.numels:
            raise ValueError("the tensors are not those of the layout")
        launch(kernel, self.numels, (addresses(values), *self.pointers), *rest)


def measure(tensors: Sequence[Tensor | None], layout: Layout, extremes: bool) -> Stats:
    """Measure every segment; see `gradwise.backends.measure`. Extremes cost nothing here."""
    plan = layout.cached("native plan", lambda: _Plan(layout))
    segments = layout.segments
    out = torch.zeros(6, segments, dtype=torch.float64)
    square = torch.zeros(segments, dtype=torch.float64)
    if plan.taken:
        values = plan.values(tensors)  # kept until the kernels have read them
        plan.launch("gradwise_measure", values, segments, out.data_ptr(), square.data_ptr())
    mean, m2, nonfinite, low, high, zeros = out.unbind()
    sound = (m2 > CANCELLED * square) | (square == 0)  # not so: NaN, infinite, constant, nearly so
    flags = sound.tolist()
    if not all(flags) or plan.other:
        for i in {*plan.other, *_owners(layout, flags)}:
            tensor = tensors[i]
            assert tensor is not None
            again = reference.tensor_stats(tensor, layout.rows[i], extremes=True)
            place = slice(layout.offsets[i], layout.offsets[i] + layout.rows[i])
            out[:, place] = torch.stack([v.double() for v in again if v is not None])
    return Stats(mean, m2, nonfinite.long(), low, high, zeros.long())


def apply(tensors: list[Tensor], affine: Affine, layout: Layout, which: list[int]) -> bool:
    """Map whole float32 tensors in place; False where memory is laid out so that it cannot."""
    if not all(t.dtype == torch.float32 and in_one_piece(t) for t in tensors):
        return False
    key = ("native apply", tuple(which))
    plan = layout.cached(key, lambda: _Plan(layout.only(_flags(which, len(layout)))))
    scale, shift = (
        torch.full((layout.segments,), default, dtype=torch.float64)
        if vector is None
        else vector.double().expand(layout.segments).contiguous()
        for vector, default in ((affine.scale, 1.0), (affine.shift, 0.0))
    )
    plan.launch("gradwise_apply", tensors, scale.data_ptr(), shift.data_ptr())
    for tensor in tensors:
        if tensor.requires_grad:  # tell autograd what was written behind its back
            torch.autograd.graph.increment_version(tensor)
    return True


def _flags(which: list[int], count: int) -> tuple[bool, ...]:
    chosen = set(which)
    return tuple(i in chosen for i in range(count))


def _owners(layout: Layout, sound: list[bool]) -> list[int]:
    """The tensors that have a segment which is not sound."""
    return [
        i
        for i, (start, rows) in enumerate(zip(layout.offsets, layout.rows, strict=True))
        if not all(sound[start : start + rows])
    ]
