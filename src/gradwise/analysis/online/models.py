"""A model and its batches as an online problem: every batch is one round."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gradwise.analysis._frozen import device_of, frozen, trainable
from gradwise.analysis._passes import LossFn, Part, Source
from gradwise.analysis.online._values import Loss
from gradwise.errors import UserError


@dataclass(frozen=True)
class ModelRounds:
    """Functions of all trainable parameters, flat, float64, in the model's order.

    Attributes:
        start: the parameters as they are, (P,).
        losses: f_t, the loss of batch t at given parameters.
        names: of the parameters.
    """

    start: Tensor
    losses: tuple[Loss, ...]
    names: tuple[str, ...]


@contextmanager
def model_rounds(
    model: nn.Module,
    loss_fn: LossFn,
    data: Iterable[Any],
    *,
    batch_size: int = 64,
    rounds: int | None = None,
) -> Iterator[ModelRounds]:
    """Take a stream of batches as functions that a learner meets one after another.

    Inside the context the model is in evaluation mode, so that a batch gives the same loss at the
    same parameters whenever it is asked; afterwards it, its buffers and the random streams are as
    they were. Batches are kept. Parameters are float64 outside of the model, and of the model's
    own dtypes inside it.

    Args:
        model: to be trained; nothing is written to it.
        loss_fn: maps outputs and targets to the mean loss of a batch.
        data: a pair of tensors (inputs (n, ...), targets (n, ...)), or batches.
        batch_size: samples a round, for a pair of tensors.
        rounds: how many batches to take at most; all where None.

    Raises:
        UserError: where there is nothing to train or no batch, or an argument is out of its bounds.

    Examples:
        >>> import torch
        >>> from gradwise.analysis.online import Ball, OptimisticOMD, model_rounds, play
        >>> x = torch.randn(256, 3)
        >>> y = x @ torch.tensor([[1.0], [-1.0], [0.5]])
        >>> model = torch.nn.Linear(3, 1)
        >>> with model_rounds(model, torch.nn.functional.mse_loss, (x, y), batch_size=16) as game:
        ...     learner = OptimisticOMD(Ball(3.0, game.start))
        ...     result = play(learner, game.losses)
        >>> result.rounds, bool(result.losses[-1] < 0.1 * result.losses[0])
        (16, True)
    """
    if rounds is not None and rounds < 1:
        raise UserError(f"expected rounds >= 1, got rounds={rounds}")
    params = trainable(model)
    source = Source(data, device_of(model), batch_size)
    with frozen(model, data):
        parts: list[Part] = []
        for part in source:
            parts.append(part)
            if len(parts) == rounds:
                break

        def function(inputs: Any, targets: Any) -> Callable[[Tensor], Tensor]:
            def loss(flat: Tensor) -> Tensor:
                return loss_fn(functional_call(model, _unflat(flat, params), (inputs,)), targets)

            return loss

        yield ModelRounds(
            torch.cat(
                [p.detach().reshape(-1).double().to(device_of(model)) for p in params.values()]
            ),
            tuple(function(inputs, targets) for inputs, targets, _ in parts),
            tuple(params),
        )


def _unflat(flat: Tensor, params: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    pieces = torch.split(flat, [p.numel() for p in params.values()])
    return {
        name: piece.view(p.shape).to(p.device, p.dtype)
        for (name, p), piece in zip(params.items(), pieces, strict=True)
    }
