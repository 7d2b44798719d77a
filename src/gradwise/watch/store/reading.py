"""Reading parts: any layers, any columns, any steps, without touching the rest."""

import contextlib
import errno
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from gradwise.watch.store.arrow import as_numpy
from gradwise.watch.store.files import stamp_of
from gradwise.watch.store.grid import Array, TableSpec
from gradwise.watch.store.parts import Part

__all__ = ["Cursor", "DamagedPartError", "PartReader", "VanishedPartError"]


# Values that are decoded at once where few of them are wanted.
_DECODED_VALUES = 2**22

# A file that a writer on another machine has merged away shows up as a stale handle.
_VANISHED = {errno.ENOENT, errno.ESTALE}


class DamagedPartError(Exception):
    """A part that cannot be read: torn, overwritten, or not written by a run at all.

    Attributes:
        part: the part.
        system: the operating system's error, where it was that which refused; the file itself
            may then be whole.
    """

    def __init__(self, part: Part, reason: str, system: OSError | None = None) -> None:
        super().__init__(f"{part.path} cannot be read: {reason}")
        self.part = part
        self.system = system


class VanishedPartError(Exception):
    """A part that has been merged into another since its folder was listed."""

    def __init__(self, part: Part) -> None:
        super().__init__(f"{part.path} is no longer there")
        self.part = part


