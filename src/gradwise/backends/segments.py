"""What the backends share: the shape of their answer and views of tensors as rows of values."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gradwise.layout import real_view

# Earlier versions of torch are told of one tensor a call, which costs as much for one as for all.
_AT_ONCE = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 7)


class Stats(NamedTuple):
    """What a backend measures: vectors [S], zero where a segment has no values."""

    mean: Tensor
    m2: Tensor
    nonfinite: Tensor  # int64
    min: Tensor | None  # None where extremes were not asked for
    max: Tensor | None
    zeros: Tensor | None  # int64; None where extremes were not asked for


def there(tensor: Tensor | None) -> Tensor:
    """A tensor that the layout says is present."""
    assert tensor is not None
    return tensor


def tell_autograd(written: Sequence[Tensor]) -> None:
    """That tensors were written behind its back."""
    if _AT_ONCE:
        torch.autograd.graph.increment_version(written)
    else:
        for tensor in written:
            torch.autograd.graph.increment_version(tensor)


def wide_dtype(device: torch.device) -> torch.dtype:
    """The widest floating-point type that a device computes with."""
    return torch.float32 if device.type == "mps" else torch.float64


def as_rows(tensor: Tensor, rows: int) -> Tensor:
    """The real values of a dense tensor as [rows, n], without a copy where memory allows it.

    The order within a row is of no consequence here, so any dense memory format (channels_last
    among them) is read in the order in which it lies.
    """
    values = real_view(tensor.resolve_conj() if tensor.is_complex() else tensor)
    if not values.is_contiguous():
        strides = values.stride()
        order = sorted(range(values.dim()), key=lambda d: -strides[d])
        if rows == 1 or order[0] == 0:
            values = values.permute(order)
    return values.reshape(rows, -1)


def sparse_values(tensor: Tensor) -> tuple[Tensor, int]:
    """The stored values of a sparse tensor as [1, n], and how many zeros are not stored."""
    if tensor.layout == torch.sparse_coo:
        stored = tensor.coalesce().values()
    else:
        stored = tensor.values()
    values = real_view(stored).reshape(1, -1)
    implied = tensor.numel() * (2 if tensor.is_complex() else 1) - values.shape[1]
    return values, implied


def join(parts: Sequence[Stats], device: torch.device, extremes: bool) -> Stats:
    """The statistics of several runs of segments as one."""
    if not parts:
        return empty_stats(0, device, extremes)
    mean, m2, nonfinite, low, high, zeros = zip(*parts, strict=True)
    return Stats(
        torch.cat(mean),
        torch.cat(m2),
        torch.cat(nonfinite),
        torch.cat(low) if extremes else None,
        torch.cat(high) if extremes else None,
        torch.cat(zeros) if extremes else None,
    )


def empty_stats(rows: int, device: torch.device, extremes: bool) -> Stats:
    """Zeros for segments without values."""
    zero = torch.zeros(rows, dtype=wide_dtype(device), device=device)
    none = torch.zeros(rows, dtype=torch.int64, device=device)
    ends = zero if extremes else None
    return Stats(zero, zero, none, ends, ends, none if extremes else None)
