"""From what a recorder kept of a block of steps to the columns of the run store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

LAYER_METRICS = ("mean", "std", "norm", "nonfinite")
STEP_METRICS = ("grad_norm", "grad_mean", "grad_std", "applied_norm", "alpha")

Columns = dict[str, npt.NDArray[Any]]


def metrics(
    moments: Tensor, effects: Tensor, counts: Sequence[Sequence[int]], plain: Sequence[bool]
) -> tuple[Columns, Columns]:
    """The metrics of layers `[K, L]` and steps `[K]`; this waits for the device.

    Args:
        moments: `[>= K, 3, L]`, mean, m2 and non-finite count of each layer; NaN where a step was
            not measured.
        effects: `[>= K, 2]`, the norm after the transforms and their common factor.
        counts: values in each layer, for each of the K steps; nothing for a step that was not
            measured.
        plain: one a step: measured, and left alone by the transforms, so that nothing is
            in `effects`.

    Returns:
        Arrays of their own by `LAYER_METRICS`, and by `STEP_METRICS`.

    Examples:
        >>> moments = torch.tensor([[[1.0, 0.0], [2.0, 9.0], [0.0, 0.0]]])
        >>> layers, steps = metrics(moments, torch.full((1, 2), torch.nan), [(2, 1)], [True])
        >>> layers["std"].tolist(), steps["grad_norm"].round(3).tolist(), steps["alpha"].tolist()
        ([[1.0, 3.0]], [3.606], [1.0])
    """
    rows, alone = len(plain), np.array(plain)
    mean, m2, nonfinite = _copied(moments[:rows]).transpose(1, 0, 2)
    applied, alpha = _copied(effects[:rows]).T
    count = np.zeros_like(mean)
    for row, values in enumerate(counts):
        count[row, : len(values)] = values
    total = np.maximum(count.sum(1), 1.0)
    with np.errstate(all="ignore"):  # gradients that diverge are a finding, not an error
        common = (count * mean).sum(1) / total
        m2_in_all = (m2 + count * (mean - common[:, None]) ** 2).sum(1)
        norm = np.sqrt(m2_in_all + total * common**2)
        layers = {
            "mean": mean,
            "std": np.sqrt(m2 / np.maximum(count, 1.0)),
            "norm": np.sqrt(m2 + count * mean**2),
            "nonfinite": nonfinite,
        }
        steps = {
            "grad_norm": norm,
            "grad_mean": common,
            "grad_std": np.sqrt(m2_in_all / total),
            "applied_norm": np.where(alone, norm, applied),
            "alpha": np.where(alone, 1.0, alpha),
        }
    return layers, steps


def column(values: Sequence[float | Tensor | None]) -> npt.NDArray[np.float64]:
    """The values as an array `[K]`, NaN for None; all tensors of a kind come in one copy.

    Args:
        values: numbers, tensors with one real value, and None.

    Examples:
        >>> column([1, None, torch.tensor([0.5])])
        array([1. , nan, 0.5])
    """
    found = np.full(len(values), np.nan)
    tensors: dict[tuple[torch.device, torch.dtype], dict[int, Tensor]] = {}
    for at, value in enumerate(values):
        if isinstance(value, Tensor):
            tensors.setdefault((value.device, value.dtype), {})[at] = value.reshape(())
        elif value is not None:
            found[at] = value
    for same in tensors.values():
        found[list(same)] = _copied(torch.stack(list(same.values())))
    return found


def _copied(tensor: Tensor) -> npt.NDArray[np.float64]:
    """The values on the host in double precision, whatever becomes of the tensor."""
    return tensor.cpu().to(torch.float64, copy=True).numpy()
