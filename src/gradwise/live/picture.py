"""The picture of a run on the screen: widgets that draw the lines of `top` and `rows`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
from textual.containers import Horizontal
from textual.screen import Screen
from textual.widget import Widget

from gradwise.live.follow import Look
from gradwise.live.layout import Layout, fit
from gradwise.live.lines import Line, spread
from gradwise.live.model import Snapshot
from gradwise.live.rows import (
    alert_line,
    alert_text,
    alert_title,
    detail_line,
    head_line,
    keys_line,
    layer_lines,
    window_words,
)
from gradwise.live.spark import Signs
from gradwise.live.state import State
from gradwise.live.tail import Wish
from gradwise.live.text import shown
from gradwise.live.top import meter_width, top_lines
from gradwise.live.widgets import Head, Lines, Rows, Words

__all__ = ["Picture"]

_NO_LINES: list[Line] = []


class Picture(Screen[None]):
    """A run as it was last seen, in lines that fit the terminal.

    Args:
        state: what is shown of it, and how; the picture notes in it where the cursor is.
        signs: what to draw with.
        ask: called with what the next looks should bring.
    """

    def __init__(self, state: State, signs: Signs, ask: Callable[[Wish], None]) -> None:
        super().__init__()
        self.state = state
        self._signs = signs
        self._ask = ask
        self._look = Look()  # what is shown
        self._newest = Look()  # what was seen last
        self._rows = np.empty(0, np.intp)
        self._tall = 0  # lines on top
        # Made here, not looked up in the tree: the view may be told to end before it is built.
        self._top, self._head, self._keys = Lines(id="top"), Head(id="head"), Lines(id="keys")
        self._layers = Rows(id="layers", here=signs.here)
        self._detail, self._title = Lines(id="detail"), Lines(id="title")
        self._alerts, self._text = Rows(id="alerts", here=signs.here), Lines(id="text")
        self._words = Words(id="words", done=self.close_filter)
        prompt = Lines(id="prompt")
        prompt.paint([[("filter: ", "bold")]])
        self._filter = Horizontal(prompt, self._words, id="filter")
        self._layout = Layout((), (), 1, 0)

    def compose(self) -> Iterator[Widget]:
        """From the top: the run, the layers, the layer with the cursor, the alerts, the keys."""
        yield self._top
        yield self._head
        yield self._layers
        yield self._detail
        yield self._title
        yield self._alerts
        yield self._text
        yield self._keys
        yield self._filter

    def on_mount(self) -> None:
        """Begin with the layers."""
        self._words.value = self.state.words
        self.set_focus(self._layers)
        self.set_interval(1.0, self._paint_top)

    def take(self, look: Look) -> None:
        """Show what has been seen.

        Args:
            look: the newest look.
        """
        self._newest = look
        if not self.state.paused or self._look.snapshot is None:
            self._look = look
            self.paint()
        else:
            self._paint_top()

    # Drawing

    def on_resize(self) -> None:
        """Lay everything out anew."""
        self.paint()

    def on_descendant_focus(self) -> None:
        """Give room to what is being used."""
        self.paint()

    def paint(self) -> None:
        """Draw everything that is not as it should be."""
        if not self.is_mounted:
            return
        run, state, width = self._look.snapshot, self.state, self.size.width
        self._paint_top()
        self._keys.paint([keys_line(width, state.words)])
        if run is None:
            self._layers.fill(0, lambda start, stop: _NO_LINES, 0)
            return
        longest = max((len(shown(name)) for name in run.names), default=0)
        self._layout = fit([*run.layers], width, longest, (state.order.column, run.metric))
        self._rows = state.rows(run)
        state.wish = replace(state.wish, width=self._layout.spark, curve=meter_width(width))
        self._ask(state.wish)
        self._paint_layers(run)
        self._paint_alerts(run)

    def _paint_top(self) -> None:
        width, height = self.size
        meters = 3 if height >= 24 else 2 if height >= 18 else 1
        look = replace(self._newest, snapshot=self._look.snapshot)
        lines = top_lines(
            look, width, time.monotonic(), self._signs, rows=meters, paused=self.state.paused
        )
        top = self._top
        top.styles.height = self._tall = len(lines)
        top.paint(lines)

    def _paint_layers(self, run: Snapshot) -> None:
        state, rows, layout, signs = self.state, self._rows, self._layout, self._signs
        window = window_words(state.wish.window, run.covered)
        self._head.paint(
            [head_line(run, layout, state.order, state.words, len(rows), window, signs)]
        )

        def draw(start: int, stop: int) -> list[Line]:
            return layer_lines(run, layout, rows[start:stop], signs)

        self._layers.fill(len(rows), draw, state.follow(run, rows))
        self._paint_detail(run)

    def _paint_detail(self, run: Snapshot) -> None:
        line = self._layers.cursor
        row = int(self._rows[line]) if line < len(self._rows) else None
        width = self.size.width
        self._detail.paint([detail_line(run, row, self._layout, width, self._signs)])

    def _paint_alerts(self, run: Snapshot) -> None:
        told, width, signs = run.told, self.size.width, self._signs
        self._title.paint([alert_title(run, width, signs)])

        def draw(start: int, stop: int) -> list[Line]:
            return [alert_line(alert, width, signs) for alert in told[start:stop]]

        self._alerts.fill(len(told), draw, self.state.alert_line(told))
        text = alert_text(told[self._alerts.cursor], width) if told else []
        room = self._share_out(len(told), len(text))
        if len(text) > room > 0:
            text[room - 1] = spread(text[room - 1], [(signs.cut, "bold")], width)
        self._text.paint(text[:room])
        self._alerts.show_cursor()

    def _share_out(self, told: int, text: int) -> int:
        """Give the alerts what they need, within a share of the screen that grows with focus.

        Returns:
            The lines for what the chosen alert says.
        """
        focused = self._alerts.has_focus
        spare = max(self.size.height - self._tall - 4, 0)
        room = spare * 2 // 3 if focused else spare * 2 // 5
        listed = min(told, max(room - text, room // 2), room if focused else 8)
        text = min(text, room - listed)
        self._alerts.styles.height = listed
        self._text.styles.height = text
        return text

    # The line for the filter

    def open_filter(self) -> None:
        """Let somebody type words to filter by."""
        self._filter.add_class("open")
        self._keys.display = False
        self.set_focus(self._words)

    def close_filter(self) -> None:
        """Go back to the layers; what was typed goes on to hold."""
        self._filter.remove_class("open")
        self._keys.display = True
        self.set_focus(self._layers)
