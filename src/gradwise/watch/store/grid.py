"""A table in memory, and how it is laid out in a Parquet file.

Every table of a run is a grid: for each recorded step (or each bin of steps, in the pyramids)
every layer has a value in every column. In memory a column is an array [layers, steps]. In a
file a grid is a long table, one row a layer and step, ordered by layer and then by step, cut
into row groups of whole layers. So the rows of one layer lie together, where they lie follows
from counting alone, and a layer or a column is read without touching the rest.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from gradwise.watch.store.arrow import as_arrow, as_dictionary
from gradwise.watch.store.files import Draft, Stamp, fsync_folder, make_folder, stamp_of
from gradwise.watch.store.parts import Part, part_name

__all__ = ["BIN_KEYS", "GROUP_ROWS", "RECORD_KEYS", "Grid", "PartWriter", "TableSpec", "write_grid"]

GROUP_ROWS = 65_536
"""Rows of a row group at most, unless one layer has more: what reading one layer costs."""

# Values of a row group at most, unless one layer has more: what a merge holds of each part.
_GROUP_VALUES = 2**19

RECORD_KEYS = ("step",)
"""The whole-number columns of a table of records."""

BIN_KEYS = ("first_step", "last_step")
"""The whole-number columns of a level of a pyramid."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class TableSpec:
    """What kind of table it is.

    Attributes:
        folder: where its parts lie, inside the run folder.
        keys: its whole-number columns which are the same for every layer.
        layers: the layers' names, in the order of the rows; None for one row a step.
        dtype: the type of its values, float32, float64 or int64; counts in a pyramid are int32.
    """

    folder: str
    keys: tuple[str, ...]
    layers: tuple[str, ...] | None
    dtype: str = "float32"

    @property
    def width(self) -> int:
        """Number of rows a step has."""
        return 1 if self.layers is None else len(self.layers)

    def missing(self, column: str) -> np.generic:
        """What stands in a value column for "not recorded", in the column's type: NaN, or 0.

        Args:
            column: the column's name.

        Examples:
            >>> TableSpec("steps", RECORD_KEYS, None, "float64").missing("loss")
            np.float64(nan)
        """
        if self.keys == BIN_KEYS and column.endswith("_count"):
            return np.int32(0)
        kind = np.dtype(self.dtype)
        value: np.generic = kind.type(np.nan if kind.kind == "f" else 0)
        return value


@dataclass
class Grid:
    """Some layers of a table over some steps.

    Attributes:
        keys: whole-number columns [steps]; the first ascends strictly.
        values: value columns [layers, steps].
    """

    keys: dict[str, npt.NDArray[np.int64]]
    values: dict[str, Array]

    @property
    def steps(self) -> int:
        """Number of recorded steps (or bins) in it."""
        return len(next(iter(self.keys.values())))


