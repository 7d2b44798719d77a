"""AdaGrad-OTA and Adam-OTA: server updates for gradients that come over the air."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradwise.errors import UserError
from gradwise.optim.base import Params, Transforms, check, check_betas
from gradwise.optim.elementwise import ElementwiseOptimizer
from gradwise.optim.lists import descend
from gradwise.optim.share import Group
from gradwise.registry import register

_PAPER = (
    "Wang, Chen, Pappas, Yang, Quek, Poor, Adaptive Federated Learning Over the Air, "
    "IEEE Transactions on Signal Processing 73, 2025"
)
_URL = "https://arxiv.org/abs/2403.06528"


class _OverTheAir(ElementwiseOptimizer):
    """What both have in common; they differ in how powers of the momentum add up."""

    def _averaging(self, group: Group) -> tuple[float, float]:
        """The momentum's decay, and that of the accumulated powers."""
        raise NotImplementedError

    def _weight(self, group: Group) -> float:
        """What a new power is multiplied by."""
        raise NotImplementedError

    def _buffers(self, group: Group) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_pow")

    def _kernel(self, group: Group) -> str | None:
        return "ota"

    def _single(
        self,
        param: Tensor,
        grad: Tensor,
        buffers: Sequence[Tensor],
        step: Tensor | None,
        group: Group,
    ) -> None:
        (beta1, keep), alpha = self._averaging(group), group["alpha"]
        delta = buffers[0].lerp(grad, 1 - beta1)  # (8.3)
        v = buffers[1] * keep + self._weight(group) * delta.abs() ** alpha  # (8.4a), (8.4b)
        param.sub_(delta / (v ** (1 / alpha) + group["eps"]) * group["lr"])  # (8.5)
        buffers[0].copy_(delta)
        buffers[1].copy_(v)

    def _multi(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        buffers: Sequence[list[Tensor]],
        steps: list[Tensor],
        group: Group,
    ) -> None:
        (beta1, keep), alpha, lr = self._averaging(group), group["alpha"], group["lr"]
        delta, v = buffers
        torch._foreach_lerp_(delta, grads, 1 - beta1)
        if keep != 1:
            torch._foreach_mul_(v, keep)
        if alpha == 2:
            torch._foreach_addcmul_(v, delta, delta, value=self._weight(group))
            roots = torch._foreach_sqrt(v)
        else:
            sizes = torch._foreach_abs(delta)
            torch._foreach_pow_(sizes, alpha)
            torch._foreach_add_(v, sizes, alpha=self._weight(group))
            del sizes
            roots = torch._foreach_pow(v, 1 / alpha)
        torch._foreach_add_(roots, group["eps"])
        if isinstance(lr, Tensor):
            descend(params, list(torch._foreach_div(delta, roots)), lr)
        else:
            torch._foreach_addcdiv_(params, delta, roots, value=-lr)


