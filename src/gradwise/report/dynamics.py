"""The gradients' dynamics of all trials, brought onto one grid of steps.

Every trial recorded its own run. To show them side by side, and to take means over seeds, all of
them are averaged over the same stretches of steps; there are as many stretches as a picture can
show, not as many as the training had steps.
"""

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwise.errors import UserError
from gradwise.report.folder import CompareRun, Trial
from gradwise.watch.store import Downsampled, Run, load

__all__ = ["Dynamics", "StepGrid", "Track", "read_dynamics"]

LAYER_METRIC = "std"
"""What the heatmaps show; its square is the variance."""

_FINE = 1000  # bins that are read of each trial, before they are brought onto the grid

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True)
class StepGrid:
    """Stretches of steps, all equally long.

    Attributes:
        first: the first step.
        last: the last step.
        width: steps in a stretch; the last one may be cut short.
    """

    first: int
    last: int
    width: int

    @classmethod
    def over(cls, tracks: list["Track"], points: int) -> "StepGrid | None":
        """The grid over some trials, of at most so many stretches; None without a record.

        A stretch holds at least one record where steps were recorded at even distances.

        Args:
            tracks: the trials.
            points: the most stretches, at least 1.
        """
        recorded = [track.steps for track in tracks if len(track.steps.first_step)]
        if not recorded:
            return None
        first = min(int(one.first_step[0]) for one in recorded)
        last = max(int(one.last_step[-1]) for one in recorded)
        wanted = min(points, max(len(one.first_step) for one in recorded))
        return cls(first, last, -(-(last - first + 1) // wanted))

    @property
    def columns(self) -> int:
        """Number of stretches.

        Examples:
            >>> StepGrid(0, 329, 2).columns
            165
        """
        return (self.last - self.first) // self.width + 1

    @property
    def middles(self) -> list[int]:
        """The step in the middle of each stretch.

        Examples:
            >>> StepGrid(10, 14, 2).middles
            [10, 12, 14]
        """
        return [
            (low + min(low + self.width - 1, self.last)) // 2
            for low in range(self.first, self.last + 1, self.width)
        ]

    def resample(self, bins: Downsampled) -> Matrix:
        """Means over the stretches [series, columns], NaN where there is no finite value.

        Args:
            bins: finer bins; each counts for the stretch in which its middle lies.
        """
        at = ((bins.first_step + bins.last_step) // 2 - self.first) // self.width
        means = np.asarray(bins.mean, np.float64)
        weight = np.where(np.isfinite(means), bins.count, 0).astype(np.float64)
        total = np.zeros((self.columns, means.shape[1]))
        count = np.zeros_like(total)
        np.add.at(total, at, np.where(weight > 0, means, 0.0) * weight)
        np.add.at(count, at, weight)
        with np.errstate(invalid="ignore", divide="ignore"):
            found: Matrix = (total / count).T
        return found

    def payload(self) -> dict[str, int]:
        """The grid as the page's script reads it."""
        return {
            "first": self.first,
            "last": self.last,
            "width": self.width,
            "columns": self.columns,
        }


@dataclass(frozen=True)
class Track:
    """What one trial recorded.

    Attributes:
        method: index of its method.
        trial: the trial.
        layers: the layers' names, in the order of the model.
        steps: the step metrics.
        std: the std of each layer's gradient; None where it was not recorded.
    """

    method: int
    trial: Trial
    layers: tuple[str, ...]
    steps: Downsampled
    std: Downsampled | None


@dataclass(frozen=True)
class Dynamics:
    """What all trials recorded.

    Attributes:
        layers: the layers' names, in the order of the model.
        tracks: the trials that have a record.
        troubles: sentences on what could not be read.
    """

    layers: tuple[str, ...] = ()
    tracks: list[Track] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)

    def of_metric(self, metric: str, grid: StepGrid) -> dict[int, list[tuple[Trial, Matrix]]]:
        """One step metric on a grid, by index of the method: its trials and their values [columns].

        Trials for which there is no finite value anywhere are left out.

        Args:
            metric: its name.
            grid: the grid.
        """
        found: dict[int, list[tuple[Trial, Matrix]]] = {}
        for track in self.tracks:
            if metric in track.steps.names:
                row = grid.resample(track.steps)[track.steps.names.index(metric)]
                if np.isfinite(row).any():
                    found.setdefault(track.method, []).append((track.trial, row))
        return found


def read_dynamics(run: CompareRun) -> Dynamics:
    """Read what the trials of a run recorded; what cannot be read is told, not raised.

    Args:
        run: the compare run.
    """
    found = Dynamics()
    for trial in run.all_trials():
        if trial.watch is None:
            continue
        where = f"{trial.method}, seed {trial.seed}"
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                track = _track(run, trial, load(trial.watch))
            except (UserError, OSError) as error:
                found.troubles.append(f"the gradients of {where} cannot be read: {error}")
                continue
        found.troubles.extend(f"the gradients of {where}: {one.message}" for one in caught)
        if found.tracks and track.layers != found.tracks[0].layers:
            found.troubles.append(f"the gradients of {where} are left out: it has other layers")
            continue
        found.tracks.append(track)
    layers = found.tracks[0].layers if found.tracks else ()
    return Dynamics(layers, found.tracks, found.troubles)


def _track(run: CompareRun, trial: Trial, store: Run) -> Track:
    kept: Any = None
    if store.layer_names and LAYER_METRIC in store.layer_metrics:
        kept = store.downsampled(LAYER_METRIC, _FINE)
    steps = store.downsampled_steps(_FINE)
    return Track(run.methods.index(trial.method), trial, store.layer_names, steps, kept)
