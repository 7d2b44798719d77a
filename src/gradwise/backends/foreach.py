"""Measure on any device without reading a value on the host: sums in float64, launch by launch.

Squares of float32 (24 significant bits) are exact in float64 (53), so sums of plain values and
squares keep enough digits for |mean| / std up to about 1e6 and need no second pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradwise.backends import reference
from gradwise.backends.segments import Stats, as_rows, empty_stats, join, wide_dtype
from gradwise.layout import Layout


def measure(tensors: Sequence[Tensor | None], layout: Layout, extremes: bool) -> Stats:
    """Measure every segment; see `gradwise.backends.measure`."""
    device = next((t.device for t in tensors if t is not None), torch.device("cpu"))
    if device.type == "mps":  # no float64 there: the two-pass form keeps the digits
        return reference.measure(tensors, layout, extremes)
    parts = [
        empty_stats(rows, device, extremes)
        if tensor is None or tensor.numel() == 0
        else tensor_stats(tensor, rows, extremes)
        for tensor, rows in zip(tensors, layout.rows, strict=True)
    ]
    return join(parts, device, extremes)


def tensor_stats(tensor: Tensor, rows: int, extremes: bool) -> Stats:
    """The statistics of one tensor with values, cut into `rows` rows."""
    if tensor.layout != torch.strided or tensor.dtype == torch.float64:
        return reference.tensor_stats(tensor, rows, extremes)
    return _dense_stats(as_rows(tensor, rows), extremes)


def _dense_stats(values: Tensor, extremes: bool) -> Stats:
    wide, n = wide_dtype(values.device), values.shape[1]
    total = values.sum(1, dtype=wide)
    squares = torch.linalg.vector_norm(values, dim=1, dtype=wide).square()
    mean = total / n
    m2 = squares - total * mean
    # What is left of a constant row is rounding; float64 sums err by less than this share of it.
    m2 = torch.where(m2.abs() <= 1e-14 * squares, 0.0, m2.clamp(min=0.0))
    if not extremes:  # one count a row would be another read; that there is one is known anyway
        return Stats(mean, m2, (~torch.isfinite(squares)).long(), None, None, None)
    low, high = values.aminmax(dim=1)
    nonfinite = n - torch.isfinite(values).sum(1)
    zeros = n - torch.count_nonzero(values, 1)
    return Stats(mean, m2, nonfinite, low.to(wide), high.to(wide), zeros)
