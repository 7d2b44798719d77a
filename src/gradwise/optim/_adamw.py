"""AdamW as torch has it, with transforms inside the update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from gradwise.optim.base import Params, Transforms, check, check_betas
from gradwise.optim.elementwise import ElementwiseOptimizer
from gradwise.optim.lists import combined, corrections
from gradwise.optim.share import Group
from gradwise.registry import register


@register(
    "gw-adamw",
    kind="optimizer",
    summary="torch's AdamW, with transforms folded into the update",
    paper="Loshchilov, Hutter, Decoupled Weight Decay Regularization, ICLR 2019",
    url="https://arxiv.org/abs/1711.05101",
    equation="theta (1 - lr wd) - lr mhat / (sqrt(vhat) + eps)",
    tag="[V] as torch.optim.AdamW",
)
class AdamW(ElementwiseOptimizer):
    r"""torch.optim.AdamW, into whose update transforms of the gradients are folded.

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2, \quad
        \theta_t = (1 - \eta \lambda) \theta_{t-1}
        - \eta \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}

    where `g_t` has been through `transform`. State and checkpoints are those of
    `torch.optim.AdamW`: either loads what the other has saved. (Loshchilov and Hutter, Decoupled
    Weight Decay Regularization, 2019, https://arxiv.org/abs/1711.05101.)

    Args:
        params: tensors, (name, tensor) pairs, or dicts of either with options of their own.
        lr: learning rate, a float >= 0 or a 0-d tensor.
        betas: decays of the two averages, each in [0, 1).
        eps: added to the root, >= 0.
        weight_decay: decoupled decay, >= 0.
        amsgrad: divide by the largest average so far (Reddi et al., 2018); no kernel does that.
        transform: one transform or several, applied in order.
        foreach: update lists of tensors at once. None: where it pays.
        maximize: go up instead of down.
        capturable: keep step counts on the device, so that a CUDA graph can hold the step.
        differentiable: let autograd through the step.
        fused: a compiled kernel, on the CPU or a GPU. None: where there is one and `foreach` is
            None.

    Raises:
        UserError: where an argument is out of its bounds.

    Examples:
        >>> import torch, gradwise as gw
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = gw.optim.AdamW(
        ...     model.named_parameters(), lr=1e-2, transform=gw.transforms.Autoscale()
        ... )
        >>> model(torch.ones(4, 3)).square().sum().backward()
        >>> optimizer.step()
    """

    wide: ClassVar[bool] = False
    decay = "decoupled"

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        transform: Transforms | None = None,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        check_betas(betas)
        check("eps", eps, 0.0)
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
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
        names = ("exp_avg", "exp_avg_sq")
        return (*names, "max_exp_avg_sq") if group["amsgrad"] else names

    def _kernel(self, group: Group) -> str | None:
        return None if group["amsgrad"] else "adamw"

    def _numbers(self, group: Group) -> tuple[float, ...]:
        return (*group["betas"], group["eps"])

    def _single(
        self,
        param: Tensor,
        grad: Tensor,
        buffers: Sequence[Tensor],
        step: Tensor | None,
        group: Group,
    ) -> None:
        (beta1, beta2), lr, eps = group["betas"], group["lr"], group["eps"]
        assert step is not None
        (c1,) = corrections(beta1, [step], group["capturable"])
        (c2,) = corrections(beta2, [step], group["capturable"])
        m, v = buffers[:2]
        m.lerp_(grad, 1 - beta1)
        v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        most = buffers[2] if group["amsgrad"] else v
        if group["differentiable"]:  # autograd keeps them, and the next step will write them
            m, v, most = m.clone(), v.clone(), most.clone()
        root = v
        if group["amsgrad"]:
            root = torch.maximum(most, v)
            buffers[2].copy_(root)
        denominator = (root.sqrt() / c2**0.5).add_(eps)
        if isinstance(lr, Tensor) or isinstance(c1, Tensor):
            param.sub_(m / denominator * (lr / c1))
        else:
            param.addcdiv_(m, denominator, value=-(lr / c1))

    def _multi(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        buffers: Sequence[list[Tensor]],
        steps: list[Tensor],
        group: Group,
    ) -> None:
        (beta1, beta2), lr = group["betas"], group["lr"]
        c1 = corrections(beta1, steps, group["capturable"])
        c2 = corrections(beta2, steps, group["capturable"])
        m, v = buffers[:2]
        torch._foreach_lerp_(m, grads, 1 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, grads, grads, value=1 - beta2)
        root = v
        if group["amsgrad"]:
            root = buffers[2]
            torch._foreach_maximum_(root, v)
        denominators = torch._foreach_sqrt(root)
        torch._foreach_div_(denominators, combined(lambda c: c**0.5, c2))
        torch._foreach_add_(denominators, group["eps"])
        sizes = combined(lambda c: lr / c, c1)
        if any(isinstance(size, Tensor) for size in sizes):
            updates = torch._foreach_div(m, denominators)
            torch._foreach_mul_(updates, sizes)
            torch._foreach_sub_(params, updates)
        else:
            torch._foreach_addcdiv_(params, m, denominators, [-size for size in sizes])
