"""What the trainings of the language model found, as tables of numbers by method and condition."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gradwise.errors import UserError

__all__ = ["Found", "read", "width_below"]

Floats = NDArray[np.float64]
Key = tuple[str, str]


@dataclass(frozen=True)
class Found:
    """Losses in bits a character by (method, condition).

    A model that diverged, or is worse than guessing blindly, counts as guessing blindly: that can
    always be had instead of it.

    Attributes:
        methods: names.
        conditions: names, "clean" among them.
        rates: `[L]` learning rates, rising.
        seeds: of the runs.
        uniform: loss of guessing blindly.
        validation: `[S, L]` of each key, the part of the text to choose by.
        test: likewise, the part to report.
        diverged: `[S, L]` of each key, which runs diverged.
        losses: `[S, T]` of each key, of the steps at `curve_lr`; NaN where there is none.
        bad_steps: of each seed.
        text: facts on the text.
    """

    methods: tuple[str, ...]
    conditions: tuple[str, ...]
    rates: tuple[float, ...]
    seeds: tuple[int, ...]
    uniform: float
    validation: dict[Key, Floats]
    test: dict[Key, Floats]
    diverged: dict[Key, NDArray[np.bool_]]
    losses: dict[Key, Floats]
    bad_steps: dict[int, list[int]]
    text: dict[str, Any]

    @property
    def bad(self) -> tuple[str, ...]:
        """The conditions with bad batches."""
        return tuple(condition for condition in self.conditions if condition != "clean")

    def chosen(self, method: str, condition: str) -> NDArray[np.intp]:
        """`[S]`: place of each seed's learning rate with the least validation loss."""
        places: NDArray[np.intp] = np.argmin(self.validation[method, condition], axis=1)
        return places

    def best(self, method: str, condition: str, chosen_in: str | None = None) -> Floats:
        """`[S]`: test loss at the learning rate chosen by validation.

        Args:
            method: its name.
            condition: of the training.
            chosen_in: the condition in which the learning rate is chosen; None for the same.
        """
        places = self.chosen(method, chosen_in or condition)
        best: Floats = self.test[method, condition][np.arange(len(self.seeds)), places]
        return best

    def damage(self, method: str, condition: str, *, chosen_anew: bool = True) -> Floats:
        """`[S]`: what bad batches add to the test loss.

        Args:
            method: its name.
            condition: with bad batches.
            chosen_anew: whether the learning rate is chosen again under bad batches, or stays.
        """
        chosen_in = None if chosen_anew else "clean"
        return self.best(method, condition, chosen_in) - self.best(method, "clean")

    def width(self, method: str, condition: str, within: float) -> Floats:
        """`[S]`: half decades of learning rates whose test loss is near the best of all methods.

        Args:
            method: its name.
            condition: of the training.
            within: bits a character from the least loss of any method and learning rate.
        """
        least = np.min([self.test[one, condition].min(axis=1) for one in self.methods], axis=0)
        curves = self.test[method, condition]
        widths = [
            width_below(self.rates, curve, bar + within)
            for curve, bar in zip(curves.tolist(), least.tolist(), strict=True)
        ]
        return np.array(widths, dtype=np.float64)


def width_below(rates: Sequence[float], losses: Sequence[float], bar: float) -> float:
    """Half decades of learning rates at which the loss is at most `bar`.

    Between the rates that were tried the loss is taken to be straight over their logarithm.

    Args:
        rates: rising.
        losses: one a rate.
        bar: the bound.

    Examples:
        >>> round(width_below([1e-3, 1e-2, 1e-1], [3.0, 2.0, 3.0], 2.5), 6)
        2.0
    """
    total = 0.0
    for at in range(len(rates) - 1):
        low, high = sorted(losses[at : at + 2])
        if high <= bar:
            share = 1.0
        elif low >= bar:
            share = 0.0
        else:
            share = (bar - low) / (high - low)
        total += share * 2 * math.log10(rates[at + 1] / rates[at])
    return total


def read(settings: dict[str, Any], results: dict[str, dict[str, Any]]) -> Found:
    """The cells' results as numbers.

    Args:
        settings: of the recipe.
        results: by cell name.

    Raises:
        UserError: where a cell is missing or damaged, or they have not learnt the same text.
    """
    methods, conditions = tuple(settings["methods"]), tuple(settings["conditions"])
    seeds = tuple(settings["seeds"])
    cells: dict[tuple[str, str, int], dict[str, Any]] = {}
    for method in methods:
        for condition in conditions:
            for seed in seeds:
                name = f"{condition}.{method}.seed={seed}"
                if name not in results:
                    raise UserError(f"expected a result of cell {name}, got none")
                cells[method, condition, seed] = results[name]
    try:
        return _gather(settings, cells)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(
            f"results of cells are damaged ({type(error).__name__}: {error}); "
            "run the recipe anew with another --out"
        ) from error


def _gather(settings: dict[str, Any], cells: dict[tuple[str, str, int], dict[str, Any]]) -> Found:
    methods, conditions = tuple(settings["methods"]), tuple(settings["conditions"])
    rates, seeds = tuple(map(float, settings["learning_rates"])), tuple(settings["seeds"])
    first = next(iter(cells.values()))
    if any(cell["text"] != first["text"] for cell in cells.values()):
        raise UserError("cells have learnt different texts; run all of them with another --out")
    uniform = float(first["uniform_bits"])
    tables: dict[str, dict[Key, Any]] = {"validation": {}, "test": {}, "diverged": {}, "losses": {}}
    for method in methods:
        for condition in conditions:
            key = (method, condition)
            runs = [cells[method, condition, seed]["runs"] for seed in seeds]
            for part in ("validation", "test"):
                table = _numbers([[one[part] for one in row] for row in runs])
                if table.shape != (len(seeds), len(rates)):
                    raise ValueError(f"{table.shape} losses")
                tables[part][key] = np.where(table < uniform, table, uniform)
            tables["diverged"][key] = np.array(
                [
                    [one["diverged_at"] is not None or one["test"] is None for one in row]
                    for row in runs
                ]
            )
            at = rates.index(float(settings["curve_lr"]))
            tables["losses"][key] = _numbers([row[at]["losses"] for row in runs])
    bad = [condition for condition in conditions if condition != "clean"]
    steps = {seed: cells[methods[0], bad[0], seed]["bad_steps"] if bad else [] for seed in seeds}
    return Found(
        methods, conditions, rates, seeds, uniform, **tables, bad_steps=steps, text=first["text"]
    )


def _numbers(rows: list[list[float | None]]) -> Floats:
    """A table with NaN for what is no number."""
    return np.array([[np.nan if x is None else float(x) for x in row] for row in rows], dtype=float)
