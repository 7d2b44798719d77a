"""Gradient Autoscaled Normalization: centre each layer, one common factor for all."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from gradwise import backends
from gradwise.affine import Affine
from gradwise.errors import UserError
from gradwise.moments import Moments
from gradwise.registry import register
from gradwise.transforms.base import State, Transform

Rule = Literal["trend", "follow", "envelope", "ratio", "damped", "log", "inverse", "center"]
EPS = 1e-8  # of the rule "inverse" alone, as in ZNorm

# (ln sigma_t, memory before t, t) -> (alpha_t, memory after t). At t = 1 the memory is ln sigma_1.
Psi = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def _follow(log_sigma: Tensor, trend: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    return (trend - log_sigma).exp(), trend + (log_sigma - trend) / step.sqrt()


def _trend(log_sigma: Tensor, trend: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    alpha, trend = _follow(log_sigma, trend, step)
    return alpha.clamp(max=1.0), trend


def _envelope(log_sigma: Tensor, peak: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    peak = torch.maximum(peak, log_sigma)
    return (log_sigma - peak).exp(), peak


def _ratio(log_sigma: Tensor, first: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    return (log_sigma - first).exp(), first


def _damped(log_sigma: Tensor, memory: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    return 1.0 / (1.0 + log_sigma.exp()), memory


def _log(log_sigma: Tensor, memory: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    return (-log_sigma / math.log(10.0)).clamp(min=0.0), memory


def _inverse(log_sigma: Tensor, memory: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    return 1.0 / (log_sigma.exp() + EPS), memory


def _center(log_sigma: Tensor, memory: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ones_like(log_sigma), memory


_RULES: dict[str, Psi] = {
    "trend": _trend,
    "follow": _follow,
    "envelope": _envelope,
    "ratio": _ratio,
    "damped": _damped,
    "log": _log,
    "inverse": _inverse,
    "center": _center,
}


@register(
    "autoscale",
    summary="centre each layer, scale everything by one factor from the global std; nothing to set",
    paper="V.-D. Yun, Insights from Gradient Dynamics: Gradient Autoscaled Normalization, 2025",
    url="https://arxiv.org/abs/2509.03677",
    equation="ghat_l = alpha_t (g_l - mean(g_l)), sigma_t^2 = sum ||g_l - mean||^2 / sum numel_l",
    tag="[V2] stages, [X] closed form of alpha",
)
class Autoscale(Transform):
    """Zero-centre every layer's gradient and scale all gradients by one common factor.

    `ghat_l = alpha_t (g_l - mean(g_l))` for every eligible tensor l (1.2, 1.5), with
    `sigma_t = sqrt(sum ||g_l - mean||^2 / sum numel_l)` over all of them (1.3). Eligible are dense
    gradients with at least two dimensions and two values (1.1). The rest, mostly biases and the
    parameters of norm layers, is scaled by alpha_t but not centred: bursts reach it as well.

    The two stages are the paper's [V2]; how alpha_t follows from sigma_1..sigma_t, and that it
    scales the rest as well, is this library's reading [X]. The default "trend" keeps the paper's
    claims as exact properties: nothing to set, unit-free (a loss multiplied by k > 0 leaves every
    alpha_t as it is), never amplifying (alpha_t <= 1), one factor for all layers. The other rules
    exist for ablation:

    ========== =============================================================================
    trend      min(1, exp(m_{t-1}) / sigma_t), m a running mean of ln sigma with weight 1/sqrt(t)
    follow     the same without the cap
    envelope   sigma_t / max of all sigma so far
    ratio      sigma_t / sigma_1
    damped     1 / (1 + sigma_t), reads the unit
    log        max(-log10 sigma_t, 0), reads the unit
    inverse    1 / (sigma_t + 1e-8), a global ZNorm, reads the unit
    center     1, zero-centring alone
    ========== =============================================================================

    Where sigma_t is 0 (nothing is eligible, for instance) or not finite, alpha_t is 1 and the
    memory stays as it was.

    Args:
        rule: how alpha_t follows from sigma.

    Raises:
        UserError: for an unknown rule.

    Examples:
        >>> import torch
        >>> (grad,), state = Autoscale().update([torch.tensor([[1.0, 3.0]])])
        >>> grad, state["alpha"].item()
        (tensor([[-1.,  1.]]), 1.0)
        >>> (burst,), state = Autoscale().update([torch.tensor([[100.0, 300.0]])], state)
        >>> burst, round(state["alpha"].item(), 6)
        (tensor([[-1.,  1.]]), 0.01)
    """

    common = ("scale",)

    def __init__(self, rule: Rule = "trend") -> None:
        if rule not in _RULES:
            raise UserError(f"expected rule to be one of {', '.join(get_args(Rule))}, got {rule!r}")
        self.rule = rule

    def __repr__(self) -> str:
        return f"Autoscale(rule={self.rule!r})"

    @property
    def name(self) -> str:
        """The rule is part of the name: a memory of one rule means nothing to another."""
        return f"Autoscale[{self.rule}]"

    def init(self, moments: Moments) -> State:
        """`alpha` of the last step, `sigma` of it, the number of `step`s seen, the `memory`."""
        zero = torch.zeros_like(moments.mean.sum())
        return {"alpha": zero + 1, "sigma": zero, "step": zero, "memory": zero}

    def __call__(self, moments: Moments, state: State) -> tuple[Affine, State]:
        """The map of (1.5); see `Transform`."""
        moments_t = moments.per_tensor()
        layout = moments_t.layout
        on = layout.mask(layout.eligible, moments.device, moments_t.m2.dtype)
        sigma = (torch.dot(moments_t.m2, on) / moments_t.divisor(layout.eligible)).sqrt()
        log_sigma = sigma.log()
        sound = log_sigma.abs() < torch.inf  # sigma is a number and neither 0 nor infinite
        step = state["step"] + 1
        memory = torch.where(state["step"] == 0, log_sigma, state["memory"])
        alpha, memory = _RULES[self.rule](log_sigma, memory, step)
        if not backends.holds(sound):
            alpha = torch.where(sound, alpha, 1.0)
            step = torch.where(sound, step, state["step"])
            memory = torch.where(sound, memory, state["memory"])
        new = {"alpha": alpha, "sigma": sigma, "step": step, "memory": memory}
        shift = moments.expand(moments_t.mean * on)
        return Affine(alpha, shift, shifted=layout.eligible), new
