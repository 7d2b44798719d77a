"""Histograms of the layers' gradients over time, as far as a run has any."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwise.errors import UserError
from gradwise.report.encode import pack
from gradwise.report.watched.plan import chosen_layers
from gradwise.report.watched.record import Record

__all__ = ["BUDGET", "histograms_payload"]

BUDGET = 600_000
"""What the histograms of all runs may take in the page, about, in bytes."""

Shares = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

_POINTS = (20, 60)  # the fewest and the most bins in time
_MOST_CELLS = 2e8  # counts that are read of a run at most


@dataclass
class _Found:
    """The histograms of a run.

    Attributes:
        method: the run's index.
        edges: the edges between the bins.
        first: the first step of each bin in time [T].
        last: the last one.
        end: where the last bin in time ends.
        shares: by index of the layer the share of the entries in each bin [B, T].
        missing: layers without room.
    """

    method: int
    edges: tuple[float, ...]
    first: list[int]
    last: list[int]
    end: int
    shares: dict[int, Shares]
    missing: int


def histograms_payload(records: Sequence[Record], names: Sequence[str]) -> list[dict[str, Any]]:
    """The histograms of each run that has any.

    Args:
        records: the runs.
        names: the layers that the page shows.

    Returns:
        By run: `method` (its index), `bins` (from and to; None for no bound; the highest first,
        without those at both ends that are empty in all runs with the same edges), `first`,
        `last` and `end` (steps of the bins in time), `shares` (by index of the layer: the share
        of the entries in each bin, as a packed matrix of bins by time) and `missing` (how many
        layers had no room).
    """
    having = [method for method, one in enumerate(records) if one.info.histogram_edges]
    read = (_of_run(at, records[at], names, BUDGET / len(having)) for at in having)
    found = [one for one in read if one is not None]
    return [_payload(one, [other for other in found if other.edges == one.edges]) for one in found]


def _payload(found: _Found, alike: Sequence[_Found]) -> dict[str, Any]:
    used = np.zeros(len(found.edges) + 1, bool)
    for one in alike:
        for shares in one.shares.values():
            used |= (np.nan_to_num(shares) > 0).any(axis=1)
    at = np.flatnonzero(used)
    low, high = (int(at[0]), int(at[-1]) + 1) if len(at) else (0, len(used))
    bounds = [None, *found.edges, None]
    return {
        "method": found.method,
        "bins": [[bounds[bin], bounds[bin + 1]] for bin in reversed(range(low, high))],
        "first": found.first,
        "last": found.last,
        "end": found.end,
        "shares": {
            layer: pack(shares[low:high][::-1], size=1) for layer, shares in found.shares.items()
        },
        "missing": found.missing,
    }


def _of_run(method: int, record: Record, names: Sequence[str], budget: float) -> _Found | None:
    known = set(record.run.layer_names)
    own = [name for name in names if name in known]
    sampled = _read(record, own[0]) if own else None
    if sampled is None or not len(sampled[0]):
        return None
    steps = sampled[0]
    edges = record.info.histogram_edges
    points, room = _fitting(len(steps), len(edges) + 1, len(own), budget)
    starts = np.unique(np.arange(points) * len(steps) // points)
    first = [alert.layer for alert in record.gravest if alert.layer is not None]
    shares = {}
    for name in chosen_layers(own, room, first):
        found = _read(record, name)
        if found is not None and len(found[0]) == len(steps):
            shares[names.index(name)] = _shares(found[1], starts)
    lasts = np.append(starts[1:], len(steps)) - 1
    apart = int(np.diff(steps).min()) if len(steps) > 1 else 1
    ends = steps[lasts]
    return _Found(
        method, edges, steps[starts].tolist(), ends.tolist(), int(ends[-1]) + apart, shares,
        len(own) - len(shares),
    )  # fmt: skip


def _read(record: Record, name: str) -> tuple[Counts, Counts] | None:
    """The sampled steps of a layer and its counts; None, and a trouble, where that fails."""
    with record.noting():
        try:
            return record.run.histogram(name)
        except (UserError, OSError) as error:
            record.troubles.append(f"the histograms of {name} cannot be read: {error}")
            return None


def _fitting(samples: int, bins: int, layers: int, budget: float) -> tuple[int, int]:
    """How many bins in time and how many layers fit."""
    cell, row = 4 / 3, 32.0
    points = int((budget / layers / bins - row) / cell)
    points = min(samples, max(_POINTS[0], min(_POINTS[1], points)))
    room = budget / (bins * (points * cell + row))
    return points, max(1, int(min(room, _MOST_CELLS / (samples * bins))))


def _shares(counts: Counts, starts: npt.NDArray[np.intp]) -> Shares:
    """Shares of the entries in each bin [B, T], NaN where nothing was counted."""
    total = np.add.reduceat(np.asarray(counts, np.float64), starts, axis=0)
    sums = total.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Shares = (total / sums).T
    return found
