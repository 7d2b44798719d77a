"""The gradient noise scale, from squared gradient norms at two batch sizes.

After McCandlish et al. 2018, appendix A. A batch of b samples has a gradient with
E|g_b|^2 = |G|^2 + tr(Sigma) / b: the true gradient's squared norm, and its share of the spread of
single samples. Two batch sizes b < B tell the two apart,

    |G|^2 = (B |g_B|^2 - b |g_b|^2) / (B - b),   tr(Sigma) = (|g_b|^2 - |g_B|^2) / (1/b - 1/B),

both without bias. Their ratio tr(Sigma) / |G|^2 is the noise scale. A single step's ratio means
nothing, because the denominator of one step may be anything; so both are averaged over steps first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwise.errors import UserError

DECAY = 0.98  # of the averages, a sample: about the last hundred count
LEAST = 10  # samples before there is a value
Z = 1.96  # standard errors to either side for 95 %
Z_SURE = 5.0  # for what is claimed whenever it shows, of a run that is looked at all the time

NEEDS_TWO_SIZES = (
    "the gradient noise scale needs two batch sizes at once: accumulate gradients over "
    "micro-batches or train with DistributedDataParallel"
)


@dataclass(frozen=True)
class _Averages:
    """Weighted means of both estimates and what is needed for their spread.

    Weights are 1 for the newest sample and `decay` times less for each before it; dividing by
    their sum is the bias correction of an exponential average.
    """

    samples: int = 0
    weight: float = 0.0  # the sum of the weights
    squares: float = 0.0  # and of their squares
    trace: float = 0.0  # mean estimate of tr(Sigma)
    signal: float = 0.0  # mean estimate of |G|^2
    trace_m2: float = 0.0  # weighted sums of squared deviations, and of their product
    signal_m2: float = 0.0
    product: float = 0.0

    def plus(self, trace: float, signal: float, decay: float) -> _Averages:
        weight = decay * self.weight + 1.0
        off_trace, off_signal = trace - self.trace, signal - self.signal
        mean_trace = self.trace + off_trace / weight
        mean_signal = self.signal + off_signal / weight
        return _Averages(
            self.samples + 1,
            weight,
            decay**2 * self.squares + 1.0,
            mean_trace,
            mean_signal,
            decay * self.trace_m2 + off_trace * (trace - mean_trace),
            decay * self.signal_m2 + off_signal * (signal - mean_signal),
            decay * self.product + off_trace * (signal - mean_signal),
        )

    def quadratic(self, z: float = Z) -> tuple[float, float, float]:
        """a, b, c: a ratio R of the true means fits the samples where a R^2 - 2 b R + c <= 0.

        Fieller's construction: R fits where the mean of `trace - R signal` is within z standard
        errors of 0. Unlike a plain error bar it stays right where the denominator is uncertain.
        """
        share = self.squares / self.weight**2
        of_mean = z**2 * share / (self.weight * (1.0 - share)) if share < 1.0 else math.inf
        return (
            self.signal**2 - of_mean * self.signal_m2,
            self.trace * self.signal - of_mean * self.product,
            self.trace**2 - of_mean * self.trace_m2,
        )


class NoiseScale:
    """Tells the gradient noise scale from squared gradient norms at two batch sizes.

    The noise scale is the batch size at which the noise in a step's gradient is as large as the
    gradient itself: far below it a larger batch means fewer steps for nearly no more samples in
    all, far above it a larger batch is wasted.

    Numbers come from one thread; everything may be asked from any.

    Args:
        batch_size: samples in one backward pass on one process, which makes samples the unit;
            without it the unit is one such backward pass.
        decay: of the moving averages, a sample.

    Attributes:
        reason: what whoever measures has to say about why there is nothing to measure, as a
            sentence without a full stop; None where there is nothing to say.

    Raises:
        UserError: where a number is out of its bounds.

    Examples:
        >>> scale = NoiseScale(batch_size=8)
        >>> print(scale.value, "-", scale.sentence)
        None - the gradient noise scale needs two batch sizes at once: accumulate gradients ...
        >>> for k in range(50):  # |G|^2 = 4 and tr(Sigma) = 100, not quite the same each time
        ...     scale.add(small=4 + 100 / 8 + 0.1 * (k % 3 - 1), big=4 + 100 / 64, ratio=8)
        >>> round(scale.value, 1), scale.unit
        (25.0, 'samples')
        >>> print(scale)
        the gradient noise scale is about 25 samples (95 %: 24.9 to 25.1)
    """

    def __init__(self, batch_size: int | None = None, *, decay: float = DECAY) -> None:
        if batch_size is not None and batch_size < 1:
            raise UserError(f"expected batch_size >= 1, got batch_size={batch_size}")
        if not 0.0 < decay < 1.0:
            raise UserError(f"expected 0 < decay < 1, got decay={decay}")
        self.reason: str | None = None
        self._size = float(batch_size or 1)
        self._decay = decay
        self._unit = "samples" if batch_size is not None else "backward passes"
        self._averages = _Averages()  # replaced as a whole, so that other threads see one state
        self._not_finite = 0
        self._not_zeroed = 0

    def __repr__(self) -> str:
        return f"NoiseScale(value={self.value}, unit={self.unit!r}, samples={self.samples})"

    def __str__(self) -> str:
        value, interval = self.value, self.interval
        if value is None or interval is None:
            return f"no gradient noise scale: {self.sentence}"
        low, high = map(_plain, interval)
        return (
            f"the gradient noise scale is about {_plain(value)} {self.unit} (95 %: {low} to {high})"
        )

    @property
    def unit(self) -> str:
        """What the value counts: "samples", or "backward passes" of one process."""
        return self._unit

    @property
    def samples(self) -> int:
        """How many steps were measured and finite so far."""
        return self._averages.samples

    @property
    def value(self) -> float | None:
        """The noise scale in `unit`; None where there is none, and `sentence` says why then.

        There is one as soon as |G|^2 is told from 0 with 95 % confidence; it is 0 where there is
        no noise to speak of.
        """
        now = self._averages
        return max(now.trace, 0.0) / now.signal if _known(now) else None

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % confidence interval of `value`, in `unit`; None where there is no value.

        It holds the sampling error of the averages; drift of the noise scale during the steps that
        they span makes it wider, never narrower.
        """
        now = self._averages
        if not _known(now):
            return None
        a, b, c = now.quadratic()
        root = math.sqrt(max(b * b - a * c, 0.0))
        return max((b - root) / a, 0.0), max((b + root) / a, 0.0)

    @property
    def sentence(self) -> str | None:
        """Why there is no value, in plain words without a full stop; None where there is one."""
        now = self._averages
        if _known(now):
            return None
        if now.samples == 0:
            return self._nothing()
        if now.samples < LEAST:
            return (
                f"the gradient noise scale is known after {LEAST} measured steps, "
                f"{now.samples} so far"
            )
        above = _lower_bound(now)
        if above is None:
            return (
                "the batches within a step are not independent draws: their gradients differ more "
                "than chance allows, as where every step sees most of the data"
            )
        if above == 0.0:
            return f"the noise drowns the gradient: {now.samples} measured steps do not tell yet"
        return (
            "the noise drowns the gradient: the gradient noise scale is above about "
            f"{_plain(above)} {self.unit}"
        )

    def add(self, small: float, big: float, ratio: float) -> None:
        """Take in one measured step.

        What is not finite is counted and left out, a step whose loss overflowed for one.

        Args:
            small: |g_b|^2, the squared norm of the gradient of the smaller batch, or the mean of
                several; the smaller batch is one backward pass on one process.
            big: |g_B|^2 of the larger batch, as the mean over its samples like `small`.
            ratio: B / b; NaN where the larger one was not measured from zero.

        Raises:
            UserError: where the ratio is not above 1.
        """
        if math.isnan(ratio):
            self._not_zeroed += 1
            return
        if ratio <= 1.0:
            raise UserError(f"expected ratio > 1, got ratio={ratio}")
        if not (math.isfinite(small) and math.isfinite(big)):
            self._not_finite += 1
            return
        b, all_b = self._size, self._size * ratio
        signal = (all_b * big - b * small) / (all_b - b)
        trace = (small - big) / (1.0 / b - 1.0 / all_b)
        self._averages = self._averages.plus(trace, signal, self._decay)

    def column(
        self, small: npt.NDArray[Any], big: npt.NDArray[Any], ratio: npt.NDArray[Any]
    ) -> npt.NDArray[np.float64]:
        """Take in K steps, and tell the noise scale as it stood after each of them.

        Args:
            small: [K] as for `add`; NaN in all three where a step was not measured.
            big: [K].
            ratio: [K].

        Returns:
            [K], NaN where the step was not measured or there was no value yet.

        Examples:
            >>> two = np.array([np.nan, 6.0] * 12)
            >>> NoiseScale().column(two, two / 2, two - 2)[-2:]
            array([nan, 2.])
        """
        found = np.full(len(small), np.nan)
        for k in np.flatnonzero(~(np.isnan(small) & np.isnan(big) & np.isnan(ratio))):
            self.add(float(small[k]), float(big[k]), float(ratio[k]))
            if (value := self.value) is not None:
                found[k] = value
        return found

    def _nothing(self) -> str:
        """Why not one step was measured."""
        if self._not_zeroed:
            return (
                "the gradients were not zero when the first backward pass of a step began: call "
                "optimizer.zero_grad() once a step, before it"
            )
        if self._not_finite:
            return f"in none of {self._not_finite} measured steps was the gradient finite"
        return self.reason or NEEDS_TWO_SIZES


def _known(now: _Averages) -> bool:
    """Whether |G|^2 is told from 0."""
    return now.samples >= LEAST and now.signal > 0.0 and now.quadratic()[0] > 0.0


def _lower_bound(now: _Averages) -> float | None:
    """Where |G|^2 is not told from 0, the least ratio that fits the samples; None if none does."""
    for z in (Z, Z_SURE):
        a, b, c = now.quadratic(z)
        if a <= 0.0:  # ratios of any size fit
            square = b * b - a * c
            return max((b - math.sqrt(square)) / a, 0.0) if a < 0.0 < square else 0.0
    return None  # the mean of the estimates of |G|^2 is below 0 for certain


def _plain(number: float) -> str:
    """Three digits, with commas: 1,840."""
    return f"{float(f'{number:.3g}'):,.12g}"
