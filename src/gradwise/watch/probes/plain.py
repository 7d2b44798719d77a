"""Which tensors a probe can read, and whether one still lies in memory as it did."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from gradwise.errors import UserError

_TYPES = (
    *(torch.float32, torch.float16, torch.bfloat16, torch.float64),
    *(torch.complex64, torch.complex128),
)

Mark = tuple[torch.Size, tuple[int, ...], torch.dtype, torch.device]


@cache
def holds_values(kind: type[Tensor]) -> bool:
    """Whether the values of such tensors lie in memory of their own.

    Not so for tensors made of others, as sharded parameters (DTensor) and those of quantisation
    libraries are, and for lazy parameters.
    """
    made_of_others = hasattr(kind, "__tensor_flatten__") or hasattr(kind, "to_local")
    lazy = issubclass(kind, UninitializedParameter | UninitializedBuffer)
    return not (made_of_others or lazy)


def mark(tensor: Tensor | None) -> Mark | None:
    """What two tensors must share for their values to be compared one by one as they lie.

    None for what no copy is kept of: sparse tensors, those made of others, lazy parameters, and
    types that are neither floating point nor complex or narrower than 16 bits.

    Examples:
        >>> mark(torch.zeros(2, 3))
        (torch.Size([2, 3]), (3, 1), torch.float32, device(type='cpu'))
    """
    if tensor is None or not holds_values(type(tensor)):
        return None
    if tensor.layout != torch.strided or tensor.dtype not in _TYPES:
        return None
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def room(mark: Mark) -> int:
    """Real values in a tensor of that mark: a complex value counts two."""
    return mark[0].numel() * (2 if mark[2].is_complex else 1)


def real_type(dtype: torch.dtype) -> torch.dtype:
    """The type of the values, or of their real and imaginary parts."""
    return dtype.to_real() if dtype.is_complex else dtype


def checked_every(every: int) -> int:
    """The number of steps between two samples, if it is one.

    Raises:
        UserError: where it is below 1.
    """
    if every < 1:
        raise UserError(f"expected every >= 1, got every={every}")
    return every


def home_of(tensors: list[Tensor]) -> torch.device:
    """Where results belong: the device of the first tensor."""
    return tensors[0].device if tensors else torch.device("cpu")
