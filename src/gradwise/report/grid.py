"""The rows of the table on a grid of learning rates."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gradwise.report.folder import CompareRun
from gradwise.report.settings import learning_rate
from gradwise.report.tables import paint
from gradwise.report.values import number
from gradwise.report.words import percent

__all__ = ["Cell", "GridRow", "grid_rows"]


@dataclass(frozen=True)
class Cell:
    """One method with one learning rate, in words.

    Attributes:
        validation: mean accuracy on the rows held out.
        test: mean test accuracy.
        odd: how many trials did not finish, and how they ended; empty where all did.
        chosen: whether the method is judged by this learning rate.
    """

    validation: str
    test: str
    odd: str
    chosen: bool


@dataclass(frozen=True)
class GridRow:
    """One method.

    Attributes:
        name: the method.
        color: number of its colour.
        dash: number of its dash pattern.
        cells: one a learning rate, in ascending order.
    """

    name: str
    color: int
    dash: int
    cells: tuple[Cell, ...]


def grid_rows(run: CompareRun) -> list[GridRow]:
    """One row a method; empty where there is no grid.

    Args:
        run: the compare run.
    """
    if not run.rates:
        return []
    return [
        GridRow(
            method,
            *colors,
            tuple(
                _cell(run.rate_facts(method, rate), rate == learning_rate(run, method))
                for rate in run.rates
            ),
        )
        for method, colors in zip(run.methods, paint(run), strict=True)
    ]


def _cell(facts: Mapping[str, Any], chosen: bool) -> Cell:
    status = facts.get("status")
    ends = [one for one in status if isinstance(one, str)] if isinstance(status, list) else []
    counts = Counter(one for one in ends if one in ("diverged", "failed", "missing"))
    return Cell(
        percent(_mean(facts.get("validation_accuracy"))),
        percent(_mean(facts.get("test_accuracy"))),
        ", ".join(f"{count} {ended}" for ended, count in counts.items()),
        chosen,
    )


def _mean(accuracy: object) -> float | None:
    return number(accuracy.get("mean")) if isinstance(accuracy, dict) else None
