"""Updates that are too large, or too small, for the weights they change."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from gradwise.watch.rules.base import Found, Judgement, Rule, Words, between, shown
from gradwise.watch.rules.view import Array, Mask, View, any_of, is_bias

__all__ = ["LargeUpdates", "SmallUpdates"]

_ADVICE_LARGE = (
    "About 0.001 is usual. At this rate the layer forgets within a few steps what it knew. People "
    "lower the learning rate, of this layer or of all, warm it up, or initialise the layer larger."
)
_ADVICE_SMALL = (
    "About 0.001 is usual. Steps this small are rounded away when they are added in float32, which "
    "keeps 24 bits. Look at the learning rate (of this parameter group, too), at what scales the "
    "loss, and at what clips the gradient before the step."
)
_SAMPLE = 64  # layers that the usual norm of weights is taken from


@dataclass(kw_only=True)
class _Ratio(Rule):
    """The norm of what a step adds to a layer's weights, divided by the norm they have then."""

    needs: ClassVar[tuple[str, ...]] = ("update_ratio",)
    gather: ClassVar[int] = 20

    small: float = 0.01
    calm: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        between(self, 0, 1, "small")

    def begin(self, names: tuple[str, ...]) -> tuple[str | None, ...]:
        """Forget everything; the subjects are the layers."""
        self._judged = np.array([not is_bias(name) for name in names], np.bool_)
        weights = np.flatnonzero(self._judged)
        spread = np.linspace(0, len(weights) - 1, min(len(weights), _SAMPLE)).astype(np.int64)
        self._sample: npt.NDArray[np.int64] = weights[spread]
        self._norms = np.full(len(spread), np.nan)  # of the sample's weights, as last measured
        self._least = 0.0
        return names

    def _known(self, view: View, ratio: Array) -> Mask:
        """Which ratios mean something [K, L]."""
        known: Mask = ~np.isnan(ratio) & self._judged
        weight = view.layer("weight_norm")
        if weight is not None and len(self._sample):
            known &= ~(weight < self._small_norms(weight[:, self._sample])[:, None])
        return known

    def _small_norms(self, weight: Array) -> Array:
        """What norm of weights is small, at each record [K]: a part of the sample's median."""
        least = np.empty(len(weight))
        measured = any_of(~np.isnan(weight))
        for row in range(len(weight)):
            if measured[row]:
                self._norms = np.where(np.isnan(weight[row]), self._norms, weight[row])
                ordered = np.sort(self._norms)  # NaN goes last
                count = len(ordered) - int(np.isnan(ordered).sum())
                self._least = self.small * float(ordered[count // 2])
            least[row] = self._least
        return least

    def _message(self, found: Found, end: str) -> str:
        worst = found.worst
        message = f"the updates of {found.where} are {shown(worst.value)} times the weights' norm"
        if len(found.seen) > 1:
            message += f" in {worst.layer!r}"
        return f"{message}, {end} in {self.streak} measurements in a row."


@dataclass(kw_only=True)
class LargeUpdates(_Ratio):
    """The norm of a layer's updates is a large part of the norm of its weights.

    Biases, and weights that are small beside those of other layers, are left out: what grows from
    zero changes by all of itself.

    Args:
        limit: update-to-weight ratio. About 0.001 is usual; Adam with a usual rate gives 0.01 to
            0.08 for a while after an initialisation, so that 0.03 would be too strict.
        severe: ratio from which on it is an error. It is taken from the weights after the update,
            so that one which replaces them gives 1.
        small: part of the median norm of the layers' weights below which a layer is left out.
        action: see `AnyRule`.
        streak: see `Rule`; a layer's turn to be measured comes every tenth step unless told
            otherwise, so 3 are 30 steps, after which what was zero is not small any more.
        calm: see `Rule`; in measurements, too. Calm is below half the limit.
        warmup: see `Rule`.
    """

    name: ClassVar[str] = "large-updates"

    limit: float = 0.1
    severe: float = 0.5
    streak: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        between(self, 0, np.inf, "limit", "severe")

    def judge(self, view: View) -> Judgement | None:
        """Judge K records."""
        ratio = view.layer("update_ratio")
        if ratio is None:
            return None
        known = self._known(view, ratio)
        return Judgement(known, ratio > self.limit, ratio < self.limit / 2, ratio)

    def explain(self, found: Found) -> Words:
        """Say how large the updates are."""
        severity = "error" if found.worst.value >= self.severe else "warning"
        return Words(self._message(found, f"above {self.limit:g}"), _ADVICE_LARGE, severity)


@dataclass(kw_only=True)
class SmallUpdates(_Ratio):
    """The norm of a layer's updates is lost beside the norm of its weights, from the start.

    A layer that once moved ten times more is left alone, since schedules and losses end near
    zero; one that does not move at all is the business of `Frozen`. Biases, and weights that are
    small beside those of other layers, are left out.

    Args:
        limit: update-to-weight ratio; float32 rounds relative changes below 6e-8 away.
        small: part of the median norm of the layers' weights below which a layer is left out.
        action: see `AnyRule`.
        streak: see `Rule`; in measurements of a layer, every tenth step unless told otherwise.
        calm: see `Rule`; in measurements, too. Calm is above twice the limit.
        warmup: see `Rule`; learning rates are often warmed up from nothing, so 200 steps.
    """

    name: ClassVar[str] = "small-updates"

    limit: float = 1e-7
    streak: int = 5
    warmup: int = 200

    def __post_init__(self) -> None:
        super().__post_init__()
        between(self, 0, 1, "limit")

    def begin(self, names: tuple[str, ...]) -> tuple[str | None, ...]:
        """Forget everything; the subjects are the layers."""
        self._moved = np.zeros(len(names), np.bool_)  # has been well above the limit
        return super().begin(names)

    def judge(self, view: View) -> Judgement | None:
        """Judge K records."""
        ratio = view.layer("update_ratio")
        if ratio is None or not len(view):
            return None
        known = self._known(view, ratio) & (ratio > 0.0)
        moved = np.logical_or.accumulate(known & (ratio > 10 * self.limit), axis=0) | self._moved
        self._moved = moved[-1]
        small = (ratio < self.limit) & ~moved
        score = np.zeros_like(ratio)
        score[small] = -ratio[small]
        return Judgement(known, small, (ratio > 2 * self.limit) | moved, ratio, score)

    def explain(self, found: Found) -> Words:
        """Say how small the updates are."""
        return Words(self._message(found, f"below {self.limit:g}"), _ADVICE_SMALL)
