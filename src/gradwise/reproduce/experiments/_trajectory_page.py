"""What runs of `trajectory_hallmarks` say together: tables, pictures and notes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradwise.report.article import Picture, Table
from gradwise.report.drawing import axes, band, svg
from gradwise.reproduce.experiments._several import is_number

Run = dict[str, Any]
_SHOWN = 61  # rows of a drawn map


@dataclass(frozen=True)
class Condition:
    """What is on."""

    name: str
    decay: bool
    momentum: bool


CONDITIONS = {
    "both": Condition("weight decay and momentum", True, True),
    "momentum": Condition("momentum alone", False, True),
    "decay": Condition("weight decay alone", True, False),
    "neither": Condition("neither", False, False),
}


class Data:
    """Runs by condition and seed; those that diverged are None."""

    def __init__(self, settings: dict[str, Any], results: dict[str, dict[str, Any]]) -> None:
        self.settings, self._results = settings, results

    def seeds(self) -> list[dict[str, Run | None]]:
        """By seed, the runs by condition."""
        return [
            {c: self._results.get(f"{c}-seed={seed}", {}).get("run") for c in CONDITIONS}
            for seed in self.settings["seeds"]
        ]

    def runs(self, condition: str) -> list[Run]:
        """Those that did not diverge."""
        return [found for by in self.seeds() if (found := by[condition]) is not None]

    def lost(self) -> list[str]:
        """Cells that diverged."""
        return [name for name, result in self._results.items() if result.get("run", None) is None]

    def frozen_share(self) -> float | None:
        """Of the parameters, where norm layers alone are trained."""
        for run in self.runs("both"):
            for branch in run["frozen"]:
                return float(branch["frozen_share"])
        return None


def similarity(run: Run | None, begin: float, end: float) -> float:
    """Mean directional similarity of the checkpoints in a part of a run.

    Args:
        run: with its map; None is one that diverged.
        begin: share of the run at which the part begins, in [0, 1].
        end: and ends, both included.

    Raises:
        ValueError: where the run diverged.
    """
    if run is None:
        raise ValueError("no run")
    at = np.asarray(run["at"], dtype=float) / run["at"][-1]
    kept = (at >= begin - 1e-9) & (at <= end + 1e-9)
    cosines = np.asarray(run["cosines"], dtype=float)
    return float(cosines[kept][:, kept].mean())


# --- tables ---


def tables(data: Data) -> tuple[Table, ...]:
    """Numbers of the trajectories, and of training norm layers alone."""
    return (_hallmarks(data), _frozen(data))


def _hallmarks(data: Data) -> Table:
    part = data.settings["part"]
    columns: dict[str, Callable[[Run], float | None]] = {
        "MDS": lambda run: run["mds"],
        f"MDS, first {100 * part:.0f} %": lambda run: similarity(run, 0, part),
        f"MDS, last {100 * part:.0f} %": lambda run: similarity(run, 1 - part, 1),
        "MDS from the start": lambda run: run["relative_mds"],
        "mean turn, first part": lambda run: _degrees(run, "turns", 0, part),
        "last part": lambda run: _degrees(run, "turns", 1 - part, 1),
        "angle at the origin, first part": lambda run: _degrees(run, "apex", 0, part),
        "last part ": lambda run: _degrees(run, "apex", 1 - part, 1),
        "path": lambda run: run["path_length"],
        "displacement / path": lambda run: run["efficiency"],
        "norm at the end": lambda run: run["norms"][-1],
        "loss at the end": lambda run: run["losses"][-1],
        "accuracy (%)": lambda run: 100 * float(run["accuracy"]),
    }
    rows = []
    for condition, words in CONDITIONS.items():
        runs = data.runs(condition)
        rows.append((words.name, *(_mean(runs, value) for value in columns.values())))
    return Table(
        "Trajectories",
        ("condition", *(name.strip() for name in columns)),
        tuple(rows),
        "Means over seeds. MDS: mean directional similarity, the mean cosine of all pairs of "
        "checkpoints. Angles in degrees: turns are those between consecutive updates, at the "
        "origin those between consecutive checkpoints. The loss is that of batches since the "
        "checkpoint before the last.",
    )


def _frozen(data: Data) -> Table:
    runs = data.runs("both")
    rows = [
        (
            "everything",
            _mean(runs, lambda run: run["test_loss"]),
            _mean(runs, lambda run: 100 * float(run["accuracy"])),
            "0",
        )
    ]
    for k, share in enumerate(data.settings["freeze_at"]):
        rows.append(
            (
                f"norm layers alone from {100 * share:g} % of the epochs on",
                _mean(runs, lambda run, k=k: run["frozen"][k]["test_loss"]),  # type: ignore[misc]  # its own k
                _mean(runs, lambda run, k=k: 100 * float(run["frozen"][k]["accuracy"])),  # type: ignore[misc]  # its own k
                _mean(runs, lambda run, k=k: 100 * float(run["frozen"][k]["frozen_share"]), 4),  # type: ignore[misc]  # its own k
            )
        )
    return Table(
        "Training norm layers alone",
        ("trained", "test loss", "test accuracy (%)", "frozen (%)"),
        tuple(rows),
        "Means over seeds, with weight decay and momentum; running statistics go on.",
    )


def _degrees(run: Run, name: str, begin: float, end: float) -> float:
    """The mean of those angles that lie in a part of the run; where both arms end counts."""
    at = run["at"][-len(run[name]) :]
    found = [
        angle
        for place, angle in zip(at, run[name], strict=True)
        if angle is not None and begin - 1e-9 <= place / run["at"][-1] <= end + 1e-9
    ]
    return math.degrees(math.fsum(found) / len(found))


def _mean(runs: Sequence[Run], value: Callable[[Run], float | None], digits: int = 3) -> str:
    found = []
    for run in runs:
        try:
            number = value(run)
        except (TypeError, ValueError, ZeroDivisionError):
            continue
        if number is not None and is_number(number):
            found.append(number)
    return f"{math.fsum(found) / len(found):.{digits}g}" if found else "—"


# --- pictures ---


def pictures(data: Data) -> tuple[Picture, ...]:
    """Maps, similarity as it comes about, and angles."""
    if not any(data.runs(condition) for condition in CONDITIONS):
        return ()
    return (_maps(data), _similarities(data), _angles(data))


def _maps(data: Data) -> Picture:
    maps = {}
    for condition in CONDITIONS:
        found = [np.asarray(run["cosines"], dtype=float) for run in data.runs(condition)]
        if found:
            mean = np.mean(found, axis=0)
            maps[condition] = mean[:: -(-len(mean) // _SHOWN), :: -(-len(mean) // _SHOWN)]
    low = min(float(found.min()) for found in maps.values())
    with axes(2, 2, height=6.2) as (figure, grid):
        for axis, (condition, words) in zip(grid.flat, CONDITIONS.items(), strict=True):
            axis.set_title(words.name)
            axis.grid(False)
            if condition not in maps:
                continue
            end = data.runs(condition)[0]["at"][-1]
            image = axis.imshow(
                maps[condition], vmin=low, vmax=1, origin="lower", extent=(0, end, 0, end)
            )
        for axis in grid[-1]:
            axis.set_xlabel("epoch")
        for axis in grid[:, 0]:
            axis.set_ylabel("epoch")
        figure.colorbar(image, ax=grid, shrink=0.6, label="cosine of two checkpoints")
        return Picture(
            "trajectory-maps",
            "Trajectory maps: cosines of all pairs of checkpoints, seen from the origin, means "
            "over seeds. Weight decay and momentum are meant to make the lower left corner fade "
            "faster, the upper right is meant to be bright everywhere.",
            "Four heat maps of cosines by epoch and epoch, one for each condition.",
            svg(figure),
        )


def _similarities(data: Data) -> Picture:
    part = data.settings["part"]
    with axes(1, 2, height=3.1) as (figure, (course, bars)):
        for condition, words in CONDITIONS.items():
            runs = data.runs(condition)
            if runs:
                rows = [
                    [similarity(run, 0, at / run["at"][-1]) for at in run["at"]] for run in runs
                ]
                band(course, runs[0]["at"], rows, words.name)
                parts = [[similarity(r, 0, part), similarity(r, 1 - part, 1)] for r in runs]
                band(bars, [0, 1], parts, words.name, marker="o")
        course.set_xlabel("epoch")
        course.set_ylabel("mean directional similarity")
        course.set_title("from the start to an epoch")
        course.legend()
        bars.set_title("within a part")
        bars.set_xticks([0, 1], [f"first {100 * part:.0f} %", f"last {100 * part:.0f} %"])
        bars.set_xlim(-0.2, 1.2)
        return Picture(
            "trajectory-similarity",
            "Mean directional similarity of the checkpoints so far, and of those in the first and "
            "in the last part of the run. Lower is more exploration. Bands: 95 % intervals over "
            "seeds.",
            "Lines of mean directional similarity by epoch for four conditions, and for each of "
            "them a line from its value in the first part to that in the last.",
            svg(figure),
        )


def _angles(data: Data) -> Picture:
    with axes(1, 2, height=3.1) as (figure, grid):
        titles = (("apex", "between checkpoints"), ("turns", "between updates"))
        for axis, (name, title) in zip(grid, titles, strict=True):
            for condition, words in CONDITIONS.items():
                runs = data.runs(condition)
                if runs:
                    rows = [
                        [math.nan if a is None else math.degrees(a) for a in run[name]]
                        for run in runs
                    ]
                    band(axis, runs[0]["at"][-len(rows[0]) :], rows, words.name)
            axis.set_title(title)
            axis.set_xlabel("epoch")
        grid[1].set_ylim(0, 180)
        grid[0].set_yscale("log")
        grid[0].set_ylabel("angle in degrees")
        grid[0].legend()
        return Picture(
            "trajectory-angles",
            "Angles between consecutive checkpoints, seen from the origin, and between "
            "consecutive updates, where 90 degrees is a random walk in many dimensions. Bands: 95 "
            "% intervals over seeds.",
            "Lines of angles by epoch for four conditions, in two panels.",
            svg(figure),
        )


def notes(data: Data) -> tuple[str, ...]:
    """What a reader has to know."""
    settings = data.settings
    blocks = "-".join(map(str, settings["blocks"]))
    told = [
        f"A residual network with {blocks} blocks in its stages, the first {settings['width']} "
        f"channels wide, on {settings['data']}, with images mirrored where that leaves their class "
        "alone and not shifted; the paper draws its maps of a ResNet-50 on ImageNet and others, "
        "and trains norm layers alone in a ResNet-20 on CIFAR-10.",
        "What weight decay can turn a trajectory by grows with rate times decay times steps: where "
        "steps are few, decay is set higher than is usual.",
        "The learning rate drops late in the run, which by itself makes late checkpoints alike.",
    ]
    if data.lost():
        told.append(f"Runs that diverged and are left out: {', '.join(data.lost())}.")
    return tuple(told)
