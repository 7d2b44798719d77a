"""Sums over tensors and the copies kept of what they were: updates of weights, turns of gradients.

Copies are flat and of the tensor's own type, with complex values as pairs of reals, in the order in
which `flat` reads memory: that order depends on shape and strides, so only tensors that have kept
both can be compared with their copies. On the CPU compiled kernels take float32 tensors that lie in
one piece, in one pass; torch's own calls take all else, without a read on the host.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gradwise import backends
from gradwise.backends.launch import addresses, in_one_piece, integers, launch
from gradwise.backends.segments import as_rows, wide_dtype

CHUNK = 1 << 22  # values that are widened at a time, which bounds the memory that takes,
CHUNK_ON_HOST = 1 << 16  # and on the CPU keeps them in its cache
_HOST = torch.device("cpu")


def flat(tensor: Tensor) -> Tensor:
    """The real values of a dense tensor as one vector [n], in the order of memory where it can."""
    return as_rows(tensor.detach(), 1)[0]


def in_chunks(values: Tensor) -> tuple[Tensor, ...]:
    """A vector in pieces to be widened one at a time."""
    return torch.split(values, CHUNK_ON_HOST if values.device == _HOST else CHUNK)


def keep(tensors: Sequence[Tensor], kept: Sequence[Tensor]) -> None:
    """Copy tensors into their flat copies.

    Args:
        tensors: dense.
        kept: one [n] for each, of its type and on its device.
    """
    for native, which in _groups(tensors):
        now, old = [tensors[i] for i in which], [kept[i] for i in which]
        if native:
            _launch("gradwise_copy", now, old)
        else:
            torch._foreach_copy_(old, [flat(tensor) for tensor in now])


def differences(tensors: Sequence[Tensor], kept: Sequence[Tensor], home: torch.device) -> Tensor:
    """[2, n] on `home`: for each of n tensors the sums of (now - kept)^2 and of now^2.

    Differences are taken exactly, or rounded once in float32 (float64 for float64); sums are
    float64 where the device has it. The copies are used up: what they hold afterwards is undefined.
    """
    return _sums("gradwise_difference", 2, _differences, tensors, kept, home)


def directions(tensors: Sequence[Tensor], kept: Sequence[Tensor], home: torch.device) -> Tensor:
    """[4, n] on `home`: the sums of now kept, of now^2 and of kept^2, and how many signs agree.

    Signs agree where both are positive, both negative or both 0; a NaN agrees with nothing.
    The copies hold what is now afterwards.
    """
    return _sums("gradwise_direction", 4, _directions, tensors, kept, home)


def _groups(tensors: Sequence[Tensor]) -> list[tuple[bool, list[int]]]:
    """Which tensors the kernels take (True), and the others by device and type."""
    kernels = backends.choose(_HOST) == "native"
    groups: dict[tuple[bool, torch.device, torch.dtype], list[int]] = {}
    for i, tensor in enumerate(tensors):
        device, dtype = tensor.device, tensor.dtype
        native = kernels and device == _HOST and dtype == torch.float32 and in_one_piece(tensor)
        groups.setdefault((native, device, dtype), []).append(i)
    return [(native, which) for (native, _, _), which in groups.items()]


def _sums(
    kernel: str,
    rows: int,
    plain: Callable[[list[Tensor], list[Tensor]], Tensor],
    tensors: Sequence[Tensor],
    kept: Sequence[Tensor],
    home: torch.device,
) -> Tensor:
    columns: list[Tensor] = [torch.empty(0)] * len(tensors)
    for native, which in _groups(tensors):
        now, old = [tensors[i] for i in which], [kept[i] for i in which]
        if native:
            sums = torch.empty(rows, len(now), dtype=torch.float64)
            _launch(kernel, now, old, sums.data_ptr())
        else:
            sums = plain(now, old)
        sums = sums.to(home, wide_dtype(home), non_blocking=True)
        if len(which) == len(tensors):
            return sums
        for i, column in zip(which, sums.unbind(1), strict=True):
            columns[i] = column
    if not columns:
        return torch.zeros(rows, 0, dtype=wide_dtype(home), device=home)
    return torch.stack(columns, 1)


def _launch(kernel: str, now: list[Tensor], kept: list[Tensor], *rest: int) -> None:
    numels = tuple(tensor.numel() for tensor in now)
    # The kernels trust these numbers: what is smaller would be read and written beyond its end.
    if numels != tuple(tensor.numel() for tensor in kept):
        raise ValueError("the copies are not those of the tensors")
    lists = (addresses(now), addresses(kept), integers(numels))
    launch(kernel, sum(numels), len(now), lists, *rest)


def _differences(now: list[Tensor], kept: list[Tensor]) -> Tensor:
    values = [flat(tensor) for tensor in now]
    changes = [old if old.dtype.itemsize >= 4 else old.float() for old in kept]
    torch._foreach_sub_(changes, values)
    wide = wide_dtype(values[0].device)
    norms = [torch.linalg.vector_norm(x, dtype=wide) for x in (*changes, *values)]
    return torch.stack(norms).square().view(2, -1)


def _directions(now: list[Tensor], kept: list[Tensor]) -> Tensor:
    return torch.stack([_direction(flat(x), y) for x, y in zip(now, kept, strict=True)], 1)


def _direction(values: Tensor, kept: Tensor) -> Tensor:
    wide = wide_dtype(values.device)
    total = torch.zeros(4, dtype=wide, device=values.device)
    for now, old in zip(in_chunks(values), in_chunks(kept), strict=True):
        x, y = now.to(wide), old.to(wide)
        same = (x.sign() * y.sign() > 0) | ((x == 0) & (y == 0))
        total += torch.stack(
            [(x * y).sum(), x.square().sum(), y.square().sum(), same.sum().to(wide)]
        )
    kept.copy_(values)
    return total
