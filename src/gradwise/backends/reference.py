"""The reference: two passes in float64, one tensor at a time, on any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradwise.backends.segments import Stats, as_rows, sparse_values, wide_dtype
from gradwise.layout import Layout


def measure(tensors: Sequence[Tensor | None], layout: Layout) -> Stats:
    """Measure every segment; see `gradwise.backends.measure`."""
    device = next((t.device for t in tensors if t is not None), torch.device("cpu"))
    parts = [
        empty_stats(rows, device)
        if tensor is None or tensor.numel() == 0
        else tensor_stats(tensor, rows)
        for tensor, rows in zip(tensors, layout.rows, strict=True)
    ]
    if not parts:
        return empty_stats(0, device)
    return Stats(*(torch.cat(vectors) for vectors in zip(*parts, strict=True)))


def empty_stats(rows: int, device: torch.device) -> Stats:
    """Zeros for segments without values."""
    zero = torch.zeros(rows, dtype=wide_dtype(device), device=device)
    return Stats(zero, zero, zero, zero, torch.zeros(rows, dtype=torch.int64, device=device))


def tensor_stats(tensor: Tensor, rows: int) -> Stats:
    """The statistics of one tensor, cut into `rows` rows, by definition."""
    if tensor.layout != torch.strided:
        return _sparse_stats(tensor)
    values = as_rows(tensor, rows)
    wide = values.to(wide_dtype(values.device))
    mean = wide.mean(1)
    low, high = wide.aminmax(dim=1)
    m2 = (wide - mean[:, None]).square().sum(1)
    return Stats(mean, m2, low, high, _count_nonfinite(values))


def _sparse_stats(tensor: Tensor) -> Stats:
    values, implied = sparse_values(tensor)
    wide = values.to(wide_dtype(values.device))
    mean = wide.sum(1) / (values.shape[1] + implied)
    m2 = (wide - mean[:, None]).square().sum(1) + implied * mean.square()
    if implied:
        wide = torch.cat([wide, wide.new_zeros(1, 1)], dim=1)
    low, high = wide.aminmax(dim=1)
    return Stats(mean, m2, low, high, _count_nonfinite(values))


def _count_nonfinite(values: Tensor) -> Tensor:
    return values.shape[1] - torch.isfinite(values).sum(1)
