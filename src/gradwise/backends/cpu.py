"""Measure on the CPU: three reads in cache order, as few calls as possible.

What costs on a CPU is calls for small tensors and bytes for large ones, so small tensors are packed
into one matrix, and each large one is read by three vectorised reductions (sum, sum of squares,
extremes). Those run in float32; where that would lose digits (|mean| above the spread, values that
overflow or vanish when squared, anything non-finite) the tensor is measured again in float64. To
see that, the host looks at the results: on this device they are in its own memory, so it does not
wait for anything.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradwise.backends import reference
from gradwise.backends.segments import Stats, as_rows
from gradwise.layout import Layout

PACKED_NUMEL = 512  # tensors up to this size are packed
BLOCK = 1024  # longer sums of squares are added up in blocks, in float64
LONG = 1 << 17
CANCELLED = 0.5  # share of the sum of squares that must be left after the mean is taken out


class _Plan:
    """Which tensors are packed, how they lie in the padded matrix, how results are put in order."""

    def __init__(self, layout: Layout) -> None:
        self.packed: list[int] = []
        self.single: list[int] = []
        self.other: list[int] = []  # rows and sparse ones
        for i, (numel, rows) in enumerate(zip(layout.numels, layout.rows, strict=True)):
            if not layout.present[i] or numel == 0:
                continue
            if rows > 1 or not layout.dense[i]:
                self.other.append(i)
            else:
                (self.packed if numel <= PACKED_NUMEL else self.single).append(i)
        numels = [layout.numels[i] for i in self.packed]
        width = max(numels, default=0)
        starts, start = [], 0
        for numel in numels:
            starts.append(start)
            start += numel
        # Padding repeats a segment's first value: the extremes stay right, the weights hide it.
        self.index = torch.tensor(
            [
                [start + (j if j < numel else 0) for j in range(width)]
                for start, numel in zip(starts, numels, strict=True)
            ],
            dtype=torch.int64,
        )
        self.weight = torch.tensor(
            [[float(j < numel) for j in range(width)] for numel in numels], dtype=torch.float64
        )
        self.packed_count = torch.tensor(numels, dtype=torch.float64)
        self.single_count = torch.tensor(
            [layout.numels[i] for i in self.single], dtype=torch.float64
        )
        order = [layout.offsets[i] for i in (*self.packed, *self.single)]
        for i in self.other:
            order.extend(range(layout.offsets[i], layout.offsets[i] + layout.rows[i]))
        self.segments = layout.segments
        self.order = torch.tensor(order, dtype=torch.int64)
        self.complete = len(order) == layout.segments


def measure(tensors: Sequence[Tensor | None], layout: Layout) -> Stats:
    """Measure every segment; see `gradwise.backends.measure`."""
    plan = layout.cached("cpu plan", lambda: _Plan(layout))
    parts = []  # each [5, s]: mean, m2, min, max, nonfinite
    if plan.packed:
        parts.append(_packed([_present(tensors[i]) for i in plan.packed], plan))
    if plan.single:
        parts.append(_single([_present(tensors[i]) for i in plan.single], plan.single_count))
    for i in plan.other:
        parts.append(_rows(_present(tensors[i]), layout.rows[i]))
    found = torch.cat(parts, dim=1) if parts else torch.zeros(5, 0, dtype=torch.float64)
    ordered = torch.zeros if not plan.complete else torch.empty
    matrix = ordered(5, plan.segments, dtype=torch.float64).index_copy_(1, plan.order, found)
    mean, m2, low, high, nonfinite = matrix.unbind()
    return Stats(mean, m2, low, high, nonfinite.long())


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


def _packed(tensors: list[Tensor], plan: _Plan) -> Tensor:
    """All small tensors at once, two passes in float64."""
    flat = torch.cat([as_rows(tensor, 1)[0] for tensor in tensors])
    values = flat.take(plan.index).double()
    mean = (values * plan.weight).sum(1) / plan.packed_count
    spread = (values - mean[:, None]).mul_(plan.weight)
    m2 = torch.linalg.vecdot(spread, spread)
    low, high = values.aminmax(dim=1)
    nonfinite = torch.zeros_like(mean)
    if not all(map(_finite, m2.tolist())):
        nonfinite = ((~torch.isfinite(values)) * plan.weight).sum(1)
        m2 = torch.where(nonfinite > 0, torch.nan, m2)
    return torch.stack([mean, m2, low, high, nonfinite])


def _finite(value: float) -> bool:
    return value - value == 0.0


def _single(tensors: list[Tensor], count: Tensor) -> Tensor:
    """One segment a tensor: float32 sums, repaired in float64 where they do not suffice."""
    sums, squares, lows, highs = [], [], [], []
    for tensor in tensors:
        flat = as_rows(tensor, 1)[0]
        if flat.dtype not in (torch.float32, torch.float64):
            flat = flat.float()
        low, high = flat.aminmax()
        sums.append(flat.sum())
        squares.append(_sum_of_squares(flat))
        lows.append(low)
        highs.append(high)
    total, square, low, high = (
        torch.stack([*sums, *squares, *lows, *highs]).double().view(4, len(tensors)).unbind()
    )
    mean = total / count
    m2 = square - total * mean
    result = torch.stack([mean, m2, low, high, torch.zeros_like(mean)])
    sound = (m2 > CANCELLED * square) & (square > 1e-30 * count) & (square < 1e38)
    flags = sound.tolist()
    if not all(flags):
        for i, fine in enumerate(flags):
            if not fine and not (low[i] == 0 and high[i] == 0):
                again = reference.tensor_stats(tensors[i], 1)
                result[:, i] = torch.cat(again)
    return result


def _sum_of_squares(flat: Tensor) -> Tensor:
    if len(flat) < LONG:
        return torch.dot(flat, flat)
    whole = len(flat) - len(flat) % BLOCK
    norms = torch.linalg.vector_norm(flat[:whole].view(-1, BLOCK), dim=1).double()
    rest = flat[whole:]
    return torch.dot(norms, norms) + torch.dot(rest, rest)


def _rows(tensor: Tensor, rows: int) -> Tensor:
    """One tensor cut into rows, or a sparse one."""
    if tensor.layout == torch.strided and tensor.dtype == torch.float32:
        values = as_rows(tensor, rows)
        total = values.sum(1).double()
        square = torch.linalg.vector_norm(values, dim=1).double().square()
        low, high = values.aminmax(dim=1)
        count = values.shape[1]
        mean = total / count
        m2 = square - total * mean
        sound = (m2 > CANCELLED * square) & (square > 1e-30 * count) & (square < 1e38)
        if all(sound.tolist()):
            zero = torch.zeros_like(mean)
            return torch.stack([mean, m2, low.double(), high.double(), zero])
    return torch.stack([vector.double() for vector in reference.tensor_stats(tensor, rows)])
