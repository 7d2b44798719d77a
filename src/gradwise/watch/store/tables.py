"""Grids as the Arrow tables that are handed out."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from gradwise.watch.store.arrow import as_arrow, as_dictionary
from gradwise.watch.store.grid import Grid

__all__ = ["long_table", "wide_table"]


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
