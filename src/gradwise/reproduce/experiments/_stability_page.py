"""What runs of `shallow_stability` say together: by step, in a table and in pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gradwise.report.article import Picture, Table
from gradwise.report.drawing import COLORS, axes, band, svg
from gradwise.reproduce.claims import Judged
from gradwise.reproduce.experiments._several import Several, each, is_number


class Data:
    """Results by seed, size and step."""

    def __init__(self, settings: dict[str, Any], results: dict[str, dict[str, Any]]) -> None:
        names = [f"seed={seed}" for seed in settings["seeds"]]
        self.results = [results[name] for name in names if name in results]
        self.ns, self.steps = settings["ns"], settings["steps"]

    def value(self, result: dict[str, Any], name: str, n: int, step: int) -> float:
        """A number of one seed; raises TypeError where it is missing."""
        found = result["sizes"][str(n)][name][result["at"].index(step)]
        if not is_number(found):
            raise TypeError("not a number")
        return float(found)

    def rows(self, name: str, step: int) -> list[list[float]]:
        """By seed, values over the sizes; NaN where there is none."""
        rows = []
        for result in self.results:
            place = result["at"].index(step)
            values = [result["sizes"][str(n)][name][place] for n in self.ns]
            rows.append([float(x) if is_number(x) else math.nan for x in values])
        return rows

    def at_steps(
        self, value: Callable[[dict[str, Any], int], float], judge: Callable[[list[float]], Judged]
    ) -> Several:
        """Judge a number of each seed at each step that is compared."""
        return Several(
            {
                f"step {t}": each(
                    self.results,
                    lambda result, t=t: value(result, t),  # type: ignore[misc]  # its own step
                    judge,
                )
                for t in self.steps
            }
        )

    def slope(self, result: dict[str, Any], name: str, step: int, log: bool) -> float:
        """Of a value, or of its binary logarithm, over log2 n: what a doubling of n changes."""
        values = [self.value(result, name, n, step) for n in self.ns]
        if log:
            values = [math.log2(x) for x in values]
        return float(np.polyfit(np.log2(self.ns), values, 1)[0])


def table(data: Data) -> Table:
    """Means over seeds by size and step."""
    rows = []
    for k, n in enumerate(data.ns):
        for t in data.steps:
            eps = [row[k] for row in data.rows("eps_squared", t)]
            rows.append(
                (
                    str(n),
                    str(t),
                    _mean(eps),
                    _mean([n * n * x for x in eps]),
                    *(
                        _mean([row[k] for row in data.rows(name, t)])
                        for name in ("constant", "train_loss", "gap", "bound")
                    ),
                )
            )
    return Table(
        "Stability and gap",
        (
            "n",
            "step",
            "eps^2",
            "n^2 eps^2",
            "over (lr^2 t / n^2) sum of losses",
            "training loss",
            "gap",
            "bound",
        ),
        tuple(rows),
        "Means over seeds.",
    )


def _mean(values: Sequence[float]) -> str:
    finite = [value for value in values if is_number(value)]
    return f"{math.fsum(finite) / len(finite):.3g}" if finite else "—"


def pictures(data: Data) -> tuple[Picture, ...]:
    """The law of eps^2, and the gap under its bound."""
    if not data.results:
        return ()
    return (_law(data), _gap(data))


def _law(data: Data) -> Picture:
    with axes(1, 2, height=3.2) as (figure, (left, right)):
        for t in data.steps:
            rows = data.rows("eps_squared", t)
            band(left, data.ns, rows, f"step {t}", marker="o")
            scaled = [[n * n * x for n, x in zip(data.ns, row, strict=True)] for row in rows]
            band(right, data.ns, scaled, f"step {t}", marker="o")
        first = [row[0] for row in data.rows("eps_squared", data.steps[-1]) if row[0] > 0]
        if first:
            top = math.fsum(first) / len(first)
            law = [top * (data.ns[0] / n) ** 2 for n in data.ns]
            left.plot(data.ns, law, ":", color="#6b6b6b", label="1/n^2")
        for axis, title in ((left, "eps^2"), (right, "n^2 eps^2")):
            axis.set_xscale("log", base=2)
            axis.set_yscale("log")
            axis.set_xticks(data.ns, [str(n) for n in data.ns])
            axis.set_xlabel("samples n")
            axis.set_title(title)
        left.legend()
        return Picture(
            "stability-law",
            "On-average stability over the number of samples; where it follows the dotted law "
            "1/n^2, n^2 eps^2 is flat. Bands: 95 % intervals over seeds.",
            "Falling lines along a dotted one, and nearly flat lines beside them, one for each "
            "number of steps.",
            svg(figure),
        )


def _gap(data: Data) -> Picture:
    with axes(1, len(data.steps), height=2.9, squeeze=False, sharey=True) as (figure, grid):
        for axis, t in zip(grid[0], data.steps, strict=True):
            band(axis, data.ns, data.rows("gap", t), "gap", COLORS[0], "o")
            band(axis, data.ns, data.rows("bound", t), "bound", COLORS[1], "s")
            axis.set_xscale("log", base=2)
            axis.set_yscale("symlog", linthresh=0.01)  # a gap may be negative
            axis.set_xticks(data.ns, [str(n) for n in data.ns])
            axis.set_xlabel("samples n")
            axis.set_title(f"step {t}")
        grid[0][0].set_ylabel("test - training loss")
        grid[0][0].legend()
        return Picture(
            "stability-gap",
            "The generalisation gap and what stability allows it to be. The axis is linear below "
            "0.01. Bands: 95 % intervals over seeds.",
            "Two falling lines a panel, the bound far above the gap; a panel for each number of "
            "steps.",
            svg(figure),
        )
