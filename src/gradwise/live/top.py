"""The lines above the table: which run, how it is doing, and its global numbers with curves."""

from __future__ import annotations

import numpy as np

from gradwise.live.follow import Look
from gradwise.live.lines import Line, ending, fitted, joined, spread, width_of
from gradwise.live.model import Snapshot
from gradwise.live.spark import Signs, sparklines
from gradwise.live.text import count, number, short, shown
from gradwise.live.values import is_logarithmic

__all__ = ["meter_width", "top_lines"]

_STATES = {
    "live": "good",
    "ended": "bold",
    "quiet": "warning",
    "trouble": "error",
    "waiting": "warning",
}
_LABEL = 11  # cells of a meter's label
_VALUE = 9
_ACROSS = ((160, 4), (108, 3), (56, 2))  # meters side by side from so many cells on
_GAP = 2
_INTERNAL = ("grad_", "applied_", "transform/")
_TAKEN = {"time", "backwards", "alpha", "skipped", "noise_scale"}


def top_lines(
    look: Look, width: int, now: float, signs: Signs, *, rows: int = 2, paused: bool = False
) -> list[Line]:
    """The lines above the table.

    Args:
        look: what was seen.
        width: cells of a line.
        now: `time.monotonic()`.
        signs: what to draw with.
        rows: how many lines of meters there may be, at most.
        paused: whether what is shown stands still because somebody wants it to.

    Returns:
        A line with the run's name and state, one with facts, and one or more with meters; less
        where there is no run yet.
    """
    kind, words = look.state(now)
    run = look.snapshot
    state: Line = [(f"{signs.live if kind == 'live' else signs.still} {words}", _STATES[kind])]
    if paused:
        state = [("PAUSED", "warning"), (f" {signs.dash} ", "dim"), *state]
    if run is None:
        return [spread([("gradwise watch", "bold")], [], width), fitted(state, width)]
    said = width_of(state)
    trouble = None
    if said > width // 2:  # a whole sentence: it gets a line of its own
        trouble, state = fitted(state, width), [(f"{signs.still} {kind}", _STATES[kind])]
    lines = [_title(run, state, width, signs)]
    if trouble is not None:
        lines.append(trouble)
    lines.append(fitted(joined(_facts(run), f" {signs.dash} ", width), width))
    return lines + _meters(run, width, signs, rows)


def meter_width(width: int) -> int:
    """Cells that a meter's curve has on a screen.

    Args:
        width: cells of a line.

    Examples:
        >>> meter_width(120), meter_width(60)
        (16, 7)
    """
    return max(_cell(width) - _LABEL - _VALUE - 2, 0)


def _across(width: int) -> int:
    return next((number for least, number in _ACROSS if width >= least), 1)


def _cell(width: int) -> int:
    across = _across(width)
    return (width - _GAP * (across - 1)) // across


def _title(run: Snapshot, state: Line, width: int, signs: Signs) -> Line:
    room = width - width_of(state) - 1
    name = shown(run.title)
    title: Line = [(ending(name, min(len(name), max(room, 1)), signs.cut).rstrip(), "bold")]
    about = [[(word, "dim")] for word in run.about]
    left = room - width_of(title) - 2
    if about and left > 0:
        title += [("  ", ""), *joined(about, f" {signs.dash} ", left)]
    return spread(title, state, width)


def _facts(run: Snapshot) -> list[Line]:
    """What is a number and no more: the most important first."""

    def fact(label: str, value: str, style: str = "") -> Line:
        return [(f"{label} ", "dim"), (value, style)]

    facts = [fact("step", "none yet" if run.step is None else count(run.step), "bold")]
    if run.rate is not None:
        facts.append([(number(run.rate), ""), (" steps/s", "dim")])
    rates = {k: v for k, v in run.scalars.items() if k == "lr" or k.startswith("lr/")}
    facts += [fact(shown(name), short(value)) for name, value in list(rates.items())[:3]]
    skipped = run.scalars.get("skipped")
    if skipped is not None:
        facts.append(fact("skipped", count(skipped), "warning" if skipped > 0 else ""))
    if run.damaged:
        what = "file is" if run.damaged == 1 else "files are"
        facts.insert(1, [(f"{run.damaged} {what} damaged and left out", "error")])
    loss = _loss(run)
    for name, value in run.scalars.items():
        if not name.startswith(_INTERNAL) and name not in {*_TAKEN, *rates, loss}:
            facts.append(fact(shown(name), number(value)))
    for name, value in run.scalars.items():
        if name.startswith("transform/"):
            facts.append(fact(shown(name.removeprefix("transform/")), number(value)))
    return facts


def _loss(run: Snapshot) -> str | None:
    """The step metric that is the loss, among what the user logs."""
    names = [name for name in run.scalars if "loss" in name.lower()]
    return "loss" if "loss" in names else next(iter(names), None)


def _meters(run: Snapshot, width: int, signs: Signs, rows: int) -> list[Line]:
    """Numbers with curves, side by side."""
    loss = _loss(run)
    wanted = [(loss, shown(loss))] if loss is not None else []
    untouched = run.scalars.get("alpha") == 1.0 and _same(run, "grad_norm", "applied_norm")
    if not untouched:
        wanted += [("alpha", "alpha")]
    wanted += [("grad_std", "grad std")]
    if untouched or "applied_norm" not in run.scalars:
        wanted += [("grad_norm", "grad norm")]
    else:
        wanted += [("grad_norm", "norm before"), ("applied_norm", "norm after")]
    wanted += [("noise_scale", "noise scale")]
    there = [(key, label) for key, label in wanted if key in run.scalars]
    across, cell = _across(width), _cell(width)
    lines = []
    for start in range(0, len(there), across):
        line: Line = []
        for key, label in there[start : start + across]:
            if line:
                line.append((" " * _GAP, ""))
            line += _meter(run, key, label, cell, signs)
        lines.append(fitted(line, width))
    return lines[:rows]


def _same(run: Snapshot, one: str, other: str) -> bool:
    return run.scalars.get(one) == run.scalars.get(other)


def _meter(run: Snapshot, key: str, label: str, cell: int, signs: Signs) -> Line:
    value = run.scalars[key]
    room = max(cell - _LABEL - _VALUE - 2, 0)
    curve = run.curves.get(key)
    drawn = ""
    if curve is not None and room:
        drawn = sparklines(curve[None, -room:], log=is_logarithmic(key), signs=signs)[0]
    style = "bold" if np.isfinite(value) else "error"
    return fitted(
        [
            (ending(label, _LABEL, signs.cut), "dim"),
            (number(value).rjust(_VALUE + 1), style),
            (" ", ""),
            (drawn.rjust(room), "spark"),
        ],
        cell,
    )
