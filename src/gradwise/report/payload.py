"""What the page's script draws: charts, heatmaps and the names that go with them."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradwise.report.curves import Chart, band, history_chart, lines_of
from gradwise.report.dynamics import Dynamics, StepGrid, Track
from gradwise.report.encode import pack, rounded
from gradwise.report.folder import CompareRun
from gradwise.report.tables import paint
from gradwise.report.values import numbers
from gradwise.report.words import join

__all__ = ["HEAT_BYTES", "POINTS", "build_payload", "heat_points"]

POINTS = 200
"""The most points in time that a picture has."""

FEWEST_POINTS = 60
"""With fewer than these a heatmap of one seed says little; then only the means are kept."""

HEAT_BYTES = 480_000
"""What all heatmaps together may take in the page, about."""

_CODE_BYTES = 8 / 3  # two bytes in base64


def heat_points(layers: int, matrices: int) -> int:
    """How many points in time a heatmap may have so that all of them fit.

    Args:
        layers: rows of each heatmap.
        matrices: how many heatmaps there are.

    Examples:
        >>> heat_points(40, 15), heat_points(170, 50)
        (200, 21)
    """
    return min(POINTS, max(1, int(HEAT_BYTES / (_CODE_BYTES * max(1, layers * matrices)))))


def build_payload(run: CompareRun, dynamics: Dynamics) -> dict[str, Any]:
    """Everything that the page's script needs, as plain JSON values.

    Args:
        run: the compare run.
        dynamics: what its trials recorded.

    Returns:
        `methods` (each its name, colour and dash pattern), `epoch` (steps
        in an epoch, or None), `training` and `global` (charts), and `heat` (or None).
    """
    grid = StepGrid.over(dynamics.tracks, POINTS)
    return {
        "methods": [
            {"name": name, "color": color, "dash": dash}
            for name, (color, dash) in zip(run.methods, paint(run), strict=True)
        ],
        "epoch": _steps_in_epoch(run),
        "training": [chart.payload() for chart in _training(run, dynamics, grid)],
        "global": [chart.payload() for chart in _global(run, dynamics, grid)],
        "heat": _heat(run, dynamics),
    }


def _training(run: CompareRun, dynamics: Dynamics, grid: StepGrid | None) -> list[Chart]:
    charts = [
        history_chart(run, "test_accuracy", "Test accuracy", "%", factor=100.0),
        history_chart(run, "test_loss", "Test loss", "", log=True),
        history_chart(run, "train_loss", "Training loss, mean of each epoch", "", log=True),
        _chart(dynamics, grid, "loss", "Training loss, batch by batch", log=True),
    ]
    return [chart for chart in charts if chart is not None]


def _global(run: CompareRun, dynamics: Dynamics, grid: StepGrid | None) -> list[Chart]:
    charts = [
        _chart(dynamics, grid, "grad_std", "Std of all gradients pooled", log=True, square=True),
        _chart(dynamics, grid, "alpha", "Multiplier alpha", missing=run),
        _chart(
            dynamics, grid, "grad_norm", "Gradient norm before the method", log=True, scale="norm"
        ),
        _chart(
            dynamics, grid, "applied_norm", "Gradient norm after the method", log=True, scale="norm"
        ),
    ]
    return [chart for chart in charts if chart is not None]


def _chart(
    dynamics: Dynamics,
    grid: StepGrid | None,
    metric: str,
    title: str,
    *,
    log: bool = False,
    square: bool = False,
    scale: str = "",
    missing: CompareRun | None = None,
) -> Chart | None:
    """A chart of a step metric, or None where no trial has it."""
    rows = {} if grid is None else dynamics.of_metric(metric, grid)
    if grid is None or not rows:
        return None
    note = ""
    if missing is not None:
        recorded = {track.method for track in dynamics.tracks}
        absent = [missing.methods[at] for at in sorted(recorded - set(rows))]
        if absent:
            note = f"No curve for {join(absent)}: there is no single factor that all layers share."
    lines = [line for at, found in rows.items() for line in lines_of(at, found)]
    return Chart(
        metric, title, "", grid.middles, lines, log=log, square=square, scale=scale, note=note
    )


def _heat(run: CompareRun, dynamics: Dynamics) -> dict[str, Any] | None:
    tracks = [track for track in dynamics.tracks if track.std is not None]
    layers = len(dynamics.layers)
    if not tracks or not layers:
        return None
    points = heat_points(layers, len(tracks))
    by_seed = points >= FEWEST_POINTS
    if not by_seed:
        points = heat_points(layers, len({track.method for track in tracks}))
    grid = StepGrid.over(tracks, points)
    if grid is None:
        return None
    found = _by_trial(tracks, grid) if by_seed else _means(tracks, grid)
    return {
        "layers": list(dynamics.layers),
        "grid": grid.payload(),
        "seeds": [seed for seed in run.seeds if any(one["seed"] == seed for one in found)],
        "matrices": found,
    }


def _by_trial(tracks: Sequence[Track], grid: StepGrid) -> list[dict[str, Any]]:
    """The matrix of every trial; `whole` says whether it goes into the mean."""
    return [
        {
            "method": track.method,
            "seed": track.trial.seed,
            "whole": track.trial.status == "finished",
            "std": pack(grid.resample(track.std)),
        }
        for track in tracks
        if track.std is not None
    ]


def _means(tracks: Sequence[Track], grid: StepGrid) -> list[dict[str, Any]]:
    """One matrix a method: the mean over what finished, or over all if nothing did."""
    found = []
    for method in sorted({track.method for track in tracks}):
        own = [track for track in tracks if track.method == method]
        whole = [track for track in own if track.trial.status == "finished"] or own
        stack = np.stack([grid.resample(track.std) for track in whole if track.std is not None])
        mean = band(stack.reshape(len(stack), -1)).mean.reshape(stack.shape[1:])
        found.append({"method": method, "seed": None, "whole": True, "std": pack(mean)})
    return found


def _steps_in_epoch(run: CompareRun) -> float | int | None:
    """Steps in an epoch, where all that is recorded agrees on one number."""
    found = set()
    for trial in run.all_trials():
        history = trial.result.get("history")
        if isinstance(history, dict):
            pairs = zip(numbers(history.get("step")), numbers(history.get("epoch")), strict=False)
            found |= {step / epoch for step, epoch in pairs if step and epoch}
    return rounded(found.pop()) if len(found) == 1 else None
