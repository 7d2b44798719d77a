"""What is measured: a model with a loss on data, whatever form these have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradwise.cli.analyse._own import guarded
from gradwise.errors import UserError

__all__ = ["Pair", "Problem", "Samples"]

Pair = tuple[Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class Samples:
    """Inputs and targets to measure on.

    Attributes:
        name: what the user called them.
        data: inputs and targets as two tensors [n, ...] in main memory, or batches of both, which
            can be iterated again.
        count: n, None for batches that have not been counted.
        in_shape: shape of one input; None where it is no plain tensor.
        num_classes: of targets that are whole numbers; None where they are not, or nobody knows.
        other: the other split; None where there is one set alone.
    """

    name: str
    data: Any
    count: int | None
    in_shape: tuple[int, ...] | None
    num_classes: int | None
    other: Pair | None = None

    def tensors(self) -> Pair:
        """All inputs and targets as two tensors, whatever form they have.

        Raises:
            UserError: where a loader's batches are no pairs of tensors that fit together.
        """
        if isinstance(self.data, tuple):
            inputs, targets = self.data
            return inputs, targets
        parts = [(batch[0], batch[1]) for batch in self.data]
        if not parts or not all(isinstance(x, Tensor) for part in parts for x in part):
            raise UserError(f"expected batches of two tensors from data {self.name}, got others")
        with guarded(f"joining the batches of data {self.name}"):
            inputs, targets = (torch.cat([part[at].cpu() for part in parts]) for at in (0, 1))
        return inputs, targets


@dataclass(frozen=True)
class Problem:
    """What is measured: a model with a loss on data.

    Attributes:
        model: on `device`, in the mode that it was made in.
        model_name: what the user called it.
        loss_fn: of outputs and targets, the mean over a batch.
        loss_name: its name.
        source: the data with what is known of them.
        device: where the model is.
        batch_size: as the user gave it, or None.
        new_model: makes the model once more, with the same weights.
    """

    model: nn.Module
    model_name: str
    loss_fn: Callable[[Any, Any], Tensor]
    loss_name: str
    source: Samples
    device: torch.device
    batch_size: int | None
    new_model: Callable[[], nn.Module]

    @property
    def data(self) -> Any:
        """(inputs, targets) in main memory, or batches of both that can be iterated again."""
        return self.source.data

    @property
    def data_name(self) -> str:
        """What the user called the data."""
        return self.source.name

    @property
    def samples(self) -> int | None:
        """How many, None for a loader that nobody has counted."""
        return self.source.count

    @property
    def num_classes(self) -> int | None:
        """Of targets that are classes."""
        return self.source.num_classes

    @property
    def in_shape(self) -> tuple[int, ...] | None:
        """Shape of one input."""
        return self.source.in_shape

    @property
    def other(self) -> Pair | None:
        """The other split."""
        return self.source.other

    @property
    def is_loader(self) -> bool:
        """Whether the data are batches, whose size is their own."""
        return not isinstance(self.source.data, tuple)

    @property
    def caution(self) -> str:
        """What makes numbers at this point mean little, in a sentence, or ""."""
        for module in self.model.modules():
            seen = getattr(module, "num_batches_tracked", None)
            if isinstance(seen, Tensor) and int(seen) == 0:
                return (
                    "Batch norm has seen no data yet, so that evaluation mode does not normalise: "
                    "trained weights (--weights) give numbers that mean more."
                )
        return ""

    def tensors(self) -> Pair:
        """All inputs and targets as two tensors."""
        return self.source.tensors()
