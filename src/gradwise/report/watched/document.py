"""The two documents on one run, or on several side by side."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradwise.report.encode import floats
from gradwise.report.page import render_page, render_text
from gradwise.report.watched.alerts import alerts_sentence, counted, shown_alerts
from gradwise.report.watched.bins import REACH
from gradwise.report.watched.charts import charts_payload
from gradwise.report.watched.facts import (
    command_of,
    fact_rows,
    length_of,
    machine_rows,
    made_of,
    noise_notes,
    seconds_of,
    state_of,
)
from gradwise.report.watched.histograms import histograms_payload
from gradwise.report.watched.layers import Layers, layers_payload, read_layers
from gradwise.report.watched.metrics import layer_metric
from gradwise.report.watched.notable import layer_numbers, notable
from gradwise.report.watched.record import Record
from gradwise.report.words import duration, join, plural
from gradwise.watch.store import Downsampled

__all__ = ["render_records"]

SCRIPTS = (
    "core.js",
    "view.js",
    "alerts.js",
    "chart.js",
    "lines.js",
    "controls.js",
    "scales.js",
    "heatmap.js",
    "panels.js",
    "pointer.js",
    "zoom.js",
    "series.js",
    "layers.js",
    "histogram.js",
    "table.js",
    "runs.js",
)
"""Our own scripts, in the order in which they are run."""

_COLORS = (1, 2, 3, 4, 5, 6, 7, 0)  # of the runs, in their order


def render_records(records: Sequence[Record]) -> tuple[str, str]:
    """The page on runs and its Markdown twin.

    Args:
        records: the runs, at least one.

    Returns:
        The page and the Markdown.
    """
    layers = read_layers(records)
    charts = charts_payload(records)
    alerts, unshown = shown_alerts(records)
    histograms = histograms_payload(records, layers.names)
    view = _view(records, layers)
    payload = {
        "noun": "run",
        "methods": _methods(records),
        "epoch": None,
        "chosen": view["notable"][0].index if view["notable"] else 0,
        "span": _span(records),
        "reach": REACH,
        "stride": max(_stride(one.steps) for one in records),
        "global": charts["global"],
        "series": charts["series"],
        "heat": layers_payload(layers),
        "alerts": [alert.payload(layers.names) for alert in alerts],
        "numbers": _numbers(layers),
        "histograms": histograms,
    }
    view |= {
        "alerts": alerts,
        "warnings": view["warnings"] + _limits(layers, charts["left_out"], unshown, histograms),
    }
    return (
        render_page("watched/page.html.j2", view, payload, SCRIPTS, ["runs.css"]),
        render_text("watched/report.md.j2", view),
    )


def _methods(records: Sequence[Record]) -> list[dict[str, Any]]:
    return [
        {"name": record.name, "color": _COLORS[at % len(_COLORS)], "dash": 0}
        for at, record in enumerate(records)
    ]


def _span(records: Sequence[Record]) -> list[int] | None:
    """The first step of all runs and where the last one ends; None before any."""
    recorded = [one.steps for one in records if len(one.steps.first_step)]
    if not recorded:
        return None
    return [
        min(int(one.first_step[0]) for one in recorded),
        max(int(one.last_step[-1]) + _stride(one) for one in recorded),
    ]


def _stride(steps: Downsampled) -> int:
    """Steps from one record to the next."""
    return int(np.diff(steps.first_step).min()) if len(steps.first_step) > 1 else 1


def _numbers(layers: Layers) -> list[dict[str, Any]]:
    if not layers.metrics:
        return []
    return [{name: floats(rows) for name, rows in found.items()} for found in layer_numbers(layers)]


def _view(records: Sequence[Record], layers: Layers) -> dict[str, Any]:
    """What both documents show."""
    names = [record.name for record in records]
    found = notable(records, layers)
    columns = [
        name for name in ("norm", "std", "update_ratio") if any(name in one.values for one in found)
    ]
    return {
        "title": join(names),
        "runs": [
            _run(record, paint) for record, paint in zip(records, _methods(records), strict=True)
        ],
        "headline": _headline(records),
        "warnings": _warnings(records, layers),
        "notable": found,
        "columns": [(name, layer_metric(name).title.lower()) for name in columns],
        "facts": fact_rows(records),
        "machine": machine_rows(records),
        "noise": noise_notes(records),
        "commands": [(one.name, command) for one in records if (command := command_of(one))],
        "shown_layers": len(layers.names),
    }


def _run(record: Record, paint: dict[str, Any]) -> dict[str, Any]:
    """A run as the header shows it."""
    facts = [*made_of(record).values(), length_of(record)]
    took = seconds_of(record)
    if took is not None:
        facts.append(duration(took))
    return {
        **paint,
        "facts": facts,
        "state": state_of(record),
        "alerts": counted(record.alerts),
        "sentence": alerts_sentence(record),
    }


def _headline(records: Sequence[Record]) -> str:
    """What was found, in one sentence, or two."""
    if len(records) > 1:
        layers = {name for one in records for name in one.run.layer_names}
        shared = layers.intersection(*(one.run.layer_names for one in records))
        matched = plural(len(shared), "layer")
        return f"{len(records)} runs side by side, matched by the names of {matched}."
    (record,) = records
    if not len(record.steps.first_step):
        return "Nothing has been recorded."
    found = alerts_sentence(record)
    return found[:1].upper() + found[1:] if found else f"No alerts in {length_of(record)}."


def _warnings(records: Sequence[Record], layers: Layers) -> list[str]:
    """What a reader must know before believing the pictures."""
    found = []
    several = len(records) > 1
    for record in records:
        which = f"{record.name}: " if several else ""
        state = state_of(record)
        if state == "not closed":
            found.append(
                f"{which}The run was not closed: its process crashed, was killed, or lost its "
                "disk. What it had written is shown, up to about its last second."
            )
        elif state == "being written":
            found.append(f"{which}The run is still being written; this is what there was so far.")
        for one in record.troubles:
            found.append(f"{which}{one[:1].upper()}{one[1:].rstrip('.')}.")
    if several:
        everywhere = set(layers.names).intersection(*(one.run.layer_names for one in records))
        alone = len(layers.names) - len(everywhere)
        if alone:
            found.append(f"{plural(alone, 'layer')} of {len(layers.names):,} are not in all runs.")
    return found


def _limits(
    layers: Layers, left_out: int, unshown: int, histograms: Sequence[dict[str, Any]]
) -> list[str]:
    """What there was no room for."""
    found = []
    if len(layers.names) < layers.total:
        found.append(
            f"The page shows {len(layers.names):,} of {layers.total:,} layers: those that alerts "
            "name, and of the others evenly spaced ones. gradwise.watch.load reads them all."
        )
    if left_out:
        found.append(f"There are {left_out} more metrics of steps than the page has charts for.")
    if unshown:
        found.append(f"There are {unshown:,} more alerts; the gravest and earliest are shown.")
    missing = max((one["missing"] for one in histograms), default=0)
    if missing:
        found.append(f"{missing:,} layers are without histograms here, for want of room.")
    return found
