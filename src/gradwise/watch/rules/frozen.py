"""Layers that were meant to train and do not move."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradwise.watch.rules.base import Found, Judgement, Rule, Words, at_least
from gradwise.watch.rules.view import Array, Mask, View

__all__ = ["Frozen"]

_ADVICE = (
    "The optimizer holds these weights and steps, and they stay what they are. Usual causes: a "
    "learning rate of 0 in their parameter group; an update that rounding takes away, because the "
    "weights are bfloat16 or float16 (keep a float32 copy) or the gradient is next to nothing; a "
    "step that is undone by tied or reloaded weights. Take the layer out of the optimizer if it "
    "is to stay frozen."
)
_ADVICE_NEVER = (
    "No gradient that an optimizer step used has ever come to these weights. Usual causes: the "
    "optimizer was made without them, a part of the model that forward() does not use, a detach() "
    "or no_grad() in front of it, or requires_grad set to False after the optimizer was made. If "
    "they are to stay as they are, set requires_grad to False before the watch begins."
)
_OTHERS = 50  # records within which other layers must have moved


@dataclass(kw_only=True)
class Frozen(Rule):
    """A layer that the optimizer holds does not move at all while others do.

    Its updates are exactly zero though it has a gradient, or it has never had a gradient. A
    gradient of exactly zero is the business of `Dead`.

    Args:
        never: measured records without any gradient until that counts.
        action: see `AnyRule`.
        streak: see `Rule`; updates are measured in turns, every tenth step unless told otherwise,
            so 3 are 30 steps.
        calm: see `Rule`; in measurements, too.
        warmup: see `Rule`.
    """

    name: ClassVar[str] = "frozen"
    needs: ClassVar[tuple[str, ...]] = ("update_ratio|norm",)
    gather: ClassVar[int] = 20

    never: int = 50
    streak: int = 3
    calm: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, never=1)

    def begin(self, names: tuple[str, ...]) -> tuple[str | None, ...]:
        """Forget everything; the subjects are the layers."""
        self._waits = np.ones(len(names), np.bool_)  # has never had a gradient
        self._measured = 0  # records in which some layer had one
        self._moved = -(10**9)  # the last record in which some layer moved
        return names

    def judge(self, view: View) -> Judgement | None:
        """Judge K records."""
        ratio, norm = view.layer("update_ratio"), view.layer("norm")
        if ratio is None and norm is None:
            return None
        shape = (len(view), len(view.names))
        known = bad = calm = never = np.zeros(shape, np.bool_)
        if norm is not None:
            never = self._never(norm, view.measured)
        if ratio is not None:
            known = ~np.isnan(ratio) & self._others_move(ratio, view)[:, None]
            bad = ratio == 0.0
            if norm is not None:  # without a gradient at this step, no update is no news
                known &= ~(bad & np.isnan(norm))
                bad &= norm > 0.0
            calm = ratio > 0.0
        elif norm is not None:
            known = calm = ~np.isnan(norm)
        return Judgement(known | never, bad | never, calm & ~never, never.astype(np.float64))

    def _never(self, norm: Array, measured: Mask) -> Mask:
        """Which layers have gone without a gradient for too long [K, L]."""
        never = np.zeros(norm.shape, np.bool_)
        if not self._waits.any():
            return never
        for row in np.flatnonzero(measured):
            self._waits &= np.isnan(norm[row])
            self._measured += 1
            if self._measured >= self.never:
                never[row] = self._waits
        return never

    def _others_move(self, ratio: Array, view: View) -> Mask:
        """Whether some layer has moved at, or shortly before, each record [K]."""
        moves = (ratio > 0.0).any(1)
        last = np.maximum.accumulate(np.where(moves, view.records, self._moved))
        last = np.maximum(last, self._moved)
        self._moved = int(last[-1])
        found: Mask = view.records - last <= _OTHERS
        return found

    def explain(self, found: Found) -> Words:
        """Say which layers do not move."""
        if found.worst.value > 0:
            message = f"{found.where} never had a gradient, while other layers did."
            return Words(message, _ADVICE_NEVER)
        return Words(
            f"{found.where} had a gradient, but its weights did not change at all in "
            f"{self.streak} measurements in a row, while other layers moved.",
            _ADVICE,
        )
