"""Min, mean and max over bins of records, level on level, so that a long run stays small to draw.

A bin of level 1 stands for 16 consecutive records of a table, a bin of level 2 for 16 bins of
level 1, and so on. Bins count records, not steps, so a run recorded every 100 steps has no more
of them than it needs. NaN means "not recorded" and takes no part in a bin; `count` says how many
values did. Infinities count like any other value: a picture must show them.
"""

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gradwise.watch.store.files import make_folder
from gradwise.watch.store.grid import BIN_KEYS, Array, Grid, PartWriter, TableSpec
from gradwise.watch.store.pieces import Piece, gather, pieces_between
from gradwise.watch.store.reading import Cursor, PartReader
from gradwise.watch.store.shelf import Shelf

__all__ = ["CHUNK", "FACTOR", "STATS", "Bins", "bin_columns", "extend", "level_spec", "metrics_of"]

FACTOR = 16
"""Records (or bins of the level below) in a bin."""

CHUNK = 1024
"""Records (or bins of the level below) that a level takes in at once."""

STATS = ("min", "mean", "max", "count")

# Values that are combined at once.
_COMBINED_VALUES = 2**16

# Values of one metric that are held while a level is built.
_BLOCK_VALUES = 262_144


def level_spec(table: TableSpec, level: int) -> TableSpec:
    """The table that holds one level of another table's pyramid.

    Args:
        table: the table of records.
        level: 1 for the finest.

    Examples:
        >>> level_spec(TableSpec("steps", ("step",), None), 2).folder
        'pyramids/steps-2'
    """
    return TableSpec(f"pyramids/{table.folder}-{level}", BIN_KEYS, table.layers, table.dtype)


def bin_columns(metric: str) -> list[str]:
    """The columns that a metric has in a pyramid.

    Args:
        metric: its name.

    Examples:
        >>> bin_columns("norm")
        ['norm_min', 'norm_mean', 'norm_max', 'norm_count']
    """
    return [f"{metric}_{stat}" for stat in STATS]


def metrics_of(columns: Iterable[str]) -> list[str]:
    """The metrics whose bins a pyramid's columns hold.

    Args:
        columns: names of value columns.

    Examples:
        >>> metrics_of(["norm_min", "norm_mean", "norm_max", "norm_count"])
        ['norm']
    """
    return [name.removesuffix("_mean") for name in columns if name.endswith("_mean")]


