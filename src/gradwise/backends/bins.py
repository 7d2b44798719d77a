"""Counts of values by sign and power of two, without a read on the host.

The edges between bins are +-2^low ... +-2^high, each times a factor that the values are stored
with; a bin holds what is not below its lower edge and below its upper one. Comparing values with
edges is exact, so the counts are those of real arithmetic.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from gradwise import backends
from gradwise.backends.apply import ON_HOST
from gradwise.backends.launch import addresses, in_one_piece, integers, launch
from gradwise.backends.pairs import flat, in_chunks
from gradwise.backends.segments import sparse_values, wide_dtype

MOST_OCTAVES = 255  # edges of one sign that the kernel has room for
LANES = 64  # counters a bin, so that those who count at the same time rarely meet at one
_HOST = torch.device("cpu")
INFINITY = 0x7F800000  # as bits of float32; those of NaN are larger
_EXACT = (torch.float32, torch.float16, torch.bfloat16, torch.complex64)  # in float32


def edges(low: int, high: int) -> tuple[float, ...]:
    """The edges of the bins, ascending: -2^high ... -2^low, 2^low ... 2^high.

    Examples:
        >>> edges(-1, 1)
        (-2.0, -1.0, -0.5, 0.5, 1.0, 2.0)
    """
    sizes = [2.0**exponent for exponent in range(low, high + 1)]
    return (*(-size for size in reversed(sizes)), *sizes)


def histogram(
    tensors: Sequence[Tensor | None], low: int, high: int, scale: Tensor | None, home: torch.device
) -> Tensor:
    """int64 [P, B] on `home`: how many values of each tensor fall into each bin.

    Args:
        tensors: dense or sparse, real or complex (which counts as pairs); None has no values.
        low: exponent of the smallest edge.
        high: exponent of the largest edge, `low` or higher.
        scale: 0-d factor that all values are stored with: they are counted as if divided by it.
        home: where the counts are wanted.
    """
    bins = 2 * (high - low + 1) + 1
    start = _start(low, high, scale)
    rows = [torch.zeros(bins, dtype=torch.int64, device=home)] * len(tensors)
    singles: dict[int, Tensor] = {}  # whose bits are counted, kept until that is done
    limits: dict[torch.device, Tensor] = {}
    implied: dict[int, int] = {}  # zeros that sparse tensors do not store
    for i, tensor in enumerate(tensors):
        if tensor is None or tensor.numel() == 0:
            continue
        values = tensor
        if tensor.layout != torch.strided:
            (values,), implied[i] = sparse_values(tensor)
        if start is not None and tensor.device == _HOST and tensor.dtype in _EXACT:
            singles[i] = _in_order(values)
            continue
        device = tensor.device
        if device not in limits:
            limits[device] = _limits(low, high, scale, device)
        rows[i] = _count(flat(values), limits[device]).to(home, non_blocking=True)
    if singles and start is not None:
        by_bits = _by_kernel if backends.choose(_HOST) == "native" else _by_torch
        found = by_bits(list(singles.values()), bins, *start).to(home, non_blocking=True)
        for i, row in zip(singles, found.unbind(), strict=True):
            rows[i] = row
    counts = torch.stack(rows) if rows else torch.zeros(0, bins, dtype=torch.int64, device=home)
    for i, zeros in implied.items():
        counts[i, bins // 2] += zeros
    return counts


def _by_kernel(values: list[Tensor], bins: int, above: int, below: int) -> Tensor:
    found = torch.empty(len(values), bins, dtype=torch.int64)
    numels = tuple(value.numel() for value in values)
    lists = (addresses(values), integers(numels))
    rest = (above, below, bins // 2, found.data_ptr())
    launch("gradwise_histogram", sum(numels), len(values), lists, *rest)
    return found


def _by_torch(values: list[Tensor], bins: int, above: int, below: int) -> Tensor:
    """What the kernel does, which says why it is right, with torch's own calls."""
    found = torch.zeros(len(values), bins + 1, dtype=torch.int64)
    for row, tensor in zip(found, values, strict=True):
        for chunk in in_chunks(flat(tensor).view(torch.int32)):
            size, sign = chunk & 0x7FFFFFFF, chunk >> 31  # the sign is 0 or -1
            step = (sign * (below - above)).add_(size).sub_(above)
            step = step.bitwise_right_shift_(23).add_(1).clamp_(0, bins // 2)
            place = step.bitwise_xor_(sign).sub_(sign).add_(bins // 2)  # negated where it is -1
            place.masked_fill_(size > INFINITY, bins)
            row += torch.bincount(place, minlength=bins + 1)
    return found[:, :bins]


def _in_order(tensor: Tensor) -> Tensor:
    """The values as float32 in one piece of memory, in whatever order they lie there."""
    if tensor.dtype == torch.float32 and in_one_piece(tensor):
        return tensor
    return flat(tensor).float().resolve_neg().contiguous()


def _start(low: int, high: int, scale: Tensor | None) -> tuple[int, int] | None:
    """Where counting by bits begins; None where that is not possible, or would have to wait."""
    if (scale is not None and scale.device != _HOST) or backends.choose(_HOST) not in ON_HOST:
        return None
    factor = 1.0 if scale is None else float(scale)
    if not 0.0 < factor < 2.0**200:
        return None
    first, last = math.ldexp(factor, low), math.ldexp(factor, high)
    # All edges have to be normal numbers of float32, whose bits grow by 1 << 23 an octave.
    if first < 2.0**-126 or last >= 2.0**127 or high - low >= MOST_OCTAVES:
        return None
    single: float = struct.unpack("f", struct.pack("f", first))[0]
    nearest: int = struct.unpack("i", struct.pack("f", first))[0]
    at_least = nearest + (single < first)
    more_than = nearest + (single <= first)
    return at_least, more_than


def _limits(low: int, high: int, scale: Tensor | None, device: torch.device) -> Tensor:
    """[B - 1] edges as they are met among values stored with the factor."""
    limits = _edges_on(low, high, device)
    if scale is not None:
        limits = limits * scale.to(device, limits.dtype, non_blocking=True)
    return limits


@lru_cache(maxsize=64)
def _edges_on(low: int, high: int, device: torch.device) -> Tensor:
    # Copied to the device once; a copy each time would make the host wait.
    with torch.inference_mode(False):
        return torch.tensor(edges(low, high), dtype=wide_dtype(device), device=device)


def _count(values: Tensor, limits: Tensor) -> Tensor:
    bins = limits.shape[0] + 1
    total = torch.zeros(bins + 1, LANES, dtype=torch.int64, device=values.device)
    one = torch.ones((), dtype=torch.int64, device=values.device)
    for chunk in in_chunks(values):
        wide = chunk.to(limits.dtype).contiguous()  # torch warns about what is not
        found = torch.bucketize(wide, limits, right=True)
        found = torch.where(torch.isnan(wide), bins, found)
        found = pad(found, (0, -len(found) % LANES), value=bins).view(-1, LANES)
        total.scatter_add_(0, found, one.expand_as(found))
    return total[:bins].sum(1)