class PartReader:
    """Reads one part; its footer is parsed once and kept.

    Args:
        part: the part.
        spec: the table it belongs to.
    """

    def __init__(self, part: Part, spec: TableSpec) -> None:
        self.part = part
        self.spec = spec
        self._footer: Any = None
        self._columns: frozenset[str] = frozenset()
        self._names: tuple[str, ...] = ()
        self._keys: dict[str, npt.NDArray[np.int64]] | None = None

    def _fail(self, error: Exception) -> Exception:
        """What an error while reading means."""
        if isinstance(error, OSError) and error.errno in _VANISHED:
            return VanishedPartError(self.part)
        # A writer may have put another file in its place after we had looked.
        with contextlib.suppress(OSError):
            if stamp_of(self.part.path.stat()) != self.part.stamp:
                return VanishedPartError(self.part)
        first_line = [*str(error).strip().splitlines(), type(error).__name__][0]
        # Arrow's own complaints about the content carry no number of the system's.
        refused = error if isinstance(error, OSError) and error.errno is not None else None
        return DamagedPartError(self.part, first_line, refused)

    def open(self) -> Any:
        """The open Parquet file, to be closed by the caller.

        Raises:
            DamagedPartError: where it cannot be read.
            VanishedPartError: where it is no longer there, or is no longer the file it was.
        """
        try:
            stamp = stamp_of(self.part.path.stat())
        except OSError as error:
            raise self._fail(error) from error
        if stamp != self.part.stamp:
            raise VanishedPartError(self.part)
        try:
            file = pq.ParquetFile(
                str(self.part.path), metadata=self._footer, page_checksum_verification=True
            )
        except Exception as error:  # an overwritten footer can make the parser raise anything
            raise self._fail(error) from error
        if self._footer is None:
            try:
                self._check(file.metadata, tuple(file.schema_arrow.names))
            except Exception as error:
                file.close()
                if isinstance(error, DamagedPartError):
                    raise
                raise self._fail(error) from error
        return file

    def _check(self, footer: Any, names: tuple[str, ...]) -> None:
        """Keep the footer if the file is laid out as a part is."""
        width, rows = self.spec.width, footer.num_rows
        fixed = (*self.spec.keys, *(() if self.spec.layers is None else ("layer",)))
        steps = rows // width if width else 0
        if steps < 1 or rows % width or not set(fixed) <= set(names):
            raise DamagedPartError(self.part, "its columns or rows are not those of this table")
        per_group = footer.row_group(0).num_rows // steps
        if per_group < 1 or footer.num_row_groups != -(-width // per_group):
            raise DamagedPartError(self.part, "its row groups do not hold whole layers")
        self._footer = footer
        self._names = tuple(name for name in names if name not in fixed)
        self._columns = frozenset(self._names)

    @property
    def footer(self) -> Any:
        """The file's metadata, read on first use."""
        if self._footer is None:
            self.open().close()
        return self._footer

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the value columns."""
        return self._names if self.footer is not None else ()

    @property
    def steps(self) -> int:
        """Number of steps (or bins) in the part."""
        return int(self.footer.num_rows) // self.spec.width

    @property
    def group(self) -> int:
        """Number of layers in each row group but the last."""
        return int(self.footer.row_group(0).num_rows) // self.steps

    @property
    def keys(self) -> dict[str, npt.NDArray[np.int64]]:
        """The whole-number columns [steps], read once."""
        if self._keys is None:
            part, steps = self.part, self.steps
            if self.spec.keys == ("step",) and part.last - part.first + 1 == steps:
                self._keys = {"step": np.arange(part.first, part.last + 1)}
            else:
                table = self._table([0], list(self.spec.keys))
                keys = {name: self._numbers(table, name)[:steps] for name in self.spec.keys}
                first, last = keys[self.spec.keys[0]], keys[self.spec.keys[-1]]
                if first[0] != part.first or last[-1] != part.last or np.any(np.diff(first) <= 0):
                    raise DamagedPartError(part, "its steps are not those its name tells")
                self._keys = keys
        return self._keys

    def _table(self, groups: Sequence[int], columns: list[str], file: Any = None) -> pa.Table:
        opened = self.open() if file is None else file
        try:
            return opened.read_row_groups(groups, columns=columns, use_threads=file is None)
        except Exception as error:  # the same goes for what the footer leads it to
            raise self._fail(error) from error
        finally:
            if file is None:
                opened.close()

    def read(
        self,
        columns: Iterable[str],
        start: int,
        stop: int,
        file: Any = None,
        *,
        low: int = 0,
        high: int | None = None,
    ) -> dict[str, Array]:
        """Read the layers from `start` to `stop` over the steps of the part, or over some of them.

        Layers lie one after the other with all their steps, so reading few steps decodes them
        all; it does that a bit at a time and keeps only what was asked for.

        Args:
            columns: value columns; those the part does not have are left out of the answer.
            start: index of the first layer.
            stop: index after the last layer.
            file: the part's open file, where the caller keeps one; opened for this read if None.
            low: index of the first step (or bin) wanted.
            high: index after the last one; None for all that follow.

        Returns:
            Arrays [stop - start, high - low].

        Raises:
            DamagedPartError: where it cannot be read.
            VanishedPartError: where it is no longer there.
        """
        steps, group = self.steps, self.group  # parses the footer, so that columns are known
        high = steps if high is None else high
        wanted = [name for name in dict.fromkeys(columns) if name in self._columns]
        if not wanted or stop <= start:
            return {}
        first, end = start // group, -(-stop // group)
        few = high - low < steps
        size = max(1, _DECODED_VALUES // (group * steps * len(wanted))) if few else end - first
        found: list[dict[str, Array]] = []
        for at in range(first, end, size):
            to = min(at + size, end)
            table = self._table(range(at, to), wanted, file)
            layers = min(to * group, self.spec.width) - at * group
            if table.num_rows != layers * steps:
                raise DamagedPartError(self.part, "a row group has a wrong number of rows")
            inside = slice(max(start - at * group, 0), stop - at * group)
            grids = {name: self._numbers(table, name).reshape(layers, steps) for name in wanted}
            found.append({name: grid[inside, low:high] for name, grid in grids.items()})
            if few:  # a copy, which lets go of the rest
                found[-1] = {name: grid.copy() for name, grid in found[-1].items()}
        if len(found) == 1:
            return found[0]
        return {name: np.concatenate([part[name] for part in found]) for name in wanted}

    def _numbers(self, table: pa.Table, name: str) -> Array:
        try:
            return as_numpy(table.column(name))
        except pa.ArrowException as error:
            raise self._fail(error) from error


class Cursor:
    """Reads a part layer by layer in order, decoding every row group once.

    The first read opens the file; from then on it can be read even if somebody deletes it.

    Args:
        reader: the part.
        columns: the value columns that will be read.
    """

    def __init__(self, reader: PartReader, columns: Sequence[str]) -> None:
        self._reader = reader
        self._columns = tuple(columns)
        self._file: Any = None
        self._at = -1
        self._values: dict[str, Array] = {}

    def read(self, start: int, stop: int) -> dict[str, Array]:
        """The layers from `start` to `stop`, as `PartReader.read` gives them.

        Args:
            start: index of the first layer.
            stop: index after the last layer.

        Raises:
            DamagedPartError: where it cannot be read.
            VanishedPartError: where it is no longer there.
        """
        if self._file is None:
            self._file = self._reader.open()
        group = self._reader.group
        found: list[dict[str, Array]] = []
        for at in range(start // group, (stop - 1) // group + 1):
            low, high = at * group, min((at + 1) * group, self._reader.spec.width)
            if at != self._at:
                self._values = self._reader.read(self._columns, low, high, self._file)
                self._at = at
            inside = slice(max(start, low) - low, min(stop, high) - low)
            found.append({name: value[inside] for name, value in self._values.items()})
        return {name: np.concatenate([part[name] for part in found]) for name in found[0]}

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
