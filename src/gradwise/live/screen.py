"""The screen of the live view: the picture of a run, and what keys and the mouse do to it."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.widgets import Input

from gradwise.live.help import HelpScreen
from gradwise.live.order import Order
from gradwise.live.picture import Picture
from gradwise.live.widgets import Head, Rows

__all__ = ["RunScreen"]


class RunScreen(Picture):
    """A run and all that one can do with its picture; see `Picture` for the arguments."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "app.quit", show=False),
        Binding("question_mark,h,f1", "help", show=False),
        Binding("slash", "filter", show=False),
        Binding("less_than_sign,comma", "sort(-1)", show=False),
        Binding("greater_than_sign,full_stop", "sort(1)", show=False),
        Binding("r", "reverse", show=False),
        Binding("o", "own_order", show=False),
        Binding("exclamation_mark", "only_alerts", show=False),
        Binding("m", "metric(1)", show=False),
        Binding("M", "metric(-1)", show=False),
        Binding("w", "window", show=False),
        Binding("p,space", "pause", show=False),
        Binding("a,tab,shift+tab", "other", show=False),
        Binding("escape", "leave", show=False),
    ]

    def on_rows_moved(self, message: Rows.Moved) -> None:
        """Show more of the line with the cursor."""
        run = self._look.snapshot
        if run is None:
            return
        if message.rows is self._layers:
            self.state.move(run, self._rows, message.rows.cursor)
            self._paint_detail(run)
        elif message.rows.cursor < len(run.told):
            self.state.alert = run.told[message.rows.cursor].key
            self._paint_alerts(run)

    def on_rows_chosen(self, message: Rows.Chosen) -> None:
        """Go from an alert to its layer."""
        run = self._look.snapshot
        if run is None or message.rows is not self._alerts or not run.told:
            return
        layer = run.told[message.rows.cursor].layer
        if layer is not None and self.state.reveal(run, layer):
            self._words.value = self.state.words
            self.set_focus(self._layers)
            self.paint()
            self._layers.show_cursor()

    def on_head_clicked(self, message: Head.Clicked) -> None:
        """Sort by a column, or show other curves."""
        run, column = self._look.snapshot, self._layout.at(message.x)
        if run is None or column is None:
            return
        if column == "":
            self.action_metric(1)
        else:
            self.state.order = self.state.order.clicked(column)
            self._reordered()

    def _reordered(self) -> None:
        """After another order or filter the top of the table is what somebody wants to see."""
        self.state.layer, self.state.line = None, 0
        self.paint()
        self._layers.show_cursor()

    def action_sort(self, by: int) -> None:
        """Sort by another column."""
        if self._look.snapshot is not None:
            self.state.sort(self._look.snapshot, by)
            self._reordered()

    def action_reverse(self) -> None:
        """Sort the other way round."""
        self.state.order = replace(self.state.order, reverse=not self.state.order.reverse)
        self._reordered()

    def action_own_order(self) -> None:
        """Show the layers in the model's own order."""
        self.state.order = Order()
        self._reordered()

    def action_only_alerts(self) -> None:
        """Show only layers with alerts that last, or all again."""
        self.state.only_alerts = not self.state.only_alerts
        self._reordered()

    def action_metric(self, by: int) -> None:
        """Show curves of another metric."""
        if self._look.snapshot is not None:
            self.state.next_metric(self._look.snapshot, by)
            self._ask(self.state.wish)

    def action_window(self) -> None:
        """Let the curves cover more or less."""
        self.state.next_window()
        self._ask(self.state.wish)

    def action_pause(self) -> None:
        """Let what is shown stand still, or go on."""
        self.state.paused = not self.state.paused
        self._look = self._newest
        self.paint()

    def action_other(self) -> None:
        """Go from the layers to the alerts, and back."""
        alerts = self._look.snapshot is not None and self._look.snapshot.told
        self.set_focus(self._alerts if alerts and not self._alerts.has_focus else self._layers)

    def action_help(self) -> None:
        """Show the page of help."""
        run = self._look.snapshot
        self.app.push_screen(HelpScreen(() if run is None else tuple(run.layers)))

    def action_filter(self) -> None:
        """Ask for words in names."""
        self.open_filter()

    def action_leave(self) -> None:
        """End the filter, or go back to the layers."""
        if self._filter.has_class("open") or not self._alerts.has_focus:
            self._words.value = ""
        self.close_filter()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Filter while somebody types."""
        if event.value != self.state.words:
            self.state.words = event.value
            self._reordered()

    def on_key(self, event: events.Key) -> None:
        """Let the arrow keys leave the filter."""
        if event.key in ("up", "down") and self._filter.has_class("open"):
            self.close_filter()