@register(
    "adagradota",
    kind="optimizer",
    summary="AdaGrad over powers alpha, for gradients with interference of tail index alpha",
    paper=_PAPER,
    url=_URL,
    equation="theta - lr m / (v^(1/alpha) + eps); v <- v + |m|^alpha  (8.3), (8.4a), (8.5)",
    tag="[V2]",
)
class AdaGradOTA(_OverTheAir):
    r"""AdaGrad of a server whose clients send gradients over one noisy channel.

    .. math::
        \Delta_t = \beta_1 \Delta_{t-1} + (1 - \beta_1) g_t, \quad
        v_t = v_{t-1} + |\Delta_t|^\alpha, \quad
        \theta_t = \theta_{t-1} - \eta \frac{\Delta_t}{v_t^{1 / \alpha} + \epsilon}

    alpha is the tail index of the channel's interference, which has no variance below 2. There is
    no bias correction. The first step has the size `lr` whatever the gradient's, if that is large
    against eps. alpha = 2 with beta1 = 0 is AdaGrad.

    After third-party ports [V2] of Wang, Chen, Pappas, Yang, Quek and Poor, Adaptive Federated
    Learning Over the Air, IEEE Transactions on Signal Processing 73, 2025
    (https://arxiv.org/abs/2403.06528); whether the paper's eps stands inside the root was not seen.
    There is no weight decay in the method, so none here. `transform`, `maximize` and the ways to
    run are this library's own. State: `exp_avg` is Delta, `exp_avg_pow` is v, the sum of powers.

    Args:
        params: tensors, (name, tensor) pairs, or dicts of either with options of their own.
        lr: learning rate, a float >= 0 or a 0-d tensor.
        alpha: exponent, 1 < alpha <= 2.
        beta1: decay of the momentum, in [0, 1).
        eps: added to the root, in units of the gradient, >= 0. With 0 a value whose gradient has
            always been 0 becomes NaN.
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
        >>> optimizer = gw.optim.AdaGradOTA([weight], lr=0.1)
        >>> weight.grad = torch.tensor([5.0, -70.0])
        >>> optimizer.step()
        >>> weight.data
        tensor([0.9000, 2.1000])
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        alpha: float = 1.5,
        beta1: float = 0.0,
        eps: float = 1e-4,
        *,
        transform: Transforms | None = None,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        _check_alpha(alpha)
        check("beta1", beta1, 0.0, 1.0)
        check("eps", eps, 0.0)
        super().__init__(
            params,
            {"lr": lr, "alpha": alpha, "beta1": beta1, "eps": eps},
            transform=transform,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
        )

    def _averaging(self, group: Group) -> tuple[float, float]:
        return group["beta1"], 1.0

    def _weight(self, group: Group) -> float:
        return 1.0

    def _numbers(self, group: Group) -> tuple[float, ...]:
        return (group["beta1"], 1.0, group["alpha"], group["eps"], 0.0)


@register(
    "adamota",
    kind="optimizer",
    summary="Adam over powers alpha of the momentum, for interference of tail index alpha",
    paper=_PAPER,
    url=_URL,
    equation="theta - lr m / (v^(1/alpha) + eps); v <- b2 v + (1 - b2) |m|^alpha  "
    "(8.3), (8.4b), (8.5)",
    tag="[V2]",
)
class AdamOTA(_OverTheAir):
    r"""Adam of a server whose clients send gradients over one noisy channel.

    .. math::
        \Delta_t = \beta_1 \Delta_{t-1} + (1 - \beta_1) g_t, \quad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) |\Delta_t|^\alpha, \quad
        \theta_t = \theta_{t-1} - \eta \frac{\Delta_t}{v_t^{1 / \alpha} + \epsilon}

    alpha is the tail index of the channel's interference, which has no variance below 2. There is
    no bias correction: the first step has the size `lr / (1 - betas[1]) ** (1 / alpha)`, if the
    gradient is large against eps. alpha = 2 is not Adam, since v is of the momentum, as in
    `AdaMomentum`.

    After third-party ports [V2] of Wang, Chen, Pappas, Yang, Quek and Poor, Adaptive Federated
    Learning Over the Air, IEEE Transactions on Signal Processing 73, 2025
    (https://arxiv.org/abs/2403.06528); whether the paper's eps stands inside the root was not seen.
    There is no weight decay in the method, so none here. `transform`, `maximize` and the ways to
    run are this library's own. State: `exp_avg` is Delta, `exp_avg_pow` is v.

    Args:
        params: tensors, (name, tensor) pairs, or dicts of either with options of their own.
        lr: learning rate, a float >= 0 or a 0-d tensor.
        alpha: exponent, 1 < alpha <= 2.
        betas: decays of the momentum and of its powers, each in [0, 1).
        eps: added to the root, in units of the gradient, >= 0. With 0 a value whose gradient has
            always been 0 becomes NaN.
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
        >>> optimizer = gw.optim.AdamOTA([weight], lr=0.1)
        >>> weight.grad = torch.tensor([5.0, -70.0])
        >>> optimizer.step()
        >>> weight.data
        tensor([0.8732, 2.1268])
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        alpha: float = 1.5,
        betas: tuple[float, float] = (0.9, 0.3),
        eps: float = 1e-4,
        *,
        transform: Transforms | None = None,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        _check_alpha(alpha)
        check_betas(betas)
        check("eps", eps, 0.0)
        super().__init__(
            params,
            {"lr": lr, "alpha": alpha, "betas": betas, "eps": eps},
            transform=transform,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
        )

    def _averaging(self, group: Group) -> tuple[float, float]:
        beta1, beta2 = group["betas"]
        return beta1, beta2

    def _weight(self, group: Group) -> float:
        return 1 - float(group["betas"][1])

    def _numbers(self, group: Group) -> tuple[float, ...]:
        return (*group["betas"], group["alpha"], group["eps"], 1.0)


def _check_alpha(alpha: float) -> None:
    if not 1 < alpha <= 2:
        raise UserError(f"expected 1 < alpha <= 2, got alpha={alpha!r}")
