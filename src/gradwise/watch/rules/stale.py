"""Steps that use the gradients of the step before."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradwise.watch.rules.base import Found, Judgement, Rule, Words, shown
from gradwise.watch.rules.view import Array, View

__all__ = ["Stale"]

_ADVICE = (
    "The optimizer steps again along a gradient that it has used already. Usual causes: step() "
    "without a backward() before it, a backward() that reaches another copy of the model, or "
    "gradients that are written elsewhere. Look at the order of backward(), step() and "
    "zero_grad() in the loop; with the weights unchanged the same batch also gives this."
)


@dataclass(kw_only=True)
class Stale(Rule):
    """All layers have exactly the gradient of the step before, or no backward pass came between.

    A gradient of zero is the business of `Dead`. While all learning rates are 0 nothing is judged,
    since the same batch then gives the same gradient.

    Args:
        action: see `AnyRule`.
        streak: see `Rule`.
        calm: see `Rule`.
        warmup: see `Rule`.
    """

    name: ClassVar[str] = "stale"
    needs: ClassVar[tuple[str, ...]] = ("norm|backwards",)

    streak: int = 3
    calm: int = 10

    def begin(self, names: tuple[str, ...]) -> tuple[str | None, ...]:
        """Forget everything; the subject is the whole."""
        self._last: dict[str, Array] = {}  # of the last record that was measured
        self._whole = np.full(1, np.nan)
        return (None,)

    def judge(self, view: View) -> Judgement | None:
        """Judge K records."""
        rows = np.flatnonzero(view.measured)
        whole = np.concatenate((self._whole, view.whole[rows]))
        compared = ~np.isnan(whole[1:]) & ~np.isnan(whole[:-1])
        equal = whole[1:] == whole[:-1]
        for at in np.flatnonzero(equal):
            equal[at] = self._same_layers(view, int(rows[at]), int(rows[at - 1]) if at else None)
        self._whole = whole[-1:]
        if len(rows):
            self._last = {name: values[rows[-1]] for name, values in self._moments(view)}
        same, other = np.zeros((2, len(view)), np.bool_)
        same[rows] = equal & (whole[1:] > 0.0)
        other[rows] = compared & ~equal
        backwards = view.scalar("backwards")
        # Gradients that were written by hand need no backward pass.
        bad = same | ((backwards == 0.0) & ~other)
        known = (other | same | ~np.isnan(backwards)) & ~view.resting
        value = np.nan_to_num(view.whole)[:, None]
        score = same.astype(np.float64)[:, None]
        return Judgement(known[:, None], bad[:, None], ~bad[:, None], value, score)

    def _same_layers(self, view: View, row: int, before: int | None) -> bool:
        """Whether all layers' moments are those of another record, or of the last one kept."""
        for name, values in self._moments(view):
            old = self._last.get(name, values[row]) if before is None else values[before]
            if not np.array_equal(values[row], old, equal_nan=True):
                return False
        return True

    def _moments(self, view: View) -> list[tuple[str, Array]]:
        found = ((name, view.layer(name)) for name in ("norm", "mean"))
        return [(name, values) for name, values in found if values is not None]

    def explain(self, found: Found) -> Words:
        """Say for how long."""
        if not found.worst.score:
            message = (
                f"{self.streak} recorded steps in a row came without a backward pass before them."
            )
            return Words(message, _ADVICE)
        message = (
            f"at {self.streak} recorded steps the gradient of every layer was exactly that of the "
        )
        message += f"step before, with a norm of {shown(found.worst.value)}."
        return Words(message, _ADVICE)
