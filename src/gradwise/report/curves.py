"""Curves over the seeds of a method: their mean and how far they spread."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwise.report.encode import rounded_list
from gradwise.report.folder import CompareRun, Trial
from gradwise.report.values import numbers

__all__ = ["Band", "Chart", "band", "history_chart"]

Rows = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Band:
    """One method's curve.

    Attributes:
        mean: mean over the seeds that have a value [points], NaN where none has.
        low: the smallest of the seeds' values [points].
        high: the largest of the seeds' values [points].
        seeds: number of curves in it.
    """

    mean: Rows
    low: Rows
    high: Rows
    seeds: int


def band(rows: Rows) -> Band:
    """Mean, minimum and maximum over seeds; what is not finite takes no part.

    Args:
        rows: one curve a seed [seeds, points].

    Examples:
        >>> found = band(np.array([[1.0, 2.0, np.nan], [3.0, np.inf, np.nan]]))
        >>> found.mean, found.high
        (array([ 2.,  2., nan]), array([ 3.,  2., nan]))
    """
    finite = np.where(np.isfinite(rows), rows, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a column without a number stays NaN
        return Band(
            np.nanmean(finite, axis=0),
            np.nanmin(finite, axis=0),
            np.nanmax(finite, axis=0),
            len(rows),
        )


@dataclass(frozen=True)
class Chart:
    """A picture of one quantity against the step, one line a method.

    Attributes:
        key: its name in the page.
        title: what is shown.
        unit: the unit of the values, empty where they have none.
        x: steps [points].
        lines: by index of the method; methods without a value are left out.
        log: whether its axis is logarithmic.
        square: whether the reader may ask for the square of it (a variance for a std).
        scale: charts with the same name here share the range of their axes.
        note: a sentence under the picture.
    """

    key: str
    title: str
    unit: str
    x: Sequence[int]
    lines: Mapping[int, Band]
    log: bool = False
    square: bool = False
    scale: str = ""
    note: str = ""

    def payload(self) -> dict[str, Any]:
        """The chart as the page's script reads it."""
        return {
            "key": self.key,
            "title": self.title,
            "unit": self.unit,
            "log": self.log,
            "square": self.square,
            "scale": self.scale or self.key,
            "note": self.note,
            "x": [int(step) for step in self.x],
            "lines": [_line(method, line) for method, line in self.lines.items()],
        }


def _line(method: int, line: Band) -> dict[str, Any]:
    found: dict[str, Any] = {"method": method, "mean": rounded_list(line.mean.tolist())}
    if line.seeds > 1:  # a single seed has no spread
        found["low"] = rounded_list(line.low.tolist())
        found["high"] = rounded_list(line.high.tolist())
    return found


def _curve(trial: Trial, metric: str) -> dict[int, float]:
    """The values of one trial's history by step, without those that are not there."""
    history = trial.result.get("history")
    if not isinstance(history, dict):
        return {}
    steps, values = numbers(history.get("step")), numbers(history.get(metric))
    pairs = zip(steps, values, strict=False)
    return {int(step): value for step, value in pairs if step is not None and value is not None}


def history_chart(
    run: CompareRun,
    metric: str,
    title: str,
    unit: str,
    *,
    factor: float = 1.0,
    log: bool = False,
    points: int = 400,
) -> Chart | None:
    """A chart of what the trials noted once an epoch.

    Args:
        run: the compare run.
        metric: its name in the trials' history.
        title: the chart's title.
        unit: the unit after `factor` has been applied.
        factor: what the values are multiplied with.
        log: whether the axis is logarithmic.
        points: the most epochs shown; of more, evenly spaced ones and the last.

    Returns:
        The chart, or None if no trial has a value.
    """
    curves = {
        at: [curve for trial in run.trials[method] if (curve := _curve(trial, metric))]
        for at, method in enumerate(run.methods)
    }
    steps = sorted({step for found in curves.values() for curve in found for step in curve})
    if not steps:
        return None
    if len(steps) > points:
        picks = np.linspace(0, len(steps) - 1, points).round().astype(int)
        steps = [steps[pick] for pick in picks]
    lines = {
        at: band(
            np.array([[curve.get(step, np.nan) * factor for step in steps] for curve in found])
        )
        for at, found in curves.items()
        if found
    }
    return Chart(metric, title, unit, steps, lines, log=log)
