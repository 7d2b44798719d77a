"""What the checks of the Triton kernels share; they run where TRITON_INTERPRET is set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import gradwise as gw
from gradwise.backends.gpu import launching, measuring, update

CPU = torch.device("cpu")
TYPES = (torch.float32, torch.bfloat16, torch.float16)


def truth(tensors: Sequence[Tensor | None], per: str = "tensor") -> gw.Moments:
    """The moments in float64."""
    return gw.measure(tensors, per=per, backend="reference")


def close(found: gw.Moments, right: gw.Moments) -> None:
    """Means to float32's rounding of what lies about them, squares to 1e-5, counts exactly."""
    for name in ("nonfinite", "zeros"):
        assert getattr(found, name).tolist() == getattr(right, name).tolist(), name
    for name in ("min", "max"):
        torch.testing.assert_close(
            getattr(found, name), getattr(right, name), rtol=0, atol=0, equal_nan=True
        )
    finite = right.nonfinite == 0
    assert not torch.isfinite(found.mean + found.m2)[~finite].any()
    mean, other = found.mean[finite], right.mean[finite]
    assert ((mean - other).abs() <= 1e-6 * right.std[finite] + 1e-15 * other.abs()).all()
    m2, other = found.m2[finite], right.m2[finite]
    assert ((m2 - other).abs() <= 1e-5 * other + 1e-14 * right.sumsq[finite]).all()


def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels that are started from now on."""
    names: list[str] = []
    inner = launching.launch

    def launch(kernel: str, programs: int, *rest: Any, **options: Any) -> None:
        if programs:
            names.append(kernel)
        inner(kernel, programs, *rest, **options)

    for module in (measuring, update):
        monkeypatch.setattr(module, "launch", launch)
    return names
