"""What ties a trial's process to the one that started it: its end and its events.

Nothing of gradwise is imported here, so that the tie is there before torch has been loaded.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from typing import Any

ORPHANED = 3  # exit code where whoever listened is gone


class Lifeline:
    """Standard input and output of a trial's process, put to their real use.

    Nobody writes to its standard input: it ends when the process at the other end does, however
    that ended, and then this one ends too. Events go to what was standard output, one JSON object
    a line. Code of the user's finds an empty input, and what it prints goes to standard error,
    where it cannot mix with events.
    """

    def __init__(self) -> None:
        alive, self._events = os.dup(0), os.dup(1)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        sys.stdout.flush()
        os.dup2(2, 1)
        self._lock = threading.Lock()
        threading.Thread(target=_end_with, args=(alive,), daemon=True).start()

    def emit(self, event: dict[str, Any]) -> None:
        """Tell what happened.

        Args:
            event: JSON values; NaN is not one.
        """
        line = memoryview(json.dumps(event).encode() + b"\n")
        try:
            with self._lock:
                while line:
                    line = line[os.write(self._events, line) :]
        except BrokenPipeError:
            end_now()


def _end_with(alive: int) -> None:
    # Read as long as there is something: only the end counts.
    while os.read(alive, 4096):
        pass
    end_now()


def end_now() -> None:
    """End this process and those it has started, at once; the last checkpoint is good."""
    if os.getpgrp() == os.getpid():  # a group of our own, as the runner makes it
        os.killpg(0, signal.SIGKILL)
    os._exit(ORPHANED)
