"""A run folder as its readers see it, while a writer may be at work in it."""

import errno
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from gradwise.errors import UserError
from gradwise.watch.store.grid import TableSpec
from gradwise.watch.store.parts import Part, has_tail, list_parts, resolve
from gradwise.watch.store.pyramid import level_spec
from gradwise.watch.store.reading import DamagedPartError, PartReader, VanishedPartError
from gradwise.watch.store.runfile import RunFile, read_run_file

__all__ = ["Folder", "Tables"]

_Result = TypeVar("_Result")

_ATTEMPTS = 50  # a writer merges once in a while; nobody loses fifty races in a row


# Errors that say nothing about the file.
_SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


class Tables:
    """One listing of a run's folders: the parts that count, in step order.

    Attributes:
        records: the parts of each table of records, by the table's name.
        levels: the parts of each level of its pyramid, the finest first.
    """

    def __init__(self) -> None:
        self.records: dict[str, list[PartReader]] = {}
        self.levels: dict[str, list[list[PartReader]]] = {}


class Folder:
    """Lists a run folder, and lists it anew when a writer has merged parts away meanwhile.

    Args:
        root: the run folder.

    Raises:
        UserError: where it is not a run folder, or one of a newer format.

    Attributes:
        info: the content of `run.json`.
        last: the last step that can be read in every table, -1 before the first.
        end: the last step that was written into every table. Beyond it is what a writer that
            died had written into one table only.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._readers: dict[Part, PartReader] = {}
        self._whole: dict[Part, bool] = {}
        self._listed: set[Part] = set()
        self._damaged: set[Part] = set()
        self._warned: set[Path] = set()
        self.refresh()

    def refresh(self) -> None:
        """Look again; steps written since then are part of it from now on.

        Raises:
            UserError: where the folder is no longer a run folder.
        """
        self.info: RunFile = read_run_file(self.root)
        self.last, self.end = self._list()

    @property
    def damaged(self) -> tuple[Path, ...]:
        """The files that could not be read and were left out."""
        return tuple(sorted(part.path for part in self._damaged))

    def read(self, use: Callable[[Tables], _Result]) -> _Result:
        """Call `use` with the tables, again with a new listing if parts have gone meanwhile.

        Args:
            use: reads whatever it wants; must not keep anything of an earlier call.

        Returns:
            What `use` returns.

        Raises:
            UserError: where the folder has been deleted meanwhile, or changes without end.
        """
        for _ in range(_ATTEMPTS):
            try:
                return use(self._tables)
            except VanishedPartError:
                pass
            except DamagedPartError as damage:
                if damage.system is not None and damage.system.errno in _SHORTAGES:
                    raise UserError(f"{self.root} cannot be read: {damage.system}") from None
                self._damaged.add(damage.part)
            last, end = self._list()
            self.last, self.end = min(self.last, last), min(self.end, end)
        raise UserError(f"{self.root} changes faster than it can be read")

    def _list(self) -> tuple[int, int]:
        """List the folder; returns `last` and `end` as they are now."""
        tables = Tables()
        readers: dict[Part, PartReader] = {}
        last, end = [], []
        for name, spec in self.info.tables.items():
            found, written = self._table(spec, readers)
            tables.records[name] = found
            if name == "histograms":  # sampled: they say nothing about where the run has got to
                continue
            last.append(found[-1].part.last if found else -1)
            end.append(written)
            levels = tables.levels[name] = []
            while level := self._table(level_spec(spec, len(levels) + 1), readers)[0]:
                levels.append(level)
        self._tables, self._readers = tables, readers
        # A live view looks at a run for days: nothing is remembered of files that are gone.
        self._whole = {part: whole for part, whole in self._whole.items() if part in self._listed}
        self._listed.clear()
        for path in self.damaged:
            if path not in self._warned:
                self._warned.add(path)
                warnings.warn(f"{path} is damaged and was left out", RuntimeWarning, stacklevel=4)
        return min(last), min(end)

    def _table(
        self, spec: TableSpec, readers: dict[Part, PartReader]
    ) -> tuple[list[PartReader], int]:
        """The parts of a table, and the last step that its files' names tell of."""
        try:
            listed = list_parts(self.root / spec.folder)
            kept, _, damaged = resolve(listed, self._usable)
        except OSError as error:
            raise UserError(f"{self.root} cannot be read: {error.strerror or error}") from None
        self._listed.update(listed)
        self._damaged.update(damaged)
        found = [self._readers.get(part) or PartReader(part, spec) for part in kept]
        readers.update((reader.part, reader) for reader in found)
        return found, max((part.last for part in [*kept, *damaged]), default=-1)

    def _usable(self, part: Part) -> bool:
        if part in self._damaged:
            return False
        if part not in self._whole:
            try:
                self._whole[part] = has_tail(part)
            except FileNotFoundError:
                return True  # merged away since: reading it will tell, and list anew
        return self._whole[part]
