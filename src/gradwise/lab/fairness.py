"""Checksums that show two trials began alike and saw the same batches."""

from __future__ import annotations

import hashlib
import itertools

import torch
from torch import Tensor, nn

# Odd numbers with their bits well spread, so that products modulo 2^64 lose nothing.
_STEP = -7046029254386353131  # 2^64 / golden ratio, as a signed number
_TARGET = 1442695040888963407
_MIX = (-4658895280553007687, -7723592293110705685)  # the multipliers of the splitmix64 generator


def model_checksum(model: nn.Module) -> str:
    """SHA-256 of all parameters and buffers with their names, shapes and types.

    Args:
        model: on any device.
    """
    digest = hashlib.sha256()
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class BatchChecksum:
    """A running checksum of batches as the model sees them, kept on the device.

    The bits of all values, taken as integers, are added up image column by image column, weighed by
    the row of the batch and the column, and so are the targets; earlier batches are weighed by the
    number of later ones. So it matters which images come when, with which targets, shifted or
    mirrored how. Integers wrap around and do not round: the same batches give the same number in
    whatever order a device adds. One read a batch, no host sync.

    Args:
        device: where the batches are.
        value: where to go on from, as `value` gave it.

    Examples:
        >>> x, y = torch.eye(3), torch.tensor([0, 1, 2])
        >>> sums = [BatchChecksum(x.device) for _ in range(3)]
        >>> sums[0].add(x, y), sums[1].add(x, y), sums[2].add(x, y.flip(0))
        (None, None, None)
        >>> sums[0].value == sums[1].value, sums[0].value == sums[2].value
        (True, False)
    """

    def __init__(self, device: torch.device, value: int = 0) -> None:
        self._value = torch.tensor(value, dtype=torch.int64, device=device)
        self._weights = torch.empty(0, dtype=torch.int64, device=device)

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """Take in one batch.

        Args:
            inputs: `[B, ...]`, floating point.
            targets: labels `[B]`, or a distribution over the classes in each row `[B, C]`.
        """
        values = _bits(inputs)
        if values.dim() > 2:
            values = values.sum(tuple(range(1, values.dim() - 1)), dtype=torch.int64)
        self._value = self._value * _STEP + self._weighed(values)
        self._value += self._weighed(_bits(targets)) * _TARGET

    def _weighed(self, values: Tensor) -> Tensor:
        flat = values.flatten()
        if len(self._weights) < len(flat):
            self._weights = _scrambled(torch.arange(1, len(flat) + 1, device=flat.device))
        return (flat * self._weights[: len(flat)]).sum()

    @property
    def value(self) -> int:
        """The checksum so far, signed 64 bits; asking waits for the device."""
        return int(self._value)


def _scrambled(places: Tensor) -> Tensor:
    """A weight a place without any pattern: sums that trade values between places differ."""
    weights = places * _STEP
    for multiplier in _MIX:
        weights = (weights ^ (weights >> 29)) * multiplier
    return weights ^ (weights >> 32)


def _bits(tensor: Tensor) -> Tensor:
    """The values as integers, equal where the values are equal bit by bit."""
    if not tensor.is_floating_point():
        return tensor
    if tensor.element_size() == 4:
        return tensor.view(torch.int32)
    return tensor.double().view(torch.int64)  # exact for float16 and bfloat16
