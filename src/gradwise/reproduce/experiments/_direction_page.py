"""What the runs of `direction_noise` say together: by rule and batch size, in tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradwise.analysis.noise import CriticalBatch, c2_bound, critical_batch_size
from gradwise.errors import UserError
from gradwise.report.article import Table
from gradwise.reproduce.claims import INCONCLUSIVE, judge_greater
from gradwise.reproduce.experiments._direction_runs import RULES
from gradwise.reproduce.experiments._several import Several, each, is_number

NAMES = {"sgd": "SGD", "shb": "SHB", "nshb": "NSHB"}


class Data:
    """Cells by batch size."""

    def __init__(self, settings: dict[str, Any], results: dict[str, dict[str, Any]]) -> None:
        self.settings, self.results = settings, results
        self.sizes: list[int] = settings["batch_sizes"]
        self.judged = [b for b in self.sizes if b >= settings["judged_from"]]
        self.middle = self.sizes[len(self.sizes) // 2]

    def cells(self, size: int) -> list[dict[str, Any]]:
        """One a seed."""
        names = [f"b={size}-seed={seed}" for seed in self.settings["seeds"]]
        return [self.results[name] for name in names if name in self.results]

    def runs(self, rule: str, size: int) -> list[dict[str, Any]]:
        """Those that did not diverge."""
        return [cell[rule] for cell in self.cells(size) if cell[rule] is not None]

    def level(self, cell: dict[str, Any], rule: str, name: str = "noise") -> float:
        """Mean over the looks of log10 of a number; ValueError or TypeError where one has none."""
        looks = [math.log10(look[name]) for look in cell[rule]["courses"]]
        return math.fsum(looks) / len(looks)

    def slope_along(self, rule: str) -> str:
        """Of the gradient noise at runs' own points over the batch size, in words."""
        points: list[float] = []
        for size in self.sizes:
            logs = [
                value
                for cell in self.cells(size)
                if is_number(value := or_nan(lambda c=cell: self.level(c, rule, "c2")))  # type: ignore[misc]  # its own cell
            ]
            if not logs:
                return "no numbers"
            points.append(math.fsum(logs) / len(logs) - math.log10(size))
        return f"{_slope([math.log10(b) for b in self.sizes], points):.3g}"

    @property
    def threshold(self) -> str:
        """What has to be reached, in words."""
        value = self.settings["threshold"]
        if self.settings["criterion"] == "loss":
            return f"the loss of the whole set is {value:g}"
        return f"the root mean square gradient norm of the run so far is {value:g}"

    def limit(self, size: int) -> int:
        """Samples that a run has."""
        samples = max((cell["samples"] for cell in self.cells(size)), default=0)
        return int(samples // size * size * self.settings["epochs"])


def or_nan(value: Callable[[], float]) -> float:
    """NaN where a number is missing or has no logarithm."""
    try:
        return value()
    except (TypeError, ValueError):
        return math.nan


def slope(sizes: Sequence[int], noises: Sequence[Sequence[float]]) -> float:
    """Of log noise over log b, the mean over points.

    Args:
        sizes: b.
        noises: by point, one a batch size.

    Raises:
        ValueError: where there is no point, or a number is not positive.
    """
    if not noises:
        raise ValueError("no point")
    logs = [math.log(b) for b in sizes]
    slopes = [_slope(logs, [math.log(value) for value in point]) for point in noises]
    return math.fsum(slopes) / len(slopes)


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    return float(np.polyfit(x, y, 1)[0])


# --- the critical batch size ---


@dataclass(frozen=True)
class Critical:
    """Of one rule: the sweep, None where no batch size always got there, and the verdict."""

    sweep: CriticalBatch | None
    verdict: str
    words: str


def critical(data: Data, rule: str) -> Critical:
    """Whether fewest samples are needed inside the grid of batch sizes, and not at its ends.

    A run that did not get there needs at least the samples that it had.
    """
    steps = [
        (size, None if cell[rule] is None else cell[rule]["reached"])
        for size in data.sizes
        for cell in data.cells(size)
    ]
    try:
        found = critical_batch_size(steps)
    except UserError:
        return Critical(None, INCONCLUSIVE, f"{NAMES[rule]} did not get there")
    best = f"{NAMES[rule]} fewest, {found.sfo:.3g}, at b = {found.batch_size}"
    if not found.bracketed:
        return Critical(found, INCONCLUSIVE, f"{best}, the end of the grid")
    more = Several(
        {
            f"at b = {end}": each(
                zip(data.cells(end), data.cells(found.batch_size), strict=False),
                lambda pair, end=end: math.log2(  # type: ignore[misc]  # its own end
                    _samples(data, pair[0], rule, end)
                    / _samples(data, pair[1], rule, found.batch_size)
                ),
                judge_greater,
            )
            for end in (data.sizes[0], data.sizes[-1])
        }
    )
    return Critical(
        found, more.verdict, f"{best}; log2 of how many times more, at least, {more.words()}"
    )


def _samples(data: Data, cell: dict[str, Any], rule: str, size: int) -> float:
    reached = None if cell[rule] is None else cell[rule]["reached"]
    return float(data.limit(size) if reached is None else reached * size)


# --- tables ---


def tables(data: Data, costs: dict[str, Critical]) -> tuple[Table, ...]:
    """Noise along runs, critical batch sizes, and noise at rest."""
    return (_noise_table(data), _critical_table(data, costs), _rest_table(data))


def _noise_table(data: Data) -> Table:
    rows = []
    for size in data.sizes:
        for rule in RULES:
            runs = data.runs(rule, size)
            looks = [look for run in runs for look in run["courses"]]
            names = ("noise", "lag2", "spread", "variance", "norm", "c2")
            rows.append(
                (
                    str(size),
                    NAMES[rule],
                    *(_geometric([look[name] for look in looks]) for name in names),
                    _mean([run["losses"][-1] for run in runs]),
                    f"{len(runs)} of {len(data.cells(size))}",
                )
            )
    return Table(
        "Noise of the coming step along the run",
        (
            "b",
            "rule",
            "E|omega|^2",
            "lag^2",
            "spread",
            "E|g - G|^2",
            "|G|",
            "C^2",
            "loss at the end",
            "runs",
        ),
        tuple(rows),
        "Geometric means over points of the run and seeds, each rule at its own points; of the "
        "loss the mean. E|omega|^2 = lag^2 + spread: what the buffer holds from before, and what "
        "the batch of the step adds; SGD has no lag.",
    )


def _critical_table(data: Data, costs: dict[str, Critical]) -> Table:
    settings, rows = data.settings, []
    for rule in RULES:
        found = costs[rule].sweep
        shown = [
            "—" if found is None or found.costs[k] is None else f"{found.costs[k]:.3g}"
            for k in range(len(data.sizes))
        ]
        best, bound, measured = "—", "—", "—"
        if found is not None:
            best = str(found.batch_size) + ("" if found.bracketed else " (end)")
            looks = [c for run in data.runs(rule, found.batch_size) for c in run["courses"]]
            measured = _geometric([look["c2"] for look in looks])
            if settings["criterion"] == "gradient":
                value = c2_bound(
                    found.batch_size,
                    threshold=settings["threshold"],
                    lr=settings["lr"],
                    rule=rule,  # type: ignore[arg-type]  # RULES are those
                    beta=settings["beta"],
                )
                bound = f"{value:.3g}"
        rows.append((NAMES[rule], *shown, best, bound, measured))
    return Table(
        "Samples until the threshold",
        ("rule", *(f"b = {b}" for b in data.sizes), "b*", "bound on C^2", "C^2 measured"),
        tuple(rows),
        f"Until {data.threshold}; means over seeds, — where not every seed got there. The paper "
        "estimates C^2 by the bound, which needs a threshold of the gradient norm.",
    )


def _rest_table(data: Data) -> Table:
    beta = data.settings["beta"]
    predicted = {"sgd": 1.0, "shb": 1 / (1 - beta**2), "nshb": (1 - beta) / (1 + beta)}
    rests = [cell["rest"] for cell in data.cells(data.sizes[0]) if cell["rest"] is not None]
    rows = []
    for rule in RULES:
        judged = each(rests, lambda rest, rule=rule: rest[rule], judge_greater)  # type: ignore[misc]  # its own rule
        rows.append(
            (
                NAMES[rule],
                f"{predicted[rule]:.4g}",
                "—" if judged is None else judged.words(digits=4),
            )
        )
    return Table(
        "Not the paper's: spread at rest, over that of SGD",
        ("rule", "closed form", "measured"),
        tuple(rows),
        f"Batches of {data.sizes[0]} drawn again and again at the last point of SGD, which stays "
        "where it is. Closed forms: SHB 1 / (1 - beta^2), NSHB (1 - beta) / (1 + beta).",
    )


def _geometric(values: Sequence[Any]) -> str:
    if values and all(value == 0 for value in values):
        return "0"
    logs = [math.log(value) for value in values if is_number(value) and value > 0]
    return f"{math.exp(math.fsum(logs) / len(logs)):.3g}" if logs else "—"


def _mean(values: Sequence[Any]) -> str:
    finite = [value for value in values if is_number(value)]
    return f"{math.fsum(finite) / len(finite):.3g}" if finite else "—"


def notes(data: Data) -> tuple[str, ...]:
    """What a reader has to know."""
    settings, beta = data.settings, data.settings["beta"]
    told = [
        f"The network is {settings['network']} on {settings['data']}, trained without augmentation "
        "and weight decay. Noise is measured before a step, at the point where it begins, in "
        "evaluation mode; the authors' code takes the whole gradient after the step and in "
        "training mode. All rules have the same learning rate, with which heavy ball moves "
        f"{1 / (1 - beta):.3g} times as fast.",
        "Not the paper's: at a point that stays where it is, NSHB does reduce the spread, to "
        f"(1 - beta) / (1 + beta) = {(1 - beta) / (1 + beta):.3g} of SGD's, and SHB's is "
        f"1 / (1 - beta^2) = {1 / (1 - beta**2):.3g} of it. Along a run the point moves, and "
        "what the buffer holds is part of the noise.",
        "The paper's constant C^2 is an upper bound that a critical batch size gives; here it is "
        "measured. Earlier versions of the paper said that momentum reduces the noise of the "
        "gradient.",
    ]
    if len(data.judged) < len(data.sizes):
        told.append(
            f"Batch sizes below {settings['judged_from']}, which the paper does not have, are here "
            "for the critical batch size; whether momentum reduces noise is not judged by them."
        )
    lost = [
        f"{NAMES[rule]} at b = {size}"
        for size in data.sizes
        for rule in RULES
        if len(data.runs(rule, size)) < len(data.cells(size))
    ]
    if lost:
        told.append(f"Runs that diverged and are left out: {', '.join(lost)}.")
    return tuple(told)
