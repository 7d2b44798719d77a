"""Data in either of its two forms, and sums of losses and gradients over it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gradwise.errors import UserError

LossFn = Callable[[Any, Any], Tensor]
Progress = Callable[[int, int], None]
Part = tuple[Any, Any, int]  # inputs, targets, how many samples


class Source:
    """Samples to measure on.

    Args:
        data: a pair of tensors (inputs [n, ...], targets [n, ...]), which is cut into parts of
            `chunk_size`; or an iterable of batches (inputs, targets) that can be iterated again,
            whose batches are the parts.
        device: where parts go.
        chunk_size: samples in one forward pass, for tensors.

    Attributes:
        tensors: the pair, None for an iterable.
        samples: n, None for an iterable, which has to be gone through to know.
        parts: how many parts a pass has; 0 where that is not known before.

    Raises:
        UserError: where the data are empty, of different lengths, or can be read only once.
    """

    def __init__(self, data: Iterable[Any], device: torch.device, chunk_size: int) -> None:
        if chunk_size < 1:
            raise UserError(f"expected chunk_size >= 1, got chunk_size={chunk_size}")
        self._data, self._device, self.chunk_size = data, device, chunk_size
        self.tensors: tuple[Tensor, Tensor] | None = None
        self.samples: int | None = None
        if isinstance(data, tuple | list) and all(isinstance(x, Tensor) for x in data):
            if len(data) != 2 or data[0].ndim == 0 or data[1].ndim == 0:
                raise UserError(f"expected data=(inputs, targets), got {len(data)} tensors")
            if len(data[0]) != len(data[1]) or len(data[0]) == 0:
                raise UserError(
                    "expected as many targets as inputs and at least one, got "
                    f"{len(data[0])} inputs and {len(data[1])} targets"
                )
            self.tensors = (data[0], data[1])
            self.samples = len(data[0])
            self.parts = -(-self.samples // chunk_size)
            return
        if isinstance(data, Iterator):  # asking for iter(data) would draw from a loader's stream
            raise UserError("expected data that can be iterated again, got an iterator")
        try:
            self.parts = len(data)  # type: ignore[arg-type]  # not all iterables have a length
        except TypeError:
            self.parts = 0

    def __iter__(self) -> Iterator[Part]:
        if self.tensors is not None:
            yield from self._cut(*self.tensors)
            return
        count = 0
        for batch in self._data:
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                raise UserError("expected data to give batches (inputs, targets)")
            inputs, targets = (_moved(x, self._device) for x in batch)
            size = _size(targets) or _size(inputs)
            if size == 0:
                raise UserError("expected batches with a tensor and a sample, got one with none")
            count += 1
            yield inputs, targets, size
        if count == 0:
            raise UserError("expected data with at least one batch, got none")

    def chosen(self, index: Tensor) -> Iterator[Part]:
        """The samples of these indices, in parts; for tensors."""
        assert self.tensors is not None
        inputs, targets = self.tensors
        yield from self._cut(inputs[index.to(inputs.device)], targets[index.to(targets.device)])

    def _cut(self, inputs: Tensor, targets: Tensor) -> Iterator[Part]:
        for start in range(0, len(inputs), self.chunk_size):
            x, y = (tensor[start : start + self.chunk_size] for tensor in (inputs, targets))
            yield x.to(self._device), y.to(self._device), len(x)


def mean_loss(forward: Callable[[Any], Any], loss_fn: LossFn, parts: Iterable[Part]) -> float:
    """The mean loss of the samples, summed in float64."""
    total, samples = 0.0, 0
    with torch.no_grad():
        for inputs, targets, size in parts:
            total += float(_scalar(loss_fn(forward(inputs), targets))) * size
            samples += size
    return total / samples


def mean_gradient(
    forward: Callable[[Any], Any],
    loss_fn: LossFn,
    params: Sequence[Tensor],
    parts: Iterable[Part],
    tick: Callable[[], None] | None = None,
) -> tuple[float, list[Tensor], int]:
    """The mean loss of the samples, its gradient in float64, and the number of samples.

    Raises:
        UserError: where the loss is not one number, depends on no parameter, or it or a gradient
            is not finite.
    """
    sums = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float64)) for p in params]
    total, samples = 0.0, 0
    for inputs, targets, size in parts:
        loss = attached_loss(loss_fn(forward(inputs), targets))
        for acc, grad in zip(sums, gradients(loss, params), strict=True):
            acc.add_(grad, alpha=size)
        total += float(loss.detach()) * size
        samples += size
        if tick is not None:
            tick()
    for acc in sums:
        acc /= samples
    mean = total / samples
    if not torch.tensor(mean).isfinite() or not all(bool(acc.isfinite().all()) for acc in sums):
        raise UserError(f"expected a finite loss and gradient at this point, got a loss of {mean}")
    return mean, sums, samples


def gradients(
    loss: Tensor, params: Sequence[Tensor], *, create_graph: bool = False
) -> list[Tensor]:
    """The gradient of a loss, dense, zeros where a parameter has no part in it."""
    found = torch.autograd.grad(
        loss, list(params), create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return [grad.to_dense() if grad.is_sparse else grad for grad in found]


def attached_loss(loss: Tensor) -> Tensor:
    """A loss that autograd can differentiate.

    Raises:
        UserError: where it is not one number or depends on no parameter.
    """
    loss = _scalar(loss)
    if not loss.requires_grad:
        raise UserError("expected a loss that depends on a trainable parameter, got a constant")
    return loss


def _scalar(loss: Tensor) -> Tensor:
    if loss.numel() != 1 or loss.is_complex():
        raise UserError(
            f"expected loss_fn to return one real number, got shape {tuple(loss.shape)} of "
            f"{loss.dtype}"
        )
    return loss.reshape(())


def _moved(value: Any, device: torch.device) -> Any:
    """The same nest with its tensors on the device."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _moved(item, device) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_moved(item, device) for item in value))
    if isinstance(value, tuple | list):
        return type(value)(_moved(item, device) for item in value)
    return value


def _size(value: Any) -> int:
    """Samples in a nest: the length of its first tensor, 0 where there is none."""
    if isinstance(value, Tensor):
        return len(value) if value.ndim else 0
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return next((size for item in value if (size := _size(item))), 0)
    return 0
