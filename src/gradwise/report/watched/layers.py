"""What the runs recorded of each layer, as matrices of layers by time."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwise.errors import UserError
from gradwise.report.encode import pack
from gradwise.report.watched.bins import begins, reduced
from gradwise.report.watched.metrics import LayerMetric, layer_metric
from gradwise.report.watched.plan import Plan, chosen_layers, plan
from gradwise.report.watched.record import Record
from gradwise.watch.store import Downsampled

__all__ = ["Layers", "layers_payload", "read_layers"]

CLOSE_LAYERS = 12
"""At most so many layers, those that alerts name first, have finer curves than the others."""

CLOSE_POINTS = 1200
"""The most bins that these have."""

Matrix = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Layers:
    """The layers of all runs of a page.

    Attributes:
        names: those that are shown, in the order of the model; runs are matched by name.
        total: number of layers that there are.
        plan: how they are kept in the page.
        metrics: what was recorded of them in any run.
        runs: by run and metric their values, one series a shown layer.
        close: by run and layer finer curves, one series a metric.
    """

    names: tuple[str, ...]
    total: int
    plan: Plan
    metrics: tuple[LayerMetric, ...] = ()
    runs: list[dict[str, Downsampled]] = field(default_factory=list)
    close: list[dict[str, Downsampled]] = field(default_factory=list)


def read_layers(records: Sequence[Record]) -> Layers:
    """Read the layers' metrics from the pyramids; damage becomes a trouble of the run.

    Args:
        records: the runs.
    """
    everything = list(dict.fromkeys(name for one in records for name in one.run.layer_names))
    sizes = [((one.run.last_step or 0) + 1, len(one.run.layer_metrics)) for one in records]
    found, room = plan(sizes, len(everything))
    named = [alert.layer for one in records for alert in one.gravest if alert.layer is not None]
    names = tuple(chosen_layers(everything, room, named))
    runs = [_read(one, names, found.points) for one in records]
    if not any(np.nanmax(one["nonfinite"].max) for one in runs if "nonfinite" in one):
        for one in runs:  # all zero, as it should be: there is nothing to look at
            one.pop("nonfinite", None)
    present = dict.fromkeys(metric for one in runs for metric in one)
    shown = set(names)
    close = [layer for layer in dict.fromkeys(named) if layer in shown][:CLOSE_LAYERS]
    return Layers(
        names,
        len(everything),
        found,
        tuple(sorted(map(layer_metric, present), key=lambda metric: metric.rank)),
        runs,
        [_close(one, close, found.points) for one in records],
    )


def _read(record: Record, names: Sequence[str], points: int) -> dict[str, Downsampled]:
    """The metrics of which anything was recorded, with a column for each of the names."""
    run = record.run
    found: dict[str, Downsampled] = {}
    if run.last_step is None or not run.layer_names:
        return found
    places = {name: at for at, name in enumerate(run.layer_names)}
    own = np.array([places.get(name, -1) for name in names])
    for metric in run.layer_metrics:
        with record.noting():
            try:
                bins = run.downsampled(metric, points)
            except (UserError, OSError) as error:
                record.troubles.append(f"{metric} of the layers cannot be read: {error}")
                continue
        if bins.count.any():
            found[metric] = _columns(bins, names, own)
    return found


def _columns(bins: Downsampled, names: Sequence[str], own: npt.NDArray[Any]) -> Downsampled:
    """The columns of some layers; NaN for those that the run does not have (-1)."""

    def pick(values: Matrix) -> Matrix:
        return np.where(own >= 0, values[:, own], np.nan)

    count = np.where(own >= 0, bins.count[:, own], 0)
    return Downsampled(
        tuple(names), bins.first_step, bins.last_step,
        pick(bins.min), pick(bins.mean), pick(bins.max), count,
    )  # fmt: skip


def _close(record: Record, names: Sequence[str], points: int) -> dict[str, Downsampled]:
    """Curves of single layers from their records, where these are more than the page has."""
    run = record.run
    found: dict[str, Downsampled] = {}
    for name in names:
        if name not in run.layer_names or not run.last_step or run.last_step < points:
            continue
        with record.noting():
            try:
                table = run.layer(name)
            except (UserError, OSError) as error:
                record.troubles.append(f"{name} cannot be read: {error}")
                continue
        steps = np.asarray(table.column("step").to_numpy(), np.int64)
        first = record.steps.first_step
        if len(steps) <= points or steps[0] > first[0]:  # older records have been dropped
            continue
        own = [(one.step, one.ended or one.step) for one in record.gravest if one.layer == name]
        starts = begins(steps, CLOSE_POINTS, own + record.places)
        metrics = run.layer_metrics
        values = np.stack([table.column(metric).to_numpy() for metric in metrics], axis=1)
        found[name] = reduced(metrics, steps, values.astype(np.float64), starts)
    return found


def layers_payload(layers: Layers) -> dict[str, Any] | None:
    """The layers as the page's script reads them; None where nothing was recorded of any.

    Args:
        layers: the layers.

    Returns:
        `layers` (names), `metrics`, `coarse` (see `Plan`), `bins` (first and last steps that
        several matrices share), `runs` (their matrices by metric: first the means, then the
        smallest and the largest values, side by side in one packed matrix) and `close`.
    """
    if not layers.metrics:
        return None
    bins: list[dict[str, list[int]]] = []
    runs = []
    for method, found in enumerate(layers.runs):
        matrices = {
            metric: {
                "bins": _shared(bins, one),
                "values": pack(_side_by_side(one, layers.plan.coarse), layers.plan.size),
            }
            for metric, one in found.items()
        }
        runs.append({"method": method, "matrices": matrices})
    close = [
        {
            "method": method,
            "layer": layers.names.index(name),
            "bins": _shared(bins, one),
            "metrics": list(one.names),
            "values": pack(_side_by_side(one, 1)),
        }
        for method, found in enumerate(layers.close)
        for name, one in found.items()
    ]
    return {
        "layers": list(layers.names),
        "metrics": [metric.payload() for metric in layers.metrics],
        "coarse": layers.plan.coarse,
        "bins": bins,
        "runs": runs,
        "close": close,
    }


def _shared(bins: list[dict[str, list[int]]], one: Downsampled) -> int:
    """The index of these bins among those of the page, which they join if they are new."""
    mine = {"first": one.first_step.tolist(), "last": one.last_step.tolist()}
    if mine not in bins:
        bins.append(mine)
    return bins.index(mine)


def _side_by_side(one: Downsampled, coarse: int) -> Matrix:
    """Means [series, P], then minima and maxima over `coarse` bins [series, ceil(P / coarse)]."""
    at = np.arange(0, len(one.first_step), coarse)
    low = np.fmin.reduceat(one.min, at, axis=0)
    high = np.fmax.reduceat(one.max, at, axis=0)
    return np.concatenate([one.mean, low, high]).T
