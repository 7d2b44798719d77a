"""Pictures of the gradients' standard deviations over training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize

from gradwise.report.article import Picture
from gradwise.report.drawing import COLORS, axes, band, svg
from gradwise.reproduce.experiments._cifar import Matrix, Trace, shown

__all__ = ["global_std", "layer_std"]

_POINTS = 80  # as many as a panel can show, and no more than a page should hold
Found = Mapping[str, Mapping[str, list[Trace]]]


def layer_std(found: Found) -> Picture:
    """The standard deviation of each layer over steps, coloured by depth.

    Args:
        found: by model and method, seed by seed.
    """
    rows = len(found)
    methods = list(dict.fromkeys(method for by in found.values() for method in by))
    colors = colormaps["viridis"].resampled(256)
    with axes(rows, len(methods), height=2.5 * rows + 0.4, squeeze=False, sharey="row") as (
        figure,
        grid,
    ):
        for row, (model, by) in enumerate(found.items()):
            for axis, method in zip(grid[row], methods, strict=True):
                _layers(axis, by.get(method, []), colors)
                axis.set_title(f"{shown(model)}, {method}")
            grid[row][0].set_ylabel("std of a layer's gradient")
        for axis in grid[-1]:
            axis.set_xlabel("step")
        bar = figure.colorbar(
            ScalarMappable(Normalize(0, 1), colors), ax=grid, shrink=0.6, pad=0.02
        )
        bar.set_ticks([0, 1], labels=["first layer", "last"])
        return Picture(
            "layer-std",
            "Standard deviation of each weight tensor's gradient over training, before the "
            "transform, from the first layer (dark) to the last (light). Geometric means over the "
            "seeds and over short stretches of steps.",
            "Lines of standard deviations over steps on a logarithmic axis, one for each layer, "
            "one panel for each model and method.",
            svg(figure),
        )


def _layers(axis: Any, ones: list[Trace], colors: Any) -> None:
    if ones:
        axis.set_yscale("log")
        steps, values = _stretches(ones, [one.std for one in ones])
        mean = values.mean(axis=0)
        count = mean.shape[1]
        for place in range(count):
            shade = colors(place / max(1, count - 1))
            axis.plot(steps, 10 ** mean[:, place], color=shade, linewidth=0.9)


def global_std(found: Found) -> Picture:
    """The standard deviation of all layers together over steps, with its band.

    Args:
        found: by model and method, seed by seed.
    """
    with axes(1, len(found), height=2.9, squeeze=False) as (figure, grid):
        for axis, (model, by) in zip(grid[0], found.items(), strict=True):
            for color, (method, ones) in zip(COLORS, by.items(), strict=False):
                if ones:
                    steps, values = _stretches(ones, [one.sigma[:, None] for one in ones])
                    rows = [[*row] for row in 10 ** values[:, :, 0]]
                    band(axis, steps, rows, method, color, geometric=True)
                    axis.set_yscale("log")
            axis.set_title(shown(model))
            axis.set_xlabel("step")
        grid[0][0].set_ylabel("global std of the gradients")
        for axis in grid[0]:
            if axis.get_legend_handles_labels()[0]:
                axis.legend()
                break
        return Picture(
            "global-std",
            "Standard deviation of all gradients together, each tensor around its own mean, before "
            "the transform. Geometric means over seeds with 95 % intervals.",
            "Lines of the global standard deviation over steps with bands on a logarithmic axis, "
            "one panel for each model.",
            svg(figure),
        )


def _stretches(ones: list[Trace], values: list[Matrix]) -> tuple[list[float], Matrix]:
    """Middles of stretches of steps, and [S, P, E] mean logarithms over them."""
    count = min(len(one.steps) for one in ones)
    places = np.array_split(np.arange(count), min(_POINTS, count))
    steps = [float(ones[0].steps[place].mean()) for place in places]
    with np.errstate(divide="ignore"):
        logs = [np.log10(one[:count]) for one in values]
    found = np.array([[log[place].mean(axis=0) for place in places] for log in logs])
    return steps, np.where(np.isfinite(found), found, np.nan)
