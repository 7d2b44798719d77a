"""Which layers are shown, and in which order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from gradwise.live.model import Snapshot
from gradwise.live.text import natural, shown

__all__ = ["ALERTS", "LAYER", "Order", "arrange"]

LAYER = "layer"
"""Name of the column with the layers' names, to sort by."""

ALERTS = "alerts"
"""Name of the column that marks layers with alerts, to sort by."""


@dataclass(frozen=True)
class Order:
    """How the layers are ordered.

    Attributes:
        column: `LAYER`, `ALERTS` or a layer metric; None for the model's own order.
        reverse: the other way round than is usual for that column, which is from the largest
            value down, and for names from A to Z.
    """

    column: str | None = None
    reverse: bool = False

    @property
    def descending(self) -> bool:
        """Whether the largest come first."""
        return (self.column not in (None, LAYER)) != self.reverse

    def clicked(self, column: str) -> Order:
        """The order after somebody chose a column: by it, then reversed, then the model's own.

        Args:
            column: as `column` above.

        Examples:
            >>> Order("norm").clicked("norm"), Order("norm", True).clicked("norm").column
            (Order(column='norm', reverse=True), None)
        """
        if column != self.column:
            return Order(column)
        return Order(None) if self.reverse else Order(column, reverse=True)


def arrange(
    snapshot: Snapshot, order: Order, words: str = "", *, only_alerts: bool = False
) -> npt.NDArray[np.intp]:
    """Which layers are shown, in which order.

    Args:
        snapshot: the run.
        order: the order; layers without a value come last in any.
        words: only layers whose name has all these words in it, whatever their case.
        only_alerts: only layers with alerts that last.

    Returns:
        Indices of layers.

    Examples:
        >>> run = Snapshot("a", ("conv", "head"), layers={"norm": np.array([1.0, 2.0])})
        >>> arrange(run, Order("norm")).tolist(), arrange(run, Order(), "CO").tolist()
        ([1, 0], [0])
    """
    kept = np.arange(len(snapshot.names))
    if words.strip():
        wanted = words.lower().split()
        found = [all(word in name for word in wanted) for name in _lowered(snapshot.names)]
        kept = kept[np.array(found, bool)]
    if only_alerts:
        kept = kept[snapshot.marks[kept] > 0]
    if order.column is None:
        return kept[::-1] if order.reverse else kept
    if order.column == LAYER:
        keys = _ranks(snapshot.names)[kept].astype(np.float64)
    elif order.column == ALERTS:
        keys = snapshot.marks[kept].astype(np.float64)
    else:
        values = snapshot.layers.get(order.column)
        keys = np.full(len(kept), np.nan) if values is None else values[kept].astype(np.float64)
    places = np.argsort(-keys if order.descending else keys, kind="stable")  # NaN goes last
    return kept[places]


@lru_cache(maxsize=4)
def _lowered(names: tuple[str, ...]) -> list[str]:
    return [shown(name).lower() for name in names]


@lru_cache(maxsize=4)
def _ranks(names: tuple[str, ...]) -> npt.NDArray[np.int64]:
    """[L], the place of each name in the alphabet of names."""
    order = sorted(range(len(names)), key=lambda at: natural(names[at]))
    ranks = np.empty(len(names), np.int64)
    ranks[order] = np.arange(len(names))
    return ranks