@dataclass
class Bins:
    """One metric over bins.

    Attributes:
        min: smallest value [rows, bins], NaN where there is none.
        mean: mean of the values [rows, bins], NaN where there is none.
        max: largest value [rows, bins], NaN where there is none.
        count: number of values [rows, bins] that are not NaN.
    """

    min: Array
    mean: Array
    max: Array
    count: Array

    @classmethod
    def of(cls, values: Array) -> "Bins":
        """Single values as bins.

        Args:
            values: [rows, records].
        """
        return cls(values, values, values, (~np.isnan(values)).astype(np.int32))

    @classmethod
    def read(cls, metric: str, columns: Mapping[str, Array]) -> "Bins":
        """The bins of one metric out of a pyramid's columns.

        Args:
            metric: its name.
            columns: arrays [rows, bins].
        """
        return cls(*(columns[name] for name in bin_columns(metric)))

    def write(self, metric: str) -> dict[str, Array]:
        """The bins as a pyramid's columns.

        Args:
            metric: the metric's name.
        """
        count = self.count.astype(np.int32)
        return dict(zip(bin_columns(metric), (self.min, self.mean, self.max, count), strict=True))

    def combine(self, starts: npt.NDArray[np.intp]) -> "Bins":
        """Wider bins out of neighbouring ones.

        Args:
            starts: index of the first bin of each wider bin, ascending from 0.

        Examples:
            >>> bins = Bins.of(np.array([[1.0, 3.0, np.nan, 5.0]])).combine(np.array([0, 2]))
            >>> bins.min, bins.mean, bins.count
            (array([[1., 5.]]), array([[2., 5.]]), array([[2, 1]]))
        """
        rows = max(1, _COMBINED_VALUES // max(self.mean.shape[1], 1))
        if len(self.mean) > rows:  # what fits the processor's caches goes several times as fast
            parts = [
                Bins(*(getattr(self, stat)[at : at + rows] for stat in STATS)).combine(starts)
                for at in range(0, len(self.mean), rows)
            ]
            return Bins(*(np.concatenate([getattr(p, stat) for p in parts]) for stat in STATS))
        dtype = self.mean.dtype
        # inf - inf is what it is: the mean of such a bin is NaN, its min and max tell why.
        with np.errstate(all="ignore"):
            low = np.fmin.reduceat(self.min, starts, axis=1)
            high = np.fmax.reduceat(self.max, starts, axis=1)
            count = np.add.reduceat(self.count, starts, axis=1, dtype=np.int64)
            wide = self.mean.astype(np.float64)
            weighted = np.where(self.count > 0, wide * self.count, 0.0)
            mean = np.add.reduceat(weighted, starts, axis=1) / count
            # Rounding must not carry the mean of equal values past them.
            mean = np.clip(mean.astype(dtype), low, high)
        return Bins(low, mean, high, count)


def stacked(series: Sequence[Bins], count: int) -> Bins:
    """Bins of several metrics with one row each, row on row.

    Args:
        series: bins [1, count] of each metric.
        count: number of bins, for where there is no metric.
    """

    def rows(stat: str) -> Array:
        none = np.empty((0, count), np.int64 if stat == "count" else np.float64)
        return np.concatenate([none, *(getattr(bins, stat) for bins in series)])

    return Bins(*(rows(stat) for stat in STATS))


def _take(pieces: Sequence[Piece], amount: int) -> list[Piece]:
    """The first `amount` records of some pieces; none if there are fewer."""
    taken, left = [], amount
    for piece in pieces:
        if left == 0:
            break
        taken.append(Piece(piece.reader, piece.low, min(piece.high, piece.low + left)))
        left -= taken[-1].steps
    return taken if left == 0 else []


def extend(source: Shelf, target: Shelf, chunk: int) -> Generator[None, None, bool]:
    """Add to a level of a pyramid what the level below has gained; pauses after every block.

    It knows nothing but what is on the disk, so there is nothing to restore after a crash, a
    resumption or a full disk: the level takes up after its own last step.

    Args:
        source: the records, or the level below.
        target: the level.
        chunk: how many records or bins to take; a multiple of 16.

    Returns:
        Whether there was enough to take.

    Raises:
        OSError: where the part cannot be written.
        DamagedPartError: where a part of the source cannot be read.
    """
    raw = source.spec.keys != BIN_KEYS
    readers = [PartReader(part, source.spec) for part in source.parts if part.last > target.last]
    pieces = _take(pieces_between(readers, target.last + 1, np.iinfo(np.int64).max), chunk)
    if not pieces:
        return False
    starts = np.arange(0, chunk, FACTOR)
    first = np.concatenate([piece.key(source.spec.keys[0]) for piece in pieces])
    last = np.concatenate([piece.key(source.spec.keys[-1]) for piece in pieces])
    keys = dict(zip(BIN_KEYS, (first[starts], last[starts + FACTOR - 1]), strict=True))
    columns = list(dict.fromkeys(name for piece in pieces for name in piece.reader.columns))
    metrics = columns if raw else metrics_of(columns)
    folder = make_folder(target.root, target.spec.folder)
    with ExitStack() as stack:
        # The first block opens them all: a merge may delete the files during any pause after it.
        cursors = [stack.enter_context(Cursor(piece.reader, columns)) for piece in pieces]
        part = PartWriter(folder, int(first[0]), int(last[-1]), 0)
        stack.enter_context(part)
        width, size = source.spec.width, max(1, _BLOCK_VALUES // chunk)
        for start in range(0, width, size):
            stop = min(start + size, width)
            values = gather(pieces, cursors, columns, start, stop)
            found: dict[str, Array] = {}
            for metric in metrics:
                bins = Bins.of(values[metric]) if raw else Bins.read(metric, values)
                found |= bins.combine(starts).write(metric)
            layers = source.spec.layers
            part.write(Grid(keys, found), None if layers is None else layers[start:stop])
            yield
        target.add(part.commit(), chunk // FACTOR)
    return True
