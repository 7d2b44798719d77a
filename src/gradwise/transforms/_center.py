"""Zero-centring by tensor, and Gradient Centralization by row."""

from __future__ import annotations

from gradwise.affine import Affine
from gradwise.errors import UserError
from gradwise.layout import Per
from gradwise.moments import Moments
from gradwise.registry import register
from gradwise.transforms.base import State, Transform


@register(
    "center",
    summary="subtract each layer's mean gradient; per='row' is Gradient Centralization",
    paper="H. Yong, J. Huang, X. Hua, L. Zhang, Gradient Centralization, ECCV 2020",
    url="https://arxiv.org/abs/2004.01461",
    equation="g - mean(g), by tensor (1.2) or by row (1.7)",
    tag="[V2] by tensor, [V] by row",
)
class Center(Transform):
    """Subtract the mean of every eligible gradient.

    `per="tensor"` takes one mean a tensor (1.2), the first stage of autoscale. `per="row"` takes
    one for every index of dimension 0, `g - mean(g over all other dims)`, which is Gradient
    Centralization (1.7) for gradients with two or more dimensions [V]. Eligible are dense gradients
    with at least two dimensions and two values; the rest passes untouched. Dimension 0 is the
    output in PyTorch's linear and convolution layers (in transposed convolutions it is the input).

    Args:
        per: "tensor" or "row".

    Raises:
        UserError: for any other `per`.

    Examples:
        >>> import torch
        >>> (grad,), _ = Center(per="row").update([torch.tensor([[1.0, 3.0], [5.0, 5.0]])])
        >>> grad
        tensor([[-1.,  1.],
                [ 0.,  0.]])
    """

    common = ()

    def __init__(self, per: Per = "tensor") -> None:
        if per not in ("tensor", "row"):
            raise UserError(f"expected per to be 'tensor' or 'row', got per={per!r}")
        self.per = per

    def __repr__(self) -> str:
        return f"Center(per={self.per!r})"

    def __call__(self, moments: Moments, state: State) -> tuple[Affine, State]:
        """The map `g - mean`; see `Transform`."""
        if self.per == "row":
            shift = moments.mean
        else:
            shift = moments.expand(moments.per_tensor().mean)
        return Affine(shift=shift, touched=moments.layout.eligible), state
