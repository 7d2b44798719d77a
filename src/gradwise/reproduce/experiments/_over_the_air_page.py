"""What trainings over the air say together: accuracies by condition, a table, pictures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from gradwise.errors import UserError
from gradwise.report.article import Picture, Table
from gradwise.report.drawing import COLORS, axes, band, svg
from gradwise.reproduce.experiments._over_the_air import METHODS
from gradwise.reproduce.experiments._pairs import All

__all__ = ["ADAPTIVE", "LAST", "Accuracies", "Key", "keys", "name", "pictures", "table", "tail"]

ADAPTIVE = ("adagrad", "adam")
LAST = 3
"""Of the checks, what is averaged as the end."""

Key = tuple[str, float | None, int]
"""A method, a tail index (None: no interference) and a number of clients."""


def keys(settings: dict[str, Any]) -> list[Key]:
    """All conditions: every method and tail, then the other numbers of clients."""
    usual = settings["clients"]
    main: list[Key] = [
        (method, alpha, usual) for method in METHODS for alpha in (None, *settings["alphas"])
    ]
    return main + [
        (method, settings["clients_alpha"], clients)
        for method in ADAPTIVE
        for clients in settings["other_clients"]
        if clients != usual
    ]


def name(key: Key, seed: int) -> str:
    """What the cell of a condition and a seed is called."""
    method, alpha, clients = key
    shown = "clean" if alpha is None else f"alpha={alpha:g}"
    return f"{method}-{shown}-clients={clients}-seed={seed}"


def tail(alpha: float | None) -> str:
    """A tail index in words."""
    return "no interference" if alpha is None else f"alpha {alpha:g}"


class Accuracies:
    """Accuracies by condition; a network that says what is no number is right by chance."""

    def __init__(self, settings: dict[str, Any], results: dict[str, dict[str, Any]]) -> None:
        self.settings = settings
        self.cells = {
            (*key, seed): results[name(key, seed)]
            for seed in settings["seeds"]
            for key in keys(settings)
            if name(key, seed) in results
        }
        if not self.cells:
            raise UserError("expected results of at least one cell, got none")
        self.chance = float(next(iter(self.cells.values()))["chance"])
        self.lost = 0
        self.best = {key: self._best(key) for key in keys(settings)}

    def _shown(self, values: Sequence[float | None]) -> list[float]:
        return [
            value if value is not None and math.isfinite(value) else self.chance for value in values
        ]

    def _best(self, key: Key) -> int | None:
        """Which learning rate has the highest mean accuracy on the validation rows."""
        found = [
            self.cells[(*key, s)]["trainings"]
            for s in self.settings["seeds"]
            if (*key, s) in self.cells
        ]
        if not found:
            return None
        means = [
            statistics.fmean(statistics.fmean(self._shown(of["validation"])) for of in each)
            for each in zip(*found, strict=True)
        ]
        return means.index(max(means))

    def courses(self, key: Key) -> dict[int, list[float]]:
        """Test accuracies over the rounds by seed, at the best learning rate."""
        best = self.best[key]
        if best is None:
            return {}
        return {
            seed: self._shown(self.cells[(*key, seed)]["trainings"][best]["accuracy"])
            for seed in self.settings["seeds"]
            if (*key, seed) in self.cells
        }

    def ends(self, key: Key) -> dict[int, float]:
        """Test accuracy by seed at the end, the mean of the last checks."""
        return {seed: statistics.fmean(c[-LAST:]) for seed, c in self.courses(key).items()}

    def means(self, key: Key) -> dict[int, float]:
        """Test accuracy by seed, the mean over all checks: high where it rises fast."""
        return {seed: statistics.fmean(c) for seed, c in self.courses(key).items()}

    def lr(self, key: Key) -> str:
        """The best learning rate."""
        best = self.best[key]
        return "" if best is None else f"{self.settings[f'{key[0]}_lrs'][best]:g}"

    def diverged(self) -> list[str]:
        """Conditions under which the chosen training ended in what is no number."""
        found = []
        for key, best in self.best.items():
            for seed in self.settings["seeds"]:
                cell = self.cells.get((*key, seed))
                if cell and best is not None and None in cell["trainings"][best]["accuracy"]:
                    found.append(f"{METHODS[key[0]][0]}, {tail(key[1])}, seed {seed}")
        return found


def table(data: Accuracies) -> Table:
    """Accuracies of all conditions."""
    rows = []
    for key in keys(data.settings):
        ends, means = data.ends(key), data.means(key)
        if ends:
            judged = All({"": list(ends.values())}).judged[""]
            shown = "" if judged is None else judged.words("%", 100)
            slow = f"{100 * statistics.fmean(means.values()):.1f} %"
            rows.append((METHODS[key[0]][0], tail(key[1]), str(key[2]), shown, slow, data.lr(key)))
    return Table(
        "Test accuracy",
        ("server", "interference", "clients", "at the end", "mean over rounds", "learning rate"),
        tuple(rows),
    )


def pictures(data: Accuracies, counts: Sequence[int]) -> tuple[Picture, ...]:
    """Accuracy over the rounds by tail index, and by the number of clients."""
    settings, usual = data.settings, data.settings["clients"]
    tails = [None, *reversed(settings["alphas"])]
    with axes(1, len(METHODS), sharey=True) as (figure, panels):
        for panel, method in zip(panels, METHODS, strict=True):
            for alpha, color in zip(tails, COLORS, strict=False):
                courses = data.courses((method, alpha, usual))
                if courses:
                    seed = next(iter(courses))
                    cell = data.cells[(method, alpha, usual, seed)]
                    rows = [[100 * x for x in course] for course in courses.values()]
                    rounds = cell["trainings"][0]["rounds"]
                    band(panel, rounds, rows, tail(alpha), color)
            panel.set_title(METHODS[method][0])
            panel.set_xlabel("rounds")
        panels[0].set_ylabel("test accuracy, %")
        _bounded(panels[0])
        if panels[-1].lines:
            panels[-1].legend(loc="lower right")
        over = Picture(
            "over-the-air-rounds",
            f"Test accuracy over the rounds with {usual} clients by tail index of the "
            "interference, each at its best learning rate: mean over the seeds and its 95 % "
            "interval.",
            "Three panels, SGD, AdaGrad-OTA and Adam-OTA; in each a curve without interference "
            "and one for each tail index. The table has the numbers at their right ends.",
            svg(figure),
        )
    with axes(height=2.8) as (figure, panel):
        alpha = settings["clients_alpha"]
        for method, color in zip(ADAPTIVE, COLORS[1:], strict=False):
            by_seed = [data.ends((method, alpha, n)) for n in counts]
            seeds = [seed for seed in settings["seeds"] if all(seed in of for of in by_seed)]
            if seeds:
                rows = [[100 * of[seed] for of in by_seed] for seed in seeds]
                band(panel, counts, rows, METHODS[method][0], color, marker="o")
        panel.set_xscale("log")
        panel.set_xticks(counts, [str(n) for n in counts])
        panel.minorticks_off()
        panel.set_xlabel("clients")
        panel.set_ylabel("test accuracy, %")
        _bounded(panel)
        if panel.lines:
            panel.legend()
        clients = Picture(
            "over-the-air-clients",
            f"Test accuracy at the end by the number of clients, at {tail(alpha)}.",
            "A curve a method over the number of clients; the table has the numbers.",
            svg(figure),
        )
    return over, clients


def _bounded(panel: Any) -> None:
    """No percent below 0 or above 100, where few seeds make wide bands."""
    low, high = panel.get_ylim()
    panel.set_ylim(max(low, 0.0), min(high, 100.0))
