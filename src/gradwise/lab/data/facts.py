"""What follows from a data set's tensors: channel statistics and a fingerprint."""

import hashlib

import torch
from torch import Tensor

from gradwise.lab.data.checks import plain

# Rows at a time when floats are read in double precision, so that no second copy is needed.
_CHUNK = 4096


def fingerprint(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor) -> str:
    """SHA-256, in hexadecimal, of the four tensors' types, shapes and contents."""
    digest = hashlib.sha256()
    for tensor in (train_x, train_y, test_x, test_y):
        digest.update(f"{plain(tensor.dtype)}{list(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().numpy().data.cast("B"))
    return digest.hexdigest()


def channel_statistics(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over all axes but the second, each float32 `[C]`.

    Bytes are scaled to 0..1. Both are computed in double precision: for bytes from a count of
    the 256 values, which is exact, for floats in two passes.

    Args:
        rows: uint8 or float32 `[N, C, ...]`.

    Returns:
        The mean and the standard deviation (divided by the count, and 1 for a constant channel).
    """
    if rows.dtype == torch.uint8:
        levels = torch.arange(256, dtype=torch.float64)
        counts = torch.stack(
            [torch.bincount(channel.reshape(-1), minlength=256) for channel in rows.unbind(1)]
        ).double()
        total = counts.sum(1)
        mean = counts @ levels / total
        variance = (counts * (levels - mean[:, None]) ** 2).sum(1) / total
        mean, variance = mean / 255, variance / 255**2
    else:
        axes = [axis for axis in range(rows.ndim) if axis != 1]
        size = torch.tensor(rows.numel() // rows.shape[1], dtype=torch.float64)
        zero = torch.zeros(rows.shape[1], dtype=torch.float64)
        parts = [rows[first : first + _CHUNK] for first in range(0, len(rows), _CHUNK)]
        mean = sum((part.double().sum(axes) for part in parts), zero) / size
        centre = mean.view(1, -1, *[1] * (rows.ndim - 2))
        variance = sum(((part.double() - centre).square().sum(axes) for part in parts), zero) / size
    # A constant channel gives exactly 0: in double precision the sum of up to 2^29 equal
    # integers or float32 is exact, and so is dividing it by their number.
    return mean.float(), torch.where(variance == 0, 1.0, variance.sqrt()).float()
