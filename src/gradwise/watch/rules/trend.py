"""Where many series are heading, without being led astray by single values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gradwise.watch.rules.view import Array, Mask, View

__all__ = ["Followed", "LogTrend"]

_LEARN = 20  # values of a series that its level is the plain mean of
_REACH = 3.0  # a value moves the level by no more than one this many spreads away would
_LEAST_SPREAD = 0.1  # ten per cent up or down is never remarkable
_SLOWER = 10.0  # how much slower the slow level is
_STRIDE = 8  # records after which levels move, by what these had to say together


@dataclass(frozen=True, eq=False)
class Followed:
    """How K values of N series compare with what came before them.

    Attributes:
        above: [K, N], the value less the series' level; NaN where either is missing.
        above_slow: [K, N], the value less its slow level.
        spread: [K, N], how far values usually lie from the level.
        seen: [K, N], how many values of the series came before.
    """

    above: Array
    above_slow: Array
    spread: Array
    seen: Array


class LogTrend:
    """Follows logarithms: a level, one that is ten times slower, and how far values scatter.

    The level is about the mean of the first 20 values, and an exponential mean from then on in
    which a value far off counts as one three spreads away. So a burst hardly moves it, while a
    lasting change is followed in the end. Missing values change nothing. Levels move after every
    eighth record, which is eight times less work than after each.

    Args:
        series: N.
        memory: values that the level remembers.

    Examples:
        >>> from gradwise.watch.block import Block
        >>> trend = LogTrend(1, memory=50)
        >>> steps = np.arange(100)
        >>> flat = trend.follow(np.zeros((100, 1)), View(Block((), steps, {}, {}), 0))
        >>> burst = trend.follow(np.full((3, 1), 5.0), View(Block((), steps[:3], {}, {}), 100))
        >>> burst.above.round(1).ravel().tolist()
        [5.0, 5.0, 5.0]
    """

    def __init__(self, series: int, memory: float) -> None:
        self._rate = 1.0 / memory
        self._level = np.full(series, np.nan)
        self._slow = np.full(series, np.nan)
        self._spread = np.full(series, 3 * _LEAST_SPREAD)
        self._seen = np.zeros(series)
        # Of this stride so far: how far values lie from the levels, in sum, and how many there are.
        self._near, self._slowly, self._far, self._count = np.zeros((4, series))
        self._lag = np.zeros(series)  # how far a level is usually behind: that is no scatter

    def follow(self, values: Array, view: View) -> Followed:
        """Take in K values of each series.

        Args:
            values: [K, N], NaN where one is missing.
            view: the records they belong to.
        """
        above, slowly, spread, seen = (np.empty_like(values) for _ in range(4))
        there = ~np.isnan(values)
        start = 0
        while start < len(values):
            stop = min(len(values), start + _STRIDE - int(view.records[start]) % _STRIDE)
            here = slice(start, stop)
            self._meet(values[here], there[here])
            np.subtract(values[here], self._level, out=above[here])
            np.subtract(values[here], self._slow, out=slowly[here])
            spread[here] = self._spread
            seen[here] = self._seen + self._count
            if (self._seen < _LEARN).any():
                seen[here] += np.cumsum(there[here], 0) - there[here]
            self._gather(above[here], slowly[here], there[here])
            if (int(view.records[stop - 1]) + 1) % _STRIDE == 0:
                self._move()
            start = stop
        return Followed(above, slowly, spread, seen)

    def _meet(self, values: Array, there: Mask) -> None:
        """Give series that have no level yet their first value for one."""
        new = np.isnan(self._level)
        if new.any():
            new &= there.any(0)
            first = values[there.argmax(0), np.arange(len(new))]
            self._level[new] = self._slow[new] = first[new]

    def _gather(self, above: Array, slowly: Array, there: Mask) -> None:
        """Add up what the records of a stride have to say, in their order."""
        reach = np.where(self._seen < _LEARN, np.inf, _REACH * self._spread)
        all_there = bool(there.all())
        for total, values, low in (
            (self._near, above, -reach),
            (self._slowly, slowly, -reach),
            (self._far, np.abs(above - self._lag), 0.0),
        ):
            near = np.clip(values, low, reach)
            if not all_there:
                near[~there] = 0.0
            np.add.reduce(np.concatenate((total[None], near)), axis=0, out=total)
        self._count += there.sum(0)

    def _move(self) -> None:
        """Move levels and spreads by what was gathered."""
        seen, count = self._seen + self._count, self._count
        young = self._seen < _LEARN
        rate = np.where(young, 1.0 / np.maximum(seen, 1.0), self._rate)
        self._level += rate * self._near
        self._slow += np.where(young, rate, self._rate / _SLOWER) * self._slowly
        # 1.25 mean absolute deviations are a standard deviation, for normal noise.
        apart = np.minimum(self._far, _REACH * self._spread * count) * 1.25
        self._spread += self._rate * (apart - count * self._spread)
        self._lag += self._rate * np.where(young, 0.0, self._near - count * self._lag)
        np.maximum(self._spread, _LEAST_SPREAD, out=self._spread)
        self._seen = seen
        for total in (self._near, self._slowly, self._far, self._count):
            total.fill(0.0)
