"""ZNorm: every layer's gradient to mean 0 and standard deviation 1."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from gradwise.affine import Affine
from gradwise.errors import UserError
from gradwise.moments import Moments
from gradwise.registry import register
from gradwise.transforms.base import State, Transform


@register(
    "znorm",
    summary="each layer's gradient to mean 0 and std 1 (amplifies layers with small gradients)",
    paper="J. Yun, H. Kim, ZNorm: Z-Score Gradient Normalization, 2024",
    url="https://arxiv.org/abs/2408.01215",
    equation="(g - mean(g)) / (std(g) + eps)  (1.6)",
    tag="[V2]",
)
class ZNorm(Transform):
    """`z = (g - mean) / (std + eps)`, by tensor or over all of them (1.6) [V2].

    The population standard deviation is used; the paper's convention and its eps are not known.
    Eligible are the same tensors as for `Autoscale`, so that the two differ in nothing but the
    scale: dense gradients with at least two dimensions and two values. A constant gradient
    becomes 0.

    Args:
        per: "tensor" takes each tensor's own mean and std, "global" those of all eligible
            gradients as one vector (the other reading of the paper's abstract).
        eps: added to the standard deviation, in the gradients' unit.

    Raises:
        UserError: for any other `per`, or a negative `eps`.

    Examples:
        >>> import torch
        >>> (grad,), _ = ZNorm().update([torch.tensor([[2e-3, 4e-3]])])
        >>> grad.round(decimals=3)
        tensor([[-1.,  1.]])
    """

    def __init__(self, per: Literal["tensor", "global"] = "tensor", eps: float = 1e-8) -> None:
        if per not in ("tensor", "global"):
            raise UserError(f"expected per to be 'tensor' or 'global', got per={per!r}")
        if not eps >= 0:
            raise UserError(f"expected eps >= 0, got eps={eps}")
        self.scope = per
        self.common = ("scale", "shift") if per == "global" else ()
        self.eps = eps

    def __repr__(self) -> str:
        return f"ZNorm(per={self.scope!r}, eps={self.eps})"

    def __call__(self, moments: Moments, state: State) -> tuple[Affine, State]:
        """The map of (1.6); see `Transform`."""
        eligible = moments.layout.eligible
        if self.scope == "global":
            pooled = moments.pooled(eligible)
            return Affine(self._scale(pooled.std)[0], pooled.mean[0], eligible), state
        own = moments.per_tensor()
        scale = moments.expand(self._scale(own.std))
        return Affine(scale, moments.expand(own.mean), eligible), state

    def _scale(self, std: Tensor) -> Tensor:
        # Centring makes a constant 0; multiplied by 1 / eps, its rounding would show.
        return torch.where(std > 0, 1.0 / (std + self.eps), 1.0)
