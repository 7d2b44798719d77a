"""When what a writer has taken in goes to the disk, and what becomes of it if that refuses."""

import math
import time
from collections.abc import Mapping
from pathlib import Path

from gradwise.watch.store.files import WriteError
from gradwise.watch.store.housekeeping import Housekeeper
from gradwise.watch.store.outbox import Outbox
from gradwise.watch.store.runfile import RunFile, now
from gradwise.watch.store.shelf import Shelf

__all__ = ["Flusher"]

# Records are written at the latest when they take this much memory...
_FLUSH_BYTES = 8 * 2**20
# ...and while the disk refuses them, the oldest are given up beyond this much.
_WAITING_BYTES = 64 * 2**20
_WAITING_AMENDMENTS = 100_000  # steps

_WORK_SHARE = 0.25  # of the time between flushes, at most, goes into merging...
_WORK_LEAST = 0.1  # ...as if that time were no less than this many seconds...
_MANY_PARTS = 64  # ...and more, where merging has fallen behind by this many parts or more
_REST_SECONDS = 10.0  # after a merge that failed
_AMEND_SHARE = 0.25  # of the time, at most, goes into amending what is on the disk...
_AMEND_SECONDS = 0.25  # ...for so long at once, and one part more
_CLOSE_SECONDS = 5.0  # what closing may spend on merges that are under way


class Flusher:
    """Puts records and amendments on the disk in time, and merges in between.

    Args:
        root: the run folder.
        tables: the tables of records.
        outbox: what has been taken in.
        keeper: what merges.
        every: seconds after which what waits is written.

    Attributes:
        errors: how many times something could not be written.
        last_error: the last of these errors.
        lost_steps: records given up.
        lost_amendments: amendments given up.
    """

    def __init__(
        self,
        root: Path,
        tables: Mapping[str, Shelf],
        outbox: Outbox,
        keeper: Housekeeper,
        every: float,
    ) -> None:
        self.errors = 0
        self.last_error: OSError | None = None
        self.lost_steps = 0
        self.lost_amendments = 0
        self._root = root
        self._steps = tables["steps"]
        self._outbox = outbox
        self._keeper = keeper
        self._every = every
        self._due = math.inf
        self._refused = False
        self._amend_from = self._rest_until = self._worked = -math.inf

    def if_due(self) -> None:
        """Write if something has waited for long enough, or is too much to wait."""
        waiting = self._outbox.nbytes
        if not waiting and not self._outbox.amendments:
            return
        time_now = time.monotonic()
        self._due = min(self._due, time_now + self._every)
        if self._due <= time_now or (waiting >= _FLUSH_BYTES and not self._refused):
            self.write(amend_for=_AMEND_SECONDS)
        self.lost_steps += self._outbox.shrink(_WAITING_BYTES)
        self.lost_amendments += self._outbox.amendments.shrink(_WAITING_AMENDMENTS)

    def if_idle(self) -> None:
        """Merge a bit if that has not been done for as long as there is between two flushes."""
        if time.monotonic() >= self._worked + max(self._every, _WORK_LEAST):
            self._work()

    def write(self, *, amend_for: float = math.inf, work: bool = True) -> WriteError | None:
        """Write what waits, then merge a bit.

        Args:
            amend_for: seconds that amendments may take; a finite number also means that they may
                wait where they have taken much time before.
            work: whether to merge.

        Returns:
            What went wrong; what could not be written goes on waiting.
        """
        try:
            self._outbox.write()
        except OSError as error:
            self._refused = True
            self._due = time.monotonic() + self._every
            return self._refusal("records", error)
        self._due, self._refused = math.inf, False
        refusal = None
        rested = math.isinf(amend_for) or time.monotonic() >= self._amend_from
        if self._outbox.amendments and rested:
            try:
                self._amend(amend_for)
            except OSError as error:
                refusal = self._refusal("amendments of records", error)
        if work:
            self._work()
        return refusal

    def finish(self, info: RunFile) -> None:
        """Merge what is small and new, and note in `run.json` that the run is closed.

        Args:
            info: what the run holds.
        """
        try:
            self._keeper.finish(_CLOSE_SECONDS)
            info.closed = now()
            info.write(self._root)
        except OSError as error:  # the records are safe; only tidiness is lost
            self._note(error)

    def give_up(self) -> None:
        """Throw away all that waits."""
        self.lost_steps += self._outbox.steps_waiting
        self._outbox.forget()
        self.lost_amendments += self._outbox.amendments.shrink(0)

    def _note(self, error: OSError) -> None:
        self.errors += 1
        self.last_error = error

    def _refusal(self, what: str, error: OSError) -> WriteError:
        self._note(error)
        told = WriteError(
            error.errno, f"cannot write {what}: {error.strerror or error}", str(self._root)
        )
        told.steps_waiting = self._outbox.steps_waiting
        told.__cause__ = error
        return told

    def _amend(self, seconds: float) -> None:
        """Bring amendments to the disk; then rest, so that they never take all of the time."""
        begun = time.monotonic()
        self._keeper.before_amending("steps", self._outbox.amendments.first)
        self.lost_amendments += self._outbox.amendments.write(self._steps, seconds)
        ended = time.monotonic()
        self._amend_from = ended + (ended - begun) * (1 / _AMEND_SHARE - 1)

    def _work(self) -> None:
        """Merge for a share of the time between flushes; what fails there costs no record."""
        self._worked = time.monotonic()
        if self._worked < self._rest_until:
            return
        try:
            behind = max(1.0, self._keeper.backlog() / _MANY_PARTS)
            self._keeper.work(max(self._every, _WORK_LEAST) * _WORK_SHARE * behind)
            self._keeper.retire(self._outbox.last)
        except OSError as error:
            self._note(error)
            self._rest_until = time.monotonic() + _REST_SECONDS
