"""Curves over the seeds of a method: their mean and how far they spread.

Only trials that ran to their end go into a mean. One that diverged or was cut short gets a line
of its own: in a mean it would pull the curve along and then, where it ends, let it jump.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwise.report.encode import rounded_list
from gradwise.report.folder import CompareRun, Trial
from gradwise.report.values import numbers

__all__ = ["Band", "Chart", "Line", "band", "history_chart", "lines_of"]

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
class Line:
    """One line of a chart.

    Attributes:
        method: index of its method.
        band: its values.
        trial: the one trial that it shows; None for the mean over all that finished.
    """

    method: int
    band: Band
    trial: Trial | None = None

    def payload(self) -> dict[str, Any]:
        """The line as the page's script reads it."""
        found: dict[str, Any] = {
            "method": self.method,
            "mean": rounded_list(self.band.mean.tolist()),
        }
        if self.band.seeds > 1:  # a single seed has no spread
            found["low"] = rounded_list(self.band.low.tolist())
            found["high"] = rounded_list(self.band.high.tolist())
        if self.trial is not None:
            found["seed"] = self.trial.seed
            found["status"] = self.trial.ended
        return found


def lines_of(method: int, curves: Sequence[tuple[Trial, Rows]]) -> list[Line]:
    """The lines of one method: the mean of what finished, and one for each trial that did not.

    Args:
        method: index of the method.
        curves: its trials and their values [points].
    """
    whole = [row for trial, row in curves if trial.status == "finished"]
    lines = [Line(method, band(np.stack(whole)))] if whole else []
    for trial, row in curves:
        if trial.status != "finished":
            lines.append(Line(method, band(row[None]), trial))
    return lines


@dataclass(frozen=True)
class Chart:
    """A picture of one quantity against the step.

    Attributes:
        key: its name in the page.
        title: what is shown.
        unit: the unit of the values, empty where they have none.
        x: steps [points].
        lines: at least one.
        log: whether its axis is logarithmic.
        square: whether the reader may ask for the square of it (a variance for a std).
        scale: charts with the same name here share the range of their axes.
        note: a sentence under the picture.
    """

    key: str
    title: str
    unit: str
    x: Sequence[int]
    lines: Sequence[Line]
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
            "lines": [line.payload() for line in self.lines],
        }


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
    curves = [
        (at, trial, curve)
        for at, method in enumerate(run.methods)
        for trial in run.trials[method]
        if (curve := _curve(trial, metric))
    ]
    steps = sorted({step for _, _, curve in curves for step in curve})
    if not steps:
        return None
    if len(steps) > points:
        picks = np.linspace(0, len(steps) - 1, points).round().astype(int)
        steps = [steps[pick] for pick in picks]
    rows: dict[int, list[tuple[Trial, Rows]]] = {}
    for at, trial, curve in curves:
        row = np.array([curve.get(step, np.nan) * factor for step in steps])
        rows.setdefault(at, []).append((trial, row))
    lines = [line for at, found in rows.items() for line in lines_of(at, found)]
    return Chart(metric, title, unit, steps, lines, log=log)
