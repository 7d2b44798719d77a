"""Gradients that are NaN or infinite."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradwise.watch.rules.base import Found, Judgement, Rule, Words, at_least
from gradwise.watch.rules.view import Array, Mask, View, any_of

__all__ = ["NonFinite"]

_ADVICE_ONCE = (
    "Under a loss scaler an overflow once in a while is normal: that step is left out and the "
    "scale halved. Otherwise look at that batch, at divisions, square roots and logarithms near "
    "zero, and at exponentials; torch.autograd.set_detect_anomaly(True) names the operation."
)
_ADVICE_PERSISTS = (
    "This does not go away by itself: once a step has used such a gradient, weights are NaN, and "
    "a loss scaler that meets it at every step never takes one. Go back to a checkpoint from "
    "before, lower the learning rate or clip; torch.autograd.set_detect_anomaly(True) names the "
    "operation that made it."
)


@dataclass(frozen=True)
class _Culprits:
    """The layers with values that are not finite, at one step."""

    first: int
    last: int
    count: int
    values: float


@dataclass(kw_only=True)
class NonFinite(Rule):
    """A gradient has NaN or infinite values: a warning at first, an error where it persists.

    The alert names the first such layer, in the model's order. Gradients flow from the output
    back, so what goes wrong in a layer is in all layers before it too: the last of them is the
    one to look at.

    Args:
        persists: steps in a row from which on it is an error; it takes more than the few steps
            that a loss scaler needs at the beginning to find its scale.
        action: see `AnyRule`.
        streak: see `Rule`; 1 speaks up at the first such step.
        calm: see `Rule`.
        warmup: see `Rule`.
    """

    name: ClassVar[str] = "non-finite"
    needs: ClassVar[tuple[str, ...]] = ("nonfinite|norm",)

    persists: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, persists=2)

    def begin(self, names: tuple[str, ...]) -> tuple[str | None, ...]:
        """Forget everything; the subjects are that it happens, and that it persists."""
        self._names = names
        self._in_a_row = 0
        self._culprits: dict[int, _Culprits] = {}
        return (None, None)

    def judge(self, view: View) -> Judgement | None:
        """Judge K records."""
        count, norm = view.layer("nonfinite"), view.layer("norm")
        if count is None and norm is None:
            return None
        known = np.zeros(len(view), np.bool_)
        hits = np.zeros((len(view), len(view.names)), np.bool_)
        if count is not None:
            known |= any_of(~np.isnan(count))
            hits |= count > 0
        if norm is not None:
            known |= view.measured
            hits |= np.isinf(norm)
        bad = any_of(hits)
        persists = np.zeros(len(view), np.bool_)
        values = np.zeros(len(view))
        for row in np.flatnonzero(known) if bad.any() or self._in_a_row else []:
            self._in_a_row = self._in_a_row + 1 if bad[row] else 0
            persists[row] = self._in_a_row >= self.persists
            if bad[row]:
                culprits = self._note(int(view.steps[row]), hits[row], count, int(row))
                values[row] = culprits.values
        return Judgement(
            np.stack((known, known), 1),
            np.stack((bad, persists), 1),
            np.stack((~bad, ~bad), 1),
            np.stack((values, values), 1),
        )

    def _note(self, step: int, hits: Mask, count: Array | None, row: int) -> _Culprits:
        """Remember who it was, for as long as an alert may still ask."""
        which = np.flatnonzero(hits)
        values = float(len(which)) if count is None else float(np.nansum(count[row]))
        found = _Culprits(int(which[0]), int(which[-1]), len(which), values)
        self._culprits[step] = found
        while len(self._culprits) > self.streak + 1000:
            del self._culprits[next(iter(self._culprits))]
        return found

    def explain(self, found: Found) -> Words:
        """Name the first layer, and the last."""
        it = self._culprits[found.step]
        first, last = repr(self._names[it.first]), repr(self._names[it.last])
        where = f"layer {first}"
        if it.count > 1:
            where = f"{it.count} of {found.layers} layers, in the model's order from {first}"
            where += f" to {last}"
        if found.worst.index == 0:
            message = f"the gradient was not finite in {where}"
            if it.values > it.count:
                message += f" ({it.values:.0f} values)"
            return Words(f"{message}.", _ADVICE_ONCE, "warning", self._names[it.first])
        message = f"the gradient was not finite at {self.persists} recorded steps in a row, "
        return Words(f"{message}now in {where}.", _ADVICE_PERSISTS, "error", self._names[it.first])
