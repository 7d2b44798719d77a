"""Grids as the Arrow tables and blocks that are handed out."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from gradwise.watch.block import Block
from gradwise.watch.store.arrow import as_arrow, as_dictionary
from gradwise.watch.store.grid import Array, Grid

__all__ = ["as_block", "long_table", "no_grid", "wide_table"]


def no_grid(columns: Sequence[str]) -> Grid:
    """The grid of a table that a run does not have.

    Args:
        columns: the value columns that were asked for.
    """
    return Grid({"step": np.empty(0, np.int64)}, {name: np.empty((0, 0)) for name in columns})


def as_block(names: tuple[str, ...], steps: Grid, layers: Grid) -> Block:
    """Both tables over the same steps, as one block.

    Args:
        names: the layers.
        steps: its values are [1, records].
        layers: its values are [layers, records]. Where one of the tables has a record that the
            other lacks, as after damage, the other's values are NaN.
    """
    every = np.union1d(steps.keys["step"], layers.keys["step"])

    def placed(grid: Grid) -> dict[str, Array]:
        if grid.steps == len(every):
            return {n: value.T.astype(np.float64, order="C") for n, value in grid.values.items()}
        rows = np.searchsorted(every, grid.keys["step"])
        placed = {}
        for name, value in grid.values.items():
            placed[name] = np.full((len(every), len(value)), np.nan)
            placed[name][rows] = value.T
        return placed

    scalars = {name: column[:, 0] for name, column in placed(steps).items()}
    return Block(names, every, placed(layers), scalars)


def wide_table(grid: Grid) -> pa.Table:
    """A grid of one row as a table with a row for each step.

    Args:
        grid: its values are [1, steps].

    Examples:
        >>> grid = Grid({"step": np.array([0, 1])}, {"loss": np.array([[2.0, 1.0]])})
        >>> wide_table(grid).to_pydict()
        {'step': [0, 1], 'loss': [2.0, 1.0]}
    """
    columns = {"step": as_arrow(grid.keys["step"])}
    return pa.table(columns | {name: as_arrow(value) for name, value in grid.values.items()})


def long_table(grid: Grid, layers: Sequence[str]) -> pa.Table:
    """A grid as a table with a row for each step and layer, in this order.

    Args:
        grid: its values are [layers, steps].
        layers: the layers' names.
    """
    indices = np.tile(np.arange(len(layers), dtype=np.int32), grid.steps)
    columns = {
        "step": as_arrow(np.repeat(grid.keys["step"], len(layers))),
        "layer": as_dictionary(indices, layers),
    }
    return pa.table(columns | {name: as_arrow(value.T) for name, value in grid.values.items()})
