"""A run as a piece of HTML, for a notebook: escaped, without scripts, light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwise.live.model import SEVERITIES, Snapshot
from gradwise.live.spark import heights
from gradwise.live.text import count, number, shown
from gradwise.live.values import is_logarithmic
from gradwise.watch.alerts import Alert

__all__ = ["summary_html", "worst_layers"]

_LAYERS = 8
_ALERTS = 5
_WIDE, _HIGH = 120, 18  # pixels of a curve
_COLOURS = {"error": "#e5484d", "warning": "#bf8700", "": "inherit"}
_SIGNS = {"error": "!!", "warning": "!", "": ""}
_CELL = "padding:1px 10px 1px 0;text-align:{};border:0"


def summary_html(run: Snapshot) -> str:
    """A small self-contained fragment on how a run is doing.

    It has the step and the global numbers with their curves, the layers that deserve a look (see
    `worst_layers`) and the alerts that last. It takes the colours of the page around it, so that
    it can be read in light and in dark.

    Args:
        run: what is known of the run: `snapshot_of(block, title=..., alerts=...)` makes it of
            records in memory, `Tail(folder).look(Wish())` of a run folder.

    Returns:
        One `<div>`. Whatever comes from the run is escaped.

    Examples:
        >>> html = summary_html(Snapshot("<b>", ("conv",), step=7))
        >>> html.startswith("<div"), "&lt;b&gt;" in html, "step 7" in html
        (True, True, True)
    """
    about = f" <span style='opacity:.65'>{_words(', '.join(run.about))}</span>" if run.about else ""
    step = "no step yet" if run.step is None else f"step {count(run.step)}"
    rate = "" if run.rate is None else f", {number(run.rate)} steps/s"
    state = ", ended" if run.closed else ""
    parts = [
        f"<div><b>{_words(run.title)}</b>{about}</div>",
        f"<div style='margin-bottom:4px'>{step}{rate}{state}</div>",
        _numbers(run),
        _layers(run),
        _alerts(run.active),
    ]
    style = (
        "font-family:system-ui,sans-serif;font-size:13px;line-height:1.4;color:inherit;"
        "font-variant-numeric:tabular-nums"
    )
    return f"<div style='{style}'>{''.join(parts)}</div>"


def worst_layers(run: Snapshot, most: int = _LAYERS) -> list[int]:
    """The layers that deserve a look.

    They are those with alerts, then those with entries that are not finite, then those with the
    largest norms.

    Args:
        run: the run.
        most: how many, at most.

    Returns:
        Indices of layers, the worst first.
    """
    missing = np.zeros(len(run.names))
    bad = np.nan_to_num(run.layers.get("nonfinite", missing))
    norm = np.nan_to_num(run.layers.get("norm", run.layers.get("std", missing)), posinf=np.inf)
    order = np.lexsort((-norm, -bad, -run.marks))
    return [int(row) for row in order[:most]]


def _words(text: str) -> str:
    return escape(shown(text))


def _table(rows: Sequence[str], head: str = "") -> str:
    style = "border-collapse:collapse;border:0;margin:4px 0;font-size:inherit;color:inherit;"
    return f"<table style='{style}'>{head}{''.join(rows)}</table>" if rows else ""


def _row(cells: Sequence[tuple[str, str]], kind: str = "td", style: str = "") -> str:
    """A line of a table of cells, each with its alignment; the contents are HTML."""
    inner = "".join(
        f"<{kind} style='{_CELL.format(align)};background:transparent'>{html}</{kind}>"
        for html, align in cells
    )
    return f"<tr style='background:transparent;{style}'>{inner}</tr>"


def _numbers(run: Snapshot) -> str:
    """The global numbers with their curves."""
    untouched = run.scalars.get("grad_norm") == run.scalars.get("applied_norm")
    wanted = {
        "loss": "loss",
        "alpha": "alpha",
        "grad_std": "gradient std",
        "grad_norm": "gradient norm" if untouched else "norm before",
        "applied_norm": "norm after",
        "noise_scale": "noise scale",
    }
    if untouched:
        del wanted["applied_norm"]
    rows = [
        _row(
            [
                (f"<span style='opacity:.65'>{label}</span>", "left"),
                (number(run.scalars[key]), "right"),
                (_curve(run.curves.get(key), log=is_logarithmic(key)), "left"),
            ]
        )
        for key, label in wanted.items()
        if key in run.scalars
    ]
    return _table(rows)


def _layers(run: Snapshot) -> str:
    """The layers that deserve a look."""
    shown_rows = worst_layers(run)
    metrics = [name for name in ("norm", "std", "max_abs", "update_ratio") if name in run.layers]
    if not shown_rows or not metrics:
        return ""
    log = run.metric is not None and is_logarithmic(run.metric)
    curves = run.history if run.history.shape[0] == len(run.names) else None
    rows = []
    for row in shown_rows:
        severity = SEVERITIES[run.marks[row]]
        name = f"<code style='background:transparent'>{_words(run.names[row])}</code>"
        mark = f"<b style='color:{_COLOURS[severity]}'>{_SIGNS[severity]}</b>"
        values = [(_value(run, metric, row), "right") for metric in metrics]
        curve = "" if curves is None else _curve(curves[row], log=log)
        rows.append(_row([(mark, "left"), (name, "left"), *values, (curve, "left")]))
    rest = len(run.names) - len(shown_rows)
    title = f"layer ({count(rest)} more)" if rest else "layer"
    heads = [("", "left"), (title, "left"), *((name, "right") for name in metrics)]
    metric = "" if run.metric is None else _words(run.metric)
    return _table(rows, _row([*heads, (metric, "left")], "th", "opacity:.65"))


def _value(run: Snapshot, metric: str, row: int) -> str:
    value = float(run.layers[metric][row])
    bad = run.layers.get("nonfinite")
    if np.isnan(value):
        return "nan" if bad is not None and bad[row] > 0 and metric != "update_ratio" else "–"
    return number(value)


def _alerts(active: Sequence[Alert]) -> str:
    if not active:
        return "<div style='opacity:.65'>no alerts</div>"
    told = [
        f"<li><b style='color:{_COLOURS[alert.severity]}'>{_SIGNS[alert.severity]} "
        f"{_words(alert.rule)}</b> since step {count(alert.step)}: {_words(alert.message)} "
        f"<span style='opacity:.65'>{_words(alert.advice)}</span></li>"
        for alert in active[:_ALERTS]
    ]
    rest = len(active) - len(told)
    more = f"<div style='opacity:.65'>and {count(rest)} more</div>" if rest else ""
    return f"<ul style='margin:4px 0;padding-left:18px'>{''.join(told)}</ul>{more}"


def _curve(values: npt.NDArray[Any] | None, *, log: bool) -> str:
    """A curve as an image of lines; a gap where there is no value."""
    if values is None or len(values) < 2:
        return ""
    levels = heights(values[None], log=log)[0]
    across = _WIDE / (len(values) - 1)
    lines, pen = [], False
    for at, level in enumerate(levels.tolist()):
        if np.isnan(level):
            pen = False
            continue
        lines.append(
            f"{'L' if pen else 'M'}{at * across:.1f} {_HIGH - 2 - level * (_HIGH - 4):.1f}"
        )
        pen = True
    if not lines:
        return ""
    return (
        f"<svg width='{_WIDE}' height='{_HIGH}' viewBox='0 0 {_WIDE} {_HIGH}' role='img' "
        f"aria-label='curve' style='vertical-align:middle'><path d='{' '.join(lines)}' "
        "fill='none' stroke='#3b82c4' stroke-width='1.5' stroke-linejoin='round' "
        "stroke-linecap='round'/></svg>"
    )
