"""Sparklines: a curve in one line of text."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["ASCII", "UNICODE", "Signs", "binned", "heights", "signs_for", "sparklines"]

Array = npt.NDArray[Any]

# What a curve has to span to fill the height; less is drawn as less, so that a value which
# hardly changes looks like one. In decades, and as a share of the largest magnitude.
_LEAST_DECADES = 0.2
_LEAST_SHARE = 0.1


@dataclass(frozen=True)
class Signs:
    """The characters that a terminal has to draw with.

    Attributes:
        blocks: heights, the lowest first.
        infinite: stands in a curve where a value is infinite.
        down: marks a column sorted from the largest down.
        up: marks a column sorted from the smallest up.
        live: records are coming.
        still: none are.
        cut: stands where a text was cut.
        dash: between things in a line.
        here: marks the line with the cursor.
    """

    blocks: str
    infinite: str
    down: str
    up: str
    live: str
    still: str
    cut: str
    dash: str
    here: str


# No full block: lines one above the other would run into each other.
UNICODE = Signs("▁▂▃▄▅▆▇", "!", "▼", "▲", "●", "○", "…", "·", "›")
ASCII = Signs("_.-:=+#", "!", "v", "^", "*", "-", "~", "|", ">")


def signs_for(encoding: str | None, terminal: str | None) -> Signs:
    """The characters that can be shown.

    Args:
        encoding: of the stream they go to.
        terminal: the value of the variable TERM; the console of Linux has no eighths of a block.

    Examples:
        >>> signs_for("utf-8", "xterm").blocks, signs_for("latin-1", None).blocks
        ('▁▂▃▄▅▆▇', '_.-:=+#')
    """
    if terminal == "linux":
        return ASCII
    try:
        "".join(vars(UNICODE).values()).encode(encoding or sys.getdefaultencoding())
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return UNICODE


def binned(steps: npt.NDArray[np.int64], values: Array, window: int, width: int) -> Array:
    """Means over stretches of steps, the newest last.

    The stretches begin at multiples of their length, so that a curve moves to the left as steps
    are added and keeps its shape. While fewer than `window` records are there, they are shorter.

    Args:
        steps: [K] ascending.
        values: [K, N]; NaN is "not recorded" and does not count.
        window: how many records the bins cover.
        width: how many bins.

    Returns:
        [N, width]; NaN where there is nothing.

    Examples:
        >>> binned(np.arange(4), np.array([[0.0], [2.0], [4.0], [6.0]]), 4, 2)
        array([[1., 5.]])
    """
    found = np.full((values.shape[1], max(width, 0)), np.nan)
    if width <= 0 or not len(steps):
        return found
    apart = max(1, int(np.median(np.diff(steps)))) if len(steps) > 1 else 1
    at = steps // apart  # the number of the record, if all were recorded in the same rhythm
    there = int(at[-1] - at[0]) + 1
    size = -(-min(window, there) // width)
    if there < window:  # longer now and then, rather than a little longer all the time
        size = min(_round(size), -(-window // width))
    at = at // size
    at = at - (at[-1] - width + 1)
    low = int(np.searchsorted(at, 0))
    at, values = at[low:], values[low:]
    places, starts = np.unique(at, return_index=True)
    there_is = ~np.isnan(values)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        total = np.add.reduceat(np.where(there_is, values, 0.0), starts, axis=0)
        number = np.add.reduceat(there_is, starts, axis=0, dtype=np.int64)
        mean = total / number
    # Infinities of both signs add up to NaN, which would say that nothing was there.
    found[:, places] = np.where((number > 0) & np.isnan(mean), np.inf, mean).T
    return found


def _round(size: int) -> int:
    """The next number of 1, 2, 3, 4, 6, 8, 12, 16, 24, ..."""
    power = 1 << max(size - 1, 0).bit_length()
    return power * 3 // 4 if power >= 4 and size <= power * 3 // 4 else power


def heights(values: Array, *, log: bool) -> npt.NDArray[np.float64]:
    """Values as heights between 0 and 1, each row on a scale of its own.

    Args:
        values: [R, W].
        log: on a logarithmic scale, for values that are never negative; 0 is at the bottom.

    Returns:
        [R, W]; NaN where a value is NaN or infinite.

    Examples:
        >>> heights(np.array([[1.0, 10.0, 100.0], [5.0, 5.0, 5.0]]), log=True)
        array([[0. , 0.5, 1. ],
               [0.5, 0.5, 0.5]])
    """
    known = np.where(np.isfinite(values), values.astype(np.float64), np.nan)
    if not known.size:
        return known
    with np.errstate(invalid="ignore", divide="ignore"):
        if log:
            known = np.where(known > 0, np.log10(known), np.where(known <= 0, -np.inf, np.nan))
        there = np.isfinite(known)
        low = np.where(there, known, np.inf).min(axis=1)
        high = np.where(there, known, -np.inf).max(axis=1)
        low, high = (np.where(there.any(axis=1), edge, 0.0) for edge in (low, high))
        least = np.maximum(np.abs(low), np.abs(high)) * _LEAST_SHARE
        if log:
            least = np.full_like(low, _LEAST_DECADES)
        least = np.where(least > 0, least, 1.0)
        span = np.maximum(high - low, least)
        base = (low + high - span) / 2
        found = np.clip((known - base[:, None]) / span[:, None], 0.0, 1.0)
    return np.where(np.isnan(known), np.nan, found)


def sparklines(values: Array, *, log: bool, signs: Signs = UNICODE) -> list[str]:
    """Each row as a line of as many characters as it has values; spaces where there is none.

    Args:
        values: [R, W].
        log: see `heights`.
        signs: what to draw with.

    Examples:
        >>> sparklines(np.array([[0.0, 1.0, 2.0, np.nan, np.inf]]), log=False)
        ['▁▄▇ !']
    """
    levels = heights(values, log=log)
    kinds: Sequence[str] = [*signs.blocks, " ", signs.infinite]
    tall = len(signs.blocks)
    known = np.nan_to_num(levels, nan=0.0)
    at = np.minimum((known * tall).astype(np.int64), tall - 1)
    at = np.where(np.isnan(levels), np.where(np.isinf(values), tall + 1, tall), at)
    return ["".join(row) for row in np.array(kinds)[at].tolist()]
