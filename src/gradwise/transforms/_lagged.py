"""What is common to all layers from the step before: for gradients that are never all there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from gradwise.affine import Affine
from gradwise.errors import UserError
from gradwise.moments import Moments
from gradwise.transforms._chain import chain
from gradwise.transforms.base import Part, State, Transform


class Lagged(Transform):
    """The same transforms, with what is common to all layers taken from the step before.

    A transform's map has parts that follow from one layer's gradient alone, such as the mean that
    is subtracted, and parts that are `common` to all layers, such as autoscale's alpha or the
    factor of clipping. Lagged, step t uses the former as step t decides on them and the latter as
    step t - 1 did:

        (1.9)  ghat_l,t = s_{t-1} (g_l,t - k_l,t), s_0 = 1, for a common factor s and own shifts k_l

    with s_t decided from all gradients of step t as ever; state and numbers are those of the
    transforms themselves. So a layer can be updated before the next one's gradient exists. The
    first step has the factor 1, which is autoscale's own there. A step with a gradient that is not
    finite decides nothing, and the last factor stays. This is another algorithm than without the
    lag, and this library's construction [X]: no paper is known.

    In a loop that steps after backward there is no need for it, other than to see what the lag
    does. For steps within backward see `gradwise.attach_in_backward`.

    Args:
        transforms: applied in this order. Links without a common part do not lag.

    Examples:
        >>> import torch
        >>> from gradwise.transforms import Autoscale
        >>> lagged, state = Lagged(Autoscale()), None
        >>> for size in (1.0, 100.0, 1.0):
        ...     (grad,), state = lagged.update([size * torch.tensor([[1.0, 3.0]])], state)
        ...     print(grad)
        tensor([[-1.,  1.]])
        tensor([[-100.,  100.]])
        tensor([[-0.0100,  0.0100]])
    """

    def __init__(self, *transforms: Transform) -> None:
        self.chain = chain(*transforms)
        self.per = self.chain.per
        self.needs_params = self.chain.needs_params
        self.growing = self.chain.growing
        self.common = self.chain.common

    def __repr__(self) -> str:
        return f"Lagged({', '.join(map(repr, self.chain.transforms))})"

    @property
    def name(self) -> str:
        """The transforms' names, marked."""
        return f"lagged({self.chain.name})"

    def init(self, moments: Moments) -> State:
        """The transforms' own state, and 1 or 0 for each common `scale` and `shift`."""
        one = torch.ones_like(moments.mean.sum())
        first = {
            self._key(i, part): one if part == "scale" else torch.zeros_like(one)
            for i, link in enumerate(self.chain.transforms)
            for part in link.common
        }
        return {**self.chain.init(moments), **first}

    def check(self, names: Sequence[str]) -> None:
        """Let every transform check the names; see `Transform`."""
        self.chain.check(names)

    def __call__(self, moments: Moments, state: State) -> tuple[Affine, State]:
        """The map of (1.9), and the state with what the next step uses; see `Transform`."""
        return self.now(moments, state), self.after(moments, state)

    def now(self, moments: Moments, state: State) -> Affine:
        """This step's map, for all gradients or for some of them.

        Args:
            moments: of the gradients that are there.
            state: as the step before left it.
        """
        total = Affine()
        for i, link in enumerate(self.chain.transforms):
            own, _ = link(moments, self.chain.state_of(i, state))
            if not own.is_identity:  # what a transform leaves alone stays alone
                own = self._lag(i, own, state)
            total = total.then(own, moments.layout)
            moments = moments.through(own)
        return total

    def after(self, moments: Moments, state: State) -> State:
        """The state after a step.

        Args:
            moments: of all gradients of the step.
            state: as the step before left it.

        Raises:
            UserError: where what is common to all layers is not one number.
        """
        affines, new = self.chain.each(moments, state)
        for i, (link, affine) in enumerate(zip(self.chain.transforms, affines, strict=True)):
            for part in link.common:
                value = getattr(affine, part)
                key = self._key(i, part)
                if value is None:
                    value = state[key] if affine.is_identity else _neutral(part, state[key])
                elif value.dim() > 0:
                    raise UserError(
                        f"expected transforms with one factor for all layers where they lag, got "
                        f"{link.name}, whose {part} differs between layers"
                    )
                new[key] = value
        return new

    def _lag(self, i: int, own: Affine, state: State) -> Affine:
        """A link's map with the common parts that it has as the step before decided on them."""
        common = self.chain.transforms[i].common
        if "scale" in common and own.scale is not None:
            own = replace(own, scale=state[self._key(i, "scale")])
        if "shift" in common and own.shift is not None:
            own = replace(own, shift=state[self._key(i, "shift")])
        return own

    def _key(self, i: int, part: Part) -> str:
        return f"lagged.{i}.{part}"


def _neutral(part: Part, like: Tensor) -> Tensor:
    return torch.ones_like(like) if part == "scale" else torch.zeros_like(like)
