"""A long run as a few hundred bins, from the pyramids where it is long."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwise.watch.store.grid import BIN_KEYS, TableSpec
from gradwise.watch.store.pieces import Piece, pieces_between, read_pieces
from gradwise.watch.store.pyramid import FACTOR, Bins, bin_columns, level_spec
from gradwise.watch.store.reading import PartReader

__all__ = ["Downsampled", "collect"]


@dataclass(frozen=True)
class Downsampled:
    """Bins over the steps of a run: P bins of N series.

    Attributes:
        names: what the N series are: layers, in the run's order, or step metrics.
        first_step: the first step of each bin [P].
        last_step: the last step of each bin [P].
        min: the smallest value in each bin [P, N]; NaN where nothing was recorded.
        mean: the mean of the values in each bin [P, N].
        max: the largest value in each bin [P, N].
        count: number of values in each bin [P, N]; NaN is "not recorded" and not a value.
    """

    names: tuple[str, ...]
    first_step: npt.NDArray[np.int64]
    last_step: npt.NDArray[np.int64]
    min: npt.NDArray[np.floating[Any]]
    mean: npt.NDArray[np.floating[Any]]
    max: npt.NDArray[np.floating[Any]]
    count: npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Source:
    """Pieces of one level (0: the records) in a stretch of steps that no other source covers."""

    level: int
    pieces: list[Piece]

    @property
    def first(self) -> int:
        piece = self.pieces[0]
        return int(piece.key(piece.reader.spec.keys[0])[0])

    @property
    def last(self) -> int:
        piece = self.pieces[-1]
        return int(piece.key(piece.reader.spec.keys[-1])[-1])


def _choose(levels: Sequence[Sequence[PartReader]], points: int) -> int:
    """The coarsest level, of those from 0 on, that still has as many bins as are wanted."""
    for level in range(len(levels) - 1, 0, -1):
        if sum(reader.steps for reader in levels[level]) >= points:
            return level
    return 0


def _fill(
    found: list[_Source], level: int, readers: Sequence[PartReader], end: int, before: int
) -> list[_Source]:
    """Add what a level has for the stretches that are not covered yet.

    Args:
        found: what is covered already, in step order.
        level: the level, 0 for the records.
        readers: its parts.
        end: the last step that counts.
        before: only bins that begin before this step.
    """
    gaps = []
    at = 0
    for source in found:
        gaps.append((at, source.first - 1))
        at = source.last + 1
    gaps.append((at, end))
    added = list(found)
    for low, high in gaps:
        pieces = []
        for piece in pieces_between(readers, low, high) if low <= high else []:
            begins = piece.key(piece.reader.spec.keys[0])
            count = int(np.searchsorted(begins, before))
            if count:
                pieces.append(Piece(piece.reader, piece.low, piece.low + count))
        # One source a part, so that a part missing in between leaves a gap to be filled.
        added += [_Source(level, [piece]) for piece in pieces]
    return sorted(added, key=lambda source: source.first)


def _sources(
    records: Sequence[PartReader],
    levels: Sequence[Sequence[PartReader]],
    points: int,
    end: int,
) -> list[_Source]:
    """Where to read each stretch of steps: the chosen level first, finer ones behind its end."""
    stack = [records, *levels]
    chosen = _choose(stack, points)
    none = np.iinfo(np.int64).max
    found: list[_Source] = []
    if chosen == 0 and levels:
        # Records that were dropped for their age live on in the pyramid only.
        oldest = records[0].part.first if records else none
        found = _fill(found, 1, levels[0], end, oldest)
    for level in range(chosen, -1, -1):
        found = _fill(found, level, stack[level], end, none)
    return found


def collect(
    records: Sequence[PartReader],
    levels: Sequence[Sequence[PartReader]],
    spec: TableSpec,
    metrics: Sequence[str],
    points: int,
    end: int,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], dict[str, Bins]]:
    """At most `points` bins of some metrics over all steps up to `end`.

    Args:
        records: the parts of the table of records.
        levels: the parts of its pyramid's levels, the finest first.
        spec: the table of records.
        metrics: the value columns wanted.
        points: the most bins.
        end: the last step that counts.

    Returns:
        The first and last step of each bin, and per metric its bins [layers, bins].

    Raises:
        DamagedPartError: where a part cannot be read.
        VanishedPartError: where a part is no longer there.
    """
    firsts, lasts, weights = [], [], []
    stacks: dict[str, list[Bins]] = {name: [] for name in metrics}
    for source in _sources(records, levels, points, end):
        if source.level == 0:
            grid = read_pieces(source.pieces, spec, metrics)
            first = last = grid.keys["step"]
            for name in metrics:
                stacks[name].append(Bins.of(grid.values[name]))
        else:
            columns = [column for name in metrics for column in bin_columns(name)]
            grid = read_pieces(source.pieces, level_spec(spec, source.level), columns)
            first, last = (grid.keys[key] for key in BIN_KEYS)
            for name in metrics:
                stacks[name].append(Bins.read(name, grid.values))
        firsts.append(first)
        lasts.append(last)
        weights.append(np.full(len(first), FACTOR**source.level, np.int64))
    if not firsts:
        none = np.empty(0, np.int64)
        empty = np.empty((spec.width, 0), spec.dtype)
        return none, none, {name: Bins.of(empty) for name in metrics}
    starts = _starts(np.concatenate(weights), points)
    first_step = np.concatenate(firsts)[starts]
    last_step = np.concatenate(lasts)[np.append(starts[1:], sum(map(len, lasts))) - 1]
    return first_step, last_step, {name: _join(stacks[name]).combine(starts) for name in metrics}


def _starts(weights: npt.NDArray[np.int64], points: int) -> npt.NDArray[np.intp]:
    """Where each of at most `points` bins begins, such that they hold about as many records."""
    if len(weights) <= points:
        return np.arange(len(weights))
    before = np.cumsum(weights) - weights
    target = before * points // int(weights.sum())
    return np.flatnonzero(np.diff(target, prepend=-1))


def _join(stack: Sequence[Bins]) -> Bins:
    def along(pick: Callable[[Bins], npt.NDArray[Any]]) -> npt.NDArray[Any]:
        arrays = [pick(bins) for bins in stack]
        return arrays[0] if len(arrays) == 1 else np.concatenate(arrays, axis=1)

    return Bins(
        along(lambda bins: bins.min),
        along(lambda bins: bins.mean),
        along(lambda bins: bins.max),
        along(lambda bins: bins.count),
    )


def downsampled(
    names: tuple[str, ...],
    first: npt.NDArray[np.int64],
    last: npt.NDArray[np.int64],
    bins: Bins,
) -> Downsampled:
    """Bins as they are handed out, one column a series.

    Args:
        names: what the series are.
        first: the first step of each bin.
        last: the last step of each bin.
        bins: the series' bins [series, bins].
    """
    count = bins.count.T.astype(np.int64)
    return Downsampled(names, first, last, bins.min.T, bins.mean.T, bins.max.T, count)
