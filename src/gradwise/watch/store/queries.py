"""What a run is asked for, read from one listing of its folder."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gradwise.watch.block import Block
from gradwise.watch.store.downsample import collect
from gradwise.watch.store.folder import Folder, Tables
from gradwise.watch.store.grid import Grid
from gradwise.watch.store.pieces import pieces_between, read_pieces
from gradwise.watch.store.pyramid import Bins
from gradwise.watch.store.tables import as_block, no_grid

__all__ = ["read_bins", "read_block", "read_grid", "step_columns"]

_Steps = npt.NDArray[np.int64]


def step_columns(folder: Folder, tables: Tables) -> tuple[str, ...]:
    """The step metrics: those that were announced, and those that have come since.

    Args:
        folder: the run folder.
        tables: a listing of it.

    Raises:
        DamagedPartError: where a part cannot be read.
        VanishedPartError: where a part is no longer there.
    """
    found = [name for reader in tables.records["steps"] for name in reader.columns]
    return tuple(dict.fromkeys([*folder.info.step_metrics, *found]))


def read_grid(
    folder: Folder,
    table: str,
    columns: Sequence[str],
    first: int | None = None,
    last: int | None = None,
    only: int | None = None,
) -> Grid:
    """Columns of a table over some steps, of all layers or of only one.

    Args:
        folder: the run folder.
        table: the table; one that the run does not have is empty.
        columns: its value columns.
        first: the first step wanted; None for the run's first.
        last: the last step wanted; None for the run's last.
        only: index of the one layer wanted; None for all.

    Raises:
        UserError: where the folder cannot be read.
    """
    spec = folder.info.tables.get(table)
    if spec is None:  # a run without layers, or without histograms
        return no_grid(columns)
    start, stop = (0, spec.width) if only is None else (only, only + 1)

    def read(tables: Tables) -> Grid:
        pieces = pieces_between(tables.records[table], first or 0, _end(folder, last))
        return read_pieces(pieces, spec, columns, start, stop)

    return folder.read(read)


def read_block(
    folder: Folder,
    metrics: Sequence[str],
    first: int | None = None,
    last: int | None = None,
    newest: int | None = None,
) -> Block:
    """Layer metrics and all step metrics over some steps.

    Args:
        folder: the run folder.
        metrics: the layer metrics.
        first: the first step wanted; None for the run's first.
        last: the last step wanted; None for the run's last.
        newest: only so many of the newest records of these steps; None for all.

    Raises:
        UserError: where the folder cannot be read.
    """

    def read(tables: Tables) -> Block:
        end = _end(folder, last)
        begin = first or 0
        if newest is not None:
            begin = max(begin, _begin_of(tables, newest, end))

        def grid(table: str, columns: Sequence[str]) -> Grid:
            spec = folder.info.tables.get(table)
            if spec is None:  # a run without layers
                return no_grid(columns)
            return read_pieces(pieces_between(tables.records[table], begin, end), spec, columns)

        steps = grid("steps", step_columns(folder, tables))
        return as_block(folder.info.layers, steps, grid("layers", metrics))

    return folder.read(read)


def read_bins(
    folder: Folder, table: str, metrics: Sequence[str] | None, points: int
) -> tuple[_Steps, _Steps, dict[str, Bins]]:
    """Metrics of a table in at most so many bins.

    Args:
        folder: the run folder.
        table: the table.
        metrics: its value columns; None for all step metrics.
        points: the most bins.

    Returns:
        The first and last step of each bin, and per metric its bins [layers, bins].

    Raises:
        UserError: where the folder cannot be read.
    """
    spec = folder.info.tables[table]

    def read(tables: Tables) -> tuple[_Steps, _Steps, dict[str, Bins]]:
        wanted = step_columns(folder, tables) if metrics is None else metrics
        records, levels = tables.records[table], tables.levels[table]
        return collect(records, levels, spec, wanted, points, folder.end)

    return folder.read(read)


def _end(folder: Folder, last: int | None) -> int:
    return folder.end if last is None else min(last, folder.end)


def _begin_of(tables: Tables, newest: int, end: int) -> int:
    """The step at which the newest records up to a step begin."""
    for reader in reversed(tables.records["steps"]):
        steps = reader.keys["step"]
        count = int(np.searchsorted(steps, end, "right"))
        if count >= newest:
            return int(steps[count - newest])
        newest -= count
    return 0
