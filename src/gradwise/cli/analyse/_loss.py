"""The loss by name: cross-entropy, mean squared error, or a function of the user's."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gradwise.cli.analyse._own import find, guarded
from gradwise.errors import UserError

__all__ = ["LOSSES", "cross_entropy", "find_loss", "mean_squared_error", "no_loss"]

LossFn = Callable[[Any, Any], Tensor]


def cross_entropy(outputs: Any, targets: Any) -> Tensor:
    """Mean cross-entropy, also of models that give a class for each place of a sequence.

    Args:
        outputs: logits [n, classes] for targets [n]; [n, places, classes] for [n, places]; with
            more dimensions, classes in the second one, as torch has it. Or what holds them as
            `logits`.
        targets: whole numbers, or probabilities in the shape of the logits.
    """
    logits = _plain(outputs)
    if logits.ndim == 3 and logits.shape[:-1] == targets.shape:
        logits, targets = logits.flatten(0, 1), targets.flatten()
    if not targets.is_floating_point():
        targets = targets.long()
    return F.cross_entropy(logits, targets)


def mean_squared_error(outputs: Any, targets: Any) -> Tensor:
    """Mean squared error.

    Args:
        outputs: in the targets' shape, or with as many entries a sample.
        targets: numbers [n, ...].

    Raises:
        UserError: where they do not fit: torch would compare every output with every target.
    """
    values = _plain(outputs)
    if values.shape != targets.shape:
        if values.shape[:1] != targets.shape[:1] or values.numel() != targets.numel():
            raise UserError(
                f"expected outputs of the targets' shape {list(targets.shape)} for loss mse, got "
                f"{list(values.shape)}"
            )
        values = values.reshape(targets.shape)
    return F.mse_loss(values, targets.to(values.dtype))


def _no_loss(outputs: Any, targets: Any) -> Tensor:
    """In place of a loss where an analysis needs none."""
    raise UserError("expected an analysis without a loss")


no_loss: LossFn = _no_loss
LOSSES: dict[str, LossFn] = {"cross-entropy": cross_entropy, "mse": mean_squared_error}


def find_loss(name: str | None, targets: Any) -> tuple[str, LossFn]:
    """The loss and its name.

    Args:
        name: one of `LOSSES`, `module:function`, or None for the one that fits the targets.
        targets: some of them.

    Raises:
        UserError: where there is no such loss.
    """
    if name is None:
        if not isinstance(targets, Tensor):
            raise UserError("expected --loss module:function for targets that are no plain tensor")
        name = "mse" if targets.is_floating_point() else "cross-entropy"
    if name in LOSSES:
        return name, LOSSES[name]
    if ":" not in name:
        raise UserError(
            f"expected loss to be one of {', '.join(LOSSES)} or module:function, got {name!r}"
        )
    found = find(name, "loss")
    function: Any = found
    if inspect.isclass(found):  # of a module, such as torch.nn:HuberLoss
        with guarded(f"loss {name}"):
            function = found()

    def own(outputs: Any, targets: Any) -> Tensor:
        with guarded(f"loss {name}"):
            value = function(outputs, targets)
        if not isinstance(value, Tensor):
            raise UserError(f"expected loss {name} to return a tensor, got {type(value).__name__}")
        return value

    return name, own


def _plain(outputs: Any) -> Tensor:
    """The tensor of what a model gives."""
    found = getattr(outputs, "logits", outputs)
    if not isinstance(found, torch.Tensor):
        raise UserError(
            f"expected the model to give a tensor, got {type(found).__name__}: name a loss of your "
            "own as --loss module:function"
        )
    return found
