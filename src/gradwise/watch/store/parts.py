"""Which files make up a table, told by their names alone.

A table is a folder of Parquet files called parts. A part's name carries the first and the last
step in it and its tier (how often it has been merged): `000000000000-000000000063.t0.parquet`.
There is no manifest that could disagree with the files: a part that spans another one replaces
it, so a crash between writing a merged part and deleting the small ones is settled by the names.
"""

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from gradwise.watch.store.files import Stamp, stamp_of

__all__ = ["Part", "has_tail", "list_parts", "part_name", "resolve"]

_NAME = re.compile(r"([0-9]{12,19})-([0-9]{12,19})\.t([0-9]{1,2})\.parquet")
_MAX_STEP = 2**63 - 1
_MAGIC = b"PAR1"


@dataclass(frozen=True, slots=True)
class Part:
    """One file of a table.

    Attributes:
        path: where it lies.
        first: the first step in it.
        last: the last step in it.
        tier: how many merges it has been through.
        stamp: time of writing and size; tells a new file of the same name.
    """

    path: Path
    first: int
    last: int
    tier: int
    stamp: Stamp = (0, 0)

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return self.path.name


def part_name(first: int, last: int, tier: int) -> str:
    """The name of the part that holds the steps from `first` to `last`.

    Args:
        first: the first step in it, >= 0.
        last: the last step in it.
        tier: how many merges it has been through.

    Examples:
        >>> part_name(0, 63, 0)
        '000000000000-000000000063.t0.parquet'
    """
    return f"{first:012d}-{last:012d}.t{tier}.parquet"


def _scan(folder: Path) -> list[Part]:
    parts = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                match = _NAME.fullmatch(entry.name)
                if match is None:
                    continue
                first, last, tier = (int(digits) for digits in match.groups())
                if first > last or last > _MAX_STEP:
                    continue
                try:
                    stamp = stamp_of(entry.stat())
                except OSError:  # merged away since the listing began
                    continue
                parts.append(Part(Path(entry.path), first, last, tier, stamp))
    except (FileNotFoundError, NotADirectoryError):
        return []
    return parts


def list_parts(folder: Path) -> list[Part]:
    """All parts in a folder, replaced ones included; a missing folder has none.

    A writer may be merging meanwhile, and a listing that runs beside it can miss both the new
    part and the old ones. Two listings that agree have missed nothing.

    Args:
        folder: the table's folder.

    Raises:
        OSError: where the folder cannot be read.
    """
    before = _scan(folder)
    for _ in range(20):
        after = _scan(folder)
        if {part.name for part in after} == {part.name for part in before}:
            break
        before = after
    return after


def resolve(
    parts: Iterable[Part], usable: Callable[[Part], bool] = lambda part: True
) -> tuple[list[Part], list[Part], list[Part]]:
    """Sort parts into those that count, those that others replace, and those that are damaged.

    A part is replaced by any usable part that spans its whole range; of two with the same range
    the one merged more often counts. A damaged part replaces nothing, so the small parts it was
    made from count again where they are still there.

    Args:
        parts: every part found in one folder.
        usable: says whether a part is whole; asked only about parts that nothing replaces.

    Returns:
        `(kept, replaced, damaged)`, each in step order.

    Examples:
        >>> small, large = Part(Path("a"), 0, 9, 0), Part(Path("b"), 0, 19, 1)
        >>> [part.path.name for part in resolve([small, large])[0]]
        ['b']
    """
    kept: list[Part] = []
    replaced: list[Part] = []
    damaged: list[Part] = []
    # Sorted like this, whatever spans a part comes before it, and the widest span decides.
    for part in sorted(parts, key=lambda part: (part.first, -part.last, -part.tier)):
        if kept and part.last <= kept[-1].last:
            replaced.append(part)
        elif usable(part):
            kept.append(part)
        else:
            damaged.append(part)
    return kept, replaced, damaged


def has_tail(part: Part) -> bool:
    """Whether a part's file ends the way a finished Parquet file does; reads a dozen bytes.

    Args:
        part: the part.

    Raises:
        FileNotFoundError: where the file has gone since it was listed.
    """
    try:
        with open(part.path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            if size < 12:
                return False
            file.seek(size - 8)
            tail = file.read(8)
    except FileNotFoundError:
        raise
    except OSError:
        return False
    footer = int.from_bytes(tail[:4], "little")
    return tail[4:] == _MAGIC and 0 < footer <= size - 12
