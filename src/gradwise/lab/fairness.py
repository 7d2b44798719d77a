"""Checksums that show two trials began alike and saw the same batches."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

_PRIME = 1_000_003


def model_checksum(model: nn.Module) -> str:
    """SHA-256 of all parameters and buffers with their names, shapes and types."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class BatchChecksum:
    """A running checksum of batches as the model sees them, kept on the device.

    Every batch adds the sum of its values' bits, taken as integers, and of its targets'; earlier
    batches weigh in through a power of a prime, so order counts. Integers wrap around and do not
    round: the same batches give the same number whatever sums them. One read a batch, no host sync.

    Args:
        device: where the batches are.
        value: where to go on from, as `value` gave it.
    """

    def __init__(self, device: torch.device, value: int = 0) -> None:
        self._value = torch.tensor(value, dtype=torch.int64, device=device)

    def add(self, inputs: Tensor, targets: Tensor) -> None:
        """Take in one batch."""
        self._value = self._value * _PRIME + _bits(inputs) * 31 + _bits(targets)

    @property
    def value(self) -> int:
        """The checksum so far; asking waits for the device."""
        return int(self._value)


def _bits(tensor: Tensor) -> Tensor:
    if tensor.is_floating_point():
        tensor = tensor.view(torch.int32) if tensor.element_size() == 4 else tensor.double()
        tensor = tensor if tensor.dtype == torch.int32 else tensor.view(torch.int64)
    return tensor.sum(dtype=torch.int64)
