"""A function with its value and gradient, from autograd where no gradient is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gradwise.analysis.online.omd import GradFn, gradient_at
from gradwise.errors import UserError

Loss = Callable[[Tensor], Tensor | float]


class Valued:
    """A loss and its gradient; what is asked at one point is computed there once.

    Args:
        loss: maps a float64 point to one number.
        gradient: its gradient; by autograd where None.
    """

    def __init__(self, loss: Loss, gradient: GradFn | None = None) -> None:
        self._loss, self._gradient = loss, gradient
        self._place: Tensor | None = None  # where the gradient is asked for more than once
        self._slope: Tensor | None = None  # the gradient there

    def loss(self, x: Tensor) -> float:
        """The value alone."""
        with torch.no_grad():
            return number(self._loss(x.clone()))

    def loss_at(self, x: Tensor) -> float:
        """The value at a point whose gradient is going to be asked for; it is kept."""
        self._place, self._slope = x.clone(), None
        if self._gradient is not None:
            return self.loss(x)
        value, self._slope = self._both(x)
        return value

    def gradient(self, x: Tensor) -> Tensor:
        """The gradient."""
        here = self._place is not None and torch.equal(self._place, x)
        if here and self._slope is not None:
            return self._slope.clone()
        slope = self._both(x)[1] if self._gradient is None else self._gradient(x.clone())
        if here:
            self._slope = slope.detach().clone()
        return slope

    def forget(self) -> None:
        """Let go of the gradient that is kept."""
        self._place = self._slope = None

    def _both(self, x: Tensor) -> tuple[float, Tensor]:
        with torch.enable_grad():
            at = x.detach().clone().requires_grad_()
            value = self._loss(at)
            if not isinstance(value, Tensor):
                raise UserError(
                    "expected a loss that is a tensor, or gradients beside it, got "
                    f"{type(value).__name__}"
                )
            if value.numel() != 1 or not value.requires_grad:  # a constant, or no number: `number`
                return number(value), torch.zeros_like(at)
            (slope,) = torch.autograd.grad(value.reshape(()), at, materialize_grads=True)
        return number(value), slope


def summed(functions: Sequence[Valued]) -> Valued:
    """The sum of functions; one graph at a time is held."""

    def loss(x: Tensor) -> float:
        return math.fsum(float(f.loss(x)) for f in functions)

    def gradient(x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for f in functions:
            out += gradient_at(f.gradient, x)
        return out

    return Valued(loss, gradient)


def number(value: Tensor | float) -> float:
    """One real number.

    Raises:
        UserError: where it is several, or complex.
    """
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.is_complex():
            raise UserError(
                f"expected a loss of one real number, got shape {tuple(value.shape)} of "
                f"{value.dtype}"
            )
        return float(value.detach())
    return float(value)


def finite_number(value: float, name: str) -> float:
    """The number itself.

    Raises:
        UserError: where it is NaN or infinite.
    """
    if not math.isfinite(value):
        raise UserError(f"expected {name} to be finite, got {value}")
    return value
