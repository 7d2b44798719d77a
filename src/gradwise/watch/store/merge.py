"""Making few large parts of many small ones, a row group at a time."""

from collections.abc import Generator, Sequence
from contextlib import ExitStack

import numpy as np

from gradwise.watch.store.grid import Grid, PartWriter, TableSpec, layer_groups
from gradwise.watch.store.parts import Part
from gradwise.watch.store.pieces import gather, pieces_between
from gradwise.watch.store.reading import Cursor, PartReader
from gradwise.watch.store.shelf import Shelf

__all__ = ["FAN_IN", "cap_of", "merge", "plan", "tail"]

FAN_IN = 8
"""Parts of one tier that become one part of the next."""

# No part grows beyond these: rewriting it, and what a reader decodes for one layer, stay bounded.
_MAX_STEPS = 65_536
_MAX_ROWS = 2**25

# What closing a run still merges at once.
_TAIL_ROWS = 2**22


def cap_of(spec: TableSpec, keep_steps: int | None = None) -> int:
    """The most steps that a part of a table may hold.

    Args:
        spec: the table.
        keep_steps: where old parts will be dropped, how many steps are kept; parts are then small
            enough to be dropped one by one.

    Examples:
        >>> cap_of(TableSpec("layers", ("step",), ("a",) * 2000))
        16777
    """
    cap = min(_MAX_STEPS, max(1, _MAX_ROWS // max(spec.width, 1)))
    return cap if keep_steps is None else min(cap, max(64, keep_steps // 4))


def plan(shelf: Shelf, cap: int, busy: frozenset[int] = frozenset()) -> list[Part]:
    """The next parts to merge: the oldest of the lowest tier that has enough of them.

    Args:
        shelf: the table.
        cap: the most steps that a part may hold.
        busy: tiers that are being merged already.

    Returns:
        Neighbouring parts of one tier; empty where nothing is due.

    Raises:
        DamagedPartError: where a part's footer cannot be read.
    """
    for tier in sorted({part.tier for part in shelf.parts} - busy):
        window: list[Part] = []
        total = 0
        for part in shelf.parts:
            if part.tier != tier:
                window, total = [], 0
                continue
            steps = shelf.steps(part)
            if total + steps > cap:
                # Full before there were eight of them: a part this large is left in peace after.
                if len(window) > 1:
                    return window
                window, total = [], 0
            window.append(part)
            total += steps
            if len(window) == FAN_IN:
                return window
    return []


def tail(shelf: Shelf, cap: int) -> list[Part]:
    """The newest parts, as many as can be merged in a moment when a run is closed.

    Args:
        shelf: the table.
        cap: the most steps that a part may hold.

    Raises:
        DamagedPartError: where a part's footer cannot be read.
    """
    parts: list[Part] = []
    total = 0
    for part in reversed(shelf.parts):
        total += shelf.steps(part)
        if total > min(cap, max(1, _TAIL_ROWS // max(shelf.spec.width, 1))):
            break
        parts.insert(0, part)
    return parts if len(parts) > 1 else []


def columns_of(readers: Sequence[PartReader]) -> list[str]:
    """The value columns that any of several parts has, in order of appearance.

    Args:
        readers: the parts.

    Raises:
        DamagedPartError: where a part cannot be read.
    """
    return list(dict.fromkeys(name for reader in readers for name in reader.columns))


def merge(
    shelf: Shelf, parts: Sequence[Part], tier: int, *, before: int | None = None
) -> Generator[None, None, None]:
    """Write neighbouring parts anew as one, and delete them; pauses after every row group.

    Args:
        shelf: the table.
        parts: neighbouring parts, the oldest first.
        tier: the tier of the new part.
        before: leave out what reaches to this step or beyond it; the caller then sees to the
            deletion, since the new part does not span the old one.

    Raises:
        OSError: where the part cannot be written; the old ones are then untouched.
        DamagedPartError: where a part cannot be read.
    """
    readers = [PartReader(part, shelf.spec) for part in parts]
    columns = columns_of(readers)
    end = np.iinfo(np.int64).max if before is None else before - 1
    pieces = pieces_between(readers, 0, end)
    if not pieces:
        return
    keys = {name: np.concatenate([piece.key(name) for piece in pieces]) for name in shelf.spec.keys}
    first, last = next(iter(keys.values())), list(keys.values())[-1]
    steps, layers = len(first), shelf.spec.layers
    with ExitStack() as stack:
        cursors = [stack.enter_context(Cursor(piece.reader, columns)) for piece in pieces]
        part = PartWriter(shelf.folder, int(first[0]), int(last[-1]), tier)
        stack.enter_context(part)
        for start, stop in layer_groups(steps, shelf.spec.width, len(columns)):
            values = gather(pieces, cursors, columns, start, stop)
            part.write(Grid(keys, values), None if layers is None else layers[start:stop])
            yield
        shelf.add(part.commit(), steps)
