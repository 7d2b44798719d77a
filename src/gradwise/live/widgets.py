"""Widgets that draw lines: nothing is laid out, and nothing is drawn that is not in sight."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Input

from gradwise.live.lines import Line, fitted

__all__ = ["Head", "Lines", "Rows", "Words", "strip"]

# The terminal's own sixteen colours: they suit its background, whatever that is. Each has an
# attribute with it or stands beside a sign, so that nothing is lost without colour.
_STYLES = {
    "": Style(),
    "dim": Style(dim=True),
    "bold": Style(bold=True),
    "good": Style(color="green"),
    "warning": Style(color="yellow"),
    "error": Style(color="red", bold=True),
    "spark": Style(color="cyan"),
    "key": Style(reverse=True),
    "head": Style(bold=True, underline=True),
    "bad head": Style(bold=True, underline=True, color="red"),
    "sorted": Style(bold=True, reverse=True),
}


def strip(line: Line, width: int, *, cursor: bool = False, here: str = "") -> Strip:
    """A line as Textual draws it.

    Args:
        line: the line.
        width: cells; what is longer is cut.
        cursor: draw it as the one that keys move, whatever its parts mean.
        here: marks the line in its third cell, behind the sign of an alert.
    """
    segments = []
    for text, meaning in fitted(line, width):
        style = _STYLES[meaning]
        if cursor:
            style = Style(bold=style.bold, reverse=True)
        segments.append(Segment(text, style))
    if here and segments:
        mark = segments[0]
        segments[0] = Segment(mark.text[:2] + here + mark.text[3:], mark.style)
    return Strip(segments, width)


class Lines(Widget):
    """Some lines of text."""

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id)
        self._lines: list[Line] = []

    def paint(self, lines: Sequence[Line]) -> None:
        """Show these lines.

        Args:
            lines: from the top.
        """
        if list(lines) != self._lines:
            self._lines = list(lines)
            self.refresh()

    def render_line(self, y: int) -> Strip:
        """One line of the widget."""
        width = self.size.width
        return strip(self._lines[y], width) if y < len(self._lines) else Strip.blank(width)


class Head(Lines):
    """The titles of the columns."""

    class Clicked(Message):
        """Somebody clicked on them.

        Attributes:
            x: the cell.
        """

        def __init__(self, x: int) -> None:
            super().__init__()
            self.x = x

    def on_click(self, event: events.Click) -> None:
        """Pass on where."""
        self.post_message(self.Clicked(event.x))


class Rows(ScrollView, can_focus=True):
    """Many lines with a cursor, of which only those in sight are drawn.

    Args:
        id: its name.
        here: marks the line with the cursor.

    Attributes:
        cursor: the line with the cursor.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", show=False),
        Binding("down,j", "move(1)", show=False),
        Binding("pageup", "page(-1)", show=False),
        Binding("pagedown", "page(1)", show=False),
        Binding("home,g", "end(-1)", show=False),
        Binding("end,G", "end(1)", show=False),
        Binding("enter", "choose", show=False),
    ]

    class Moved(Message):
        """Somebody moved the cursor.

        Attributes:
            rows: where.
        """

        def __init__(self, rows: Rows) -> None:
            super().__init__()
            self.rows = rows

        @property
        def control(self) -> Rows:
            """Where."""
            return self.rows

    class Chosen(Moved):
        """Somebody chose the line with the cursor."""

    def __init__(self, *, id: str, here: str) -> None:
        super().__init__(id=id)
        self.cursor = 0
        self._here = here
        self._count = 0
        self._draw: Callable[[int, int], list[Line]] = lambda start, stop: []
        self._drawn: dict[int, Strip] = {}

    @property
    def count(self) -> int:
        """How many lines there are."""
        return self._count

    def fill(self, count: int, draw: Callable[[int, int], list[Line]], cursor: int) -> None:
        """Show other lines.

        Args:
            count: how many there are.
            draw: gives the lines from one number to before another.
            cursor: the line with the cursor.
        """
        self._count, self._draw = count, draw
        self.cursor = max(min(cursor, count - 1), 0)
        size = Size(0, count)
        if size != self.virtual_size:
            self.virtual_size = size
        self._drawn.clear()
        self.refresh()

    def show_cursor(self) -> None:
        """Scroll to where the cursor is."""
        top, height = self.scroll_offset.y, max(self.size.height, 1)
        if self.cursor < top:
            self.scroll_to(y=self.cursor, animate=False, force=True)
        elif self.cursor >= top + height:
            self.scroll_to(y=self.cursor - height + 1, animate=False, force=True)

    def render_line(self, y: int) -> Strip:
        """One line of the widget."""
        width = self.size.width
        row = y + self.scroll_offset.y
        if row >= self._count:
            return Strip.blank(width)
        if row not in self._drawn:  # all in sight at once: cheaper by far than one by one
            start = self.scroll_offset.y
            stop = min(start + max(self.size.height, y + 1), self._count)
            for at, line in enumerate(self._draw(start, stop), start):
                here = at == self.cursor
                self._drawn[at] = strip(
                    line, width, cursor=here and self.has_focus, here=self._here if here else ""
                )
        return self._drawn[row]

    def redraw(self) -> None:
        """Draw what is in sight anew."""
        self._drawn.clear()
        self.refresh()

    def on_focus(self) -> None:
        """Show the cursor as in use."""
        self.redraw()

    def on_blur(self) -> None:
        """Show the cursor as out of use."""
        self.redraw()

    def on_resize(self) -> None:
        """Draw what is in sight now."""
        self.redraw()

    def _go(self, row: int) -> None:
        row = max(min(row, self._count - 1), 0)
        if self._count:
            self.cursor = row
            self.redraw()
            self.show_cursor()
            self.post_message(self.Moved(self))

    def action_move(self, by: int) -> None:
        """Move the cursor by so many lines."""
        self._go(self.cursor + by)

    def action_page(self, by: int) -> None:
        """Move the cursor by so many screens."""
        self._go(self.cursor + by * max(self.size.height - 1, 1))

    def action_end(self, by: int) -> None:
        """Move the cursor to the first or the last line."""
        self._go(0 if by < 0 else self._count - 1)

    def action_choose(self) -> None:
        """Choose the line with the cursor."""
        if self._count:
            self.post_message(self.Chosen(self))

    def on_click(self, event: events.Click) -> None:
        """Move the cursor to the line."""
        row = event.y + self.scroll_offset.y
        if row < self._count:
            self.focus()
            self._go(row)


class Words(Input):
    """A line to type a filter into.

    Args:
        id: its name.
        done: called when somebody presses Enter.
    """

    def __init__(self, *, id: str, done: Callable[[], None]) -> None:
        super().__init__(id=id, select_on_focus=False)
        self._done = done

    async def action_submit(self) -> None:
        """Be done at once: keys that follow are no longer meant for the filter."""
        self._done()
