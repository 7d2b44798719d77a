"""The lines of the table of layers, and those about alerts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from rich.cells import set_cell_size

from gradwise.live.layout import MARK, Column, Layout
from gradwise.live.lines import Line, ending, fitted, joined, ruled, wrapped
from gradwise.live.model import Snapshot
from gradwise.live.order import ALERTS, LAYER, Order
from gradwise.live.spark import Signs, sparklines
from gradwise.live.text import count, number, shown
from gradwise.live.values import is_logarithmic
from gradwise.watch.alerts import Alert

__all__ = [
    "alert_line",
    "alert_text",
    "alert_title",
    "cell",
    "detail_line",
    "head_line",
    "keys_line",
    "layer_lines",
    "window_words",
]

_MARKS = ("   ", "!  ", "!! ")
_STYLES = ("", "warning", "error")
_RULE, _WHEN, _WIDE = 14, 23, 76  # cells of an alert's rule and steps, on a screen so wide
_FILTER = 2  # its place among them
_HINTS = (
    ("q", "quit"),
    ("?", "help"),
    ("/", "filter"),
    ("<>", "sort"),
    ("a", "alerts"),
    ("m", "metric"),
    ("p", "pause"),
    ("w", "window"),
    ("r", "reverse"),
    ("!", "only alerts"),
    ("o", "own order"),
)


def head_line(
    run: Snapshot, layout: Layout, order: Order, words: str, found: int, window: str, signs: Signs
) -> Line:
    """The line above the table.

    Args:
        run: the run.
        layout: where things stand.
        order: what the table is sorted by.
        words: what the names are filtered by.
        found: how many layers are left of it.
        window: what the curves cover, see `window_words`.
        signs: what to draw with.
    """
    arrow = signs.down if order.descending else signs.up
    line: Line = []
    mark = f"!{arrow} " if order.column == ALERTS else "!  "
    line.append((mark, "sorted" if order.column == ALERTS else "head"))
    total = len(run.names)
    title = f"layer ({count(total)})"
    if words.strip() or found != total:
        title = f"{count(found)} of {count(total)} {shown(words.strip())}"
    by_name = order.column == LAYER or (order.column is None and order.reverse)
    title = f"{arrow} {title}" if by_name else title
    line.append((set_cell_size(title, layout.name), "sorted" if by_name else "head"))
    for column in layout.columns:
        chosen = order.column == column.metric
        text = f"{arrow}{column.title}" if chosen else column.title
        line.append((text.rjust(column.width + 1), "sorted" if chosen else "head"))
    if layout.spark and run.metric is not None:
        title = f"{shown(run.metric)}, {window}"
        if len(title) > layout.spark:
            title = shown(run.metric)
        line.append(("  ", "head"))
        line.append((ending(title, layout.spark, signs.cut), "head"))
    return line


def layer_lines(
    run: Snapshot, layout: Layout, rows: npt.NDArray[np.intp], signs: Signs
) -> list[Line]:
    """A line for each of some layers.

    Args:
        run: the run.
        layout: where things stand.
        rows: indices of the layers.
        signs: what to draw with.
    """
    drawn = [""] * len(rows)
    if layout.spark and run.metric is not None and len(rows):
        history = run.history[rows][:, -layout.spark :]
        drawn = sparklines(history, log=is_logarithmic(run.metric), signs=signs)
    lines = []
    for row, curve in zip(rows.tolist(), drawn, strict=True):
        mark = int(run.marks[row])
        style = _STYLES[mark]
        line: Line = [
            (_MARKS[mark], style),
            (ending(shown(run.names[row]), layout.name, signs.cut), style),
        ]
        for column in layout.columns:
            text, looks = cell(run, column, row)
            line.append((text.rjust(column.width + 1), looks))
        if layout.spark:
            line.append(("  ", ""))
            line.append((curve.rjust(layout.spark), "spark"))
        lines.append(line)
    return lines


def cell(run: Snapshot, column: Column, row: int) -> tuple[str, str]:
    """What stands in a cell, and how it looks.

    Args:
        run: the run.
        column: the column.
        row: index of the layer.
    """
    values = run.layers.get(column.metric)
    value = float("nan") if values is None else float(values[row])
    if np.isnan(value):
        bad = run.layers.get("nonfinite")
        broken = bad is not None and bad[row] > 0 and column.metric != "nonfinite"
        measured = column.metric in ("norm", "std", "mean", "max_abs", "var", "zeros")
        return ("nan", "error") if broken and measured else ("-", "dim")
    if not np.isfinite(value):
        return number(value), "error"
    if column.metric == "nonfinite":
        return (count(value), "error") if value > 0 else ("0", "dim")
    if column.metric in ("zeros", "sign_agreement"):
        style = "warning" if column.metric == "zeros" and value == 1 else ""
        return _percent(value), style or ("dim" if value == 0 else "")
    return number(value), "dim" if value == 0 else ""


def _percent(share: float) -> str:
    percent = 100 * share
    if percent in (0.0, 100.0):
        return f"{percent:.0f} %"
    # Nothing but all is 100 %, and nothing but nothing is 0.
    return f"{min(max(percent, 0.1), 99.9):.1f} %"


def detail_line(run: Snapshot, row: int | None, layout: Layout, width: int, signs: Signs) -> Line:
    """What the table has no room for, of one layer: its whole name, and the hidden columns.

    Args:
        run: the run.
        row: index of the layer; None for none.
        layout: where things stand in the table.
        width: cells.
        signs: what to draw with.
    """
    if row is None:
        told = "no layer that is asked for: Esc ends the filter, ! shows all" if run.names else ""
        return fitted([(told, "warning")], width)
    name = shown(run.names[row])
    line: Line = [(ending(name, min(len(name), width), signs.cut).rstrip(), "bold")]
    values: list[Line] = [
        [(f"{alert.rule} since step {count(alert.step)}", _STYLES[1 + (alert.severity == "error")])]
        for alert in run.active
        if run.row(alert.layer) == row
    ]
    for column in layout.hidden:
        text, style = cell(run, column, row)
        values.append([(f"{column.title} ", "dim"), (text, style)])
    left = width - sum(len(text) for text, _ in line) - 2
    if values and left > 0:
        line += [("  ", ""), *joined(values, "  ", left)]
    return fitted(line, width)


def alert_title(run: Snapshot | None, width: int, signs: Signs) -> Line:
    """The line above the alerts: how many there are.

    Args:
        run: the run; None where there is none yet.
        width: cells.
        signs: what to draw with.
    """
    told = () if run is None else run.told
    if not told or run is None:
        return ruled([("no alerts", "head")], width)
    active, over = len(run.active), len(told) - len(run.active)
    errors = sum(alert.severity == "error" for alert in run.active)
    parts: list[Line] = [[(f"alerts: {active} active", "head")]]
    if errors:
        parts.append([(f"{errors} error{'s' if errors > 1 else ''}", "bad head")])
    if over:
        parts.append([(f"{over} over", "head")])
    title = joined(parts, ", ", width)
    line: Line = [(text, "head" if style == "dim" else style) for text, style in title]
    return ruled(line, width)


def alert_line(alert: Alert, width: int, signs: Signs) -> Line:
    """One alert in a line: where it began, which rule, which layer, and what was seen.

    Args:
        alert: the alert.
        width: cells.
        signs: what to draw with.
    """
    over = alert.ended is not None
    style = "dim" if over else _STYLES[2 if alert.severity == "error" else 1]
    mark = _MARKS[0] if over else _MARKS[2 if alert.severity == "error" else 1]
    when = f"step {count(alert.step)}"
    if alert.ended is not None:
        when += f" to {count(alert.ended)}"
    rule, when = shown(alert.rule), when.ljust(_WHEN if width >= _WIDE else 0)
    line: Line = [
        (mark, style),
        (rule.ljust(_RULE if width >= _WIDE else 0), style),
        (f"  {when}", "dim" if over else ""),
    ]
    left = width - sum(len(text) for text, _ in line) - 2
    if alert.layer is not None and left > 4:
        name = shown(alert.layer)
        line += [("  ", ""), (ending(name, min(len(name), left), signs.cut), style)]
    return fitted(line, width)


def alert_text(alert: Alert, width: int) -> list[Line]:
    """What an alert says and advises, in as many lines as it takes.

    Args:
        alert: the alert.
        width: cells.
    """
    lines: list[Line] = [[(text, "")] for text in wrapped(shown(alert.message), width)]
    lines += [[(text, "dim")] for text in wrapped(shown(alert.advice), width)]
    return [fitted(line, width) for line in lines]


def keys_line(width: int, words: str = "") -> Line:
    """The keys worth knowing first, as many as fit.

    Args:
        width: cells.
        words: what the names are filtered by.
    """
    hints: list[Line] = [[(key, "key"), (f" {word}", "")] for key, word in _HINTS]
    if words.strip():
        hints[_FILTER] += [(f": {shown(words.strip())}", "bold")]
    return fitted(joined(hints, "  ", width), width)


def window_words(window: int | None, covered: Sequence[int] | None) -> str:
    """What the curves cover, in words.

    Args:
        window: how many records, None for the whole run.
        covered: the first and the last step of them, None where there is none.

    Examples:
        >>> window_words(1000, (0, 59)), window_words(None, (0, 9999))
        ('60 steps', '10,000 steps, all')
    """
    if covered is None:
        return "nothing yet"
    steps = f"{count(covered[1] - covered[0] + 1)} steps"
    return f"{steps}, all" if window is None else steps


assert len(_MARKS[0]) == MARK
