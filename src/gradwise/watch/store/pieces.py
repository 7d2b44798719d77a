"""Stretches of steps over several parts: finding them, and reading them as one."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from gradwise.watch.store.grid import Array, Grid, TableSpec
from gradwise.watch.store.reading import Cursor, PartReader

__all__ = ["Piece", "gather", "pieces_between", "read_pieces"]


@dataclass(frozen=True)
class Piece:
    """A run of steps of one part.

    Attributes:
        reader: the part.
        low: index of the first step (or bin) in the part that counts.
        high: index after the last one.
    """

    reader: PartReader
    low: int
    high: int

    @property
    def steps(self) -> int:
        """Number of steps (or bins) in it."""
        return self.high - self.low

    def key(self, name: str) -> npt.NDArray[np.int64]:
        """A whole-number column [steps].

        Args:
            name: the column.
        """
        return self.reader.keys[name][self.low : self.high]


def pieces_between(readers: Iterable[PartReader], first: int, last: int) -> list[Piece]:
    """Which steps of which parts lie between two steps, each step once.

    Args:
        readers: parts in step order.
        first: the first step wanted.
        last: the last step wanted; bins that reach beyond it are left out.

    Returns:
        Pieces in step order. Where parts overlap, which only meddling can bring about, the
        earlier part gives the step.
    """
    pieces = []
    for reader in readers:
        if reader.part.last < first or reader.part.first > last:
            continue
        keys = list(reader.keys.values())
        low = int(np.searchsorted(keys[0], first, "left"))
        high = int(np.searchsorted(keys[-1], last, "right"))
        if low < high:
            pieces.append(Piece(reader, low, high))
            first = int(keys[-1][high - 1]) + 1
    return pieces


def read_pieces(
    pieces: Sequence[Piece],
    spec: TableSpec,
    columns: Sequence[str],
    start: int = 0,
    stop: int | None = None,
) -> Grid:
    """Read columns of some layers over several pieces into arrays of their own.

    Args:
        pieces: what to read, in step order.
        spec: the table they belong to.
        columns: names of the value columns; "not recorded" where a part has none.
        start: index of the first layer.
        stop: index after the last layer; None for all that follow.

    Raises:
        DamagedPartError: where a part cannot be read.
        VanishedPartError: where a part is no longer there.
    """
    stop = spec.width if stop is None else stop
    total = sum(piece.steps for piece in pieces)
    keys = {name: np.empty(total, np.int64) for name in spec.keys}
    # Left as it comes: every stretch of it is filled below, one way or the other.
    values = {name: np.empty((stop - start, total), spec.missing(name).dtype) for name in columns}
    at = 0
    for piece in pieces:
        here = slice(at, at + piece.steps)
        for name, key in keys.items():
            key[here] = piece.key(name)
        found = piece.reader.read(columns, start, stop, low=piece.low, high=piece.high)
        for name, value in values.items():
            if name in found:
                value[:, here] = found[name]
            else:
                value[:, here] = spec.missing(name)
        at = here.stop
    return Grid(keys, values)


def gather(
    pieces: Sequence[Piece],
    cursors: Sequence[Cursor],
    columns: Sequence[str],
    start: int,
    stop: int,
) -> dict[str, Array]:
    """Some layers over several pieces, for a caller who goes through the layers in order.

    Args:
        pieces: what to read, in step order.
        cursors: one a piece, over the same columns.
        columns: names of the value columns; "not recorded" where a part has none.
        start: index of the first layer.
        stop: index after the last layer.

    Returns:
        Arrays [stop - start, steps].

    Raises:
        DamagedPartError: where a part cannot be read.
    """
    found = [cursor.read(start, stop) for cursor in cursors]
    values = {}
    for name in columns:
        parts = []
        for piece, have in zip(pieces, found, strict=True):
            if name in have:
                parts.append(have[name][:, piece.low : piece.high])
            else:
                parts.append(np.full((stop - start, piece.steps), piece.reader.spec.missing(name)))
        values[name] = np.concatenate(parts, axis=1)
    return values
