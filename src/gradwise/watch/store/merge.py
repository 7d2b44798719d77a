"""Making few large parts of many small ones, a row group at a time."""

from collections.abc import Generator, Sequence
from contextlib import ExitStack

import numpy as np

from gradwise.watch.store.grid import Grid, PartWriter, TableSpec, layer_groups
from gradwise.watch.store.parts import Part
from gradwise.watch.store.pieces import gather, pieces_between
from gradwise.watch.store.reading import Cursor, DamagedPartError, PartReader, VanishedPartError
from gradwise.watch.store.shelf import Shelf

__all__ = ["FAN_IN", "LEFT", "cap_of", "cut", "merge", "plan", "tail"]

FAN_IN = 8
"""Parts of one tier that become one part of the next."""

LEFT = 4
"""The newest parts of each tier, which are left as they are.

So a part that eight were merged into has half as much again behind it in smaller parts, and what
reading the newest records costs is in proportion to how many are wanted, not to the largest part;
amending them, too, rewrites a small part.
"""

# No part grows beyond these: rewriting it, and what a reader decodes for one layer, stay bounded.
_MAX_STEPS = 65_536
_MAX_ROWS = 2**25

# What closing a run still merges at once.
_TAIL_ROWS = 2**20


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
    """The next parts to merge: the oldest of the lowest tier that has enough and some to spare.

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
        old = _old(shelf.parts, tier)
        for part in shelf.parts:
            if part.tier != tier:
                window, total = [], 0
                continue
            if part not in old:
                break
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


def _old(parts: Sequence[Part], tier: int) -> set[Part]:
    """The parts of a tier without the newest of them."""
    same = [part for part in parts if part.tier == tier]
    return set(same[: max(len(same) - LEFT, 0)])


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


def cut(shelf: Shelf, step: int) -> None:
    """Drop a step and all that follow from a table, the newest first.

    Dying half-way leaves a table that is as good as before, only shorter: doing it again finishes
    it. Bins that reach to the step or beyond are dropped whole.

    Args:
        shelf: the table.
        step: the first step to drop.

    Raises:
        OSError: where a part cannot be written or deleted.
    """
    gone = shelf.drop([part for part in shelf.parts if part.first >= step])
    while part := next((part for part in shelf.parts if part.last >= step), None):
        try:
            for _ in merge(shelf, [part], part.tier, before=step):
                pass
        except (DamagedPartError, VanishedPartError) as damage:
            shelf.give_up(damage)  # put aside; or, where somebody has only touched it, tried again
        else:
            gone = shelf.drop([part]) and gone
    if not gone:
        shelf.reload()  # they count for every reader, so they have to for us
        raise OSError(f"parts in {shelf.folder} cannot be deleted")
