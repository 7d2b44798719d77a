"""Pictures of the language model's losses: over learning rates, over steps, around bad batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from gradwise.report.article import Picture
from gradwise.report.drawing import COLORS, axes, band, svg
from gradwise.reproduce.experiments._char_found import Floats, Found

__all__ = ["around", "pictures"]

TITLES = {
    "clean": "no bad batches",
    "random": "bad: random characters",
    "scrambled": "bad: scrambled, loss too large",
}
BEFORE, AFTER = 5, 40  # steps around a bad batch
_CURVE = 50  # points of a curve at most


def pictures(found: Found, curve_lr: float) -> tuple[Picture, ...]:
    """All pictures; those of bad batches where there were any.

    Args:
        found: the numbers.
        curve_lr: the learning rate of the curves over steps.
    """
    drawn = [_by_rate(found)]
    if found.bad:
        drawn.append(_curves(found, curve_lr))
        drawn.append(_around(found, curve_lr))
    return tuple(drawn)


def _color(found: Found, method: str) -> str:
    return COLORS[found.methods.index(method) % len(COLORS)]


def _frame(row: Iterable[Any], values: Sequence[Any]) -> None:
    """Show what was measured in full; of bands what fits, which of few seeds are wide."""
    flat = np.concatenate([np.ravel(np.asarray(one, dtype=float)) for one in values])
    flat = flat[np.isfinite(flat)]
    if len(flat):
        room = 0.05 * max(float(np.ptp(flat)), 0.1)
        for axis in row:
            axis.set_ylim(float(flat.min()) - room, float(flat.max()) + room)


def _by_rate(found: Found) -> Picture:
    count = len(found.conditions)
    with axes(1, count, height=3.0, sharey=True, squeeze=False) as (figure, grid):
        for axis, condition in zip(grid[0], found.conditions, strict=True):
            for method in found.methods:
                values = found.validation[method, condition].tolist()
                color = _color(found, method)
                band(axis, found.rates, values, method, color=color, marker="o")
            axis.axhline(found.uniform, color="#6b6b6b", linestyle=":", linewidth=1)
            axis.set_xscale("log")
            axis.set_title(TITLES[condition])
            axis.set_xlabel("learning rate")
        _frame(grid[0], [found.uniform, *(found.validation.values())])
        grid[0, 0].set_ylabel("validation loss, bits a character")
        grid[0, 0].legend()
        picture = svg(figure)
    return Picture(
        "loss-by-learning-rate",
        "Validation loss after training against the learning rate: mean of the seeds and its 95 % "
        "interval. The dotted line is guessing blindly, which a run that diverged counts as.",
        f"One panel a condition ({', '.join(found.conditions)}), one line a method "
        f"({', '.join(found.methods)}), validation loss over learning rates from "
        f"{found.rates[0]:g} to {found.rates[-1]:g}.",
        picture,
    )


def _curves(found: Found, curve_lr: float) -> Picture:
    steps = found.losses[found.methods[0], "clean"].shape[1]
    edges = np.linspace(0, steps, min(_CURVE, steps) + 1).astype(int)
    middles = ((edges[:-1] + edges[1:]) / 2).tolist()
    drawn: list[Any] = []
    with axes(1, len(found.bad), height=3.0, sharey=True, squeeze=False) as (figure, grid):
        for axis, condition in zip(grid[0], found.bad, strict=True):
            for method in found.methods:
                rows = [_good(found, method, condition, at) for at in range(len(found.seeds))]
                means = [[_mean(row[a:b]) for a, b in pairwise(edges.tolist())] for row in rows]
                band(axis, middles, means, method, color=_color(found, method))
                drawn.append(means)
            hits = found.bad_steps[found.seeds[0]]
            places = axis.get_xaxis_transform()  # across in steps, upwards in shares of the panel
            axis.plot(hits, np.full(len(hits), 0.02), "|", color="black", transform=places)
            axis.set_title(TITLES[condition])
            axis.set_xlabel("step")
        _frame(grid[0], drawn)
        grid[0, 0].set_ylabel("loss of good batches, bits a character")
        grid[0, 0].legend()
        picture = svg(figure)
    return Picture(
        "training-with-bad-batches",
        f"Training loss of the good batches at learning rate {curve_lr:g}: mean of the seeds and "
        f"its 95 % interval. The marks below are the bad batches of seed {found.seeds[0]}.",
        f"One panel a kind of bad batches ({', '.join(found.bad)}), one line a method, loss over "
        "steps.",
        picture,
    )


def _around(found: Found, curve_lr: float) -> Picture:
    places = list(range(-BEFORE, AFTER + 1))
    with axes(1, len(found.bad), height=3.0, squeeze=False) as (figure, grid):
        for axis, condition in zip(grid[0], found.bad, strict=True):
            drawn: list[Any] = []
            for method in found.methods:
                rows = around(found, method, condition).tolist()
                band(axis, places, rows, method, color=_color(found, method))
                drawn.append(rows)
            _frame([axis], drawn)
            axis.axvline(0, color="#6b6b6b", linestyle=":", linewidth=1)
            axis.set_title(TITLES[condition])
            axis.set_xlabel("steps since a bad batch")
        grid[0, 0].set_ylabel("added loss, bits a character")
        grid[0, 0].legend()
        picture = svg(figure)
    return Picture(
        "around-bad-batches",
        f"What a bad batch adds to the loss of the good batches around it at learning rate "
        f"{curve_lr:g}: loss less that of the same step of the same run without bad batches, from "
        f"its mean over the {BEFORE} steps before; mean over a run's bad batches, then of the "
        "seeds with a 95 % interval.",
        f"One panel a kind of bad batches ({', '.join(found.bad)}), one line a method, added loss "
        f"from {BEFORE} steps before to {AFTER} steps after a bad batch.",
        picture,
    )


def around(found: Found, method: str, condition: str) -> Floats:
    """`[S, BEFORE + 1 + AFTER]`: mean added loss around the bad batches of each seed's run.

    Args:
        found: the numbers.
        method: its name.
        condition: with bad batches.

    Returns:
        Bits a character; NaN where no good batch was at that distance, as at 0.
    """
    out = np.full((len(found.seeds), BEFORE + 1 + AFTER), np.nan)
    for at, seed in enumerate(found.seeds):
        added = _good(found, method, condition, at) - found.losses[method, "clean"][at]
        padded = np.pad(added, (BEFORE, AFTER), constant_values=np.nan)
        rows = []
        for step in found.bad_steps[seed]:
            piece = padded[step : step + BEFORE + 1 + AFTER]
            rows.append(piece - _mean(piece[:BEFORE]))
        if rows:
            out[at] = [_mean(column) for column in np.stack(rows).T]
    return out


def _good(found: Found, method: str, condition: str, at: int) -> Floats:
    """Losses of a seed's steps, NaN where the batch was bad."""
    losses: Floats = found.losses[method, condition][at].copy()
    losses[found.bad_steps[found.seeds[at]]] = np.nan
    return losses


def _mean(values: Floats) -> float:
    """Mean of what is a number; NaN where nothing is."""
    sound = values[np.isfinite(values)]
    return float(sound.mean()) if len(sound) else float("nan")
