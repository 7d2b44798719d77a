"""Layers whose gradient is exactly zero."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradwise.watch.rules.base import Found, Judgement, Rule, Words
from gradwise.watch.rules.view import View

__all__ = ["Dead"]

_ADVICE = (
    "Nothing that flows back reaches these weights, so they do not learn. Usual causes: ReLUs that "
    "are off for every input (after a step that was too large), a branch that is not used, a "
    "detach() or a multiplication by zero on the way. People lower the learning rate, warm it up, "
    "use another activation (leaky ReLU, GELU), or freeze the layer on purpose."
)
_ADVICE_ALL = (
    "No layer gets any signal. Look whether zero_grad() is called between backward() and step(), "
    "whether the loss depends on the parameters at all, whether all units are off for every "
    "input, or whether the loss has reached its least value."
)


@dataclass(kw_only=True)
class Dead(Rule):
    """The gradient of a layer is exactly zero, step after step.

    Args:
        action: see `AnyRule`.
        streak: see `Rule`; 30 batches, so that a layer that only some inputs use is not reported.
        calm: see `Rule`.
        warmup: see `Rule`.
    """

    name: ClassVar[str] = "dead"
    needs: ClassVar[tuple[str, ...]] = ("zeros|norm",)
    gather: ClassVar[int] = 10

    streak: int = 30
    calm: int = 10

    def begin(self, names: tuple[str, ...]) -> tuple[str | None, ...]:
        """Forget everything; the subjects are the layers."""
        return names

    def judge(self, view: View) -> Judgement | None:
        """Judge K records."""
        norm, zeros = view.layer("norm"), view.layer("zeros")
        # A norm may be 0 because squares are too small for their type; a share of zeros tells.
        found = zeros if zeros is not None else norm
        if found is None:
            return None
        bad = found == (1.0 if zeros is not None else 0.0)
        known = ~np.isnan(found)
        return Judgement(known, bad, known & ~bad, np.zeros(found.shape))

    def explain(self, found: Found) -> Words:
        """Say which layers get no gradient."""
        count = len(found.seen)
        since = f"at {self.streak} recorded steps in a row"
        if count == found.layers > 1:
            message = f"the gradient of all {count} layers was exactly zero {since}."
            return Words(message, _ADVICE_ALL)
        return Words(f"the gradient of {found.where} was exactly zero {since}.", _ADVICE)
