"""The layers that a reader should look at first, and why."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwise.report.watched.layers import Layers
from gradwise.report.watched.record import Record
from gradwise.report.words import join, plain
from gradwise.watch.store import Downsampled

__all__ = ["MOST", "Notable", "layer_numbers", "notable"]

MOST = 12
"""At most so many layers are named."""

_ALWAYS = ("norm", "std", "update_ratio")  # columns of the table, as far as there are any
_DOMINANT = 0.25  # share of the squared norm that is worth a word
_GROWN = 10.0  # times, from the first tenth of the run to the last

Row = npt.NDArray[np.float64]


@dataclass
class Notable:
    """A layer of a run that stands out.

    Attributes:
        run: the run's name.
        layer: its name.
        index: its place among the layers that are shown.
        reasons: why, in words.
        values: by metric the mean over its last tenth of the run, in words.
    """

    run: str
    layer: str
    index: int
    reasons: list[str] = field(default_factory=list)
    values: dict[str, str] = field(default_factory=dict)


def notable(records: Sequence[Record], layers: Layers) -> list[Notable]:
    """Layers that alerts name, that have most of the norm, that are dead, grew or shrank.

    Args:
        records: the runs.
        layers: their layers.
    """
    share = max(1, MOST // max(1, len(records)))
    return [
        one
        for record, metrics in zip(records, layers.runs, strict=True)
        for one in _of_run(record, metrics, layers.names)[:share]
    ]


def _of_run(record: Record, metrics: dict[str, Downsampled], names: Sequence[str]) -> list[Notable]:
    found: dict[str, Notable] = {}
    places = {name: at for at, name in enumerate(names)}

    def say(name: str, reason: str) -> None:
        found.setdefault(name, Notable(record.name, name, places[name])).reasons.append(reason)

    steps: dict[tuple[str, str], list[int]] = {}
    for alert in record.gravest:
        if alert.layer in places:
            steps.setdefault((alert.layer, alert.rule), []).append(alert.step)
    for (layer, rule), when in steps.items():
        more = f" and {len(when) - 2} more" if len(when) > 2 else ""
        where = "step" if len(when) == 1 else "steps"
        say(layer, f"{rule.replace('_', ' ')} at {where} {_listed(when[:2], more)}")
    if "norm" in metrics:
        for name, reason in _by_norm(metrics["norm"], names):
            say(name, reason)
    ends = {metric: tenth(metrics[metric], -1) for metric in _ALWAYS if metric in metrics}
    for one in found.values():
        at = places[one.layer]
        one.values = {metric: plain(float(end[at])) for metric, end in ends.items()}
        one.reasons = _shortened(one.reasons)
    return list(found.values())


def _listed(steps: Sequence[int], more: str) -> str:
    shown = [f"{step:,}" for step in steps]
    return ", ".join(shown) + more if more else join(shown)


def _shortened(reasons: list[str]) -> list[str]:
    return [*reasons[:3], f"{len(reasons) - 3} more"] if len(reasons) > 4 else reasons


def _by_norm(norm: Downsampled, names: Sequence[str]) -> list[tuple[str, str]]:
    """What the norms alone tell."""
    mean = np.where(np.isfinite(norm.mean), norm.mean, np.nan).astype(np.float64)
    found = []
    first, last = tenth(norm, 0), tenth(norm, -1)
    for name, begun, ended in zip(names, first, last, strict=True):
        if ended == 0 and begun >= 0:
            found.append((name, "no gradient any more" if begun else "no gradient at all"))
    squares = np.nansum(mean**2, axis=0)
    if squares.sum() > 0 and len(names) > 1:
        top = int(squares.argmax())
        if squares[top] > max(_DOMINANT, 3 / len(names)) * squares.sum():
            part = round(100 * squares[top] / squares.sum())
            found.append((names[top], f"{part}\u00a0% of the squared norm of all gradients"))
    with np.errstate(invalid="ignore", divide="ignore"):
        grown = last / first
    # Against what all layers did: a training as a whole has its own trend.
    usual = np.nanmedian(grown) if np.isfinite(grown).any() else np.nan
    order = [int(at) for at in np.argsort(np.nan_to_num(grown, nan=1.0))]
    for at in reversed(order[-3:]):
        if _GROWN * max(usual, 1.0) < grown[at] < np.inf:
            found.append((names[at], f"norm grew {plain(float(grown[at]))}-fold"))
    for at in [at for at in order if grown[at] > 0][:3]:
        if grown[at] < min(usual, 1.0) / _GROWN:
            found.append((names[at], f"norm fell {plain(1 / float(grown[at]))}-fold"))
    return found


def tenth(bins: Downsampled, end: int) -> Row:
    """Means over the first (0) or the last (-1) tenth of a run [series]; NaN without a value.

    Args:
        bins: what was recorded.
        end: which end.
    """
    count = max(1, len(bins.first_step) // 10)
    return _mean(bins, slice(None, count) if end == 0 else slice(-count, None))


def _mean(bins: Downsampled, part: slice) -> Row:
    """Means over some bins, weighted by what is in them; what is not finite takes no part."""
    means = np.asarray(bins.mean[part], np.float64)
    weight = np.where(np.isfinite(means), bins.count[part], 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        total = np.sum(np.where(weight > 0, means, 0.0) * weight, axis=0)
        return np.asarray(total / weight.sum(axis=0), np.float64)


def layer_numbers(layers: Layers) -> list[dict[str, Any]]:
    """What the table of layers shows, by run: [metrics, layers] each, NaN where there is none.

    Args:
        layers: the layers.

    Returns:
        `latest` (mean over the last bin that has a value), `mean` (over the run) and `largest`.
    """
    found = []
    for metrics in layers.runs:
        none = np.full(len(layers.names), np.nan)
        rows: dict[str, list[Row]] = {"latest": [], "mean": [], "largest": []}
        for metric in layers.metrics:
            bins = metrics.get(metric.key)
            for name, values in rows.items():
                values.append(none if bins is None else _number(bins, name))
        found.append({name: np.stack(values) for name, values in rows.items()})
    return found


def _number(bins: Downsampled, name: str) -> Row:
    if name == "largest":
        return np.asarray(np.fmax.reduce(bins.max, axis=0), np.float64)
    if name == "latest":
        means = np.asarray(bins.mean, np.float64)
        there = ~np.isnan(means)
        last = len(means) - 1 - np.argmax(there[::-1], axis=0)
        return np.asarray(means[last, np.arange(means.shape[1])], np.float64)
    return _mean(bins, slice(None))
