"""Pictures for pages: one style for all of them, drawn by matplotlib, the same file each time.

Nothing here touches matplotlib's global state, so a user's own plots stay as they are.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from scipy import stats

__all__ = ["COLORS", "axes", "band", "svg"]

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b6b6b", "#a52a2a")
"""Told apart by people with any of the common kinds of colour vision (Okabe and Ito's, but two)."""

_DASHES = ("-", "--", "-.", ":")
_STYLE: Any = {  # matplotlib types its keys one by one
    "axes.grid": True,
    "axes.prop_cycle": f"cycler('color', {list(COLORS)})",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.titlelocation": "left",
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "font.family": "sans-serif",
    "font.size": 9,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.6,
    "image.cmap": "viridis",
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "svg.fonttype": "none",  # letters stay letters: small files that can be searched
    "svg.hashsalt": "gradwise",  # names inside the file do not change from run to run
}


@contextmanager
def axes(
    rows: int = 1, cols: int = 1, *, width: float = 7.2, height: float = 3.2, **layout: Any
) -> Iterator[tuple[Figure, Any]]:
    """A figure in the house's style, with its axes, to draw on inside the context.

    Args:
        rows: of axes.
        cols: of axes.
        width: of the figure in inches; 7.2 fill a page.
        height: likewise.
        layout: further keywords of `Figure.subplots`, such as `sharey=True`.

    Returns:
        A context with the figure and what `Figure.subplots` gives: one `Axes`, or an array.

    Examples:
        >>> with axes() as (figure, ax):
        ...     line = ax.plot([0, 1], [1, 0], label="loss")
        ...     picture = svg(figure)
        >>> picture.startswith(b"<?xml")
        True
    """
    with rc_context(_STYLE):
        figure = Figure(figsize=(width, height))
        FigureCanvasSVG(figure)
        yield figure, figure.subplots(rows, cols, **layout)


def svg(figure: Figure) -> bytes:
    """The figure as an SVG file; the same drawing gives the same bytes, whenever it is made.

    Args:
        figure: from `axes`, inside its context.
    """
    out = io.BytesIO()
    # dpi is that of what is drawn with `rasterized=True`, as thousands of points should be.
    figure.savefig(out, format="svg", dpi=200, metadata={"Date": None, "Creator": None})
    return out.getvalue()


def band(
    axis: Any,
    x: Sequence[float],
    values: Sequence[Sequence[float]],
    label: str,
    color: str | None = None,
    marker: str | None = None,
    geometric: bool = False,
) -> None:
    """Draw the mean over seeds as a line, and its 95 % interval (Student's t) as a band.

    What is not finite is left out, point by point; a single seed gets no band.

    Args:
        axis: to draw on.
        x: [K] places.
        values: by seed, [K] each.
        label: for the legend.
        color: the next of the cycle where it is None.
        marker: as matplotlib calls them; None for none.
        geometric: take mean and interval of logarithms, as fits values > 0 on a logarithmic axis,
            which an interval around the plain mean may leave through the bottom.
    """
    table = np.asarray(values, dtype=float).reshape(len(values), -1)
    if geometric:
        with np.errstate(divide="ignore", invalid="ignore"):
            table = np.log(table)
    table = np.where(np.isfinite(table), table, np.nan)
    count = np.isfinite(table).sum(axis=0)
    mean = np.full(table.shape[1], np.nan)
    half = np.zeros(table.shape[1])
    for at in range(table.shape[1]):
        column = table[np.isfinite(table[:, at]), at]
        if count[at]:
            mean[at] = column.mean()
        if count[at] > 1:
            spread = column.std(ddof=1) / np.sqrt(count[at])
            half[at] = float(stats.t.ppf(0.975, count[at] - 1)) * spread
    low, high = mean - half, mean + half
    if geometric:
        low, mean, high = np.exp(low), np.exp(mean), np.exp(high)
    taken = sum(1 for line in axis.lines if not line.get_label().startswith("_"))
    dash = _DASHES[taken // len(COLORS) % len(_DASHES)]
    (line,) = axis.plot(x, mean, dash, label=label, color=color, marker=marker, markersize=4)
    if len(table) > 1:
        axis.fill_between(x, low, high, color=line.get_color(), alpha=0.18, linewidth=0)
