"""What one parameter group has to do in a step, cut as the ways to run it need it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gradwise.backends import update
from gradwise.layout import real_view
from gradwise.optim.fold import Fold

Group = dict[str, Any]
PLAIN = (Tensor, torch.nn.Parameter)  # what kernels and calls on lists take; subclasses are not


@dataclass
class Share:
    """What one parameter group has to do in a step; entries of the lists belong together.

    Attributes:
        number: of the parameter group.
        group: the group's options; `lr` is a float wherever it can be read without waiting.
        params: the parameters that have a gradient.
        grads: their gradients, as they are stored.
        steps: the steps counted so far, 0-d; empty where the method does not count.
        buffers: one list for each state tensor and then for each scalar of the method; None stands
            for a state tensor that `_fresh` does not know yet.
        places: of the parameters among those of all groups.
    """

    number: int
    group: Group
    params: list[Tensor]
    grads: list[Tensor]
    steps: list[Tensor]
    buffers: list[list[Any]]
    places: list[int]

    def only(self, chosen: Sequence[int]) -> Share:
        """The same for some of the parameters."""
        return replace(
            self,
            params=[self.params[i] for i in chosen],
            grads=[self.grads[i] for i in chosen],
            steps=[self.steps[i] for i in chosen] if self.steps else [],
            buffers=[[values[i] for i in chosen] for values in self.buffers],
            places=[self.places[i] for i in chosen],
        )


def part_here(tensor: Any) -> Any:
    """The part of a sharded tensor that is on this process; any other as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def on_host(params: list[Tensor]) -> list[int]:
    """The places of what a kernel may be asked to take: plain tensors in host memory."""
    return [i for i, p in enumerate(params) if p.device.type == "cpu" and type(p) in PLAIN]


def by_device(params: list[Tensor]) -> dict[torch.device | None, list[int]]:
    """The places of what a kernel may be asked to take, by device; None for all others.

    Args:
        params: of any kind. Complex ones are left out where a new view of them would have the
            device's tables made anew at every step.
    """
    found: dict[torch.device | None, list[int]] = {}
    for i, param in enumerate(params):
        taken = type(param) in PLAIN and (param.device.type == "cpu" or not param.is_complex())
        found.setdefault(param.device if taken else None, []).append(i)
    return found


def buckets(share: Share) -> list[Share]:
    """The share cut by device and type, as calls on lists need it."""
    found: dict[tuple[torch.device, torch.dtype, torch.dtype], list[int]] = {}
    for i, (param, grad) in enumerate(zip(share.params, share.grads, strict=True)):
        found.setdefault((param.device, param.dtype, grad.dtype), []).append(i)
    if len(found) == 1:
        return [share]
    return [share.only(chosen) for chosen in found.values()]


def as_reals(share: Share) -> tuple[list[Tensor], list[Tensor], list[list[Any]], list[Tensor]]:
    """Parameters, gradients, states and steps as a kernel takes them, complex ones as pairs."""
    if not any(param.is_complex() for param in share.params):
        return share.params, share.grads, share.buffers, share.steps
    grads = [real_view(grad.resolve_conj()) for grad in share.grads]
    buffers = [[real_view(value) for value in values] for values in share.buffers]
    return [real_view(param) for param in share.params], grads, buffers, share.steps


def mapped(share: Share, fold: Fold | None) -> update.Fold | None:
    """The map of the share's gradients as a kernel takes it."""
    return None if fold is None else (fold.affine, fold.layout, tuple(share.places))
