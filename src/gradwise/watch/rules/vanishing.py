"""Layers that the gradient does not reach any more."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from gradwise.watch.rules.base import Found, Judgement, Rule, Words, between, shown
from gradwise.watch.rules.view import Array, View, is_bias

__all__ = ["Vanishing"]

_ADVICE = (
    "These layers get next to no signal while others do, so they stay as they are. Usual causes: "
    "saturated activations (sigmoid, tanh, ReLUs that are off), many layers without normalisation "
    "or shortcuts around them, an initialisation that shrinks what goes through. People add "
    "normalisation or residual connections, change activation or initialisation, or look at what "
    "happened at that step."
)
_SAMPLE = 256  # layers that the usual norm is taken from
_CHUNK = 16  # records that make one entry of a layer's past


@dataclass(kw_only=True)
class Vanishing(Rule):
    """A layer's gradient is next to nothing beside those of the other layers.

    Norms are compared with the upper quartile of all layers' at the same step. A loss that
    converges shrinks all of them, which is nothing to report; one layer that explodes makes none
    of the others vanish. Where updates are measured, a layer that still moves is left alone:
    optimizers such as Adam make up for a small gradient. Gradients of exactly zero are the
    business of `Dead`, and biases are left out, since some have a gradient of zero by design (in
    front of a normalisation, or as keys of attention).

    Args:
        drop: a layer vanishes where its norm beside the others' has sunk to this part of the best
            it has been. Networks in good health stay within a factor of 20.
        small: it has to be below this share of theirs, too.
        tiny: a layer with a share below this has vanished even where that is how it began.
        moving: update-to-weight ratio of a layer that still learns.
        action: see `AnyRule`.
        streak: see `Rule`; 50 steps, so that nothing that passes is reported.
        calm: see `Rule`; calm is ten times the threshold.
        warmup: see `Rule`.
    """

    name: ClassVar[str] = "vanishing"
    needs: ClassVar[tuple[str, ...]] = ("norm",)
    gather: ClassVar[int] = 20

    drop: float = 1e-3
    small: float = 1e-3
    tiny: float = 1e-4
    moving: float = 1e-5
    streak: int = 50
    calm: int = 50
    warmup: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        between(self, 0, 1, "drop", "small", "tiny", "moving")

    def begin(self, names: tuple[str, ...]) -> tuple[str | None, ...]:
        """Forget everything; the subjects are the layers."""
        self._judged = np.array([not is_bias(name) for name in names], np.bool_)
        weights = np.flatnonzero(self._judged)
        spread = np.linspace(0, len(weights) - 1, min(len(weights), _SAMPLE)).astype(np.int64)
        self._sample: npt.NDArray[np.int64] = weights[spread]
        self._best = np.full(len(names), np.nan)  # highest mean of a chunk, in the logarithm
        self._sum, self._count = np.zeros((2, len(names)))
        self._ratio = np.zeros(len(names))  # as last measured
        return names

    def judge(self, view: View) -> Judgement | None:
        """Judge K records."""
        log = view.log_norm
        if log is None or len(self._sample) < 2:
            return None
        share = log - _upper_quartile(log[:, self._sample])[:, None]
        best = self._remember(share, view)
        still = self._moves(view)
        limit = np.minimum(best + np.log(self.drop), np.log(self.small))
        limit = np.fmax(limit, np.log(self.tiny))
        bad = (share < limit) & ~still & self._judged
        calm = (share > limit + np.log(10.0)) | still
        value, score = np.zeros_like(share), np.zeros_like(share)
        value[bad], score[bad] = np.exp(share[bad]), -share[bad]
        return Judgement(~np.isnan(share), bad, calm, value, score)

    def _remember(self, share: Array, view: View) -> Array:
        """The best that each layer has been before each record [K, L].

        That is the highest of its means over 16 records.
        """
        best = np.empty_like(share)
        there = ~np.isnan(share)
        filled = np.where(there, share, 0.0)
        start = 0
        while start < len(share):
            if view.records[start] % _CHUNK == 0:
                enough = self._count >= _CHUNK // 2
                mean = np.where(enough, self._sum / self._count, np.nan)
                self._best = np.fmax(self._best, mean)
                self._sum, self._count = np.zeros((2, share.shape[1]))
            here = slice(start, min(len(share), start + _CHUNK - view.records[start] % _CHUNK))
            best[here] = self._best
            # One record after the other, so that blocks of any size give the same sum.
            self._sum = np.add.reduce(np.concatenate((self._sum[None], filled[here])), axis=0)
            self._count += there[here].sum(0)
            start = here.stop
        return best

    def _moves(self, view: View) -> npt.NDArray[np.bool_]:
        """Whether each layer still moves at each record [K, L], as far as is known."""
        ratio = view.layer("update_ratio")
        if ratio is None:
            return np.broadcast_to(self._ratio >= self.moving, (len(view), len(view.names)))
        found = np.empty(ratio.shape, np.bool_)
        for row in range(len(ratio)):
            self._ratio = np.where(np.isnan(ratio[row]), self._ratio, ratio[row])
            found[row] = self._ratio >= self.moving
        return found

    def explain(self, found: Found) -> Words:
        """Say how small the layers' gradients are beside the others'."""
        worst = found.worst
        if len(found.seen) == 1:
            message = f"the gradient of {worst.layer!r} is only {shown(worst.value)} times the "
            message += "norm that other layers have"
        else:
            message = f"the gradient vanished in {found.where}, down to {shown(worst.value)} times "
            message += "the norm that other layers have"
        return Words(f"{message}.", _ADVICE)


def _upper_quartile(log: Array) -> Array:
    """The upper quartile of each row, of what is there; NaN where nothing is."""
    count = (~np.isnan(log)).sum(1)
    ordered = np.sort(log, axis=1)  # NaN goes last
    at = np.maximum(np.ceil(0.75 * count).astype(np.int64) - 1, 0)
    return np.asarray(ordered[np.arange(len(log)), at], np.float64)
