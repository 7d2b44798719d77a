"""From blocks of all records to the rows that a sink asked for."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from gradwise.watch.block import Block
from gradwise.watch.sinks.base import Sink, layer_interval, matches
from gradwise.watch.sinks.names import NONFINITE, layer_name, step_name

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Row:
    """What is sent for one step, kept small while it waits.

    Attributes:
        step: the step.
        time: when it was, in seconds since 1970.
        scalars: by name.
        layers: names that all rows share, and as many values; NaN where there is none.
    """

    step: int
    time: float
    scalars: dict[str, float]
    layers: list[tuple[tuple[str, ...], Floats]] = field(default_factory=list)

    def values(self) -> dict[str, float]:
        """All numbers by name, without those that were not measured."""
        found = dict(self.scalars)
        for names, values in self.layers:
            found.update((n, v) for n, v in zip(names, values.tolist(), strict=True) if v == v)
        return found


class Sampler:
    """Chooses a sink's rows; what lies between two of them is kept as the latest of each number.

    The first recorded step of every stretch of `every` steps makes a row, so a run that records
    every 7th step is sampled as densely as one that records all.

    Args:
        sink: whose wishes count.
        names: the run's layers.
    """

    def __init__(self, sink: Sink, names: tuple[str, ...]) -> None:
        self._sink = sink
        self._names: dict[str, str | None] = {}  # step metric -> name, None where it is not wanted
        self._chosen = np.flatnonzero([matches(name, sink.layers) for name in names])
        chosen = [names[at] for at in self._chosen]
        self._layer_names = {
            metric: tuple(layer_name(layer, metric) for layer in chosen)
            for metric in sink.layer_metrics
        }
        self._everything = len(chosen) == len(names)
        self.layers_every = layer_interval(sink, len(chosen) * len(sink.layer_metrics))
        self.chosen = len(chosen)
        self._stretch: int | None = None  # the one that the last record lies in
        self._layer_stretch: int | None = None
        self._last = (0, 0.0)
        self._scalars: dict[str, float] = {}
        self._layers: dict[str, Floats] = {}

    def rows(self, block: Block) -> list[Row]:
        """The rows that a block completes, in order."""
        if len(block) == 0:
            return []
        stretches = block.steps // self._sink.every
        layer_stretches = block.steps // self.layers_every
        due = _changes(stretches, self._stretch)
        layers_due = _changes(layer_stretches, self._layer_stretch)
        scalars = self._wanted(block)
        bad = block.layers.get("nonfinite")
        lost = None if bad is None else _sums(bad)
        times = self._times(block)
        ends = np.flatnonzero(due | layers_due)
        found, begin = [], 0
        for end in ends.tolist():
            self._take(block, scalars, lost, begin, end + 1)
            begin = end + 1
            row = Row(int(block.steps[end]), float(times[end]), self._scalars)
            self._scalars = {}
            if layers_due[end]:
                row.layers.extend(self._release())
            found.append(row)
        self._take(block, scalars, lost, begin, len(block))
        self._stretch, self._layer_stretch = int(stretches[-1]), int(layer_stretches[-1])
        self._last = (int(block.steps[-1]), float(times[-1]))
        return [row for row in found if row.scalars or row.layers]

    def rest(self) -> Row | None:
        """What came after the last row, as a row of the last step; None where nothing did."""
        row = Row(*self._last, self._scalars, self._release())
        self._scalars = {}
        return row if row.scalars or row.layers else None

    def _wanted(self, block: Block) -> dict[str, Floats]:
        found = {}
        for metric, values in block.scalars.items():
            if metric not in self._names:
                name = step_name(metric)
                wanted = name is not None and matches(name, self._sink.scalars)
                self._names[metric] = name if wanted else None
            chosen = self._names[metric]
            if chosen is not None:
                found[chosen] = values
        return found

    def _take(
        self, block: Block, scalars: dict[str, Floats], lost: Floats | None, begin: int, end: int
    ) -> None:
        """Let records `begin` to `end` (exclusive) be the latest."""
        if begin == end:
            return
        for name, column in scalars.items():
            value = _latest(column[begin:end, None])[0]
            if value == value:
                self._scalars[name] = float(value)
        if lost is not None and matches(NONFINITE, self._sink.scalars):
            measured = lost[begin:end][~np.isnan(lost[begin:end])]
            if measured.size:
                before = self._scalars.get(NONFINITE, 0.0)
                self._scalars[NONFINITE] = before + float(measured.sum())
        for metric in self._layer_names:
            if metric in block.layers and self.chosen:
                values = block.layers[metric][begin:end]
                now = _latest(values if self._everything else values[:, self._chosen])
                before_now = self._layers.get(metric)
                if before_now is not None:
                    now = np.where(np.isnan(now), before_now, now)
                self._layers[metric] = now

    def _release(self) -> list[tuple[tuple[str, ...], Floats]]:
        layers, self._layers = self._layers, {}
        return [
            (self._layer_names[metric], values)
            for metric, values in layers.items()
            if not np.isnan(values).all()
        ]

    @staticmethod
    def _times(block: Block) -> Floats:
        now = time.time()
        times = block.scalars.get("time")
        return np.full(len(block), now) if times is None else np.where(times > 0, times, now)


def _changes(stretches: npt.NDArray[np.int64], before: int | None) -> npt.NDArray[np.bool_]:
    """[K], where a stretch begins."""
    first = stretches[0] != before if before is not None else True
    return np.concatenate([[first], stretches[1:] != stretches[:-1]])


def _latest(values: Floats) -> Floats:
    """Of [n, M], the last value of each column that is not NaN, or NaN: [M]."""
    last = values[-1]
    if not np.isnan(last).any():
        return np.array(last, dtype=np.float64)
    back = np.argmax(~np.isnan(values[::-1]), axis=0)  # 0 where there is none at all
    return np.array(values[len(values) - 1 - back, np.arange(values.shape[1])], dtype=np.float64)


def _sums(values: Floats) -> Floats:
    """Of [K, L], the sum of what was measured: [K], NaN where nothing was."""
    measured = ~np.isnan(values)
    return np.where(measured.any(axis=1), np.where(measured, values, 0.0).sum(axis=1), np.nan)
