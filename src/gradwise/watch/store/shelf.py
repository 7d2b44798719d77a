"""A table as its writer sees it: the parts that count, and nothing else left in the folder."""

import contextlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from gradwise.watch.store.files import fsync_folder, is_draft, remove
from gradwise.watch.store.grid import TableSpec
from gradwise.watch.store.parts import Part, has_tail, list_parts, resolve
from gradwise.watch.store.reading import DamagedPartError, PartReader, VanishedPartError

__all__ = ["Shelf"]


class Shelf:
    """The parts of one table, kept in step order by the one writer of the folder.

    Opening it tidies the folder: drafts of a writer that died are deleted, parts that others
    replace too, and what cannot be read is put aside under a name that readers pass over.

    Args:
        root: the run folder.
        spec: the table.

    Attributes:
        parts: the parts that count, in step order.
        holes: whether records are missing since a part could not be read or was deleted.

    Raises:
        OSError: where the folder cannot be read.
    """

    def __init__(self, root: Path, spec: TableSpec) -> None:
        self.root = root
        self.spec = spec
        self.folder = root / spec.folder
        self.parts: list[Part] = []
        self.holes = False
        self._steps: dict[Part, int] = {}
        self._asked: tuple[Part | None, int, int] = (None, -1, 0)
        self._looked_up: PartReader | None = None
        if self.folder.is_dir():
            for path in list(self.folder.iterdir()):
                if is_draft(path.name):
                    remove(path)
        self.reload()

    def reload(self) -> None:
        """See what is in the folder, and tidy it.

        Raises:
            OSError: where the folder cannot be read.
        """
        self.parts, replaced, damaged = resolve(list_parts(self.folder), has_tail)
        for part in replaced:
            remove(part.path)
        for part in damaged:
            self.put_aside(part)

    @property
    def last(self) -> int:
        """The last step on the shelf, -1 where there is none."""
        return self.parts[-1].last if self.parts else -1

    def steps(self, part: Part) -> int:
        """Number of steps (or bins) in a part of this shelf.

        Args:
            part: the part.

        Raises:
            DamagedPartError: where it cannot be read.
        """
        if part not in self._steps:
            self._steps[part] = PartReader(part, self.spec).steps
        return self._steps[part]

    def holds(self, step: int) -> bool | None:
        """Whether a step is on the shelf; None where the part that would hold it cannot be read.

        Args:
            step: the step.
        """
        for part in self.parts:
            if part.first <= step <= part.last:
                try:
                    if self.steps(part) == part.last - part.first + 1:
                        return True
                    if self._looked_up is None or self._looked_up.part != part:
                        self._looked_up = PartReader(part, self.spec)
                    return bool(np.isin(step, self._looked_up.keys[self.spec.keys[0]]))
                except (DamagedPartError, VanishedPartError):
                    return None
        return False

    def behind(self, step: int) -> int:
        """Number of steps (or bins) that lie behind a step; damaged parts are put aside.

        Args:
            step: the step.

        Raises:
            OSError: where the system refuses to read a part.
        """
        self.check()
        total = 0
        for part in self.parts:
            if part.first > step:
                total += self.steps(part)
            elif part.last > step:
                total += self._behind_in(part, step)
        return total

    def _behind_in(self, part: Part, step: int) -> int:
        """How much of a part lies behind a step; asked again and again with the same answer."""
        if self._asked[:2] != (part, step):
            try:
                begins = PartReader(part, self.spec).keys[self.spec.keys[0]]
            except (DamagedPartError, VanishedPartError) as damage:
                self.give_up(damage)
                return 0
            self._asked = part, step, int(np.sum(begins > step))
        return self._asked[2]

    def add(self, part: Part, steps: int) -> None:
        """Take in a part that has just been written behind all others, or over some of them.

        Args:
            part: the new part; parts that it spans are deleted.
            steps: number of steps (or bins) in it.
        """
        spanned = [old for old in self.parts if part.first <= old.first and old.last <= part.last]
        self.parts = sorted(
            [*(old for old in self.parts if old not in spanned), part], key=lambda one: one.first
        )
        for old in spanned:
            self._steps.pop(old, None)
        self._steps[part] = steps
        # The new part may have taken the very name of an old one.
        self.drop((old for old in spanned if old.path != part.path), listed=False)

    def drop(self, parts: Iterable[Part], *, listed: bool = True) -> bool:
        """Delete parts, the newest first; those that cannot be deleted are forgotten all the same.

        Args:
            parts: the parts.
            listed: whether they are still among the shelf's parts.

        Returns:
            Whether all of them are gone.
        """
        gone = True
        dropped = sorted(parts, key=lambda part: -part.first)
        for part in dropped:
            gone = remove(part.path) and gone
            self._steps.pop(part, None)
        if listed:
            self.parts = [part for part in self.parts if part not in dropped]
        if dropped:
            fsync_folder(self.folder)
        return gone

    def give_up(self, damage: DamagedPartError | VanishedPartError) -> None:
        """Go on without a part that cannot be read.

        Args:
            damage: what reading it raised.

        Raises:
            OSError: where the system refused to read it; the part may be whole, and stays.
        """
        if isinstance(damage, VanishedPartError):
            # Deleted by somebody, or only touched: then it is as good as it was.
            again = [part for part in list_parts(self.folder) if part.path == damage.part.path]
            self.holes = self.holes or not again
            self.parts = [
                one for old in self.parts for one in (again if old == damage.part else [old])
            ]
            return
        if damage.system is not None:
            raise damage.system
        self.put_aside(damage.part)

    def put_aside(self, part: Part) -> None:
        """Rename a damaged part, so that nothing reads it and nothing of it is lost.

        Args:
            part: the part.
        """
        self.parts = [one for one in self.parts if one != part]
        self.holes = True
        # If it has to stay, every reader finds out by itself.
        with contextlib.suppress(OSError):
            part.path.replace(part.path.with_name(f"_{part.name}.damaged"))

    def columns(self) -> list[str]:
        """The value columns that any part has, in order of appearance."""
        self.check()
        readers = [PartReader(part, self.spec) for part in self.parts]
        return list(dict.fromkeys(name for reader in readers for name in reader.columns))

    def check(self) -> None:
        """Put aside every part whose footer cannot be read."""
        for part in list(self.parts):
            try:
                self.steps(part)
            except (DamagedPartError, VanishedPartError) as damage:
                self.give_up(damage)
