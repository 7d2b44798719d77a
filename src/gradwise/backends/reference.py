"""The reference: two passes in float64, one tensor at a time, on any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradwise.backends.segments import (
    Stats,
    as_rows,
    empty_stats,
    join,
    sparse_values,
    wide_dtype,
)
from gradwise.layout import Layout


def measure(tensors: Sequence[Tensor | None], layout: Layout, extremes: bool) -> Stats:
    """Measure every segment; see `gradwise.backends.measure`."""
    device = next((t.device for t in tensors if t is not None), torch.device("cpu"))
    parts = [
        empty_stats(rows, device, extremes)
        if tensor is None or tensor.numel() == 0
        else tensor_stats(tensor, rows, extremes)
        for tensor, rows in zip(tensors, layout.rows, strict=True)
    ]
    return join(parts, device, extremes)


def tensor_stats(tensor: Tensor, rows: int, extremes: bool) -> Stats:
    """The statistics of one tensor, cut into `rows` rows, by definition."""
    implied = 0
    if tensor.layout == torch.strided:
        values = as_rows(tensor, rows)
    else:
        values, implied = sparse_values(tensor)
    wide = values.to(wide_dtype(values.device))
    mean = wide.sum(1) / (values.shape[1] + implied)
    m2 = (wide - mean[:, None]).square().sum(1) + implied * mean.square()
    nonfinite = values.shape[1] - torch.isfinite(values).sum(1)
    if not extremes:
        return Stats(mean, m2, nonfinite, None, None, None)
    zeros = (values == 0).sum(1) + implied
    if implied:
        wide = torch.cat([wide, wide.new_zeros(1, 1)], dim=1)
    low, high = wide.aminmax(dim=1)
    return Stats(mean, m2, nonfinite, low, high, zeros)
