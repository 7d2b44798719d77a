"""The newest records of a run, taken in as they come."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwise.errors import UserError
from gradwise.live.model import Snapshot, words_about
from gradwise.live.spark import binned
from gradwise.live.values import last_known, newest, pace
from gradwise.watch.alerts import ALERTS_FILE, Alert, read_alerts
from gradwise.watch.block import Block
from gradwise.watch.store import Run, load

__all__ = ["WINDOWS", "Tail", "Wish"]

Array = npt.NDArray[Any]

WINDOWS: tuple[int | None, ...] = (100, 1000, 10_000, None)
"""How many records the curves can show; None for the whole run."""

_LATEST = 256  # records in which the newest value of a metric is looked for, at first
_SCALARS = 1000  # records of the step metrics that are read at least: the pace follows from them


@dataclass(frozen=True)
class Wish:
    """What somebody wants to see.

    Attributes:
        metric: the layer metric of the curves; None for the first of norm, std, ... there is.
        window: how many records they show; None for the whole run.
        width: how many values a layer's curve has.
        curve: how many values a step metric's curve has.
    """

    metric: str | None = None
    window: int | None = WINDOWS[1]
    width: int = 24
    curve: int = 24


class _History:
    """One layer metric over consecutive records, which grow at the end and are cut in front.

    Attributes:
        metric: the metric.
        since: the first step that was asked for; all records from there on are in it.
        steps: [K].
        values: [K, L].
    """

    def __init__(self, metric: str, since: int, layers: int) -> None:
        self.metric = metric
        self.since = since
        self.steps = np.empty(0, np.int64)
        self.values: Array = np.empty((0, layers), np.float32)

    def read(self, run: Run, first: int, last: int) -> None:
        """Take in what there is from the end of the records on, and forget what is too old."""
        start = first if not len(self.steps) else int(self.steps[-1]) + 1
        if start <= last:
            steps, values = run.metric(self.metric, first=start, last=last)
            self.steps = np.concatenate([self.steps, steps])
            self.values = np.concatenate([self.values, values])
        low = int(np.searchsorted(self.steps, first))
        self.since = first
        if low:
            self.steps, self.values = self.steps[low:], self.values[low:]


class Tail:
    """Reads a run's newest records, and at each later look only those that are new.

    The run may go on, be closed, resumed or replaced by another one; reading takes no lock and
    changes nothing.

    Args:
        folder: the run folder.

    Raises:
        UserError: where there is no run that can be read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stamp: object = None
        self._alerts_stamp: object = None
        self._alerts: tuple[Alert, ...] = ()
        self._open()

    @property
    def run(self) -> Run:
        """The run as it was at the last look."""
        return self._run

    def look(self, wish: Wish) -> Snapshot:
        """What there is to see now.

        Args:
            wish: what of it.

        Raises:
            UserError: where the run cannot be read any more, or has no metric of that name.
        """
        with warnings.catch_warnings():
            # What is damaged is told on the screen; a warning would be printed across it.
            warnings.simplefilter("ignore", RuntimeWarning)
            if self._stamp != _stamp(self._folder / "run.json"):
                self._open()  # another run, or this one resumed or closed
            else:
                self._run.refresh()
            last = self._run.last_step
            if self._seen is not None and (last is None or last < self._seen):
                self._forget()  # cut back: what was read of later steps holds no more
            return self._show(wish, last)

    def _open(self) -> None:
        self._stamp = _stamp(self._folder / "run.json")
        self._run = load(self._folder)
        self._forget()

    def _forget(self) -> None:
        self._seen: int | None = None
        self._history: _History | None = None
        self._drawn: tuple[object, Array] | None = None
        self._latest: dict[str, Array] = {}

    def _show(self, wish: Wish, last: int | None) -> Snapshot:
        run = self._run
        metric = self._chosen(wish)
        found = Snapshot(
            title=str(self._folder),
            names=run.layer_names,
            metric=metric,
            history=np.empty((len(run.layer_names), 0)),
            layers={name: np.full(len(run.layer_names), np.nan) for name in run.layer_metrics},
            alerts=self._read_alerts(),
            about=words_about(run.meta),
            closed=run.closed,
        )
        if last is not None:
            found = self._filled(found, last, wish)
        return replace(found, damaged=len(run.damaged))

    def _filled(self, found: Snapshot, last: int, wish: Wish) -> Snapshot:
        """The snapshot with its numbers."""
        run, metric = self._run, found.metric
        # Anew each time: what a training script logs late amends records that were there before.
        records = run.latest(max(wish.window or 0, _SCALARS), metrics=())
        if not len(records):
            return replace(found, step=last)
        self._take_newest(last)
        curves, history, covered = self._curves(records, last, metric, wish)
        return replace(
            found,
            step=last,
            scalars=last_known(records.scalars),
            curves=curves,
            layers=dict(self._latest),
            history=found.history if history is None else history,
            covered=covered,
            rate=pace(records.steps, records.scalars.get("time")),
        )

    def _chosen(self, wish: Wish) -> str | None:
        metrics = self._run.layer_metrics
        if wish.metric is None:
            return next((name for name in ("norm", "std", *metrics) if name in metrics), None)
        if wish.metric not in metrics:
            raise UserError(
                f"expected a metric of {self._folder} ({', '.join(metrics)}), got {wish.metric!r}"
            )
        return wish.metric

    def _take_newest(self, last: int) -> None:
        """Bring the newest value of every layer metric up to date."""
        if self._seen is None:
            block = self._run.latest(_LATEST)
        elif self._seen < last:
            block = self._run.window(self._seen + 1, last)
        else:
            return
        newest(self._latest, block.layers)
        self._seen = last

    def _curves(
        self, records: Block, last: int, metric: str | None, wish: Wish
    ) -> tuple[dict[str, Array], Array | None, tuple[int, int]]:
        """The step metrics' curves, the layers', and the steps that these cover."""
        run = self._run
        if wish.window is None:
            steps = run.downsampled_steps(max(wish.curve, 1))
            curves = {name: steps.mean[:, at] for at, name in enumerate(steps.names)}
            first = int(steps.first_step[0]) if len(steps.first_step) else last
        else:
            names = [*records.scalars]
            columns = [records.scalars[name] for name in names]
            stacked = np.stack(columns, 1) if columns else np.empty((len(records), 0))
            low = max(len(records) - wish.window, 0)
            found = binned(records.steps[low:], stacked[low:], wish.window, wish.curve)
            curves = dict(zip(names, found, strict=True))
            first = int(records.steps[low])
        if metric is None:
            return curves, None, (first, last)
        asked = (metric, wish.window, wish.width, first, last)
        if self._drawn is None or self._drawn[0] != asked:  # the dear part of a look
            self._drawn = asked, self._layer_curves(metric, first, last, wish)
        return curves, self._drawn[1], (first, last)

    def _layer_curves(self, metric: str, first: int, last: int, wish: Wish) -> Array:
        run = self._run
        if wish.window is None:
            return run.downsampled(metric, max(wish.width, 1)).mean.T
        kept = self._history
        if kept is None or kept.metric != metric or first < kept.since:
            kept = self._history = _History(metric, first, len(run.layer_names))
        kept.read(run, first, last)
        return binned(kept.steps, kept.values, wish.window, wish.width)

    def _read_alerts(self) -> tuple[Alert, ...]:
        stamp = _stamp(self._folder / ALERTS_FILE)
        if stamp != self._alerts_stamp or stamp is None:
            self._alerts = tuple(read_alerts(self._folder))
            self._alerts_stamp = stamp
        return self._alerts


def _stamp(path: Path) -> object:
    """What changes when a file is replaced or written to; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
