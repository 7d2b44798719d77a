"""Adaptive gradient clipping: each unit's gradient against its weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gradwise.affine import Affine
from gradwise.errors import UserError
from gradwise.layout import Per
from gradwise.moments import Moments
from gradwise.registry import register
from gradwise.transforms.base import State, Transform


@register(
    "agc",
    summary="clip each output unit's gradient norm to a fraction of its weight norm",
    paper="A. Brock, S. De, S. L. Smith, K. Simonyan, High-Performance NFNets, ICML 2021",
    url="https://arxiv.org/abs/2102.06171",
    equation="G_i min(1, lambda max(||W_i||, eps) / ||G_i||)",
    tag="[V2], [R] units",
)
class AGC(Transform):
    """Where `||G_i|| / max(||W_i||, eps) > clipping`, scale unit i's gradient down to that bound.

    A unit is a row of dimension 0 of a tensor with two or more dimensions (its fan-in), or a whole
    tensor with fewer. The paper leaves the last linear layer out: name its parameters in `exclude`.

    Args:
        clipping: largest allowed ratio of gradient norm to weight norm, > 0.
        eps: floor of the weight norm, so that zero-initialised units can move.
        exclude: names of parameters to leave alone, as `model.named_parameters()` gives them.

    Raises:
        UserError: where clipping or eps is not positive.

    Examples:
        >>> import torch
        >>> grad, weight = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.6, 0.8]])
        >>> (clipped,), _ = AGC(clipping=0.5).update([grad], params=[weight])
        >>> clipped
        tensor([[0.3000, 0.4000]])
    """

    per: Per = "row"
    needs_params = True
    common = ()

    def __init__(
        self, clipping: float = 0.01, eps: float = 1e-3, exclude: Sequence[str] = ()
    ) -> None:
        if not clipping > 0:
            raise UserError(f"expected clipping > 0, got clipping={clipping}")
        if not eps > 0:
            raise UserError(f"expected eps > 0, got eps={eps}")
        self.clipping = clipping
        self.eps = eps
        self.exclude = (exclude,) if isinstance(exclude, str) else tuple(exclude)

    def __repr__(self) -> str:
        return f"AGC(clipping={self.clipping}, eps={self.eps}, exclude={self.exclude})"

    def check(self, names: Sequence[str]) -> None:
        """Raise a `UserError` where `exclude` has a name that is none of them."""
        unknown = set(self.exclude) - set(names)
        if unknown:
            raise UserError(f"AGC excludes {sorted(unknown)[0]!r}, which is no parameter's name")

    def __call__(self, moments: Moments, state: State) -> tuple[Affine, State]:
        """One factor a unit; see `Transform`."""
        assert moments.params is not None
        bound = self.clipping * moments.params.norm.clamp(min=self.eps)
        norm = moments.norm
        scale = torch.where(norm > bound, bound / norm, 1.0)
        touched = tuple(name not in self.exclude for name in moments.names)
        return Affine(scale, touched=None if all(touched) else touched), state
