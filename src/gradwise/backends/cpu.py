"""Measure on a CPU without a compiler: two reads, as few calls as possible.

What costs on a CPU is calls for small tensors and bytes for large ones. So small tensors are copied
side by side into a scratch that is summed in blocks by two calls for all of them, and each large
one is read in place by two vectorised reductions, sum and sum of squares. Blocks are float32, what
adds them up is float64. Where that loses digits (|mean| far above the spread, values that overflow
or vanish when squared, anything non-finite) the tensor is measured again by the reference. To see
that, the host looks at the results: on this device they lie in its own memory, and it waits for
nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from gradwise.backends import reference
from gradwise.backends.segments import Stats, as_rows, join
from gradwise.layout import Layout, real_view

SMALL = 1 << 16  # tensors of up to this many values are copied side by side,
SCRATCH = 1 << 20  # unless they are too many for a cache: then only
TINY = 1 << 13  # those where a call costs more than the copy
BLOCK = 256  # values of small tensors summed in float32
LONG = 1 << 15  # from here on squares are summed in blocks
LONG_BLOCK = 1024
# Share of the sum of squares that has to be left after the mean is taken out, so that an error of
# 3e-7 in the sum is at most 1e-6 in the variance.
CANCELLED = 0.25


class _Plan:
    """Which tensors are copied together and where; made once a layout."""

    def __init__(self, layout: Layout) -> None:
        numels = layout.numels
        there = [i for i, numel in enumerate(numels) if layout.present[i] and numel > 0]
        self.other = [  # rows, sparse and float64 tensors
            i
            for i in there
            if layout.rows[i] > 1 or not layout.dense[i] or layout.dtypes[i] in _WIDE
        ]
        other = set(self.other)
        whole = [i for i in there if i not in other]
        limit = SMALL if sum(n for i in whole if (n := numels[i]) <= SMALL) <= SCRATCH else TINY
        self.small = [i for i in whole if numels[i] <= limit]
        self.large = [i for i in whole if numels[i] > limit]
        blocks = [-(-layout.numels[i] // BLOCK) for i in self.small]
        self.lock = threading.Lock()
        self.scratch = torch.zeros(sum(blocks), BLOCK)  # padding stays 0
        self.slots = []
        start = 0
        for i, n in zip(self.small, blocks, strict=True):
            shape = layout.shapes[i]
            if (dtype := layout.dtypes[i]) is not None and dtype.is_complex:
                shape = torch.Size((*shape, 2))
            slot = self.scratch.view(-1)[start : start + layout.numels[i]]
            self.slots.append(slot.view(shape))
            start += n * BLOCK
        of_block = [j for j, n in enumerate(blocks) for _ in range(n)]
        self.of_block = torch.tensor(of_block, dtype=torch.int64)
        self.main = [*self.small, *self.large]
        self.complex = any(d is not None and d.is_complex for d in layout.dtypes)
        self.count = torch.tensor([layout.numels[i] for i in self.main], dtype=torch.float64)
        order = [layout.offsets[i] for i in self.main]
        for i in self.other:
            order.extend(range(layout.offsets[i], layout.offsets[i] + layout.rows[i]))
        self.order = torch.tensor(order, dtype=torch.int64)
        self.in_order = order == list(range(layout.segments))


def _plan(layout: Layout) -> _Plan:
    with torch.inference_mode(False):  # the scratch outlives the mode it is made in
        return _Plan(layout)


_WIDE = (torch.float64, torch.complex128)


def measure(tensors: Sequence[Tensor | None], layout: Layout, extremes: bool) -> Stats:
    """Measure every segment; see `gradwise.backends.measure`."""
    with torch.autocast("cpu", enabled=False):  # a dot product would be taken in bfloat16
        return _measure(tensors, layout, extremes)


def _measure(tensors: Sequence[Tensor | None], layout: Layout, extremes: bool) -> Stats:
    plan = layout.cached("cpu plan", lambda: _plan(layout))
    there = cast(Sequence[Tensor], tensors)  # the plan names those that are
    parts = []
    if plan.main:
        parts.append(_main([there[i] for i in plan.main], plan, extremes))
    for i in plan.other:
        parts.append(_rows(there[i], layout.rows[i], extremes))
    found = join(parts, torch.device("cpu"), extremes)
    if plan.in_order:
        return found

    def place(values: Tensor) -> Tensor:
        return values.new_zeros(layout.segments).index_copy_(0, plan.order, values)

    return Stats(*(None if v is None else place(v) for v in found))  # type: ignore[arg-type]


def _main(tensors: list[Tensor], plan: _Plan, extremes: bool) -> Stats:
    """One segment a tensor: the small ones, then the large ones."""
    given = [real_view(t.resolve_conj()) for t in tensors] if plan.complex else tensors
    n_small = len(plan.small)
    sums = torch.zeros(2, len(given), dtype=torch.float64)
    if n_small:
        with plan.lock:  # the scratch is shared by all who measure this layout
            sums.index_add_(1, plan.of_block, _block_sums(given[:n_small], plan))
    if n_small < len(given):
        large: list[Tensor] = []
        for tensor in given[n_small:]:
            flat = _flat(tensor)  # the second read finds it in a cache
            large.extend((flat.sum(), _sum_of_squares(flat)))
        sums[:, n_small:] = torch.stack(large).view(-1, 2).T
    total, square = sums.unbind()
    mean = total / plan.count
    m2 = torch.addcmul(square, total, mean, value=-1)
    nonfinite = torch.zeros(len(given), dtype=torch.int64)
    for i in _unsound(m2, square, plan.count):
        if square[i] == 0 and not given[i].any():
            continue  # a gradient of zeros is all it seems
        again = reference.tensor_stats(given[i], 1, extremes=False)
        mean[i], m2[i], nonfinite[i] = again.mean[0], again.m2[0], again.nonfinite[0]
    if not extremes:
        return Stats(mean, m2, nonfinite, None, None, None)
    low, high = (
        torch.stack(ends).double() for ends in zip(*(t.aminmax() for t in given), strict=True)
    )
    filled = torch.stack([torch.count_nonzero(t) for t in given])
    return Stats(mean, m2, nonfinite, low, high, plan.count.long() - filled)


def _block_sums(tensors: list[Tensor], plan: _Plan) -> Tensor:
    """[2, blocks]: sums and sums of squares of the small tensors, block by block."""
    scratch = plan.scratch
    torch._foreach_copy_(plan.slots, tensors)
    if scratch.numel() <= TINY:  # exact for small whole numbers, as people try first
        squares = torch.linalg.vecdot(scratch, scratch).double()
    else:  # twice as fast
        squares = torch.linalg.vector_norm(scratch, dim=1).double().square_()
    return torch.stack([scratch.sum(1), squares])


def _unsound(m2: Tensor, square: Tensor, count: Tensor | int) -> list[int]:
    """Where float32 sums do not suffice."""
    sound = (m2 > CANCELLED * square) & (square > 1e-30 * count) & (square < 1e38)
    flags = sound.tolist()
    return [] if all(flags) else [i for i, fine in enumerate(flags) if not fine]


def _flat(tensor: Tensor) -> Tensor:
    flat = tensor.view(-1) if tensor.is_contiguous() else as_rows(tensor, 1)[0]
    return flat if flat.dtype == torch.float32 else flat.float()


def _sum_of_squares(flat: Tensor) -> Tensor:
    numel = flat.numel()
    if numel < LONG:
        return torch.dot(flat, flat)
    whole = numel - numel % LONG_BLOCK
    norms = torch.linalg.vector_norm(flat[:whole].view(-1, LONG_BLOCK), dim=1).double()
    square = torch.dot(norms, norms)
    if whole < numel:
        square += torch.dot(flat[whole:], flat[whole:])
    return square


def _rows(tensor: Tensor, rows: int, extremes: bool) -> Stats:
    """One tensor cut into rows, a sparse one, or one in float64."""
    long = tensor.numel() >= rows * LONG
    if long or tensor.layout != torch.strided or tensor.dtype != torch.float32:
        return reference.tensor_stats(tensor, rows, extremes)
    values = as_rows(tensor, rows)
    count = values.shape[1]
    total = values.sum(1).double()
    square = torch.linalg.vector_norm(values, dim=1).double().square()
    mean = total / count
    m2 = square - total * mean
    if _unsound(m2, square, count) and values.any():
        return reference.tensor_stats(tensor, rows, extremes)
    nonfinite = torch.zeros(rows, dtype=torch.int64)
    if not extremes:
        return Stats(mean, m2, nonfinite, None, None, None)
    low, high = values.aminmax(dim=1)
    zeros = count - torch.count_nonzero(values, 1)
    return Stats(mean, m2, nonfinite, low.double(), high.double(), zeros)
