"""ZClip: clip norms that stand out from their own moving statistics."""

from __future__ import annotations

import torch

from gradwise.affine import Affine
from gradwise.errors import UserError
from gradwise.moments import Moments
from gradwise.registry import register
from gradwise.transforms._clip import clip_factor
from gradwise.transforms.base import State, Transform


@register(
    "zclip",
    summary="clip global norms whose z-score against their moving mean and std is high",
    paper="A. Kumar, L. Owen, N. R. Chowdhury, F. Güra, ZClip, 2025",
    url="https://arxiv.org/abs/2504.02507",
    equation="z = (N - mean) / (std + eps); where z > z0 clip at mean + z0 std / (z / z0)",
    tag="[V]",
)
class ZClip(Transform):
    """Clip the global norm N where `z = (N - mean) / (std + eps)` exceeds a threshold.

    Mean and population variance come from the first `warmup` norms and then follow as moving
    averages. An outlier is clipped to `mean + threshold * std / (z / threshold)`, which falls as z
    grows; `max_norm` bounds every step, the warm-up included. The averages take in what the clip by
    z left, the variance about the new mean.

    Args:
        warmup: norms that initialise mean and variance, >= 1.
        threshold: z-score above which a norm is clipped, > 0.
        alpha: weight of the past in the moving averages, 0 <= alpha < 1.
        max_norm: fixed bound of every step; None for none.
        eps: added to the standard deviation.

    Raises:
        UserError: where an argument is out of its bounds.

    Examples:
        >>> import torch
        >>> (grad,), _ = ZClip().update([torch.tensor([3.0, 4.0])])
        >>> grad
        tensor([0.6000, 0.8000])
    """

    common = ("scale",)

    def __init__(
        self,
        warmup: int = 25,
        threshold: float = 2.5,
        alpha: float = 0.97,
        max_norm: float | None = 1.0,
        eps: float = 1e-6,
    ) -> None:
        if warmup < 1:
            raise UserError(f"expected warmup >= 1, got warmup={warmup}")
        if not threshold > 0:
            raise UserError(f"expected threshold > 0, got threshold={threshold}")
        if not 0 <= alpha < 1:
            raise UserError(f"expected 0 <= alpha < 1, got alpha={alpha}")
        if max_norm is not None and not max_norm > 0:
            raise UserError(f"expected max_norm > 0 or None, got max_norm={max_norm}")
        if not eps >= 0:
            raise UserError(f"expected eps >= 0, got eps={eps}")
        self.warmup = warmup
        self.threshold = threshold
        self.alpha = alpha
        self.max_norm = max_norm
        self.eps = eps

    def __repr__(self) -> str:
        return (
            f"ZClip(warmup={self.warmup}, threshold={self.threshold}, alpha={self.alpha}, "
            f"max_norm={self.max_norm}, eps={self.eps})"
        )

    def init(self, moments: Moments) -> State:
        """`step`, `mean` and `var` of the norm, the `buffer` of the warm-up, last `factor`."""
        one = moments.total_norm.new_ones(())
        zero = torch.zeros_like(one)
        buffer = one.new_zeros(self.warmup)
        return {"step": zero, "mean": zero, "var": zero, "buffer": buffer, "factor": one}

    def __call__(self, moments: Moments, state: State) -> tuple[Affine, State]:
        """The map of `clip_grad_norm_` at ZClip's threshold; see `Transform`."""
        norm, step, mean, var = moments.total_norm, state["step"], state["mean"], state["var"]
        warm = step < self.warmup
        z = (norm - mean) / (var.sqrt() + self.eps)
        clipped = mean + self.threshold * var.sqrt() / (z / self.threshold)
        is_outlier = ~warm & (z > self.threshold)
        seen = torch.where(is_outlier, clipped, norm)
        bound = torch.where(is_outlier, clipped, torch.inf)
        if self.max_norm is not None:
            bound = bound.clamp(max=self.max_norm)
        factor = torch.where(bound.isinf(), 1.0, clip_factor(bound, norm))

        places = torch.arange(self.warmup, device=norm.device)
        buffer = torch.where(warm & (places == step), norm, state["buffer"])
        last = step == self.warmup - 1
        moving = self.alpha * mean + (1 - self.alpha) * seen
        new_mean = torch.where(last, buffer.mean(), torch.where(warm, mean, moving))
        moving = self.alpha * var + (1 - self.alpha) * (seen - new_mean).square()
        new_var = torch.where(last, buffer.var(correction=0), torch.where(warm, var, moving))
        new = {"step": step + 1, "mean": new_mean, "var": new_var, "buffer": buffer}
        return Affine(factor), {**new, "factor": factor}
