"""AutoClip: clip by the norm at a percentile of all norms so far."""

from __future__ import annotations

import torch
from torch import Tensor

from gradwise.affine import Affine
from gradwise.errors import UserError
from gradwise.moments import Moments
from gradwise.registry import register
from gradwise.transforms._clip import clip_factor
from gradwise.transforms.base import State, Transform


@register(
    "autoclip",
    summary="clip the global norm at a percentile of the norms seen so far",
    paper="P. Seetharaman, G. Wichern, B. Pardo, J. Le Roux, AutoClip, MLSP 2020",
    url="https://arxiv.org/abs/2007.14469",
    equation="clip at c = percentile_p(N_1..N_t)",
    tag="[V] algorithm, [R] percentile 10",
)
class AutoClip(Transform):
    """Clip the global norm to the p-th percentile of its own history, this step included.

    The first step is never clipped, because it is its own percentile. The history is complete, as
    in the paper, so a step costs a sort of as many values as there were steps; a step whose
    gradients were not finite leaves a NaN there, which no percentile counts.

    Args:
        percentile: 0 to 100; linear interpolation between ranks.

    Raises:
        UserError: where the percentile is outside 0..100.

    Examples:
        >>> import torch
        >>> clip = AutoClip(percentile=50)
        >>> _, state = clip.update([torch.tensor([1.0])])
        >>> (grad,), state = clip.update([torch.tensor([3.0])], state)
        >>> grad, state["threshold"].item()
        (tensor([2.0000]), 2.0)
    """

    growing = ("history",)
    common = ("scale",)

    def __init__(self, percentile: float = 10.0) -> None:
        if not 0 <= percentile <= 100:
            raise UserError(f"expected 0 <= percentile <= 100, got percentile={percentile}")
        self.percentile = float(percentile)

    def __repr__(self) -> str:
        return f"AutoClip(percentile={self.percentile})"

    def init(self, moments: Moments) -> State:
        """`history` of norms (one a step), last `threshold` and `factor`."""
        one = moments.total_norm.new_ones(())
        return {"history": one.new_empty(0), "threshold": one, "factor": one}

    def __call__(self, moments: Moments, state: State) -> tuple[Affine, State]:
        """The map of `clip_grad_norm_` at the percentile; see `Transform`."""
        norm = moments.total_norm
        seen = torch.where(torch.isfinite(norm), norm, torch.nan)
        history = torch.cat([state["history"], seen[None]])
        threshold = _percentile(history, self.percentile / 100)
        factor = clip_factor(threshold, norm)
        return Affine(factor), {"history": history, "threshold": threshold, "factor": factor}


def _percentile(values: Tensor, q: float) -> Tensor:
    """Linear-interpolated quantile without NaN; torch.nanquantile reads a value on the host."""
    ordered = values.sort().values  # NaN last
    last = ((~ordered.isnan()).sum() - 1).clamp(min=0)
    position = q * last.to(values.dtype)
    low = position.floor()
    high = torch.minimum(low + 1, last)
    ends = ordered.gather(0, torch.stack([low, high]).long())  # indexing would read on the host
    return torch.lerp(ends[0], ends[1], position - low)
