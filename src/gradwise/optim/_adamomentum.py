"""AdaMomentum: Adam whose second moment is that of the momentum."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradwise.optim.base import Params, Transforms, check, check_betas
from gradwise.optim.elementwise import ElementwiseOptimizer
from gradwise.optim.lists import combined, corrections
from gradwise.optim.share import Group
from gradwise.registry import register


@register(
    "adamomentum",
    kind="optimizer",
    summary="Adam that divides by the root of the momentum's own square; eps adds up inside it",
    paper="Wang, Kang, Qin, Wang, Xu, Zhang, Fu, Momentum is All You Need for Data-Driven "
    "Adaptive Optimization, ICDM 2023",
    url="https://arxiv.org/abs/2106.11514",
    equation="theta - lr mhat / sqrt(vhat); v <- b2 v + (1 - b2) m^2 + eps  (4.1)-(4.4)",
    tag="[V]",
)
class AdaMomentum(ElementwiseOptimizer):
    r"""Adam with the square of the momentum in place of that of the gradient (later named AdaM3).

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) m_t^2 + \epsilon, \quad
        \theta_t = \theta_{t-1}
        - \eta \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)}}

    Added up, eps is a floor of exactly `eps / (1 - betas[1])` under the root: 1e-8 is one of 1e-5.
    The momentum inside v is not corrected, so the first step has the size `lr / (1 - betas[0])`,
    ten times Adam's with the defaults: warm up, or begin with a smaller rate.

    The equations are those of the official code [V] of Wang, Kang, Qin, Wang, Xu, Zhang and Fu,
    Momentum is All You Need for Data-Driven Adaptive Optimization, ICDM 2023
    (https://arxiv.org/abs/2106.11514). Its AMSGrad and rectification are not here; `transform`,
    `maximize` and the ways to run are this library's own. State: `exp_avg` is m and `exp_avg_sq`
    is v.

    Args:
        params: tensors, (name, tensor) pairs, or dicts of either with options of their own.
        lr: learning rate, a float >= 0 or a 0-d tensor.
        betas: decays of the two averages, each in [0, 1).
        eps: added to v in each step, in squared units of the gradient, >= 0. With 0 a value whose
            gradient has always been 0 becomes NaN.
        weight_decay: >= 0; the parameter shrinks by `lr * weight_decay`.
        decoupled_weight_decay: False adds the decay to the gradient instead.
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
        >>> optimizer = gw.optim.AdaMomentum([weight], lr=0.01)
        >>> weight.grad = torch.tensor([3.0, -0.2])
        >>> optimizer.step()
        >>> weight.data
        tensor([0.9000, 2.1000])
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-16,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = True,
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
            "decoupled_weight_decay": decoupled_weight_decay,
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
        return ("exp_avg", "exp_avg_sq")

    def _kernel(self, group: Group) -> str | None:
        return "adamomentum"

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
        beta1, beta2 = group["betas"]
        assert step is not None
        (c1,) = corrections(beta1, [step], group["capturable"])
        (c2,) = corrections(beta2, [step], group["capturable"])
        m = buffers[0].lerp(grad, 1 - beta1)  # (4.1)
        v = (buffers[1] * beta2).addcmul(m, m, value=1 - beta2) + group["eps"]  # (4.2)
        mean, root = m / c1, (v / c2).sqrt()  # (4.3)
        param.sub_(mean / root * group["lr"])  # (4.4)
        buffers[0].copy_(m)
        buffers[1].copy_(v)

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
        m, v = buffers
        torch._foreach_lerp_(m, grads, 1 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, m, m, value=1 - beta2)
        torch._foreach_add_(v, group["eps"])
        roots = torch._foreach_sqrt(v)
        sizes = combined(lambda a, b: lr * b**0.5 / a, c1, c2)
        if any(isinstance(size, Tensor) for size in sizes):
            updates = torch._foreach_div(m, roots)
            torch._foreach_mul_(updates, sizes)
            torch._foreach_sub_(params, updates)
        else:
            torch._foreach_addcdiv_(params, m, roots, [-size for size in sizes])
