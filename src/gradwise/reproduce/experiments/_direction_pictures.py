"""The pictures of `direction_noise`: noise over steps and batch sizes, samples to a threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gradwise.report.article import Picture
from gradwise.report.drawing import COLORS, axes, band, svg
from gradwise.reproduce.experiments._direction_page import NAMES, Data, or_nan
from gradwise.reproduce.experiments._direction_runs import RULES
from gradwise.reproduce.experiments._several import is_number


def pictures(data: Data) -> tuple[Picture, ...]:
    """Noise over steps and over batch sizes, and samples until the threshold."""
    if not any(data.runs(rule, size) for rule in RULES for size in data.sizes):
        return ()
    return (_courses(data), _by_size(data), _costs(data))


def _logs(values: Sequence[Any]) -> list[float]:
    return [math.log10(v) if is_number(v) and v > 0 else math.nan for v in values]


def _courses(data: Data) -> Picture:
    shown = sorted({data.sizes[0], data.middle, data.sizes[-1]})
    with axes(1, len(shown), height=3.0, squeeze=False, sharey=True) as (figure, grid):
        for axis, size in zip(grid[0], shown, strict=True):
            for color, rule in zip(COLORS, RULES, strict=False):
                runs = data.runs(rule, size)
                rows = [_logs([look["noise"] for look in run["courses"]]) for run in runs]
                if rows:
                    band(axis, runs[0]["at"], rows, NAMES[rule], color, "o")
            axis.set_title(f"b = {size}")
            axis.set_xlabel("step")
        grid[0][0].set_ylabel("log10 of lag^2 + spread")
        grid[0][0].legend()
        return Picture(
            "direction-courses",
            "Noise of the coming step's direction along the run, against the gradient of the whole "
            "set at the same point. Bands: 95 % intervals over seeds.",
            "Lines of the logarithm of search-direction noise over steps for three rules; a panel "
            "for each of three batch sizes.",
            svg(figure),
        )


def _by_size(data: Data) -> Picture:
    seeds = range(len(data.settings["seeds"]))
    with axes(1, 3, height=3.0, sharey=True) as (figure, grid):
        for axis, name, title in zip(
            grid, ("noise", "lag2", "spread"), ("lag^2 + spread", "lag^2", "spread"), strict=True
        ):
            for color, rule in zip(COLORS, RULES, strict=False):
                rows = [
                    [
                        or_nan(lambda c=c, r=rule, n=name: data.level(c[0], r, n))  # type: ignore[misc]  # its own
                        if (c := data.cells(size)[seed : seed + 1])
                        else math.nan
                        for size in data.sizes
                    ]
                    for seed in seeds
                ]
                if any(is_number(x) for row in rows for x in row):
                    band(axis, data.sizes, rows, NAMES[rule], color, "o")
            axis.set_xscale("log", base=2)
            axis.set_title(title)
            axis.set_xlabel("batch size b")
        grid[0].set_ylabel("log10, mean over the run")
        grid[0].legend()
        return Picture(
            "direction-sizes",
            "Noise over the batch size and its two parts. The spread is what the batch of the step "
            "adds; the lag is what the buffer holds from earlier points, which SGD has not. Bands: "
            "95 % intervals over seeds.",
            "Falling lines of the logarithm of noise over batch size for three rules; panels for "
            "all noise, lag and spread.",
            svg(figure),
        )


def _costs(data: Data) -> Picture:
    with axes() as (figure, axis):
        for color, rule in zip(COLORS, RULES, strict=False):
            rows = [
                _logs([_reached(data, rule, size, seed) for size in data.sizes])
                for seed in range(len(data.settings["seeds"]))
            ]
            if any(is_number(x) for row in rows for x in row):
                band(axis, data.sizes, rows, NAMES[rule], color, "o")
        axis.set_xscale("log", base=2)
        axis.set_xlabel("batch size b")
        axis.set_ylabel("log10 of samples")
        if axis.lines:
            axis.legend()
        return Picture(
            "direction-samples",
            f"Samples until {data.threshold}, over the batch size; the critical batch size is "
            "where a line is lowest. Runs that did not get there are left out. Bands: 95 % "
            "intervals over seeds.",
            "Lines of the logarithm of samples to the threshold over batch size for three rules.",
            svg(figure),
        )


def _reached(data: Data, rule: str, size: int, seed: int) -> float:
    cells = data.cells(size)[seed : seed + 1]
    if not cells or cells[0][rule] is None or cells[0][rule]["reached"] is None:
        return math.nan
    return float(cells[0][rule]["reached"] * size)
