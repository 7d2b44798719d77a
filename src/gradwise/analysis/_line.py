"""A line through parameter space: an update, recorded or made of the gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gradwise.analysis._frozen import trainable
from gradwise.analysis._passes import LossFn, Source, mean_gradient, mean_loss
from gradwise.errors import UserError


@dataclass(frozen=True, eq=False)
class Update:
    """A line theta(s) = start - s direction.

    Attributes:
        start: theta, one tensor a trainable parameter of the model in its order.
        direction: d, of the same shapes.
    """

    start: tuple[Tensor, ...]
    direction: tuple[Tensor, ...]


class UpdateRecorder:
    """What `record_update` gives; it costs one copy of the trainable parameters."""

    def __init__(self, model: nn.Module) -> None:
        self._params = list(trainable(model).values())
        self._start = tuple(param.detach().clone() for param in self._params)
        self._update: Update | None = None

    def end(self) -> None:
        """Take the difference."""
        moved = tuple(
            before - param.detach() for before, param in zip(self._start, self._params, strict=True)
        )
        self._update = Update(self._start, moved)

    @property
    def update(self) -> Update:
        """From where the parameters were, along what the step subtracted: s = 1 is that step.

        Raises:
            UserError: while the block has not ended.
        """
        if self._update is None:
            raise UserError("expected the with block to have ended, its update is not known yet")
        return self._update


@contextmanager
def record_update(model: nn.Module) -> Iterator[UpdateRecorder]:
    """Record what happens to the trainable parameters inside, whichever optimizer does it.

    Args:
        model: whose parameters move.

    Examples:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        >>> model(torch.tensor([[2.0, 4.0]])).sum().backward()
        >>> with record_update(model) as recorder:
        ...     optimizer.step()
        >>> recorder.update.direction
        (tensor([[1., 2.]]),)
    """
    recorder = UpdateRecorder(model)
    yield recorder
    recorder.end()


class Line:
    """The mean loss along an update, or along the gradient where none is given.

    The model is called with other tensors in place of its parameters, which stay untouched.

    Attributes:
        direction: d in float64.
        eps: relative rounding error of a loss in the coarsest type of the parameters.

    Raises:
        UserError: where the update does not fit the model, or is not finite or complex.
    """

    def __init__(
        self, model: nn.Module, loss_fn: LossFn, source: Source, update: Update | None
    ) -> None:
        params = real_parameters(model)
        self._model, self._loss_fn, self._source = model, loss_fn, source
        self._names = list(params)
        self._types = [param.dtype for param in params.values()]
        self.eps = max(torch.finfo(dtype).eps for dtype in self._types)
        self._known: tuple[float, float] | None = None
        if update is None:
            self._start = [p.detach().double() for p in params.values()]
            loss, self.direction, _ = mean_gradient(model, loss_fn, list(params.values()), source)
            self._known = loss, sum(float((g * g).sum()) for g in self.direction)
            return
        for name, given in (("start", update.start), ("direction", update.direction)):
            shapes = [tuple(x.shape) for x in given]
            if shapes != [tuple(p.shape) for p in params.values()]:
                raise UserError(f"expected an update of this model, its {name} has shapes {shapes}")
            if any(x.is_complex() or not bool(x.isfinite().all()) for x in given):
                raise UserError(f"expected a finite real update, its {name} is not")
        devices = [param.device for param in params.values()]
        self._start, self.direction = (
            [x.detach().to(device, torch.float64) for x, device in zip(given, devices, strict=True)]
            for given in (update.start, update.direction)
        )

    def loss(self, step: float) -> float:
        """The mean loss at theta - s d."""
        at = [x - step * d for x, d in zip(self._start, self.direction, strict=True)]
        return mean_loss(self._forward(self._cast(at)), self._loss_fn, self._source)

    def at_start(self) -> tuple[float, float]:
        """The mean loss at theta and -dL/ds there."""
        if self._known is None:
            leaves = [x.requires_grad_() for x in self._cast([x.clone() for x in self._start])]
            loss, grads, _ = mean_gradient(
                self._forward(leaves), self._loss_fn, leaves, self._source
            )
            pairs = zip(grads, self.direction, strict=True)
            self._known = loss, sum(float((g * d).sum()) for g, d in pairs)
        return self._known

    def _cast(self, tensors: list[Tensor]) -> list[Tensor]:
        return [x.to(dtype) for x, dtype in zip(tensors, self._types, strict=True)]

    def _forward(self, tensors: list[Tensor]) -> Callable[[Any], Any]:
        names = dict(zip(self._names, tensors, strict=True))
        return lambda inputs: functional_call(self._model, names, (inputs,))


def real_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trainable parameters.

    Raises:
        UserError: where there are none or one is complex.
    """
    params = trainable(model)
    for name, param in params.items():
        if param.is_complex():
            raise UserError(f"expected real parameters, {name!r} is {param.dtype}")
    return params
