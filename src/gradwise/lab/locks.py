"""Who may write into a folder: locks that the system lets go of when their holder dies."""

from __future__ import annotations

import contextlib
import errno
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from gradwise.errors import UserError

LOCK_NAME = ".lock"
_SECONDS = 60.0  # what an orphan of an earlier call gets to end
_HELD = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}


def try_lock(file: BinaryIO) -> bool:
    """Lock an open file for this process; the system lets go of it when the process ends.

    Args:
        file: open for writing.

    Returns:
        False where another process holds it.
    """
    if sys.platform == "win32":
        return True  # no such locks there; files are written whole all the same
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _HELD  # a file system without locks has none to wait for
    return True


@contextlib.contextmanager
def own_folder(folder: Path, seconds: float = _SECONDS) -> Iterator[None]:
    """Hold a trial's folder for this process.

    The process of an earlier call that was killed may take a moment to notice.

    Args:
        folder: the trial's.
        seconds: how long to wait for the one that holds it.

    Raises:
        UserError: where it is still held then.
        OSError: where nothing can be written there.
    """
    end = time.monotonic() + seconds
    with (folder / LOCK_NAME).open("ab") as file:
        while not try_lock(file):
            if time.monotonic() >= end:
                raise UserError(f"{folder} is being written by another process")
            time.sleep(0.05)
        yield
