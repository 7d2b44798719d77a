"""AdaRem: each value's rate grows where its gradient agrees with the past, and shrinks else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from gradwise.errors import UserError
from gradwise.optim.base import Params, Transforms, check
from gradwise.optim.elementwise import ElementwiseOptimizer
from gradwise.optim.lists import descend, powers
from gradwise.optim.share import Group
from gradwise.registry import register


@register(
    "adarem",
    kind="optimizer",
    summary="SGD with a rate for each value, larger where the gradient agrees with its past",
    paper="Liu, Lin, Li, Sheng, Sun, Yan, Ouyang, Adaptive Gradient Method with Resilience and "
    "Momentum, 2020",
    url="https://arxiv.org/abs/2010.11041",
    equation="theta - lr ((1 + lam^(t-1) sign(g) m / (max|m| + eps)) g + wd theta)  (5.1)-(5.4)",
    tag="[V2]",
)
class AdaRem(ElementwiseOptimizer):
    r"""Descent with a rate for each value that depends on how its gradient agrees with the past.

    .. math::
        b_t = \frac{\operatorname{sign}(g_t) m_{t-1}}{\max_j |m_{t-1, j}| + \epsilon}, \quad
        a_t = 1 + \lambda^{t-1} b_t, \quad
        \theta_t = \theta_{t-1} - \eta (a_t g_t + \omega \theta_{t-1}), \quad
        m_t = \beta m_{t-1} + (1 - \beta) g_t

    with the maximum over the tensor. a lies in [0, 2], so no step goes against its gradient's sign.
    With `lam < 1` the method turns into SGD as steps are counted, by half in 700 steps for 0.999;
    the count is part of the state, so a training that goes on from a checkpoint goes on with that
    too. The decay omega is not multiplied by a and does not enter m.

    After a third-party port [V2] of Liu, Lin, Li, Sheng, Sun, Yan and Ouyang, Adaptive Gradient
    Method with Resilience and Momentum, 2020 (https://arxiv.org/abs/2010.11041); whether the
    paper's b looks at the momentum before or after the gradient entered it was not seen.
    `transform`, `maximize` and the ways to run are this library's own. State: `exp_avg` is m.

    Args:
        params: tensors, (name, tensor) pairs, or dicts of either with options of their own.
        lr: learning rate, a float >= 0 or a 0-d tensor.
        beta: decay of the momentum, in [0, 1).
        lam: what the influence of the momentum is multiplied by in each step, in [0, 1]; 0 is SGD.
        eps: added to the largest momentum, in units of the gradient, >= 0. With 0 the first step
            divides 0 by 0.
        weight_decay: omega, >= 0.
        transform: one transform or several, applied in order.
        foreach: update lists of tensors at once. None: where it pays.
        maximize: go up instead of down.
        capturable: keep step counts on the device, so that a CUDA graph can hold the step.
        differentiable: let autograd through the step.
        fused: a compiled kernel, on the CPU. None: where there is one and `foreach` is None.

    Raises:
        UserError: where an argument is out of its bounds.

    Examples:
        >>> import torch, gradwise as gw
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> optimizer = gw.optim.AdaRem([weight], lr=0.1, lam=1.0)
        >>> for gradient in ([1.0, 1.0], [1.0, -1.0]):  # the first value goes on, the second turns
        ...     weight.grad = torch.tensor(gradient)
        ...     optimizer.step()
        >>> weight.data
        tensor([0.7000, 1.9000])
    """

    by_value = False  # what it divides by is the largest value of a parameter
    decay: ClassVar[Literal["coupled", "decoupled", "own"]] = "own"

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 0.1,
        beta: float = 0.9,
        lam: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        transform: Transforms | None = None,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        check("beta", beta, 0.0, 1.0)
        if not 0 <= lam <= 1:
            raise UserError(f"expected 0 <= lam <= 1, got lam={lam!r}")
        check("eps", eps, 0.0)
        defaults = {"lr": lr, "beta": beta, "lam": lam, "eps": eps, "weight_decay": weight_decay}
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
        return ("exp_avg",)

    def _kernel(self, group: Group) -> str | None:
        return "adarem"

    def _numbers(self, group: Group) -> tuple[float, ...]:
        return (group["beta"], group["lam"], group["eps"], group["weight_decay"])

    def _single(
        self,
        param: Tensor,
        grad: Tensor,
        buffers: Sequence[Tensor],
        step: Tensor | None,
        group: Group,
    ) -> None:
        assert step is not None
        (fade,) = _fades([step], group)
        m = buffers[0].clone() if group["differentiable"] else buffers[0]
        top = m.abs().amax() if m.numel() else m.sum()
        b = grad.sign() * m / (top + group["eps"])  # (5.1)
        a = 1 + fade * b  # (5.2)
        param.sub_((a * grad + group["weight_decay"] * param) * group["lr"])  # (5.3)
        buffers[0].lerp_(grad, 1 - group["beta"])  # (5.4)

    def _multi(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        buffers: Sequence[list[Tensor]],
        steps: list[Tensor],
        group: Group,
    ) -> None:
        (m,) = buffers
        if not all(value.numel() for value in m):  # a maximum over nothing is refused by torch
            some = [i for i, value in enumerate(m) if value.numel()]
            if some:
                lists = [[values[i] for i in some] for values in (params, grads, m, steps)]
                self._multi(lists[0], lists[1], lists[2:3], lists[3], group)
            return
        tops = torch._foreach_norm(m, math.inf)
        torch._foreach_add_(tops, group["eps"])
        updates = list(torch._foreach_sign(grads))
        torch._foreach_mul_(updates, m)
        torch._foreach_div_(updates, tops)
        torch._foreach_mul_(updates, _fades(steps, group))
        torch._foreach_add_(updates, 1.0)
        torch._foreach_mul_(updates, grads)
        if group["weight_decay"] != 0:
            torch._foreach_add_(updates, params, alpha=group["weight_decay"])
        descend(params, updates, group["lr"])
        torch._foreach_lerp_(m, grads, 1 - group["beta"])


def _fades(steps: Sequence[Tensor], group: Group) -> list[Any]:
    """`lam ** (step - 1)` for each step."""
    return powers(group["lam"], torch._foreach_sub(list(steps), 1.0), group["capturable"])
