"""What the kernels of update.c take: methods' signatures, and tensors as they have to lie."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from gradwise.affine import Affine
from gradwise.layout import Layout

SOURCE = "update.c"
TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
_NARROW = (torch.bfloat16, torch.float16)


class Signature(NamedTuple):
    """What a method's kernel takes beside parameters and gradients.

    Attributes:
        code: the kernel's number in update.c.
        buffers: how many states of the parameter's shape it may have.
        scalars: how many 0-d states after them.
        numbers: names of its numbers, in order.
        counts: whether it cannot do without `steps`.
    """

    code: int
    buffers: tuple[int, ...]
    scalars: int
    numbers: tuple[str, ...]
    counts: bool = True


KERNELS = {
    "sgd": Signature(0, (0, 1), 0, ("momentum", "dampening", "nesterov"), counts=False),
    "adamw": Signature(1, (2,), 0, ("beta1", "beta2", "eps")),
    "sgdf": Signature(2, (2,), 0, ("beta1", "beta2", "eps", "gamma", "variance_factor")),
    "hgm": Signature(3, (2,), 1, ("beta1", "beta2", "eps", "beta_s", "gamma")),
    "adamomentum": Signature(4, (2,), 0, ("beta1", "beta2", "eps")),
    "adarem": Signature(5, (1,), 0, ("beta", "lam", "eps", "weight_decay")),
    "ota": Signature(6, (2,), 0, ("beta1", "beta2", "alpha", "eps", "adam")),
}
REDUCED = ("hgm", "adarem")
# A decided map, the layout that it speaks of, and each parameter's place in that layout.
Fold = tuple[Affine, Layout, tuple[int, ...]]
# What tables depend on of it: the layout, the places, and what the map touches.
Structure = tuple[Layout, tuple[int, ...], tuple[bool, ...] | None]


def structure_of(fold: Fold | None) -> Structure | None:
    """What tables depend on of a decided map."""
    return None if fold is None else (fold[1], fold[2], fold[0].touched)


def same_structure(fold: Fold | None, before: Structure | None) -> bool:
    """Whether tables that were made for a structure hold for a map of now."""
    if fold is None or before is None:
        return fold is None and before is None
    layout, places, touched = before
    return fold[1] is layout and fold[2] == places and fold[0].touched == touched


def takes(param: Tensor, grad: Tensor, buffers: Sequence[Tensor], rows: int = 1) -> bool:
    """Whether the kernels can update that parameter.

    They can where all lie in host memory, each in one piece and all in the same order (contiguous,
    channels last, or a transposed matrix), none over another; float32 or float64 alike, or a
    bfloat16 or float16 parameter and gradient with float32 states.

    Args:
        param: of any shape, also without values.
        grad: its gradient.
        buffers: the states of the parameter's shape, without 0-d ones.
        rows: segments along dimension 0 that a fold tells apart.
    """
    kind = param.dtype
    state = torch.float32 if kind in _NARROW else kind
    if grad.dtype != kind or kind not in TYPES or any(b.dtype != state for b in buffers):
        return False
    tensors = (param, grad, *buffers)
    for tensor in tensors:
        if (
            type(tensor) not in (Tensor, torch.nn.Parameter)
            or tensor.layout != torch.strided
            or tensor.device.type != "cpu"
            or tensor.shape != param.shape
            or tensor.is_neg()
        ):
            return False
    order = order_of(param)
    if order == _NONE or (rows > 1 and order == _TRANSPOSED):
        return False
    if any(not lies(tensor, order) for tensor in tensors[1:]):
        return False
    ends = sorted((t.data_ptr(), t.data_ptr() + t.numel() * t.element_size()) for t in tensors)
    return all(low[1] <= high[0] for low, high in pairwise(ends))


_NONE, PLAIN, _LAST, _LAST_3D, _TRANSPOSED = range(5)


def order_of(tensor: Tensor) -> int:
    """In which order the values fill the memory from `data_ptr` on."""
    orders = (PLAIN, _LAST, _LAST_3D, _TRANSPOSED)
    return next((order for order in orders if lies(tensor, order)), _NONE)


def lies(tensor: Tensor, order: int) -> bool:
    """Whether the values fill the memory from `data_ptr` on in that order."""
    if order == PLAIN:
        return tensor.is_contiguous()
    if order == _LAST:
        return tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    if order == _LAST_3D:
        return tensor.dim() == 5 and tensor.is_contiguous(memory_format=torch.channels_last_3d)
    return tensor.dim() == 2 and tensor.t().is_contiguous()


def check(
    signature: Signature,
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    shaped: Sequence[Sequence[Tensor]],
    scalars: Sequence[Sequence[Tensor]],
    steps: Sequence[Tensor],
    fold: Fold | None,
) -> None:
    """The kernels trust the lists: refuse what is not the method's before anything is read."""
    count = len(params)
    for name, wrong in {
        "gradients": len(grads) != count,
        "states": len(shaped) not in signature.buffers or any(len(b) != count for b in shaped),
        "0-d states": len(scalars) != signature.scalars or any(len(s) != count for s in scalars),
        "steps": len(steps) not in ((count,) if signature.counts else (0, count)),
        "places": fold is not None and len(fold[2]) != count,
    }.items():
        if wrong:
            raise ValueError(f"the {name} are not one a parameter, or not those of the method")
    if fold is not None:
        _, layout, places = fold
        if [layout.numels[i] for i in places] != [param.numel() for param in params]:
            raise ValueError("the parameters are not those of the layout")
