"""Arithmetic on lists of tensors that methods share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gradwise.backends.segments import wide_dtype


def powers(beta: float, steps: Sequence[Tensor], capturable: bool) -> list[Any]:
    """`beta ** step` for each step: floats, or 0-d tensors where the host must not read them."""
    if capturable or torch.compiler.is_compiling():
        return list(torch.pow(beta, _counted(steps)).unbind())
    return [beta ** step.item() for step in steps]


def corrections(beta: float, steps: Sequence[Tensor], capturable: bool) -> list[Any]:
    """`1 - beta ** step` for each step, the bias corrections of averages that begin at 0."""
    if capturable or torch.compiler.is_compiling():
        return list((1 - torch.pow(beta, _counted(steps))).unbind())
    return [1 - beta ** step.item() for step in steps]


def combined(formula: Callable[..., Any], *values: list[Any]) -> list[Any]:
    """A formula for each entry of lists of floats, or of 0-d tensors: of all those at once."""
    if values[0] and isinstance(values[0][0], Tensor):
        return list(formula(*[torch.stack(entries) for entries in values]).unbind())
    return [formula(*entries) for entries in zip(*values, strict=True)]


def _counted(steps: Sequence[Tensor]) -> Tensor:
    """The counts as one vector; in float64, as 1 - 0.999 has four digits less in float32."""
    return torch.stack(list(steps)).to(wide_dtype(steps[0].device))


def descend(params: list[Tensor], updates: list[Tensor], lr: float | Tensor) -> None:
    """`param <- param - lr * update` for lists; `updates` may be overwritten."""
    if isinstance(lr, Tensor):
        torch._foreach_mul_(updates, lr)
        torch._foreach_sub_(params, updates)
    else:
        torch._foreach_add_(params, updates, alpha=-lr)
