"""A learner's passes over the model, compiled ahead of the first step, or not at all."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Loss = Callable[[Tensor, Tensor], Tensor]
Outputs = Callable[[Tensor], Tensor]


class Compiled:
    """The loss of a batch and the outputs of a model as torch.compile makes them.

    Shapes are fixed, so that each function is compiled once: batches have to be of one size.
    Kernels are never chosen by a stopwatch, since a trial that goes on in another process has to
    add up in the same order. On a GPU, whatever the host has to issue is recorded as CUDA graphs,
    which the next steps replay.

    Args:
        loss: computes the loss of inputs and targets, 0-d, with autograd.
        outputs: computes the outputs of the model in evaluation mode, without autograd.
        device: where the model is.
        threads: CPU threads that compiled code may use.
        graphs: whether CUDA graphs are recorded. The results of a pass are then gone when the next
            one begins, which is not for optimizers that evaluate a batch several times.
    """

    def __init__(
        self, loss: Loss, outputs: Outputs, device: torch.device, threads: int, *, graphs: bool
    ) -> None:
        options = _options(device, threads, graphs=graphs)
        self._loss: Loss = torch.compile(loss, dynamic=False, options=options)
        self._outputs: Outputs = torch.compile(outputs, dynamic=False, options=options)

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of a batch, 0-d, whose backward pass is compiled as well.

        Args:
            inputs: `[B, ...]`, of one shape in all calls.
            targets: `[B]` or `[B, C]`, likewise.
        """
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return self._loss(inputs, targets)

    def outputs(self, inputs: Tensor) -> Tensor:
        """The outputs of the model, `[B, C]`.

        Args:
            inputs: `[B, ...]`, of one shape in all calls.
        """
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return self._outputs(inputs)

    def rehearse(self, model: nn.Module, inputs: Tensor, targets: Tensor, rows: Tensor) -> None:
        """Compile everything on a batch of each kind; the model is as before, without gradients.

        Args:
            model: the one behind both functions.
            inputs: a batch to train on.
            targets: its targets.
            rows: a batch to evaluate.

        Raises:
            Exception: whatever torch.compile or the compilers behind it raise.
        """
        state, training = copy.deepcopy(model.state_dict()), model.training
        try:
            model.train()
            self.loss(inputs, targets).backward()  # type: ignore[no-untyped-call]
            model.eval()
            with torch.no_grad():
                self.outputs(rows)
        finally:
            model.train(training)
            model.zero_grad()
            model.load_state_dict(state)


def _options(device: torch.device, threads: int, *, graphs: bool) -> dict[str, Any]:
    """What Inductor is told; options that this version of torch does not know are left out."""
    wanted = {
        "cpp.threads": threads,  # also part of the key under which compiled code is kept
        "deterministic": True,
        "triton.cudagraphs": graphs and device.type == "cuda",
    }
    from torch import _inductor  # takes a while to import

    known = set(_inductor.list_options())
    return {name: value for name, value in wanted.items() if name in known}


def filled(rows: Tensor, size: int) -> Tensor:
    """A batch of `size` rows: those given, again from the beginning where they do not suffice.

    Args:
        rows: `[N, ...]`, 1 <= N <= size.
        size: rows wanted.

    Examples:
        >>> filled(torch.tensor([[1], [2], [3]]), 5).flatten().tolist()
        [1, 2, 3, 1, 2]
    """
    if len(rows) == size:
        return rows
    return rows[torch.arange(size, device=rows.device) % len(rows)]
