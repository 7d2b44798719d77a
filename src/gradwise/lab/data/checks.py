"""Checks on rows and labels, each with one sentence for what does not fit."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gradwise.errors import UserError


def check_labels(labels: NDArray[np.int64], num_classes: int, where: str) -> None:
    """Refuse labels outside `0 .. num_classes - 1`.

    Args:
        labels: the labels of one file or tensor, `[N]`.
        num_classes: number of classes.
        where: what to call the file or tensor.

    Raises:
        UserError: names the first row that does not fit, its label and `where`.
    """
    bad = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if bad.size:
        raise UserError(
            f"expected labels 0 to {num_classes - 1} in {where}, "
            f"got {int(labels[bad[0]])} in row {int(bad[0])}"
        )


def check_rows(name: str, part: str, x: Tensor, y: Tensor) -> None:
    """Refuse rows and labels whose types or shapes do not make a data set.

    Args:
        name: the data set's name, for messages.
        part: `train` or `test`, for messages.
        x: the rows, uint8 `[N, C, H, W]` or float32 `[N, D, ...]`.
        y: the labels, int64 `[N]`.

    Raises:
        UserError: names the tensor, what was expected of it and what it is.
    """
    if x.dtype not in (torch.uint8, torch.float32):
        raise UserError(f"expected {part}_x of {name} to be uint8 or float32, got {plain(x.dtype)}")
    if y.dtype != torch.int64:
        raise UserError(f"expected {part}_y of {name} to be int64, got {plain(y.dtype)}")
    for field, tensor in ((f"{part}_x", x), (f"{part}_y", y)):
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise UserError(
                f"expected {field} of {name} to be a dense tensor in main memory, "
                f"got {tensor.layout} on {tensor.device}"
            )
    shape = tuple(x.shape)
    if x.dtype == torch.uint8 and x.ndim != 4:
        raise UserError(f"expected uint8 images [N, C, H, W] in {part}_x of {name}, got {shape}")
    if x.dtype == torch.uint8 and shape[3] in (1, 3, 4) and shape[1] > 4:
        raise UserError(
            f"expected channels before height and width in {part}_x of {name}, got {shape}, "
            "which looks like [N, H, W, C]"
        )
    if x.ndim < 2:
        raise UserError(f"expected {part}_x of {name} to have at least 2 axes, got {shape}")
    if y.shape != (len(x),):
        raise UserError(
            f"expected one label a row in {name}, got {part}_x of shape {shape} "
            f"and {part}_y of shape {tuple(y.shape)}"
        )
    if x.numel() == 0:
        raise UserError(f"expected at least one row and value in {part}_x of {name}, got {shape}")


def check_finite(rows: Tensor, where: str) -> None:
    """Refuse floats that hold NaN or infinity; bytes always pass.

    Args:
        rows: the rows, `[N, D, ...]`.
        where: what to call them in messages.

    Raises:
        UserError: names the first row that has one.
    """
    if not rows.is_floating_point():
        return
    finite = torch.isfinite(rows).flatten(1).all(1)
    if not bool(finite.all()):
        row = int(finite.logical_not().nonzero()[0])
        raise UserError(f"expected finite values in {where}, got NaN or infinity in row {row}")


def plain(value: object) -> str:
    """A dtype or shape as people write it: `float32`, `(3, 8)`."""
    if isinstance(value, torch.Size):
        return str(tuple(value))
    return str(value).removeprefix("torch.")
