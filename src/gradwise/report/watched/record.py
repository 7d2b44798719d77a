"""What is read of a watched run, and what of it could not be read."""

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gradwise.errors import UserError
from gradwise.report.watched.bins import begins, reduced
from gradwise.watch.alerts import Alert, read_alerts
from gradwise.watch.store import Downsampled, Run, load
from gradwise.watch.store.runfile import RunFile, read_run_file

__all__ = ["Record", "labels", "read_records", "slug"]

STEP_POINTS = 1500
"""The most bins of what is recorded once a step; several runs share twice as many."""

_RAW_STEPS = 300_000  # of longer runs not the records are read but the pyramids


@dataclass(frozen=True)
class Record:
    """A watched run as the page shows it.

    Attributes:
        name: what it is called; no other run of the page has this name.
        run: its folder, opened.
        info: what its `run.json` holds.
        steps: what it recorded once a step.
        alerts: what the rules had to say, in the order of the steps.
        troubles: sentences on what could not be read; more may come while it is shown.
    """

    name: str
    run: Run
    info: RunFile
    steps: Downsampled
    alerts: tuple[Alert, ...] = ()
    troubles: list[str] = field(default_factory=list)

    @property
    def places(self) -> list[tuple[int, int]]:
        """The first and last step of what happened, the gravest first."""
        return [(alert.step, alert.ended or alert.step) for alert in self.gravest]

    @property
    def gravest(self) -> list[Alert]:
        """The alerts, errors first."""
        return sorted(self.alerts, key=lambda alert: (alert.severity != "error", alert.step))

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Turn warnings about damaged files into troubles."""
        with _noted(self.troubles):
            yield


@contextmanager
def _noted(troubles: list[str]) -> Iterator[None]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for one in caught:
        if str(one.message) not in troubles:
            troubles.append(str(one.message))


def read_records(folders: Sequence[Path]) -> list[Record]:
    """Open runs and read what they recorded once a step.

    Args:
        folders: the run folders, all different.

    Raises:
        UserError: where one is no run, or its `run.json` is damaged or of a newer version.
    """
    points = min(STEP_POINTS, 2 * STEP_POINTS // len(folders))
    return [
        _read(folder, name, points) for folder, name in zip(folders, labels(folders), strict=True)
    ]


def _read(folder: Path, name: str, points: int) -> Record:
    troubles: list[str] = []
    with _noted(troubles):
        info, run = read_run_file(folder), load(folder)
        alerts: list[Alert] = []
        try:
            alerts = sorted(read_alerts(folder), key=lambda alert: alert.step)
        except UserError as error:
            troubles.append(f"the alerts are left out: {error}")
        found = Record(name, run, info, _nothing(), tuple(alerts), troubles)
        steps = _steps(run, points, found.places)
    return Record(name, run, info, steps, tuple(alerts), troubles)


def _nothing() -> Downsampled:
    return reduced((), np.empty(0, np.int64), np.empty((0, 0)), [])


def _steps(run: Run, points: int, places: Sequence[tuple[int, int]]) -> Downsampled:
    """What was recorded once a step, and finely around the places."""
    if run.last_step is None or run.last_step > _RAW_STEPS:
        return run.downsampled_steps(points)
    table = run.steps
    steps = np.asarray(table.column("step").to_numpy(), np.int64)
    names = tuple(name for name in table.column_names if name != "step")
    values = np.empty((len(steps), len(names)))
    for at, name in enumerate(names):
        values[:, at] = table.column(name).to_numpy()
    return reduced(names, steps, values, begins(steps, points, places))


def labels(folders: Sequence[Path]) -> list[str]:
    """Short names of folders, each with as much of its path as tells it from the others.

    Args:
        folders: all different.

    Examples:
        >>> labels([Path("runs/a"), Path("runs/b")]), labels([Path("x/1/watch"), Path("x/2/watch")])
        (['a', 'b'], ['1/watch', '2/watch'])
    """
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(one[-length:]) for one in parts]
        if len(set(names)) == len(names):
            break
    return [name.lstrip("/") or "run" for name in names]


def slug(records: Sequence[Record]) -> str:
    """The names of runs as a part of a file name.

    Args:
        records: the runs.
    """
    return re.sub(r"[^\w.]+", "-", "-".join(one.name for one in records)).strip("-.")[:80] or "runs"
