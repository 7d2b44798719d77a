"""A run as text or as plain values, once, for where there is no terminal to draw on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from gradwise.live.follow import Look
from gradwise.live.layout import Layout, fit
from gradwise.live.lines import Line, plain
from gradwise.live.model import SEVERITIES, Snapshot
from gradwise.live.rows import (
    alert_line,
    alert_text,
    alert_title,
    head_line,
    layer_lines,
    window_words,
)
from gradwise.live.spark import Signs
from gradwise.live.state import State
from gradwise.live.tail import Wish
from gradwise.live.text import shown
from gradwise.live.top import meter_width, top_lines

__all__ = ["as_text", "as_values", "wish_for"]


def wish_for(run: Snapshot, state: State, width: int) -> Wish:
    """What to ask for so that the curves fill the room they have in a line.

    Args:
        run: the run.
        state: what is shown of it.
        width: cells of a line.
    """
    return replace(state.wish, width=_layout(run, state, width).spark, curve=meter_width(width))


def _layout(run: Snapshot, state: State, width: int) -> Layout:
    longest = max((len(shown(name)) for name in run.names), default=0)
    return fit([*run.layers], width, longest, (state.order.column, run.metric))


def as_text(look: Look, state: State, width: int, now: float, signs: Signs) -> str:
    """The whole picture, all layers and all alerts that last, in lines.

    Args:
        look: what was seen.
        state: what is shown of it.
        width: cells of a line.
        now: `time.monotonic()`.
        signs: what to draw with.
    """
    lines: list[Line] = top_lines(look, width, now, signs, rows=4)
    run = look.snapshot
    if run is not None:
        layout = _layout(run, state, width)
        rows = state.rows(run)
        window = window_words(state.wish.window, run.covered)
        lines += [[], head_line(run, layout, state.order, state.words, len(rows), window, signs)]
        lines += layer_lines(run, layout, rows, signs)
        lines += [[], alert_title(run, width, signs)]
        for alert in run.active:
            lines.append(alert_line(alert, width, signs))
            lines += [[("     ", ""), *line] for line in alert_text(alert, width - 5)]
    return "\n".join(plain(line).rstrip() for line in lines)


def as_values(look: Look, state: State, now: float) -> dict[str, Any]:
    """The same as plain values.

    Args:
        look: what was seen.
        state: what is shown of it.
        now: `time.monotonic()`.

    Returns:
        `run`, `state` (see `Look.state`), `step`, `steps_per_s`, `seconds_since_last_record`,
        `steps` (the newest value of each step metric), `layers` (one object a layer: `layer`,
        `alert` and the newest value of each metric) and `alerts`. Values that were not recorded
        are NaN.
    """
    kind, words = look.state(now)
    run = look.snapshot
    values: dict[str, Any] = {
        "run": "" if run is None else run.title,
        "state": kind,
        "message": words,
        "step": None if run is None else run.step,
        "steps_per_s": None if run is None else run.rate,
        "seconds_since_last_record": None if look.arrived is None else now - look.arrived,
    }
    if run is None:
        return values
    return values | {
        "damaged_files": run.damaged,
        "steps": dict(run.scalars),
        "layers": [_layer(run, int(row)) for row in state.rows(run)],
        "alerts": [
            {"active": alert.ended is None} | {key: getattr(alert, key) for key in _ALERT}
            for alert in run.told
        ],
    }


_ALERT = ("rule", "severity", "step", "ended", "layer", "value", "message", "advice")


def _layer(run: Snapshot, row: int) -> dict[str, Any]:
    metrics = {name: float(values[row]) for name, values in run.layers.items()}
    if np.isfinite(metrics.get("nonfinite", np.nan)):
        metrics["nonfinite"] = int(metrics["nonfinite"])
    return {"layer": run.names[row], "alert": SEVERITIES[run.marks[row]] or None} | metrics
