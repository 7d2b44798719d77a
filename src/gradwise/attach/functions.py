"""What people call: attach transforms to an optimizer, or find those that are attached."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from gradwise.attach.attachment import Attachment, attachment_of, install
from gradwise.attach.placement import check_group
from gradwise.attach.shards import Replicated, Spread
from gradwise.errors import UserError
from gradwise.transforms import Autoscale, Transform, chain


@runtime_checkable
class Wrapper(Protocol):
    """What a library puts around a torch optimizer, such as Accelerate and Lightning."""

    @property
    def optimizer(self) -> Any:
        """The optimizer inside, or another wrapper of it."""


def unwrapped(optimizer: object) -> torch.optim.Optimizer:
    """The torch optimizer inside what a library has put around it.

    Raises:
        UserError: where there is none.
    """
    inner = getattr(optimizer, "optimizer", None)
    while isinstance(inner, torch.optim.Optimizer | Wrapper) and inner is not optimizer:
        optimizer, inner = inner, getattr(inner, "optimizer", None)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError(f"expected a torch.optim.Optimizer, got {_kind(optimizer)}")
    return optimizer


def names_in(model: nn.Module | None) -> dict[int, str]:
    """The names of a model's parameters by their id; none without one."""
    return {} if model is None else {id(p): name for name, p in model.named_parameters()}


def _kind(value: object) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def check_transforms(transforms: Sequence[object]) -> None:
    """Raise a `UserError` where something else is among them."""
    for transform in transforms:
        if not isinstance(transform, Transform):
            raise UserError(f"expected transforms like ClipNorm(1.0), got {_kind(transform)}")


def attach(
    optimizer: torch.optim.Optimizer | Wrapper,
    *transforms: Transform,
    model: nn.Module | None = None,
    process_group: Any = None,
    replicated: Replicated | None = None,
) -> Attachment:
    """Transform the gradients of every step of an optimizer, just before it uses them.

    Works through the optimizer's own step hook: training loops, LR schedulers, closures (LBFGS
    included), GradScaler with plain and fused optimizers and gradient accumulation stay as they
    are. The transforms' state rides in `optimizer.state_dict()`, so that an ordinary checkpoint
    resumes it. A step whose gradients hold a NaN or an infinity is left alone and counted.

    Args:
        optimizer: any `torch.optim.Optimizer`, or a wrapper of one with an `optimizer` attribute.
        transforms: applied in this order; none measures only.
        model: gives the parameters their names in `moments` and reports; without it the names come
            from an optimizer made of `model.named_parameters()`, or are numbers.
        process_group: where other processes have other parameters of the same model (pipeline
            stages, experts): a `torch.distributed` group of them and this one, whose processes
            then make every step together. Not needed for DDP, where all have the same, nor for
            sharded parameters (FSDP2, tensor parallel), which say themselves where their parts are.
        replicated: with `process_group`, says by name which plain parameters are the same on all
            its processes; without it none are. Equal names then bear the process's number.

    Returns:
        The `Attachment`. Attaching anew replaces it and keeps names and observers; `detach()`
        removes it. A deep copy or pickle of an optimizer bears no hooks: attach to the copy, or
        copy the attachment.

    Raises:
        UserError: where the first argument is no optimizer, one of the others no transform, or
            `process_group` no group of this process; at a step, where that runs within backward and
            the transforms need all gradients.

    Examples:
        >>> import torch, gradwise as gw
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> attachment = gw.attach(optimizer, gw.transforms.ClipNorm(1.0), model=model)
        >>> model(torch.ones(4, 3)).sum().backward()
        >>> optimizer.step()
        >>> attachment.moments.names, round(attachment.moments.total_norm.item(), 4)
        (('weight', 'bias'), 11.3137)
    """
    optimizer = unwrapped(optimizer)
    check_transforms(transforms)
    if replicated is not None and process_group is None:
        raise UserError("expected process_group together with replicated, got none")
    if process_group is not None:
        check_group(process_group)
    spread = None if process_group is None else Spread(process_group, replicated)
    return install(optimizer, chain(*transforms), names_in(model), spread)


def attached(
    optimizer: torch.optim.Optimizer | Wrapper, model: nn.Module | None = None
) -> Attachment:
    """The attachment that an optimizer has, or a new one that only measures.

    Args:
        optimizer: as for `attach`.
        model: gives the parameters their names from now on.

    Raises:
        UserError: where the first argument is no optimizer.
    """
    optimizer = unwrapped(optimizer)
    attachment = attachment_of(optimizer)
    if attachment is None:
        return attach(optimizer, model=model)
    attachment.rename(names_in(model))
    return attachment


def autoscale(
    optimizer: torch.optim.Optimizer | Wrapper, model: nn.Module | None = None
) -> Attachment:
    """Hyperparameter-free gradient normalisation for any torch optimizer: one line.

    The same as `attach(optimizer, Autoscale(), model=model)`; see `Autoscale` and `attach`.

    Examples:
        >>> import torch, gradwise as gw
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> _ = gw.autoscale(optimizer)
    """
    return attach(optimizer, Autoscale(), model=model)
