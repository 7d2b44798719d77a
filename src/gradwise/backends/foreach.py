"""Measure on any device without reading a value on the host: sums in float64, launch by launch.

Squares of float32 (24 significant bits) are exact in float64 (53), so sums of plain values and
squares keep enough digits for |mean| / std up to about 1e7 and need no second pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradwise.backends import reference
from gradwise.backends.segments import Stats, as_rows, wide_dtype
from gradwise.layout import Layout


def measure(tensors: Sequence[Tensor | None], layout: Layout) -> Stats:
    """Measure every segment; see `gradwise.backends.measure`."""
    device = next((t.device for t in tensors if t is not None), torch.device("cpu"))
    if device.type == "mps":  # no float64 there: the two-pass form keeps the digits
        return reference.measure(tensors, layout)
    parts = []
    for tensor, rows in zip(tensors, layout.rows, strict=True):
        if tensor is None or tensor.numel() == 0:
            parts.append(reference.empty_stats(rows, device))
        elif tensor.layout != torch.strided or tensor.dtype == torch.float64:
            parts.append(reference.tensor_stats(tensor, rows))
        else:
            parts.append(_tensor_stats(as_rows(tensor, rows)))
    if not parts:
        return reference.empty_stats(0, device)
    return Stats(*(torch.cat(vectors) for vectors in zip(*parts, strict=True)))


def _tensor_stats(values: Tensor) -> Stats:
    wide, n = wide_dtype(values.device), values.shape[1]
    total = values.sum(1, dtype=wide)
    squares = torch.linalg.vector_norm(values, dim=1, dtype=wide).square()
    mean = total / n
    low, high = values.aminmax(dim=1)
    # Rounding may leave a constant row a hair below 0 or above it; equal extremes settle it.
    m2 = torch.where(low == high, 0.0, (squares - total * mean).clamp(min=0))
    m2 = torch.where(torch.isfinite(squares), m2, squares - squares)  # NaN, as the definition gives
    nonfinite = n - torch.isfinite(values).sum(1)
    return Stats(mean, m2, low.to(wide), high.to(wide), nonfinite)
