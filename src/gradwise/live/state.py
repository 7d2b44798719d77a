"""What somebody has chosen to see: order, filter, metric, and where the cursors are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from gradwise.live.layout import columns_for
from gradwise.live.model import Snapshot
from gradwise.live.order import ALERTS, LAYER, Order, arrange
from gradwise.live.tail import WINDOWS, Wish
from gradwise.watch.alerts import Alert

__all__ = ["State", "sortable"]


@dataclass
class State:
    """What is shown of a run, and how; it outlives every single snapshot.

    Attributes:
        wish: what the curves show.
        order: how the layers are ordered.
        words: what their names are filtered by.
        only_alerts: only layers with alerts that last.
        paused: what is shown stands still.
        layer: the layer that the cursor was moved to, which it then stays with; None while it
            is where it began, in the first line.
        line: the line of the cursor.
        alert: the alert that its cursor was moved to; None for the first, whatever it is.

    Examples:
        >>> run = Snapshot("a", ("conv", "head"), layers={"norm": np.array([1.0, 2.0])})
        >>> state = State()
        >>> state.sort(run, -1)
        >>> state.order.column, state.rows(run).tolist()
        ('norm', [1, 0])
    """

    wish: Wish = field(default_factory=Wish)
    order: Order = field(default_factory=Order)
    words: str = ""
    only_alerts: bool = False
    paused: bool = False
    layer: str | None = None
    line: int = 0
    alert: tuple[str, int, str | None] | None = None

    def rows(self, run: Snapshot) -> npt.NDArray[np.intp]:
        """The layers that are shown, in their order, as indices.

        Args:
            run: the run.
        """
        return arrange(run, self.order, self.words, only_alerts=self.only_alerts)

    def follow(self, run: Snapshot, rows: npt.NDArray[np.intp]) -> int:
        """The line of the cursor among these layers: that of its layer, or the one it was in.

        Args:
            run: the run.
            rows: what `rows` gave.
        """
        place = run.row(self.layer)
        if place is not None:
            found = np.flatnonzero(rows == place)
            if len(found):
                self.line = int(found[0])
        self.line = max(min(self.line, len(rows) - 1), 0)
        return self.line

    def move(self, run: Snapshot, rows: npt.NDArray[np.intp], line: int) -> None:
        """Put the cursor into a line, to stay with the layer there.

        Args:
            run: the run.
            rows: what `rows` gave.
            line: the line.
        """
        if line < len(rows):
            self.line, self.layer = line, run.names[int(rows[line])]

    def alert_line(self, told: Sequence[Alert]) -> int:
        """The line of the cursor among the alerts.

        Args:
            told: the alerts as they stand on the screen.
        """
        return next((at for at, alert in enumerate(told) if alert.key == self.alert), 0)

    def sort(self, run: Snapshot, by: int) -> None:
        """Sort by another column.

        Args:
            run: the run.
            by: how many columns to the right.
        """
        columns = sortable(run)
        there = self.order.column in columns
        at = columns.index(self.order.column) if there else 0
        self.order = Order(columns[(at + by) % len(columns)])

    def next_metric(self, run: Snapshot, by: int) -> None:
        """Show curves of another metric.

        Args:
            run: the run.
            by: how many columns to the right.
        """
        metrics = [column.metric for column in columns_for(run.layers)]
        if metrics:
            at = metrics.index(run.metric) if run.metric in metrics else 0
            self.wish = replace(self.wish, metric=metrics[(at + by) % len(metrics)])

    def next_window(self) -> None:
        """Let the curves cover more, and after the whole run the least again."""
        at = WINDOWS.index(self.wish.window) if self.wish.window in WINDOWS else 0
        self.wish = replace(self.wish, window=WINDOWS[(at + 1) % len(WINDOWS)])

    def reveal(self, run: Snapshot, layer: str) -> bool:
        """Put the cursor on a layer, and end a filter that hides it.

        Args:
            run: the run.
            layer: its name, as in an alert.

        Returns:
            Whether the run has such a layer.
        """
        row = run.row(layer)
        if row is None:
            return False
        if row not in self.rows(run):
            self.words, self.only_alerts = "", False
        self.layer = run.names[row]
        return True


def sortable(run: Snapshot) -> list[str | None]:
    """What the layers of a run can be sorted by, from left to right.

    Args:
        run: the run.
    """
    return [None, ALERTS, LAYER, *(column.metric for column in columns_for(run.layers))]
