"""Descent along a gradient times the inverse of a Kronecker-factored Fisher matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradwise.optim._kronecker import Layer, Tally, groups_of, joined, parted
from gradwise.optim._newton import Inverse, inverses

Group = dict[str, Any]
State = dict[str, Any]
# A and S, and (A + sqrt(damping) I)^-1 and (S + sqrt(damping) I)^-1, in the state of the weight.
_FACTORS = ("factor_in", "factor_out")
_INVERSES = ("inverse_in", "inverse_out")


def wide(dtype: torch.dtype) -> torch.dtype:
    """The type in which factors, inverses and directions are kept: float32 at least."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@dataclass(frozen=True)
class Block:
    """One weight, with its bias, whose Fisher matrix is factored.

    Attributes:
        layers: that hold the weight; the first gives the geometry.
        weight: place of the weight among the parameters of all groups.
        bias: place of the bias; None where there is none to train.
        param: the weight itself.
        group: its parameter group, whose options hold for the block.
    """

    layers: tuple[Layer, ...]
    weight: int
    bias: int | None
    param: Tensor
    group: Group

    @property
    def sizes(self) -> tuple[int, int]:
        """Sides of A and S."""
        rows = self.param.shape[0]
        inner = self.param.numel() // rows + (self.bias is not None)
        return inner, rows // groups_of(self.layers[0])

    @property
    def isotropic(self) -> tuple[bool, bool]:
        """Whether A and S are too large, so that only the mean of their diagonals is kept."""
        inner, outer = self.sizes
        return inner > self.group["max_dim"], outer > self.group["max_dim"]

    def tally(self) -> Tally:
        """An empty tally for the next evaluation."""
        mean = self.group["reduction"] == "mean"
        return Tally(self.bias is not None, self.isotropic, mean, wide(self.param.dtype))

    def fits(self, state: State) -> bool:
        """Whether there are factors in the state and they are of this block's sizes."""
        shapes = zip(_FACTORS, self.sizes, self.isotropic, strict=True)
        return all(
            key in state and state[key].shape[-1] == (1 if isotropic else size)
            for key, size, isotropic in shapes
        )

    def due(self, state: State) -> bool:
        """Whether the next evaluation is to refresh the factors."""
        if not self.fits(state):
            return True
        return int(state.get("step", 0)) % int(self.group["factor_every"]) == 0


def find_blocks(layers: Sequence[Layer], groups: Sequence[Group]) -> list[Block]:
    """The blocks among the parameters that are trained now.

    A weight in several layers makes one block: layers with the same bias as the first tell of it
    too, others do not. A layer whose weight is frozen or not the optimizer's has none.

    Args:
        layers: of the model, in its order.
        groups: the optimizer's.
    """
    every = enumerate((param, group) for group in groups for param in group["params"])
    places = {id(p): (i, p, group) for i, (p, group) in every if p.requires_grad}
    sharing: dict[int, list[Layer]] = {}
    for layer in layers:
        at = places.get(id(layer.weight))
        if at is not None and at[2]["fisher"] == "empirical":
            sharing.setdefault(id(layer.weight), []).append(layer)
    blocks = []
    for key, holders in sharing.items():
        place, param, group = places[key]
        bias = holders[0].bias
        bias_at = None if bias is None else places.get(id(bias))
        alike = tuple(layer for layer in holders if layer.bias is bias)
        blocks.append(Block(alike, place, None if bias_at is None else bias_at[0], param, group))
    return blocks


def refresh(
    told: Sequence[tuple[Block, State, tuple[Tensor, Tensor]]], group: Group
) -> list[Inverse]:
    """Take new factors into the averages of blocks of one group, and invert these.

    The average is corrected for its start, so that the first factors count in full: the t-th
    refresh weighs `(1 - decay) / (1 - decay^t)`. Blocks whose new factors are not finite keep what
    they have.

    Args:
        told: blocks with the states of their weights, which are changed, and the new A and S.
        group: with `factor_decay`, `damping`, `newton_tol` and `newton_iterations`.

    Returns:
        How the inversions went, two a block that was refreshed, A first.
    """
    if not told:
        return []
    # A NaN or an infinity anywhere makes the sum one. One read for all blocks.
    sums = [(a.sum() + s.sum()).isfinite() for _, _, (a, s) in told]
    finite = torch.stack([value.to(sums[0].device) for value in sums]).tolist()
    told = [entry for entry, fine in zip(told, finite, strict=True) if fine]
    damping, decay = math.sqrt(group["damping"]), group["factor_decay"]
    damped: list[Tensor] = []
    starts: list[Tensor | None] = []
    for block, state, factors in told:
        if not block.fits(state):
            for key in (*_FACTORS, *_INVERSES, "refreshes"):
                state.pop(key, None)
        count = state["refreshes"] = state.get("refreshes", 0) + 1
        for key, inverse, new in zip(_FACTORS, _INVERSES, factors, strict=True):
            if count == 1:
                state[key] = new
            else:
                state[key].lerp_(new, (1 - decay) / (1 - decay**count))
            matrix = state[key].clone()
            matrix.diagonal(dim1=-2, dim2=-1).add_(damping)
            damped.append(matrix)
            starts.append(state.get(inverse))
    results = inverses(
        damped, starts, tol=group["newton_tol"], max_iterations=group["newton_iterations"]
    )
    for i, (_, state, _) in enumerate(told):
        for j, inverse in enumerate(_INVERSES):
            state[inverse] = results[2 * i + j].matrix
    return results


def precondition(block: Block, state: State, grads: list[Tensor | None]) -> None:
    """Replace a block's gradients by (6.5), `(S + sqrt(lam) I)^-1 G (A + sqrt(lam) I)^-1`.

    Args:
        block: whose gradients are changed, in the list.
        state: of its weight; without inverses of the right sizes nothing is done.
        grads: of the parameters of all groups.
    """
    weight = grads[block.weight]
    if weight is None or not block.fits(state) or _INVERSES[0] not in state:
        return
    bias = None
    if block.bias is not None:
        bias = grads[block.bias]
        if bias is None:  # the layer's weight was used without the layer
            bias = weight.new_zeros(weight.shape[0])
    joint = joined(block.layers[0], weight, bias).to(wide(weight.dtype))
    inner, outer = (state[key] for key in _INVERSES)
    joint = joint * outer if block.isotropic[1] else outer @ joint
    joint = joint * inner if block.isotropic[0] else joint @ inner
    new_weight, new_bias = parted(joint, weight, bias is not None)
    grads[block.weight] = new_weight
    if block.bias is not None and grads[block.bias] is not None:
        grads[block.bias] = new_bias
