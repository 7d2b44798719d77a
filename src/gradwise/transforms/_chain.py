"""Several transforms one after the other, still one measure and one apply."""

from __future__ import annotations

from gradwise.affine import Affine
from gradwise.moments import Moments
from gradwise.transforms.base import State, Transform


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

    def __call__(self, moments: Moments, state: State) -> tuple[Affine, State]:
        """The composed map; see `Transform`."""
        total = Affine()
        new: State = {}
        for i, transform in enumerate(self.transforms):
            prefix = self._key(i, "")
            own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            affine, own = transform(moments, own)
            new |= {prefix + key: value for key, value in own.items()}
            total = total.then(affine, moments.layout)
            if i + 1 < len(self.transforms):
                moments = moments.through(affine)
        return total, new

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
