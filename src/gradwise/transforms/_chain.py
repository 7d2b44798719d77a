"""Several transforms one after the other, still one measure and one apply."""

from __future__ import annotations

from collections.abc import Sequence

from gradwise.affine import Affine
from gradwise.moments import Moments
from gradwise.transforms.base import Part, State, Transform


class Chain(Transform):
    """Transforms in a row; each sees the exact moments that the ones before it leave.

    Moments pass through affine maps in closed form and affine maps compose, so a chain of any
    length reads the gradients once and writes them once.

    Attributes:
        transforms: the links in their order.
    """

    def __init__(self, *transforms: Transform) -> None:
        flat: list[Transform] = []
        for transform in transforms:
            flat.extend(transform.transforms if isinstance(transform, Chain) else [transform])
        self.transforms: tuple[Transform, ...] = tuple(flat)
        self.per = "row" if any(t.per == "row" for t in flat) else "tensor"
        self.needs_params = any(t.needs_params for t in flat)
        self.growing = tuple(self._key(i, key) for i, t in enumerate(flat) for key in t.growing)
        parts: tuple[Part, ...] = ("scale", "shift")
        self.common = tuple(part for part in parts if any(part in t.common for t in flat))

    def __repr__(self) -> str:
        return f"chain({', '.join(map(repr, self.transforms))})"

    @property
    def name(self) -> str:
        """The links' names, joined."""
        return "+".join(t.name for t in self.transforms) or "identity"

    def init(self, moments: Moments) -> State:
        """The links' states, each key preceded by the link's place and name."""
        return {
            self._key(i, key): value
            for i, transform in enumerate(self.transforms)
            for key, value in transform.init(moments).items()
        }

    def check(self, names: Sequence[str]) -> None:
        """Let every link check the names; see `Transform`."""
        for transform in self.transforms:
            transform.check(names)

    def __call__(self, moments: Moments, state: State) -> tuple[Affine, State]:
        """The composed map; see `Transform`."""
        affines, new = self.each(moments, state)
        total = Affine()
        for affine in affines:
            total = total.then(affine, moments.layout)
        return total, new

    def each(self, moments: Moments, state: State) -> tuple[list[Affine], State]:
        """The links' maps, not composed, and the state after them."""
        affines: list[Affine] = []
        new: State = {}
        for i, transform in enumerate(self.transforms):
            prefix = self._key(i, "")
            affine, own = transform(moments, self.state_of(i, state))
            new |= {prefix + key: value for key, value in own.items()}
            affines.append(affine)
            if i + 1 < len(self.transforms):
                moments = moments.through(affine)
        return affines, new

    def state_of(self, i: int, state: State) -> State:
        """A link's own part of the chain's state, by its own keys."""
        prefix = self._key(i, "")
        return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}

    def _key(self, i: int, key: str) -> str:
        return f"{i}.{self.transforms[i].name}.{key}"


def chain(*transforms: Transform) -> Chain:
    """Combine transforms; the first is applied first.

    Args:
        transforms: any number; chains among them are flattened, and no argument is the identity.

    Examples:
        >>> import torch
        >>> from gradwise.transforms import Center, ClipNorm
        >>> both = chain(Center(), ClipNorm(1.0))
        >>> (grad,), _ = both.update([torch.tensor([[1.0, 7.0]])])
        >>> grad
        tensor([[-0.7071,  0.7071]])
    """
    return Chain(*transforms)
