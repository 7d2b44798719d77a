"""Gradients that grow far beyond their own trend."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from gradwise.watch.rules.base import Found, Judgement, Rule, Seen, Words, at_least, between, shown
from gradwise.watch.rules.trend import LogTrend
from gradwise.watch.rules.view import Array, Mask, View

__all__ = ["Exploding"]

_FIRST = 20  # records that do not make a trend yet

_ADVICE = (
    "Single high steps come from odd batches; when it goes on, the training is about to diverge or "
    "has begun to. People lower the learning rate or warm it up for longer, clip the gradient's "
    "norm (gradwise.transforms.ClipNorm, AutoClip), look at the batches of these steps, and go "
    "back to a checkpoint from before."
)


@dataclass(kw_only=True)
class Exploding(Rule):
    """The gradient's norm, or that of one layer, is far above its own trend.

    The trend is followed in the logarithm, so the rule knows factors and no units. What counts as
    far follows the noise: where norms scatter a lot, it takes more than `factor`.

    Args:
        factor: times the trend; 10 is beyond what batches or schedules do to a norm for several
            steps in a row.
        sigmas: times the usual scatter around the trend that it must be away, too.
        severe: times the trend from which on it is an error, if it is the whole. In the first 20
            records, when there is no trend yet and norms often rise by themselves, only this many
            times the least of them counts.
        memory: records that the trend remembers. A second trend, ten times slower, notices norms
            that grow so evenly that the first one keeps up; there it takes the factor's square.
        matters: a layer is left alone while its norm is less than this many times what it would
            be if all layers had the same. Layers that had little and catch up are no explosion
            (so it is when a plateau ends), and gradients that are noise around zero, as those of a
            bias before a normalisation, scatter over decades.
        action: see `AnyRule`.
        streak: see `Rule`; 3, so that one odd batch is not reported.
        calm: see `Rule`; calm is half as far from the trend, in the logarithm.
        warmup: see `Rule`.
    """

    name: ClassVar[str] = "exploding"
    needs: ClassVar[tuple[str, ...]] = ("norm|grad_norm",)
    gather: ClassVar[int] = 10

    factor: float = 10.0
    sigmas: float = 6.0
    severe: float = 1000.0
    memory: float = 50.0
    matters: float = 1.0
    streak: int = 3
    calm: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, sigmas=0, memory=2)
        between(self, 1, np.inf, "factor", "severe")
        between(self, 0, np.inf, "matters")

    def begin(self, names: tuple[str, ...]) -> tuple[str | None, ...]:
        """Forget everything; the subjects are the whole and every layer."""
        self._trend = LogTrend(1 + len(names), self.memory)
        self._least = np.full(1 + len(names), np.nan)  # of the first records
        self._names = names
        self._most: dict[int, tuple[float, int]] = {}  # by step: which layer rose most, how much
        return (None, *names)

    def judge(self, view: View) -> Judgement | None:
        """Judge K records."""
        layers = view.log_norm
        if layers is None:
            layers = np.full((len(view), len(view.names)), np.nan)
        log = np.concatenate((view.log_whole[:, None], layers), axis=1)
        followed = self._trend.follow(log, view)
        above, slowly = followed.above, followed.above_slow
        for row in np.flatnonzero(view.records < _FIRST):
            above[row] = slowly[row] = log[row] - self._least
            self._least = np.fmin(self._least, log[row])
        limit = np.maximum(np.log(self.factor), self.sigmas * followed.spread)
        limit[followed.seen < _FIRST] = np.log(self.severe)
        known = ~np.isnan(above)
        equal = np.sqrt(max(len(self._names), 1))
        small = log < view.log_whole[:, None] + np.log(self.matters / equal)
        small[:, 0] = False
        bad = ((above > limit) | (slowly > 2 * limit)) & ~small
        calm = ((above < limit / 2) & (slowly < limit)) | small
        # Where the whole rises, the layers rise with it, and it speaks for them.
        bad[:, 1:] &= calm[:, :1]
        # exp() where it is needed: the norm, and how many times the trend that is.
        value, times = np.zeros_like(log), np.zeros_like(log)
        far = np.nonzero(bad)
        value[far] = np.exp(log[far])
        fast = above[far] > limit[far]
        times[far] = np.exp(np.where(fast, above[far], slowly[far]))
        if bad[:, 0].any() and self._names:
            self._note(view, np.where(small, -np.inf, above)[:, 1:], bad[:, 0])
        return Judgement(known, bad, calm, value, times)

    def _note(self, view: View, above: Array, bad: Mask) -> None:
        """Remember which layer rose most, for as long as an alert may still ask."""
        for row in np.flatnonzero(bad):
            layer = int(np.nan_to_num(above[row], nan=-np.inf).argmax())
            if above[row, layer] > 0.0:
                self._most[int(view.steps[row])] = float(above[row, layer]), layer
        while len(self._most) > self.streak + 1000:
            del self._most[next(iter(self._most))]

    def explain(self, found: Found) -> Words:
        """Say how far above its trend the norm is."""
        worst = found.worst
        if worst.layer is None:
            message = f"the gradient's norm {self._rose(worst)}"
            most = [self._most[s] for s in self._most if found.step <= s <= found.known]
            if most:
                above, layer = max(most)
                message += f", most in {self._names[layer]!r} ({shown(np.exp(above))} times)"
        elif len(found.seen) == 1:
            message = f"the norm of the gradient of {worst.layer!r} {self._rose(worst)}"
        else:
            message = f"the gradient's norm left its trend in {found.where}; that of "
            message += f"{worst.layer!r} {self._rose(worst)}"
        severe = worst.layer is None and worst.score >= self.severe
        severity = "error" if severe else "warning"
        return Words(f"{message}.", _ADVICE, severity)

    def _rose(self, one: Seen) -> str:
        trend = shown(one.value / one.score)
        return f"rose to {shown(one.value)}, which is {shown(one.score)} times its trend of {trend}"
