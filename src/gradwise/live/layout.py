"""Which columns a table of layers has at a given width."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gradwise.live.order import ALERTS, LAYER

__all__ = ["COLUMNS", "MARK", "Column", "Layout", "columns_for", "fit"]

MARK = 3  # cells for the sign of an alert
_SPARK_LEAST = 8
_SPARK_USUAL = 24
_SPARK_MOST = 120
_GAP = 1


@dataclass(frozen=True)
class Column:
    """One column of numbers.

    Attributes:
        metric: the layer metric in it.
        title: what stands above it.
        width: cells.
        meaning: what it is, for the help.
    """

    metric: str
    title: str
    width: int
    meaning: str


# In the order in which they stand, and with how long they are kept when it gets narrow.
_KNOWN = (
    (Column("norm", "norm", 8, "Euclidean norm of the layer's gradient"), 0),
    (Column("std", "std", 8, "standard deviation of its entries"), 1),
    (Column("mean", "mean", 9, "mean of its entries"), 4),
    (Column("max_abs", "max", 8, "largest magnitude among its entries"), 3),
    (Column("zeros", "zeros", 6, "share of its entries that are exactly zero"), 6),
    (Column("nonfinite", "nan/inf", 7, "entries that are NaN or infinite"), 5),
    (Column("weight_norm", "weight", 8, "Euclidean norm of the layer's weights"), 7),
    (
        Column("update_ratio", "update", 8, "norm of the last update divided by the weights' norm"),
        2,
    ),
    (Column("var", "var", 8, "variance of the gradient's entries"), 10),
    (Column("cosine", "cosine", 7, "cosine to the gradient sampled before"), 8),
    (Column("sign_agreement", "signs", 6, "share of entries with the same sign as before"), 9),
)

COLUMNS = tuple(column for column, _ in _KNOWN)
"""The columns of numbers that are known, in the order in which they stand."""

_ROOM = ((8, _SPARK_USUAL), (4, 14), (0, _SPARK_LEAST))  # by how long a column is kept

_RANK = {column.metric: rank for column, rank in _KNOWN}


def columns_for(metrics: Iterable[str]) -> list[Column]:
    """The columns of a run: those that are known in their order, and any others after them.

    Args:
        metrics: the run's layer metrics.
    """
    given = list(metrics)
    known = [column for column in COLUMNS if column.metric in given]
    names = {column.metric for column in known}
    others = [Column(m, m[:12], max(8, min(len(m), 12)), m) for m in given if m not in names]
    return [*known, *others]


@dataclass(frozen=True)
class Layout:
    """Where things stand in a line of the table.

    Attributes:
        columns: those that are shown.
        hidden: those that there is no room for.
        name: cells for the layer's name.
        spark: cells for its curve; 0 where there is no room for one.
    """

    columns: tuple[Column, ...]
    hidden: tuple[Column, ...]
    name: int
    spark: int

    @property
    def width(self) -> int:
        """Cells of a whole line."""
        values = sum(_GAP + column.width for column in self.columns)
        return MARK + self.name + values + (2 * _GAP + self.spark if self.spark else 0)

    def at(self, x: int) -> str | None:
        """What stands at a cell: `ALERTS`, `LAYER`, a metric, "" for the curve; None for nothing.

        Args:
            x: the cell, from 0.
        """
        edge = MARK
        if x < edge:
            return ALERTS
        edge += self.name
        if x < edge:
            return LAYER
        for column in self.columns:
            edge += _GAP + column.width
            if x < edge:
                return column.metric
        return "" if self.spark and x < self.width else None


def fit(
    metrics: Sequence[str], width: int, longest: int, keep: Sequence[str | None] = ()
) -> Layout:
    """Choose the columns that fit, the more important ones first.

    Args:
        metrics: the run's layer metrics.
        width: cells there are.
        longest: cells of the longest name.
        keep: metrics whose columns come before all others: those that somebody asked for.

    Examples:
        >>> layout = fit(["mean", "std", "norm"], 60, 20, ["mean"])
        >>> [column.title for column in layout.columns], layout.name, layout.spark
        (['norm', 'mean'], 20, 16)
        >>> narrow = fit(["mean", "std", "norm"], 36, 20, ["mean"])
        >>> [column.title for column in narrow.columns]
        ['mean']
    """
    there = columns_for(metrics)
    wanted = sorted(
        there, key=lambda one: (one.metric not in keep, _RANK.get(one.metric, len(_RANK)))
    )
    name = min(longest, max(min(width // 3, 8 + width // 5, 28), 1))  # the least it gets
    spark = _SPARK_LEAST if there and width >= MARK + name + 2 * _GAP + _SPARK_LEAST else 0
    left = width - MARK - name - (2 * _GAP + spark if spark else 0)
    chosen = []
    for column in wanted:
        if left < _GAP + column.width + (0 if column.metric in keep else _room(column) - spark):
            break
        left -= _GAP + column.width
        chosen.append(column)
    if left < 0:
        name, left = max(name + left, 1), 0
    # What is left goes to the names and to the curves in turn.
    for most_name, most_spark in ((40, _SPARK_USUAL), (longest, _SPARK_MOST)):
        name, left = _grown(name, min(most_name, longest), left)
        if spark:
            spark, left = _grown(spark, most_spark, left)
    return Layout(
        columns=tuple(column for column in there if column in chosen),
        hidden=tuple(column for column in there if column not in chosen),
        name=name,
        spark=spark,
    )


def _room(column: Column) -> int:
    """What a column has to leave to the curves, which are worth more than the least of them."""
    rank = _RANK.get(column.metric, 0)
    return next(cells for least, cells in _ROOM if rank >= least)


def _grown(size: int, most: int, left: int) -> tuple[int, int]:
    """A width that takes of what is left as much as it has use for, and what is left then."""
    more = max(min(most - size, left), 0)
    return size + more, left - more
