"""What a writer does between flushes: merging parts and building the pyramids, bit by bit."""

import time
from collections import Counter
from collections.abc import Generator, Mapping
from inspect import GEN_CREATED, getgeneratorstate
from pathlib import Path

from gradwise.watch.store.grid import TableSpec
from gradwise.watch.store.merge import cap_of, cut, merge, plan, tail
from gradwise.watch.store.pyramid import CHUNK, extend, level_spec
from gradwise.watch.store.reading import DamagedPartError, VanishedPartError
from gradwise.watch.store.shelf import Shelf

__all__ = ["Housekeeper"]

# Strides that a level grows by at once where it has fallen behind: a large part of the level below
# is decoded once for each time.
_STRIDES = 16

_PYRAMID = -1  # comes before every merge: pictures wait for it, merges for nobody


class Housekeeper:
    """Keeps the number of parts small and the pyramids up to date.

    Its jobs pause after every row group, so that a merge of gigabytes never keeps fresh records
    from the disk. Jobs of low tiers go first: there the parts pile up.

    Args:
        root: the run folder.
        tables: the tables of records.
        keep_steps: drop records of the `layers` table older than so many steps once the pyramid
            has them; None keeps everything.

    Raises:
        OSError: where the folder cannot be read.
    """

    def __init__(self, root: Path, tables: Mapping[str, Shelf], keep_steps: int | None) -> None:
        self._root = root
        self._tables = dict(tables)
        self._keep = keep_steps
        self._levels = {
            name: _levels(root, shelf.spec)
            for name, shelf in tables.items()
            if name != "histograms"  # sampled, and few
        }
        self._jobs: dict[tuple[int, str], Generator[None, None, object]] = {}

    @property
    def shelves(self) -> list[Shelf]:
        """Every table of the folder, those of the pyramids included."""
        return [
            *self._tables.values(),
            *(level for levels in self._levels.values() for level in levels),
        ]

    def backlog(self) -> int:
        """The most parts of one tier and table that are small enough to be merged.

        Raises:
            OSError: where the system refuses to read a part.
        """
        most = 0
        for shelf in self.shelves:
            shelf.check()
            half = self._cap(shelf) // 2
            tiers = Counter(part.tier for part in shelf.parts if shelf.steps(part) <= half)
            most = max(most, *tiers.values(), 0)
        return most

    def work(self, seconds: float) -> None:
        """Go on with what is due, at least one bit of it, until the time is up.

        Args:
            seconds: how long at most, not counting the last bit.

        Raises:
            OSError: where a part cannot be written; that job is given up and comes again.
        """
        end = time.monotonic() + seconds
        while (key := self._next()) is not None:
            while self._advance(key):
                if time.monotonic() >= end:
                    return
            if time.monotonic() >= end:
                return

    def finish(self, seconds: float) -> None:
        """Work for some time, then give up what is unfinished and merge what is small and new.

        Args:
            seconds: how long the work may take before the last merges.

        Raises:
            OSError: where a part cannot be written.
        """
        try:
            self.work(seconds)
        finally:
            self.abandon()
        for shelf in self.shelves:
            shelf.check()
            parts = tail(shelf, self._cap(shelf))
            if parts:
                key = (max(part.tier for part in parts), shelf.spec.folder)
                self._jobs[key] = merge(shelf, parts, max(1, key[0]))
                while self._advance(key):
                    pass

    def before_amending(self, name: str, step: int) -> None:
        """Make a table ready for changes to its records: nothing reads them, no bin shows them.

        The pyramid is dropped from the step on, the coarsest level first, and built anew from the
        records in its turn.

        Args:
            name: the table.
            step: the first step whose record changes.

        Raises:
            OSError: where something cannot be written or deleted; no record may then be changed.
        """
        levels = self._levels.get(name, [])
        folders = {name, self._tables[name].spec.folder, *(level.spec.folder for level in levels)}
        for key in [key for key in self._jobs if key[1] in folders]:
            if getgeneratorstate(self._jobs[key]) == GEN_CREATED:
                self._jobs.pop(key).close()
            while key in self._jobs and self._advance(key):
                pass
        for level in reversed(levels):
            cut(level, step)

    def abandon(self) -> None:
        """Drop all jobs; what they have written so far is deleted."""
        for job in self._jobs.values():
            job.close()
        self._jobs.clear()

    def retire(self, last_step: int) -> None:
        """Delete old records of the layers, where that was asked for and the pyramid has them.

        Args:
            last_step: the newest step on the disk.
        """
        shelf = self._tables.get("layers")
        if self._keep is None or shelf is None:
            return
        covered = self._levels["layers"][0].last if self._levels["layers"] else -1
        limit = min(last_step - self._keep, covered)
        merging = {tier for tier, folder in self._jobs if folder == shelf.spec.folder}
        old = [part for part in shelf.parts if part.last <= limit and part.tier not in merging]
        # Only from the front: a part that is being merged holds back those behind it.
        count = 0
        while count < len(old) and old[count] is shelf.parts[count]:
            count += 1
        if count:
            shelf.drop(old[:count])

    def _cap(self, shelf: Shelf) -> int:
        old = shelf is self._tables.get("layers")
        return cap_of(shelf.spec, self._keep if old else None)

    def _next(self) -> tuple[int, str] | None:
        """The job to go on with, begun if need be."""
        for name, levels in self._levels.items():
            table, key = self._tables[name], (_PYRAMID, name)
            if key in self._jobs:
                return key
            while levels and levels[-1].parts:
                levels.append(Shelf(self._root, level_spec(table.spec, len(levels) + 1)))
            if not levels:
                levels.append(Shelf(self._root, level_spec(table.spec, 1)))
            for source, target in zip([table, *levels], levels, strict=False):
                strides = min(source.behind(target.last) // CHUNK, _STRIDES)
                if strides:
                    self._jobs[key] = extend(source, target, strides * CHUNK)
                    if self._advance(key):
                        return key
        for shelf in self.shelves:
            folder = shelf.spec.folder
            busy = frozenset(tier for tier, at in self._jobs if at == folder)
            shelf.check()
            parts = plan(shelf, self._cap(shelf), busy)
            if parts:
                self._jobs[parts[0].tier, folder] = merge(shelf, parts, parts[0].tier + 1)
        # The cheap ones first: small parts, and of tables that have few rows.
        width = {shelf.spec.folder: shelf.spec.width for shelf in self.shelves}
        return min(self._jobs, key=lambda key: (key[0], width[key[1]]), default=None)

    def _advance(self, key: tuple[int, str]) -> bool:
        """Do one bit of a job; False where it has ended."""
        try:
            next(self._jobs[key])
        except StopIteration:
            del self._jobs[key]
            return False
        except (DamagedPartError, VanishedPartError) as damage:
            del self._jobs[key]
            for shelf in self.shelves:
                if damage.part in shelf.parts:
                    shelf.give_up(damage)
            return False
        except BaseException:
            self._jobs.pop(key).close()
            raise
        return True


def _levels(root: Path, table: TableSpec) -> list[Shelf]:
    """The levels of a table's pyramid that are on the disk, the finest first."""
    levels: list[Shelf] = []
    while (shelf := Shelf(root, level_spec(table, len(levels) + 1))).parts:
        levels.append(shelf)
    return levels
