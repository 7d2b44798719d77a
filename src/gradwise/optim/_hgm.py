"""HGM: Adam whose rate follows how well the gradient agrees with the momentum."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from gradwise.backends.segments import wide_dtype
from gradwise.errors import UserError
from gradwise.optim.base import Params, Transforms, check, check_betas
from gradwise.optim.elementwise import ElementwiseOptimizer
from gradwise.optim.fold import Fold
from gradwise.optim.lists import combined, corrections
from gradwise.optim.share import Group, Share, buckets, on_host
from gradwise.registry import register

_COSINE = "cosine"  # of all parameters, in the options of a share during one step


@register(
    "hgm",
    kind="optimizer",
    summary="Adam with a larger rate while gradients agree with the momentum, a smaller one else",
    paper="K. Sarkar, Hindsight-Guided Momentum, 2025",
    url="https://arxiv.org/abs/2506.22479",
    equation="Adam with lr exp(gamma s); s <- beta_s s + (1 - beta_s) cos(g, m)  (2.1)-(2.5)",
    tag="[V2]",
)
class HGM(ElementwiseOptimizer):
    r"""Adam whose rate grows while the gradient points along the momentum and shrinks else.

    .. math::
        c_t = \frac{\langle g_t, m_{t-1} \rangle}{\|g_t\| \|m_{t-1}\| + \epsilon}, \quad
        s_t = \beta_s s_{t-1} + (1 - \beta_s) c_t, \quad
        m_t = \beta_1 m_{t-1} + (1 - \beta_1) g_t, \quad
        v_t = \beta_2 v_{t-1} + (1 - \beta_2) g_t^2

    .. math::
        \theta_t = \theta_{t-1} - \eta e^{\gamma s_t}
        \frac{m_t / (1 - \beta_1^t)}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}

    The rate stays within a factor `exp(gamma)` of `lr`; the first step is Adam's, and so are all
    with `gamma=0` or `beta_s=1`.

    After a third-party port [V2] of K. Sarkar, Hindsight-Guided Momentum, 2025
    (https://arxiv.org/abs/2506.22479), whose abstract agrees. The paper's beta_s, gamma and scope
    of the cosine were not seen: these defaults are neutral ones of this library, as are both
    scopes, the decay, `transform`, `maximize` and the ways to run. State: `exp_avg` is m,
    `exp_avg_sq` is v, and `alignment`, 0-d, is s.

    Args:
        params: tensors, (name, tensor) pairs, or dicts of either with options of their own.
        lr: learning rate, a float >= 0 or a 0-d tensor.
        betas: decays of the two averages, each in [0, 1).
        eps: added to the root and to the product of the norms, >= 0. With 0 a value whose gradient
            has always been 0 becomes NaN.
        beta_s: decay of the alignment, in [0, 1].
        gamma: how strongly the rate follows it, >= 0.
        scope: "tensor" takes one cosine a parameter; "global" one for all that have a gradient, of
            all groups, and is the same in all groups.
        weight_decay: decoupled decay, >= 0; the parameter shrinks by `lr * weight_decay`.
        transform: one transform or several, applied in order.
        foreach: update lists of tensors at once. None: where it pays.
        maximize: go up instead of down.
        capturable: keep step counts on the device, so that a CUDA graph can hold the step.
        differentiable: let autograd through the step.
        fused: a compiled kernel, on the CPU. None: where there is one and `foreach` is None.

    Raises:
        UserError: where an argument is out of its bounds, or groups differ in scope.

    Examples:
        >>> import torch, gradwise as gw
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> optimizer = gw.optim.HGM([weight], lr=0.1, beta_s=0.5)
        >>> for _ in range(3):
        ...     weight.grad = torch.tensor([3.0, -4.0])
        ...     optimizer.step()
        >>> optimizer.state[weight]["alignment"]  # 0, then 1/2 and 3/4: the gradient did not turn
        tensor(0.7500)
    """

    by_value = False  # the alignment is that of whole parameters
    decay = "decoupled"
    scalars: ClassVar[tuple[str, ...]] = ("alignment",)

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        beta_s: float = 0.9,
        gamma: float = 0.5,
        scope: str = "tensor",
        weight_decay: float = 0.0,
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
        if not 0 <= beta_s <= 1:
            raise UserError(f"expected 0 <= beta_s <= 1, got beta_s={beta_s!r}")
        check("gamma", gamma, 0.0)
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "beta_s": beta_s,
            "gamma": gamma,
            "scope": scope,
            "weight_decay": weight_decay,
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

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters, with the scope of the others; see `torch.optim.Optimizer`."""
        super().add_param_group(param_group)
        scope, first = self.param_groups[-1]["scope"], self.param_groups[0]["scope"]
        if scope not in ("tensor", "global") or scope != first:
            self.param_groups.pop()
            if scope not in ("tensor", "global"):
                raise UserError(f"expected scope to be 'tensor' or 'global', got scope={scope!r}")
            raise UserError(f"expected one scope for all groups, got scope={first!r} and {scope!r}")

    def _buffers(self, group: Group) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def _kernel(self, group: Group) -> str | None:
        return "hgm"

    def _numbers(self, group: Group) -> tuple[float, ...]:
        return (*group["betas"], group["eps"], group["beta_s"], group["gamma"])

    def _extras(self, group: Group) -> dict[str, Any]:
        return {"cosine": group.get(_COSINE)}

    def _before(self, shares: list[Share], fold: Fold | None) -> None:
        if not shares or self.param_groups[0]["scope"] != "global":
            return
        parts = [part.sum(1) for share in shares for part in self._sums(share, fold)]
        home = next((part.device for part in parts if part.device.type != "cpu"), parts[0].device)
        total = torch.stack([part.to(home) for part in parts]).sum(0)
        for share in shares:
            share.group[_COSINE] = _cosine(total, share.group["eps"])

    def _sums(self, share: Share, fold: Fold | None) -> list[Tensor]:
        """`<g, m>`, `|g|^2` and `|m|^2` of all tensors of the share, in some [3, n]."""
        found = []
        compiled = self._compiled(share)
        here = [] if compiled is None else on_host(share.params)
        if compiled is not None and here:
            sums, left = compiled.sums(**self._given(share.only(here), fold))
            found.append(sums)
            others = set(range(len(share.params))) - set(here)
            share = share.only(sorted([*others, *(here[i] for i in left)]))
        for bucket in buckets(share):
            _, grads, (momenta, *_) = self._prepared(bucket, fold)
            if share.group["differentiable"]:  # autograd keeps them, and they will be written
                momenta = [momentum.clone() for momentum in momenta]
            found.append(_sums(grads, momenta))
        return found

    def _single(
        self,
        param: Tensor,
        grad: Tensor,
        buffers: Sequence[Tensor],
        step: Tensor | None,
        group: Group,
    ) -> None:
        (beta1, beta2), beta_s, eps = group["betas"], group["beta_s"], group["eps"]
        assert step is not None
        (c1,) = corrections(beta1, [step], group["capturable"])
        (c2,) = corrections(beta2, [step], group["capturable"])
        old = buffers[0].clone() if group["differentiable"] else buffers[0]
        if _COSINE in group:
            c = group[_COSINE].to(param.device)
        else:
            wide = wide_dtype(param.device)
            norms = [torch.linalg.vector_norm(x, dtype=wide) for x in (grad, old)]
            c = (grad * old).sum(dtype=wide) / (norms[0] * norms[1] + eps)  # (2.1)
        s = (beta_s * buffers[2] + (1 - beta_s) * c).to(buffers[2].dtype)  # (2.2)
        m = old.lerp(grad, 1 - beta1)  # (2.3)
        v = (buffers[1] * beta2).addcmul(grad, grad, value=1 - beta2)
        rate = group["lr"] * torch.exp(group["gamma"] * s.to(param.dtype))  # (2.4)
        param.sub_(rate * (m / c1) / ((v / c2).sqrt() + eps))  # (2.5)
        for buffer, value in zip(buffers, (m, v, s), strict=True):
            buffer.copy_(value)

    def _multi(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        buffers: Sequence[list[Tensor]],
        steps: list[Tensor],
        group: Group,
    ) -> None:
        (beta1, beta2), beta_s, eps = group["betas"], group["beta_s"], group["eps"]
        c1 = corrections(beta1, steps, group["capturable"])
        c2 = corrections(beta2, steps, group["capturable"])
        m, v, s = buffers
        if _COSINE in group:
            cosines = group[_COSINE].to(params[0].device)
        else:
            cosines = _cosine(_sums(grads, m), eps)
        aligned = (beta_s * torch.stack(s) + (1 - beta_s) * cosines).to(s[0].dtype)
        torch._foreach_copy_(s, aligned.unbind())
        rates = group["lr"] * torch.exp(group["gamma"] * aligned.to(params[0].dtype))
        torch._foreach_lerp_(m, grads, 1 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, grads, grads, value=1 - beta2)
        below = torch._foreach_sqrt(v)
        # Numerator and denominator times the root of c2, which saves a pass.
        torch._foreach_add_(below, combined(lambda c: eps * c**0.5, c2))
        sizes = combined(lambda a, b: b**0.5 / a, c1, c2)
        if any(isinstance(size, Tensor) for size in sizes):
            rates, sizes = rates * torch.stack(sizes), [1.0] * len(sizes)
        torch._foreach_div_(below, rates.to(params[0].dtype).unbind())
        torch._foreach_addcdiv_(params, m, below, [-size for size in sizes])


def _sums(grads: list[Tensor], momenta: list[Tensor]) -> Tensor:
    """[3, n]: `<g, m>`, `|g|^2` and `|m|^2` of n tensors of one device and type.

    Lists have no call for a sum, but for norms: a sum is twice that of the positive values less
    that of the sizes, which is as exact as adding the values up.
    """
    wide = wide_dtype(grads[0].device)
    products = torch._foreach_mul(grads, momenta)
    positive = torch._foreach_clamp_min(products, 0.0)
    sizes = torch.stack(torch._foreach_norm([*products, *positive], 1, wide)).view(2, -1)
    norms = torch.stack(torch._foreach_norm([*grads, *momenta], 2, wide)).view(2, -1)
    return torch.cat([2 * sizes[1:] - sizes[:1], norms.square()])


def _cosine(sums: Tensor, eps: float) -> Tensor:
    """(2.1) from `<g, m>`, `|g|^2` and `|m|^2`."""
    return sums[0] / (sums[1].sqrt() * sums[2].sqrt() + eps)
