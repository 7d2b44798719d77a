"""Stochastic gradient descent as torch has it, with transforms inside the update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from gradwise.errors import UserError
from gradwise.optim.base import Params, Transforms, check
from gradwise.optim.elementwise import ElementwiseOptimizer
from gradwise.optim.fold import Fold
from gradwise.optim.lists import descend
from gradwise.optim.share import Group, Share, part_here
from gradwise.registry import register


@register(
    "gw-sgd",
    kind="optimizer",
    defaults={"momentum": 0.9},
    summary="torch's SGD, with transforms folded into the update",
    paper="Sutskever, Martens, Dahl, Hinton, Initialization and momentum in deep learning, 2013",
    url="https://proceedings.mlr.press/v28/sutskever13.html",
    equation="b <- mu b + (1 - tau) g; theta - lr b",
    tag="[V] as torch.optim.SGD",
)
class SGD(ElementwiseOptimizer):
    r"""torch.optim.SGD, into whose update transforms of the gradients are folded.

    .. math::
        b_t = \mu b_{t-1} + (1 - \tau) g_t, \quad b_1 = g_1, \qquad
        \theta_t = \theta_{t-1} - \eta (g_t + \mu b_t \text{ if nesterov else } b_t)

    where `g_t` has been through `transform` and then has `weight_decay * theta` added to it, so
    that a transform does not scale the decay. State and checkpoints are those of
    `torch.optim.SGD`: either loads what the other has saved.

    Args:
        params: tensors, (name, tensor) pairs, or dicts of either with options of their own.
        lr: learning rate, a float >= 0 or a 0-d tensor.
        momentum: factor mu, >= 0.
        dampening: tau.
        weight_decay: coupled decay, >= 0.
        nesterov: look ahead; needs momentum > 0 and dampening 0.
        transform: one transform or several, applied in order.
        foreach: update lists of tensors at once. None: where it pays.
        maximize: go up instead of down.
        capturable: accepted, as there is nothing that a CUDA graph could not hold.
        differentiable: let autograd through the step.
        fused: a compiled kernel, on the CPU or a GPU. None: where there is one and `foreach` is
            None.

    Raises:
        UserError: where an argument is out of its bounds.

    Examples:
        >>> import torch, gradwise as gw
        >>> weight = torch.nn.Parameter(torch.tensor([[1.0, 2.0]]))
        >>> optimizer = gw.optim.SGD([weight], lr=0.5, transform=gw.transforms.Center())
        >>> weight.grad = torch.tensor([[1.0, 3.0]])
        >>> optimizer.step()
        >>> weight.data, weight.grad
        (tensor([[1.5000, 1.5000]]), tensor([[1., 3.]]))
    """

    counts: ClassVar[bool] = False
    wide: ClassVar[bool] = False

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        transform: Transforms | None = None,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        check("momentum", momentum, 0.0)
        if nesterov and (momentum <= 0 or dampening != 0):
            raise UserError(
                "expected momentum > 0 and dampening=0 with nesterov=True, "
                f"got momentum={momentum} and dampening={dampening}"
            )
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        super().__init__(
            params,
            defaults,
            transform=transform,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
        )

    def _buffers(self, group: Group) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] != 0 else ()

    def _fresh(self, param: Tensor, group: Group) -> Tensor | None:
        # mu 0 + (1 - tau) g is the first gradient where tau is 0; else `_update` sees to it.
        return None if group["dampening"] != 0 else super()._fresh(param, group)

    def _kernel(self, group: Group) -> str | None:
        return "sgd"

    def _numbers(self, group: Group) -> tuple[float, ...]:
        return (group["momentum"], group["dampening"], float(group["nesterov"]))

    def _update(self, share: Share, fold: Fold | None) -> None:
        buffers = share.buffers[0] if share.buffers else []
        fresh = [i for i, buffer in enumerate(buffers) if buffer is None]
        if not fresh:
            super()._update(share, fold)
            return
        owners = [param for group in self.param_groups for param in group["params"]]
        for i in fresh:
            owner = owners[share.places[i]]
            zeros = torch.zeros_like(owner, memory_format=torch.preserve_format)
            self.state[owner]["momentum_buffer"] = zeros
            share.buffers[0][i] = part_here(zeros)
        others = sorted(set(range(len(buffers))) - set(fresh))
        first = share.only(fresh)
        first.group = {**share.group, "dampening": 0.0}
        super()._update(first, fold)
        if others:
            super()._update(share.only(others), fold)

    def _single(
        self,
        param: Tensor,
        grad: Tensor,
        buffers: Sequence[Tensor],
        step: Tensor | None,
        group: Group,
    ) -> None:
        if buffers:
            buffer = buffers[0]
            buffer.mul_(group["momentum"]).add_(grad, alpha=1 - group["dampening"])
            if group["differentiable"]:  # autograd keeps it, and the next step will write it
                buffer = buffer.clone()
            grad = grad.add(buffer, alpha=group["momentum"]) if group["nesterov"] else buffer
        if isinstance(group["lr"], Tensor):
            param.sub_(grad * group["lr"])
        else:
            param.add_(grad, alpha=-group["lr"])

    def _multi(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        buffers: Sequence[list[Tensor]],
        steps: list[Tensor],
        group: Group,
    ) -> None:
        updates = grads
        if buffers:
            torch._foreach_mul_(buffers[0], group["momentum"])
            torch._foreach_add_(buffers[0], grads, alpha=1 - group["dampening"])
            updates = buffers[0]
            if group["nesterov"]:
                updates = list(torch._foreach_add(grads, updates, alpha=group["momentum"]))
        if isinstance(group["lr"], Tensor):
            updates = list(torch._foreach_mul(updates, group["lr"]))
            torch._foreach_sub_(params, updates)
        else:
            descend(params, updates, group["lr"])
