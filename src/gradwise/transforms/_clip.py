"""Clipping by the global norm, exactly as `torch.nn.utils.clip_grad_norm_` does it."""

from __future__ import annotations

from torch import Tensor

from gradwise.affine import Affine
from gradwise.errors import UserError
from gradwise.moments import Moments
from gradwise.registry import register
from gradwise.transforms.base import State, Transform

EPS = 1e-6  # torch's own, which leaves a clipped norm slightly below the bound


def clip_factor(threshold: Tensor | float, norm: Tensor) -> Tensor:
    """`min(1, threshold / (norm + 1e-6))`, the factor of `clip_grad_norm_`."""
    return (threshold / (norm + EPS)).clamp(max=1.0)


@register(
    "clip",
    defaults={"max_norm": 1.0},
    summary="scale all gradients down to a global norm of max_norm where it is larger",
    paper="R. Pascanu, T. Mikolov, Y. Bengio, On the difficulty of training RNNs, ICML 2013",
    url="https://arxiv.org/abs/1211.5063",
    equation="g min(1, c / (N + 1e-6)), N = (sum ||g_l||^2)^(1/2)",
    tag="[V]",
)
class ClipNorm(Transform):
    """Scale all gradients by `min(1, max_norm / (N + 1e-6))`, N their global Euclidean norm.

    Gives what `torch.nn.utils.clip_grad_norm_(params, max_norm)` gives; the norm is accumulated in
    float32 or wider whatever the gradients' dtype. Non-finite gradients are left alone instead of
    being turned into NaN.

    Args:
        max_norm: upper bound of the norm, in the gradients' unit, > 0.

    Raises:
        UserError: where max_norm is not positive.

    Examples:
        >>> import torch
        >>> (grad,), _ = ClipNorm(1.0).update([torch.tensor([3.0, 4.0])])
        >>> grad
        tensor([0.6000, 0.8000])
    """

    common = ("scale",)

    def __init__(self, max_norm: float) -> None:
        if not max_norm > 0:
            raise UserError(f"expected max_norm > 0, got max_norm={max_norm}")
        self.max_norm = float(max_norm)

    def __repr__(self) -> str:
        return f"ClipNorm(max_norm={self.max_norm})"

    def init(self, moments: Moments) -> State:
        """`factor`, what the last step's gradients were multiplied by."""
        return {"factor": moments.total_norm.new_ones(())}

    def __call__(self, moments: Moments, state: State) -> tuple[Affine, State]:
        """The map of `clip_grad_norm_`; see `Transform`."""
        factor = clip_factor(self.max_norm, moments.total_norm)
        return Affine(factor), {"factor": factor}
