"""Following a run folder: what is there now, how old it is, and what went wrong."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from gradwise.errors import UserError
from gradwise.live.folder import awaited
from gradwise.live.model import Snapshot
from gradwise.live.tail import Tail, Wish
from gradwise.live.text import duration

__all__ = ["Follower", "Look", "Seer"]

_QUIET_SECONDS = 6.0  # a writer writes once a second, and disks that are shared take their time
_QUIET_STEPS = 5  # a run whose steps take minutes is not quiet because one does
_PACE_SECONDS = 30.0
_REST = 3  # a look that took long is followed by a rest of so many times its length


@dataclass(frozen=True, eq=False)
class Look:
    """What came of looking at a folder once.

    Attributes:
        snapshot: the run; as it was last seen, where it cannot be read now.
        waiting: why there is nothing to show yet.
        trouble: what went wrong with this look.
        arrived: when the newest record came, on the clock of `time.monotonic`; None where that
            is not known.
    """

    snapshot: Snapshot | None = None
    waiting: str = ""
    trouble: str = ""
    arrived: float | None = None

    def state(self, now: float) -> tuple[str, str]:
        """How the run is doing, in a word and in words.

        Args:
            now: `time.monotonic()`.

        Returns:
            "waiting", "trouble", "ended", "quiet" or "live", and what to tell people.

        Examples:
            >>> Look(waiting="there is no such folder yet").state(0.0)
            ('waiting', 'waiting: there is no such folder yet')
        """
        if self.trouble:
            return "trouble", self.trouble
        run = self.snapshot
        if run is None:
            return "waiting", f"waiting: {self.waiting}" if self.waiting else "reading"
        age = None if self.arrived is None else max(now - self.arrived, 0.0)
        if run.closed:
            return "ended", "ended" if age is None else f"ended {duration(age)} ago"
        if run.step is None:
            return "waiting", "waiting: the run has begun, no step is recorded yet"
        if age is None:
            return "live", "live"
        usual = _QUIET_STEPS / run.rate if run.rate else 0.0
        if age > max(_QUIET_SECONDS, usual):
            return "quiet", f"no news for {duration(age)}"
        return "live", f"live, {duration(age)} ago"


class Seer:
    """Looks at a folder, again and again; waits for a run, and survives what can happen to it.

    Args:
        folder: where the run is, or will be.
        monotonic: a clock that is never set, in seconds.
        clock: the time of day, in seconds since 1970.
    """

    def __init__(
        self,
        folder: Path,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._monotonic = monotonic
        self._clock = clock
        self._tail: Tail | None = None
        self._last = Look()
        self._begun: deque[tuple[float, int]] = deque(maxlen=600)

    def look(self, wish: Wish) -> Look:
        """What is there now.

        Args:
            wish: what of it.

        Raises:
            UserError: where nothing has been shown yet and nothing ever will: something else is
                in the folder, or a run that cannot be read.
        """
        try:
            self._last = self._seen(wish)
        except UserError as error:
            if self._last.snapshot is None:
                raise
            self._tail = None
            self._last = replace(self._last, trouble=f"{error}; trying again")
        return self._last

    def _seen(self, wish: Wish) -> Look:
        before = self._last.snapshot
        missing = awaited(self._folder)
        if missing is not None:
            self._tail = None
            if before is None:
                return Look(waiting=missing)
            return replace(self._last, trouble=f"the run is gone, {missing}; trying again")
        new = self._tail is None
        if self._tail is None:
            self._tail = Tail(self._folder)
        run = self._tail.look(wish)
        now = self._monotonic()
        seen = -1 if before is None or before.step is None else before.step
        if new and not self._last.trouble:
            arrived = self._first_arrival(run, now)
        elif run.step is not None and run.step > seen:
            arrived = now
        else:  # nothing new; or less than before, where a file is damaged or the run was cut back
            arrived = self._last.arrived
        if run.rate is None:
            run = replace(run, rate=self._observed(run.step, now))
        return Look(run, arrived=arrived)

    def _first_arrival(self, run: Snapshot, now: float) -> float | None:
        """When the newest record came, as far as the run's clock and ours agree."""
        recorded = run.scalars.get("time")
        if recorded is None and self._tail is not None and run.step is not None:
            try:  # a run that records no time: its newest file tells
                recorded = self._tail.run.files("steps")[-1].stat().st_mtime
            except (OSError, IndexError):
                return None
        return None if recorded is None else now - max(self._clock() - recorded, 0.0)

    def _observed(self, step: int | None, now: float) -> float | None:
        """Steps a second as seen from here, for a run that records no time."""
        if step is None or (self._begun and self._begun[-1][1] > step):
            self._begun.clear()  # nothing yet, or another run
        if step is None:
            return None
        if not self._begun or self._begun[-1][1] != step:
            self._begun.append((now, step))
        while len(self._begun) > 2 and self._begun[0][0] < now - _PACE_SECONDS:
            self._begun.popleft()
        (first, low), (last, high) = self._begun[0], self._begun[-1]
        return (high - low) / (last - first) if last > first else None


class Follower:
    """Looks at a folder about once a second in a thread of its own.

    The thread is a daemon: a shared disk that hangs holds up neither the screen nor its end.

    Args:
        seer: what looks.
        wish: what is wanted at first.
        interval: seconds between looks.
        tell: called in the thread with each look, and with the error that ended it.
    """

    def __init__(
        self,
        seer: Seer,
        wish: Wish,
        interval: float,
        tell: Callable[[Look | Exception], None],
    ) -> None:
        self._seer = seer
        self._wish = wish
        self._interval = interval
        self._tell = tell
        self._asked = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="gradwise-live", daemon=True)

    @property
    def wish(self) -> Wish:
        """What is wanted now."""
        return self._wish

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def ask(self, wish: Wish) -> None:
        """Want something else from now on; looks at once.

        Args:
            wish: what is wanted.
        """
        if wish != self._wish:
            self._wish = wish
            self._asked.set()

    def stop(self) -> None:
        """Look no more; does not wait for a look that is under way."""
        self._stopped.set()
        self._asked.set()

    def _follow(self) -> None:
        while not self._stopped.is_set():
            self._asked.clear()
            began = time.monotonic()
            try:
                found: Look | Exception = self._seer.look(self._wish)
            except Exception as error:  # told in the thread of the screen, which ends with it
                found = error
            if self._stopped.is_set():
                return
            self._tell(found)
            if isinstance(found, Exception):
                return
            spent = time.monotonic() - began
            self._asked.wait(max(self._interval - spent, _REST * spent))