def layer_groups(steps: int, width: int, columns: int) -> Iterator[tuple[int, int]]:
    """The slices of layers, `(start, stop)`, that become row groups.

    Args:
        steps: the number of steps in the part.
        width: the number of layers in the table.
        columns: the number of value columns.

    Examples:
        >>> list(layer_groups(32768, 5, 8))
        [(0, 2), (2, 4), (4, 5)]
    """
    rows = min(GROUP_ROWS, _GROUP_VALUES // max(columns, 1))
    size = max(1, rows // max(steps, 1))
    for start in range(0, width, size):
        yield start, min(start + size, width)


def encode(grid: Grid, layers: Sequence[str] | None) -> pa.Table:
    """Lay a grid out as the long table that is written.

    Args:
        grid: whole layers over all steps of the part.
        layers: the names of these layers; None for a table with one row a step.
    """
    width = 1 if layers is None else len(layers)
    columns = [as_arrow(np.tile(key, width)) for key in grid.keys.values()]
    fields = [pa.field(name, pa.int64(), nullable=False) for name in grid.keys]
    if layers is not None:
        # Only the names of this row group: Arrow writes the dictionary into each of them.
        indices = np.repeat(np.arange(width, dtype=np.int32), grid.steps)
        columns.append(as_dictionary(indices, layers))
        fields.append(pa.field("layer", pa.dictionary(pa.int32(), pa.string()), nullable=False))
    for name, value in grid.values.items():
        column = as_arrow(value)
        columns.append(column)
        fields.append(pa.field(name, column.type, nullable=False))
    return pa.Table.from_arrays(columns, schema=pa.schema(fields))


class PartWriter:
    """Writes one part, row group by row group; it appears only when all of it is there.

    Args:
        folder: the table's folder; it must exist.
        first: the first step of the part.
        last: the last step of the part.
        tier: how many merges its rows have been through.

    Raises:
        OSError: where the file cannot be made.
    """

    def __init__(self, folder: Path, first: int, last: int, tier: int) -> None:
        self._range = (first, last, tier)
        self._draft = Draft(folder / part_name(first, last, tier))
        self._writer: Any = None

    def write(self, grid: Grid, layers: Sequence[str] | None) -> None:
        """Write the next layers as one row group.

        Args:
            grid: whole layers over all steps of the part; the same columns each time.
            layers: the names of these layers; None for a table with one row a step.

        Raises:
            OSError: where the system refuses.
        """
        table = encode(grid, layers)
        if self._writer is None:
            self._writer = self._open(table.schema)
        self._writer.write_table(table, row_group_size=max(table.num_rows, 1))

    def _open(self, schema: pa.Schema) -> Any:
        encodings = {}
        repeated = []
        bounded = [*RECORD_KEYS, *BIN_KEYS, "layer"]
        for column in schema:
            if pa.types.is_floating(column.type):
                # Splitting floats into their bytes lets exponents compress; noise in the rest
                # costs nothing to unpack.
                encodings[column.name] = "BYTE_STREAM_SPLIT"
            elif pa.types.is_int64(column.type):
                encodings[column.name] = "DELTA_BINARY_PACKED"
            else:  # layers and counts: few different values
                repeated.append(column.name)
        return pq.ParquetWriter(
            pa.PythonFile(self._draft, mode="w"),
            schema,
            compression="zstd",
            compression_level=1,
            use_dictionary=repeated,
            column_encoding=encodings,
            # Bounds of steps and layers let other readers skip row groups; bounds of the floats
            # would only make every footer longer.
            write_statistics=[name for name in schema.names if name in bounded],
            # Files hold plain strings: dictionaries that differ from file to file trouble readers.
            store_schema=False,
            write_page_checksum=True,
        )

    def commit(self, unlike: Stamp | None = None) -> Part:
        """Finish the part and put it in place.

        Args:
            unlike: the stamp of the part of the same name that it takes the place of.

        Raises:
            OSError: where the system refuses; nothing has then appeared.
        """
        self._writer.close()
        self._draft.commit(unlike)
        fsync_folder(self._draft.final.parent)
        stamp = stamp_of(self._draft.final.stat())
        first, last, tier = self._range
        return Part(self._draft.final, first, last, tier, stamp)

    def discard(self) -> None:
        """Throw away what has been written, unless it has been committed."""
        self._draft.discard()
        if self._writer is not None:
            # Arrow insists on a footer; the discarded draft swallows it.
            self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.discard()


def write_grid(root: Path, spec: TableSpec, grid: Grid, tier: int = 0) -> Part:
    """Write a whole grid as one part.

    Args:
        root: the run folder.
        spec: the table.
        grid: all layers over at least one step.
        tier: the part's tier.

    Returns:
        The part, synced and in place.

    Raises:
        OSError: where it cannot be written; nothing has then appeared.
    """
    folder = make_folder(root, spec.folder)
    keys = list(grid.keys.values())
    with PartWriter(folder, int(keys[0][0]), int(keys[-1][-1]), tier) as part:
        for start, stop in layer_groups(grid.steps, spec.width, len(grid.values)):
            columns: Mapping[str, Array] = {n: v[start:stop] for n, v in grid.values.items()}
            names = None if spec.layers is None else spec.layers[start:stop]
            part.write(Grid(grid.keys, dict(columns)), names)
        return part.commit()
