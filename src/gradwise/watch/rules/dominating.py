"""One layer that makes up nearly all of the gradient."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradwise.watch.rules.base import Found, Judgement, Rule, Words, at_least, between
from gradwise.watch.rules.view import View

__all__ = ["Dominating"]

_ADVICE = (
    "Everything that goes by the norm of the whole, clipping above all, then goes by this layer "
    "alone: clipping shrinks all others with it. People clip each layer by itself "
    "(gradwise.transforms.AGC), give the layer a learning rate or an initialisation of its own, or "
    "look at the scale of what goes into it."
)


@dataclass(kw_only=True)
class Dominating(Rule):
    """One layer's share of the whole gradient, in squared norms, is nearly all of it.

    Args:
        share: of the squared norm. At 0.99 the others together have a tenth of the norm; the
            first or the last layer of a healthy network often has more than half, seldom this.
        layers: how many layers with a gradient there must be at least.
        action: see `AnyRule`.
        streak: see `Rule`; 100 steps, since for a while that happens to many.
        calm: see `Rule`; calm is 0.8 of the share.
        warmup: see `Rule`.
    """

    name: ClassVar[str] = "dominating"
    needs: ClassVar[tuple[str, ...]] = ("norm",)

    share: float = 0.99
    layers: int = 5
    streak: int = 100
    calm: int = 50
    warmup: int = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        between(self, 0.5, 1, "share")
        at_least(self, layers=2)

    def begin(self, names: tuple[str, ...]) -> tuple[str | None, ...]:
        """Forget everything; the subjects are the layers."""
        return names

    def judge(self, view: View) -> Judgement | None:
        """Judge K records."""
        norm = view.layer("norm")
        if norm is None:
            return None
        known = ~np.isnan(norm)
        known &= ((norm > 0.0).sum(1) >= self.layers)[:, None]
        share = norm / view.whole[:, None]
        share *= share
        return Judgement(known, share > self.share, share < 0.8 * self.share, share)

    def explain(self, found: Found) -> Words:
        """Say how large the share is."""
        worst = found.worst
        message = f"{worst.layer!r} alone makes up {worst.value:.1%} of the gradient's squared "
        message += f"norm, at {self.streak} recorded steps in a row, among {found.layers} layers."
        return Words(message, _ADVICE)
