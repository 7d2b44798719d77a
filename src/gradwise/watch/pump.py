"""A thread behind the training that does the same thing again and again."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

PERIOD = 0.1  # seconds between two calls

_log = logging.getLogger("gradwise")


class Pump:
    """Calls a function from a background thread until it returns False, or the pump is closed.

    The thread ends with the process, whatever it is doing, and is not there in a forked child.

    Args:
        call: what it raises is logged once and counted, never seen by others.

    Attributes:
        turn: held while the function runs; to be held by whoever does the same work meanwhile.
        failures: how many times it raised.
    """

    def __init__(self, call: Callable[[], bool]) -> None:
        self.turn = threading.Lock()
        self.failures = 0
        self._call = call
        self._pid = os.getpid()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gradwise-watch", daemon=True)
        self._thread.start()

    @property
    def here(self) -> bool:
        """Whether this is the process that the thread runs in."""
        return os.getpid() == self._pid

    def close(self) -> None:
        """End the thread; what it is doing is done to the end."""
        self._stop.set()
        if self.here and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(PERIOD):
            with self.turn:
                try:
                    if not self._call():
                        return
                except Exception:  # a thread that dies would be the end of the record
                    self.failures += 1
                    if self.failures == 1:
                        _log.warning("recording goes on, but something failed", exc_info=True)
