"""Bins over the records of a run that are narrow where something happened."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gradwise.watch.store import Downsampled

__all__ = ["REACH", "begins", "reduced"]

REACH = 40
"""So many records before and after a place that matters have a bin each."""


def begins(
    steps: npt.NDArray[np.int64], points: int, places: Sequence[tuple[int, int]] = ()
) -> list[int]:
    """Where the bins begin, as indices of records, at most `points` of them.

    A run of no more records has a bin a record. Else the records of some places have a bin each,
    and `REACH` more before and after, as long as these take no more than half of the bins; the
    rest goes into bins of the same number of records.

    Args:
        steps: the steps that were recorded [K], ascending.
        points: the most bins, at least 10.
        places: the first and the last step of each place, the most important first; of a long
            one only its first `3 * REACH` records count.

    Examples:
        >>> begins(np.arange(6), 10)
        [0, 1, 2, 3, 4, 5]
        >>> begins(np.arange(100), 10)
        [0, 12, 24, 36, 48, 60, 72, 84, 96]
    """
    count = len(steps)
    if count <= points:
        return list(range(count))
    alone = np.zeros(count, bool)
    windows = 0
    for first, last in dict.fromkeys(places):
        at, end = (int(found) for found in np.searchsorted(steps, (first, last)))
        wanted = alone.copy()
        wanted[max(0, at - REACH) : min(end, at + 3 * REACH) + REACH] = True
        if wanted.sum() > points // 2:
            continue
        alone, windows = wanted, windows + 1
    left = max(1, points - int(alone.sum()) - windows - 1)
    width = -(-int(count - alone.sum()) // left)
    here = np.arange(count)
    before = np.maximum.accumulate(np.where(alone, here, -1))
    found = alone | ((here - before - 1) % width == 0)
    return [int(at) for at in np.flatnonzero(found)]


def reduced(
    names: tuple[str, ...],
    steps: npt.NDArray[np.int64],
    values: npt.NDArray[np.floating],
    starts: Sequence[int],
) -> Downsampled:
    """Minimum, mean and maximum over bins, as the pyramids of the store have them.

    Args:
        names: the N series.
        steps: the steps that were recorded [K].
        values: [K, N]; NaN is "not recorded" and takes no part.
        starts: where the bins begin, from 0 on; empty where there are no records.

    Examples:
        >>> found = reduced(("x",), np.arange(4), np.array([[1.0], [3.0], [np.nan], [5.0]]), [0, 2])
        >>> found.mean.ravel().tolist(), found.max.ravel().tolist(), found.last_step.tolist()
        ([2.0, 5.0], [3.0, 5.0], [1, 3])
    """
    if not len(steps):
        empty = np.empty((0, len(names)))
        none = np.empty(0, np.int64)
        return Downsampled(names, none, none, empty, empty, empty, np.empty(empty.shape, np.int64))
    at = np.asarray(starts)
    there = ~np.isnan(values)
    count = np.add.reduceat(there.astype(np.int64), at, axis=0)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        total = np.add.reduceat(np.where(there, values, 0.0), at, axis=0)
        return Downsampled(
            names,
            steps[at],
            steps[np.append(at[1:], len(steps)) - 1],
            np.fmin.reduceat(values, at, axis=0),
            total / count,
            np.fmax.reduceat(values, at, axis=0),
            count,
        )
