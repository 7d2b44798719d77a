"""The thread that carries records from the recorder to whoever wants them."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Callable
from typing import Protocol, runtime_checkable

PERIOD = 0.1  # seconds between two looks at what there is to carry

_log = logging.getLogger("gradwise")


class Pump:
    """Calls a function from a background thread, again and again, until closed.

    The thread does not keep the function's owner alive, ends with the process whatever state it is
    in, and is not there in a forked child.

    Args:
        carry: a bound method; what it raises is logged once and counted, never seen by others.

    Attributes:
        failures: how many times it raised.
    """

    def __init__(self, carry: Callable[[], None]) -> None:
        self.failures = 0
        self._pid = os.getpid()
        self._turn = threading.Lock()
        self._stop = threading.Event()
        self._carry = weakref.WeakMethod(carry)
        self._thread = threading.Thread(target=_run, args=(weakref.ref(self), self._stop))
        self._thread.name, self._thread.daemon = "gradwise-watch", True
        self._thread.start()

    @property
    def here(self) -> bool:
        """Whether this is the process that the thread runs in."""
        return os.getpid() == self._pid

    @property
    def turn(self) -> threading.Lock:
        """Held while the function runs; to be held by whoever does the same work meanwhile."""
        return self._turn

    def close(self) -> None:
        """End the thread; what it is doing is done to the end."""
        self._stop.set()
        if self.here and self._thread is not threading.current_thread():
            self._thread.join()

    def run_once(self) -> bool:
        """Call the function, unless its owner is gone."""
        carry = self._carry()
        if carry is None:
            return False
        with self._turn:
            try:
                carry()
            except Exception:
                self.failures += 1
                if self.failures == 1:
                    _log.warning("recording goes on, but something in it failed", exc_info=True)
        return True


def _run(pump: weakref.ref[Pump], stop: threading.Event) -> None:
    while not stop.wait(PERIOD):
        alive = pump()
        if alive is None or not alive.run_once():
            return
        del alive  # so that waiting keeps nothing alive


@runtime_checkable
class _Closable(Protocol):
    def close(self) -> None: ...


_open: weakref.WeakSet[_Closable] = weakref.WeakSet()


def close_at_exit(what: _Closable) -> None:
    """Close it when the interpreter ends, if it is still there and has not been."""
    _open.add(what)


@atexit.register
def _close_all() -> None:
    for what in list(_open):
        with contextlib.suppress(Exception):  # what cannot be written now is lost
            what.close()
