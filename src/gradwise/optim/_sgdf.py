"""SGDF: descent along a gradient that a Wiener-type filter has cleaned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gradwise.optim.base import Params, Transforms, check, check_betas
from gradwise.optim.elementwise import ElementwiseOptimizer
from gradwise.optim.lists import combined, corrections, descend
from gradwise.optim.share import Group
from gradwise.registry import register


@register(
    "sgdf",
    kind="optimizer",
    summary="SGD along a blend of gradient and average, weighted by a Wiener filter's gain",
    paper="Yao, Yu, Chang, Li, Zhang, Li, Dynamic Momentum Recalibration in Online Gradient "
    "Learning, CVPR 2026",
    url="https://arxiv.org/abs/2603.06120",
    equation="theta - lr (m + K^gamma (g - m)); K = s / (s + (g - m)^2 + eps)  (3.1)-(3.6)",
    tag="[V]",
)
class SGDF(ElementwiseOptimizer):
    r"""Descent along the average of the gradients, corrected towards the present one by a gain.

    .. math::
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad
        s_t = \beta_2 s_{t-1} + (1 - \beta_2) (g_t - m_t)^2, \quad
        \hat m_t = \frac{m_t}{1 - \beta_1^t}

    .. math::
        \hat s_t = s_t \frac{(1 - \beta_1)(1 - \beta_1^{2t})}{(1 + \beta_1)(1 - \beta_2^t)}, \quad
        K_t = \frac{\hat s_t}{\hat s_t + (g_t - \hat m_t)^2 + \epsilon}, \quad
        \theta_t = \theta_{t-1} - \eta \left( \hat m_t + K_t^\gamma (g_t - \hat m_t) \right)

    K lies in [0, 1), so each value of the step lies between the average and the gradient. The first
    step is one of plain SGD, and so is every step on a constant gradient or with `betas[0] = 0`.

    The paper (Yao, Yu, Chang, Li, Zhang and Li, Dynamic Momentum Recalibration in Online Gradient
    Learning, CVPR 2026, https://arxiv.org/abs/2603.06120) and its code bear out these equations
    [V]. `gamma=1, variance_factor=False` is the form of 2023, Signal Processing Meets SGD
    (https://arxiv.org/abs/2311.02818). eps stands as written above; one of the copies of the
    official code divides it by the variance factor. The decay leaves `.grad` alone, which the
    official code writes to.
    State: `exp_avg` is m and `exp_avg_var` is s. `transform`, `maximize` and the ways to run are
    this library's own.

    Args:
        params: tensors, (name, tensor) pairs, or dicts of either with options of their own.
        lr: learning rate, a float >= 0 or a 0-d tensor.
        betas: decays of the average and of the squared deviations from it, each in [0, 1).
        eps: added to the gain's denominator, in squared units of the gradient, >= 0. With 0 a value
            whose gradient has always been 0 becomes NaN.
        gamma: exponent of the gain, >= 0: 0 is SGD, and large ones leave the average alone.
        variance_factor: scale s from the variance of a gradient to that of an average of such.
        weight_decay: >= 0; coupled (added to the gradient, so it is filtered too).
        decoupled_weight_decay: shrink the parameter by `lr * weight_decay` instead.
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
        >>> optimizer = gw.optim.SGDF([weight], lr=0.5)
        >>> weight.grad = torch.tensor([1.0, -2.0])
        >>> optimizer.step()  # the first step is plain descent
        >>> weight.data
        tensor([0.5000, 3.0000])
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 0.5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        gamma: float = 0.5,
        variance_factor: bool = True,
        weight_decay: float = 0.0,
        decoupled_weight_decay: bool = False,
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
        check("gamma", gamma, 0.0)
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "gamma": gamma,
            "variance_factor": variance_factor,
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
        return ("exp_avg", "exp_avg_var")

    def _kernel(self, group: Group) -> str | None:
        return "sgdf"

    def _numbers(self, group: Group) -> tuple[float, ...]:
        return (*group["betas"], group["eps"], group["gamma"], float(group["variance_factor"]))

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
        (c1,), (factor,) = _corrections([step], group)
        m = buffers[0].lerp(grad, 1 - beta1)  # (3.1)
        apart = grad - m
        s = (buffers[1] * beta2).addcmul(apart, apart, value=1 - beta2)  # (3.2)
        mean, variance = m / c1, s * factor  # (3.3)
        rest = grad - mean
        gain = variance / (variance + rest * rest + group["eps"])  # (3.4)
        filtered = mean + _raised(gain, group["gamma"]) * rest  # (3.5)
        param.sub_(filtered * group["lr"])  # (3.6)
        buffers[0].copy_(m)
        buffers[1].copy_(s)

    def _multi(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        buffers: Sequence[list[Tensor]],
        steps: list[Tensor],
        group: Group,
    ) -> None:
        (beta1, beta2), gamma = group["betas"], group["gamma"]
        c1, factors = _corrections(steps, group)
        m, s = buffers
        torch._foreach_lerp_(m, grads, 1 - beta1)
        apart = torch._foreach_sub(grads, m)
        torch._foreach_mul_(s, beta2)
        torch._foreach_addcmul_(s, apart, apart, value=1 - beta2)
        del apart
        filtered = list(torch._foreach_div(m, c1))
        rest = torch._foreach_sub(grads, filtered)
        gains = torch._foreach_mul(s, factors)
        below = torch._foreach_addcmul(gains, rest, rest)
        torch._foreach_add_(below, group["eps"])
        torch._foreach_div_(gains, below)
        del below
        if gamma == 0.5:
            torch._foreach_sqrt_(gains)
        elif gamma != 1:
            torch._foreach_pow_(gains, gamma)
        torch._foreach_addcmul_(filtered, gains, rest)
        descend(params, filtered, group["lr"])


def _corrections(steps: Sequence[Tensor], group: Group) -> tuple[list[Any], list[Any]]:
    """What m is divided by and what s is multiplied with, (3.3), for each step."""
    beta1, beta2 = group["betas"]
    c1 = corrections(beta1, steps, group["capturable"])
    c2 = corrections(beta2, steps, group["capturable"])
    if not group["variance_factor"]:
        return c1, combined(lambda c: 1 / c, c2)
    ratio = (1 - beta1) / (1 + beta1)
    # 1 - beta1^2t = (1 - beta1^t)(1 + beta1^t), where the first is what has digits to lose.
    return c1, combined(lambda a, b: ratio * a * (2 - a) / b, c1, c2)


def _raised(gain: Tensor, gamma: float) -> Tensor:
    if gamma == 0.5:
        return gain.sqrt()
    return gain if gamma == 1 else gain**gamma
