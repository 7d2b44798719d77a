"""The page of help: every key, every column, every sign."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import Screen
from textual.widget import Widget

from gradwise.live.layout import columns_for
from gradwise.live.lines import Line, wrapped
from gradwise.live.widgets import Lines

__all__ = ["KEYS", "HelpScreen", "help_lines"]

KEYS = (
    ("↑ ↓ PgUp PgDn Home End", "move; j k g G do too"),
    ("< >", "sort by the column to the left, to the right; a click on its title does too"),
    ("r", "sort the other way round"),
    ("o", "the model's own order"),
    ("/", "only layers whose name has these words in it; Enter keeps it, Esc ends it"),
    ("!", "only layers with alerts that last"),
    ("m M", "the metric of the curves: the next, the one before"),
    ("w", "what the curves cover: 100, 1,000 or 10,000 records, or the whole run"),
    ("p Space", "pause: the screen stands still, the run is still followed"),
    ("a Tab", "between the layers and the alerts; Enter on an alert goes to its layer"),
    ("?", "this page, and back"),
    ("q Ctrl-C", "quit; the run does not notice"),
)

_SIGNS = (
    ("!!", "the layer has an alert of an error that lasts"),
    ("!", "the layer has a warning that lasts"),
    ("-", "not recorded"),
    ("nan", "the gradient had entries that are NaN or infinite"),
    ("grad std", "standard deviation over the entries of all gradients together"),
    ("alpha", "what the gradients are multiplied by; none is shown where every layer has its own"),
    ("norm before, after", "norm of all gradients before and after the transforms"),
    ("noise scale", "gradient noise scale, in samples: batches beyond it gain little"),
    ("skipped", "steps that were left alone because a gradient was not finite"),
)


def help_lines(width: int, metrics: tuple[str, ...]) -> list[Line]:
    """The page.

    Args:
        width: cells of a line.
        metrics: the run's layer metrics.
    """
    columns = [(column.title, column.meaning) for column in columns_for(metrics)]
    lines: list[Line] = []
    for title, entries in (
        ("Keys", KEYS),
        ("Columns, each with the newest value", columns),
        ("Signs and the numbers on top", _SIGNS),
    ):
        lines.append([(title, "head")])
        first = min(max((len(key) for key, _ in entries), default=0), 22, width // 3)
        for key, meaning in entries:
            keys = wrapped(key, first) or [""]
            words = wrapped(meaning, max(width - first - 4, 10))
            for at in range(max(len(words), len(keys))):
                left = keys[at] if at < len(keys) else ""
                right = words[at] if at < len(words) else ""
                lines.append([(f"  {left.ljust(first)}  ", "bold"), (right, "")])
        lines.append([])
    lines.append([("The curves of norms and other magnitudes have logarithmic scales, and", "dim")])
    lines.append([("every curve has its own.", "dim")])
    return lines


class HelpScreen(Screen[None]):
    """The page of help on a screen of its own.

    Args:
        metrics: the run's layer metrics.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("question_mark,h,f1,escape,q,enter", "back", show=False),
        Binding("j", "scroll_by(1)", show=False),
        Binding("k", "scroll_by(-1)", show=False),
    ]

    def __init__(self, metrics: tuple[str, ...]) -> None:
        super().__init__()
        self._metrics = metrics
        self._help, self._back = Lines(id="help"), Lines(id="back")
        self._page = VerticalScroll(self._help, id="page")

    def compose(self) -> Iterator[Widget]:
        """One scrolling page and the line with the way back."""
        yield self._page
        yield self._back

    def on_mount(self) -> None:
        """Let the arrow keys scroll the page."""
        self.set_focus(self._page)

    def on_resize(self) -> None:
        """Break the lines anew."""
        lines = help_lines(self.size.width - 2, self._metrics)
        self._help.styles.height = len(lines)
        self._help.paint(lines)
        self._back.paint([[("?", "key"), (" back  ", "")]])

    def action_back(self) -> None:
        """Return to the run."""
        self.dismiss()

    def action_scroll_by(self, by: int) -> None:
        """Scroll by so many lines."""
        self._page.scroll_relative(y=by, animate=False)
