"""Pictures of `sparse_features`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gradwise.report.article import Picture
from gradwise.report.drawing import COLORS, axes, band, svg
from gradwise.reproduce.experiments._sparse_page import AUTHORS, AUTHORS_DECAYS, Data, percent
from gradwise.reproduce.experiments._sparse_relu import POINTS, VALUES


def pictures(data: Data) -> tuple[Picture, ...]:
    """Losses, sparsity over the steps, and the test loss by decay."""
    return (_losses(data), _sparsity(data), _test_losses(data), _functions(data))


def _phases(data: Data) -> list[tuple[str, list[dict[str, Any]]]]:
    """Runs of SGD on diagonal networks that came to an end."""
    columns = data.diagonal("sgd")
    return [(phase, [run for run in runs if run is not None]) for phase, runs in columns]


def _losses(data: Data) -> Picture:
    with axes(1, 3, height=3.0) as (figure, (left, middle, right)):
        _draw_images(data, left)
        for phase, runs in _phases(data):
            _course(middle, runs, "losses", phase)
        for q in data.relu_ends:
            runs = [one[q] for one in data.seeds("relu") if one[q] is not None]
            _course(right, runs, "losses", f"warm-up {percent(float(q))}")
        for axis, title in (
            (left, "images"),
            (middle, "diagonal, large steps for"),
            (right, "ReLU on a line"),
        ):
            axis.set_title(title)
            axis.set_xlabel("step")
            axis.locator_params(axis="x", nbins=3)
            axis.set_yscale("log")
            if axis.lines:
                axis.legend()
        left.set_ylabel("training loss")
        return Picture(
            "sparse-losses",
            "Training loss. While steps are large it hovers, and falls when they shrink. Bands: "
            "95 % intervals over seeds; lines of the diagonal and the ReLU network are geometric "
            "means.",
            "Lines of loss over steps that stay level and then drop, a panel for each model.",
            svg(figure),
        )


def _draw_images(data: Data, axis: Any) -> None:
    for schedule, name in (("large", "large, then decay"), ("small", "small")):
        runs = [pair[schedule] for pair in data.images() if pair[schedule] is not None]
        if runs:
            band(axis, runs[0]["at"], [run["losses"] for run in runs], name)


def _course(axis: Any, runs: Sequence[dict[str, Any]], name: str, label: str) -> None:
    """The geometric mean of what spans orders of magnitude."""
    if not runs:
        return
    columns = zip(*(run[name] for run in runs), strict=True)
    means = [
        math.exp(math.fsum(math.log(max(x, 1e-16)) for x in column) / len(runs))
        for column in columns
    ]
    axis.plot(runs[0]["at"], means, label=label, linewidth=1.0)


def _sparsity(data: Data) -> Picture:
    with axes(1, 3, height=3.0) as (figure, (left, middle, right)):
        for schedule, name in (("large", "large, then decay"), ("small", "small")):
            runs = [pair[schedule] for pair in data.images() if pair[schedule] is not None]
            if runs:
                at = [look["step"] for look in runs[0]["course"]]
                rows = [[look["active"][-1] for look in run["course"]] for run in runs]
                band(left, at, rows, name, marker="o")
        for phase, runs in _phases(data):
            if runs:
                band(middle, runs[0]["at"], [run["counts"] for run in runs], phase)
        for q in data.relu_ends:
            runs = [one[q] for one in data.seeds("relu") if one[q] is not None]
            if runs:
                rows = [run["actives"] for run in runs]
                band(right, runs[0]["at"], rows, f"warm-up {percent(float(q))}")
        left.set_title("images: active, last stage")
        middle.set_title("diagonal: non-zero")
        right.set_title("ReLU on a line: active")
        for axis in (left, middle, right):
            axis.set_xlabel("step")
            axis.locator_params(axis="x", nbins=3)
            axis.set_ylim(bottom=0)
            if axis.lines:
                axis.legend()
        return Picture(
            "sparse-features",
            "Sparsity over training: the lower, the sparser. Left and right the share of positive "
            "activations, in the middle the coordinates that are not zero. Bands: 95 % intervals "
            "over seeds.",
            "Lines that fall further the longer steps are large, a panel for each model.",
            svg(figure),
        )


def _test_losses(data: Data) -> Picture:
    with axes(1, 2, height=3.0) as (figure, panels):
        for axis, method, title in zip(
            panels, ("sgd", "gd"), ("SGD", "gradient descent"), strict=True
        ):
            columns = data.diagonal(method)
            for k in range(len(data.seeds("diagonal"))):
                values = [runs[k] for _, runs in columns]
                up = [math.nan if run is None else run["test_loss"] for run in values]
                axis.plot(range(len(up)), up, "-", color="#bdbdbd", linewidth=0.8)
            for place, (_, runs) in enumerate(columns):
                known = [math.log(max(run["test_loss"], 1e-300)) for run in runs if run is not None]
                if known:
                    mean = math.exp(math.fsum(known) / len(known))
                    axis.plot([place], [mean], "o", color=COLORS[0])
            if method == "sgd" and data.settings["decays"] == AUTHORS_DECAYS:
                theirs = [float(loss) for _, loss, _ in AUTHORS["sgd"]]
                axis.plot(range(4), theirs, "x", color=COLORS[1], label="authors' notebook")
                axis.legend()
            axis.set_xticks(range(len(columns)), [phase for phase, _ in columns])
            axis.set_xlabel("large steps for")
            axis.set_title(title)
            axis.set_yscale("log")
        panels[0].set_ylabel("test loss")
        return Picture(
            "sparse-test-loss",
            "Test loss of diagonal linear networks by how long steps are large; a grey line for "
            "each problem, dots for geometric means.",
            "Grey lines and dots over four schedules, for SGD and for gradient descent.",
            svg(figure),
        )


def _functions(data: Data) -> Picture:
    with axes(width=4.6, height=3.0) as (figure, axis):
        for k, q in enumerate(data.relu_ends):
            runs = [one[q] for one in data.seeds("relu") if one[q] is not None]
            for number, run in enumerate(runs):
                label = f"warm-up {percent(float(q))}" if number == 0 else None
                axis.plot(run["grid"], run["function"], color=COLORS[k], label=label, linewidth=0.8)
        axis.plot(POINTS, VALUES, "o", color="black", markersize=4)
        axis.set_xlabel("x")
        axis.set_ylabel("f(x)")
        if len(axis.lines) > 1:
            axis.legend()
        return Picture(
            "sparse-functions",
            "What the ReLU network learns from twelve points, a line for each seed. Fewer active "
            "features mean fewer kinks.",
            "Lines through twelve points, with fewer bends after the longer warm-up.",
            svg(figure),
        )
