"""One writer a folder: a lock that the system lets go of when its holder dies."""

import contextlib
import errno
import os
import socket
import sys
import time
import weakref
from pathlib import Path

from gradwise.errors import UserError

__all__ = ["LOCK_NAME", "FolderLock"]

LOCK_NAME = "writer.lock"

# A writer that has just been killed, or has just forked, lets go within milliseconds.
_TRIES, _PAUSE = 10, 0.05

# What flock answers while somebody else holds the lock; any other error means that this file
# system knows no locks, and then there is none to take.
_HELD = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}


def _try_lock(fd: int) -> bool:
    """Take the lock on `fd` without waiting; False where another holds it."""
    if sys.platform == "win32":
        return True  # no flock there: the rename of whole files still keeps readers safe
    import fcntl

    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in _HELD
    return True


class FolderLock:
    """Keeps a second writer out of a run folder for as long as this object lives.

    The lock belongs to the open file, so the system releases it when the process ends, however
    it ends. A forked child (a data loader's worker) lets go of its copy at once: it must not
    keep the folder locked after its parent has died.

    Args:
        folder: the run folder; it must exist.

    Raises:
        UserError: where another writer, in this process or any other, holds the folder.
        OSError: where the lock file cannot be made.

    Examples:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> lock = FolderLock(folder)
        >>> lock.release()
    """

    def __init__(self, folder: Path) -> None:
        path = folder / LOCK_NAME
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        for _ in range(_TRIES):
            if _try_lock(fd):
                break
            time.sleep(_PAUSE)
        else:
            holder = os.read(fd, 200).decode("utf-8", "replace").strip()
            os.close(fd)
            whom = f" ({holder})" if holder else ""
            raise UserError(
                f"the run folder {folder} is being written by another writer{whom}: close that "
                "one first, or name another folder"
            )
        self._fd: int | None = fd
        with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
            os.ftruncate(fd, 0)
            os.write(fd, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        _LOCKS.add(self)

    @property
    def held(self) -> bool:
        """Whether the folder is ours; false after `release` and in a forked child."""
        return self._fd is not None

    def release(self) -> None:
        """Let the next writer in; calling it again does nothing."""
        if self._fd is not None:
            fd, self._fd = self._fd, None
            os.close(fd)

    def __del__(self) -> None:
        if getattr(self, "_fd", None) is not None:
            self.release()


_LOCKS: "weakref.WeakSet[FolderLock]" = weakref.WeakSet()


def _release_in_child() -> None:
    for lock in list(_LOCKS):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_in_child)
