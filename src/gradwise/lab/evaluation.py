"""A batch as a function of the weights, for optimizers that evaluate it several times a step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Evaluations:
    """The closure of one step: the loss of one batch at whatever the weights are when it is called.

    A step that solves something, or looks at more than one point, needs the same function each
    time: so every evaluation draws the same dropout masks, and the next step draws what it would
    have drawn after a single one. What the model keeps besides its weights, the averages of batch
    normalisation above all, is as the first evaluation left it, once `close` is called: those at
    points that the optimizer only tried leave no trace.

    Args:
        model: in training mode.
        optimizer: whose gradients are cleared before each backward pass.
        loss: computes the loss, 0-d, with autograd.
        backward: whether each evaluation leaves gradients; an optimizer that differentiates the
            loss itself gets no more than the loss, with its graph.

    Attributes:
        first: the loss of the first evaluation, detached; None before it.
        count: evaluations so far.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: Callable[[], Tensor],
        *,
        backward: bool,
    ) -> None:
        self.first: Tensor | None = None
        self.count = 0
        self._buffers = list(model.buffers())
        self._kept: list[Tensor] = []
        self._optimizer = optimizer
        self._loss = loss
        self._backward = backward
        self._device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self._before = self._streams()
        self._after: list[Tensor] = []

    def __call__(self) -> Tensor:
        """Evaluate once.

        Returns:
            The loss, 0-d; with its graph where the optimizer differentiates it itself.
        """
        if self.count:
            self._set_streams(self._before)
        with torch.enable_grad():
            if self._backward:
                self._optimizer.zero_grad()
            loss = self._loss()
            if self._backward:
                loss.backward()  # type: ignore[no-untyped-call]
        if not self.count:
            self.first = loss.detach()
            self._kept = [buffer.clone() for buffer in self._buffers]
            self._after = self._streams()
        self.count += 1
        return loss

    def close(self) -> None:
        """Leave behind what a single evaluation would have."""
        if self.count > 1:
            with torch.no_grad():
                for buffer, kept in zip(self._buffers, self._kept, strict=True):
                    buffer.copy_(kept)
            self._set_streams(self._after)

    def _streams(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        if self._device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self._device))
        return states

    def _set_streams(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(states[1], self._device)
