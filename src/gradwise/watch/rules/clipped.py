"""Gradients that were clipped before anybody looked, with the loss scale in them or without."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradwise.watch.rules.base import Found, Judgement, Rule, Words, between, shown
from gradwise.watch.rules.view import Array, View

__all__ = ["AlreadyClipped", "ClippedBeforeUnscale"]

_ADVICE_SCALED = (
    "So it looks as if clip_grad_norm_() came before the loss scale was divided out: every "
    "gradient is then clipped to a norm that is max_norm divided by the scale, and the model "
    "hardly learns. Call scaler.unscale_(optimizer) before clipping, or let gradwise clip: "
    "gradwise.attach(optimizer, gradwise.transforms.ClipNorm(max_norm)) knows the scale."
)
_ADVICE_CLIPPED = (
    "So something in the training loop clips or normalises the gradient before it can be measured: "
    "norms and trends are those of what is left of it. To see the gradient as it was, clip with "
    "gradwise.attach(optimizer, gradwise.transforms.ClipNorm(max_norm)), which is measured before "
    "and after. If every step is clipped, max_norm does the work of a learning rate."
)
_USUAL_BOUNDS = (1.0, 5.0, 3.0, 0.1)  # times any power of 2


@dataclass(kw_only=True)
class _Constant(Rule):
    """The norm of the whole is the same step after step, while the layers' norms are not."""

    needs: ClassVar[tuple[str, ...]] = ("norm",)
    _scaled: ClassVar[bool]

    same: float = 1e-4
    change: float = 1e-2
    tiny: float = 1e-3
    calm: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        between(self, 0, 1, "same", "change", "tiny")

    def begin(self, names: tuple[str, ...]) -> tuple[str | None, ...]:
        """Forget everything; the subject is the whole."""
        self._whole = np.full(1, np.nan)  # of the last record that was measured
        self._layers = np.full((1, len(names)), np.nan)
        return (None,)

    def judge(self, view: View) -> Judgement | None:
        """Judge K records."""
        if view.log_norm is None:
            return None
        rows = np.flatnonzero(~np.isnan(view.log_whole))
        whole = np.concatenate((self._whole, view.log_whole[rows]))
        step = np.abs(np.diff(whole))
        same = step < self.same
        changed = np.zeros(len(rows), np.bool_)
        for at in np.flatnonzero(same):
            before = view.log_norm[rows[at - 1]] if at else self._layers[0]
            changed[at] = self._differ(view.log_norm[rows[at]], before, float(whole[at + 1]))
        self._whole = whole[-1:]
        if len(rows):
            self._layers = view.log_norm[rows[-1:]]
        other_kind = (whole[1:] < math.log(self.tiny)) != self._scaled
        known, bad, calm = np.zeros((3, len(view), 1), np.bool_)
        known[rows, 0] = ~np.isnan(step)
        bad[rows, 0] = same & changed & ~other_kind
        calm[rows, 0] = (step > 10 * self.same) | other_kind
        value = np.nan_to_num(view.whole, posinf=0.0)[:, None]
        return Judgement(known, bad, calm, value, np.zeros_like(value))

    def _differ(self, layers: Array, before: Array, whole: float) -> bool:
        """Whether some layer that matters (a hundredth of the norm) has another norm."""
        differs = np.abs(layers - before) > self.change
        return bool((differs & (layers > whole + math.log(0.01))).any())


@dataclass(kw_only=True)
class ClippedBeforeUnscale(_Constant):
    """The gradient's norm is constant and tiny: it was clipped while the loss scale was in it.

    Needs more than one layer, to tell a clipped gradient from one that does not change.

    Args:
        same: relative change of the whole norm between two steps below which it is the same;
            clipping leaves some 1e-6, from rounding and from the epsilon in its division.
        change: relative change of some layer's norm that shows the gradient to be a new one.
        tiny: norm below which it is tiny. A bound of 1 under a scale of 2^16 gives 1.5e-5, and
            nobody clips to 0.001.
        action: see `AnyRule`.
        streak: see `Rule`.
        calm: see `Rule`; calm is a change of ten times `same`.
        warmup: see `Rule`.
    """

    name: ClassVar[str] = "clipped-before-unscale"
    _scaled: ClassVar[bool] = True

    streak: int = 30

    def explain(self, found: Found) -> Words:
        """Say what the norm is, and which bound and scale give it."""
        value = found.worst.value
        message = (
            f"the gradient's norm was the same tiny {shown(value)} at {self.streak} recorded steps"
        )
        message += _made_of(value)
        message += ", while the layers' norms changed."
        return Words(message, _ADVICE_SCALED, "error")


@dataclass(kw_only=True)
class AlreadyClipped(_Constant):
    """The gradient's norm is constant at an ordinary size: it was clipped before it was measured.

    Args:
        same: see `ClippedBeforeUnscale`.
        change: see `ClippedBeforeUnscale`.
        tiny: see `ClippedBeforeUnscale`; here the norm is above it.
        action: see `AnyRule`.
        streak: see `Rule`; clipping that acts now and then is nobody's business.
        calm: see `Rule`.
        warmup: see `Rule`.
    """

    name: ClassVar[str] = "already-clipped"
    _scaled: ClassVar[bool] = False

    streak: int = 100

    def explain(self, found: Found) -> Words:
        """Say what the norm is."""
        message = f"the gradient's norm was {shown(found.worst.value)} at each of {self.streak} "
        return Words(f"{message}recorded steps, while the layers' norms changed.", _ADVICE_CLIPPED)


def _made_of(norm: float) -> str:
    """Which bound and scale give this norm, in words; nothing where none of the usual ones do.

    Examples:
        >>> _made_of(2.0**-16)
        ' (1 divided by 2^16)'
    """
    for bound in _USUAL_BOUNDS:
        power = math.log2(bound) - math.log2(norm)
        if 5 <= round(power) <= 40 and abs(power - round(power)) < 1e-3:
            return f" ({bound:g} divided by 2^{round(power)})"
    return ""
