"""Putting bytes on the disk so that a crash at any moment leaves whole files only.

Every file of a run is written under a temporary name in its own folder, synced, and then renamed
into place; the rename is the moment from which it counts. All writing goes through `write_all`,
so there is one place where a full disk shows itself.
"""

import contextlib
import errno
import os
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = [
    "Draft",
    "Stamp",
    "WriteError",
    "fsync_folder",
    "is_draft",
    "make_folder",
    "remove",
    "replace_file",
    "stamp_of",
    "write_all",
]


Stamp = tuple[int, int]
"""When a file was written, in ns, and how many bytes long it is."""

# A draft is synced whenever this much of it has been written: one sync of half a gigabyte at the
# end would keep its writer from everything else for as long as that takes.
_SYNC_BYTES = 16 * 2**20


class WriteError(OSError):
    """Something of a run could not be written: a full disk, a lost share, an I/O error.

    What was on the disk before is intact, and what could not be written is still waiting in
    memory: a later flush tries again. `errno` is that of the operating system, `steps_waiting`
    the number of recorded steps which are not on the disk.
    """

    steps_waiting: int = 0


def stamp_of(stat: os.stat_result) -> Stamp:
    """What tells a file from an earlier one of the same name.

    The inode would be no help: some network file systems number files anew at every look.

    Args:
        stat: the file's status.
    """
    return stat.st_mtime_ns, stat.st_size


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write every byte of `data` to the open file `fd`.

    Args:
        fd: an open file descriptor.
        data: what to write.

    Raises:
        OSError: where the system refuses, for instance because the disk is full.
    """
    view = memoryview(data).cast("B")
    while len(view):
        view = view[os.write(fd, view) :]


def fsync_folder(folder: Path) -> None:
    """Make renames and removals in `folder` last through a power cut, where that is possible.

    Args:
        folder: the folder whose list of names has changed.
    """
    try:
        fd = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders; the rename is all there is to be had
        return
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse, and sync anyway
            os.fsync(fd)
    finally:
        os.close(fd)


def remove(path: Path) -> bool:
    """Delete a file that is no longer needed; what cannot be deleted may stay.

    Args:
        path: the file.

    Returns:
        Whether it is gone.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def make_folder(root: Path, name: str) -> Path:
    """Make a folder inside a run folder, but not the run folder itself.

    Args:
        root: the run folder.
        name: the folder's path inside it.

    Raises:
        FileNotFoundError: where somebody has deleted the run folder.
        OSError: where the folder cannot be made.
    """
    if not root.is_dir():
        raise FileNotFoundError(errno.ENOENT, "the run folder is gone", str(root))
    folder = root / name
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        fsync_folder(folder.parent)
    return folder


def is_draft(name: str) -> bool:
    """Whether a file name is the temporary name of something that was never finished.

    Args:
        name: the file's name without its folder.

    Examples:
        >>> is_draft(".run.json.tmp"), is_draft("run.json")
        (True, False)
    """
    return name.startswith(".") and name.endswith(".tmp")


class Draft:
    """A file in the making, which appears under its name only once it is whole.

    It has the methods that Arrow asks of a binary file opened for writing. Leaving the `with`
    block without `commit` throws the draft away.

    Args:
        final: the path under which the file will appear; its folder must exist.

    Examples:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with Draft(folder / "a.txt") as draft:
        ...     _ = draft.write(b"whole")
        ...     draft.commit()
        >>> (folder / "a.txt").read_bytes()
        b'whole'
    """

    def __init__(self, final: Path) -> None:
        self.final = final
        self.path = final.with_name(f".{final.name}.tmp")
        self._written = self._synced = 0
        self._discarded = False
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)
        self._fd: int | None = os.open(self.path, flags, 0o666)

    @property
    def closed(self) -> bool:
        """Whether nothing more can be written."""
        return self._fd is None

    def write(self, data: bytes) -> int:
        """Write `data` at the end and return its length.

        Args:
            data: what to write.

        Raises:
            OSError: where the system refuses.
        """
        if self._discarded:  # Arrow writes a footer when it lets go of a file; nobody wants it
            return len(data)
        if self._fd is None:
            raise ValueError(f"{self.path} is closed")
        write_all(self._fd, data)
        self._written += len(data)
        if self._written - self._synced >= _SYNC_BYTES:
            self._sync(self._fd)
        return len(data)

    def _sync(self, fd: int) -> None:
        os.fsync(fd)
        self._synced = self._written

    def tell(self) -> int:
        """Number of bytes written so far."""
        return self._written

    def flush(self) -> None:
        """Nothing waits in here: every write goes to the system at once."""

    def seekable(self) -> bool:
        """A draft is written from front to back."""
        return False

    def readable(self) -> bool:
        """A draft is not read."""
        return False

    def writable(self) -> bool:
        """A draft takes bytes."""
        return True

    def commit(self, unlike: Stamp | None = None) -> None:
        """Sync the file and give it its name; the folder's own sync is the caller's.

        Args:
            unlike: the stamp of a file of that name, from which this one has to differ.

        Raises:
            OSError: where the system refuses; the draft is then still to be discarded.
        """
        if self._fd is None:
            raise ValueError(f"{self.path} is closed")
        self._sync(self._fd)
        fd, self._fd = self._fd, None
        os.close(fd)
        if unlike is not None and stamp_of(self.path.stat()) == unlike:
            # As long as the other, and written in the same tick of the file system's clock, which
            # may be as long as two seconds.
            later = unlike[0] + 2_000_000_000
            os.utime(self.path, ns=(later, later))
        os.replace(self.path, self.final)

    def discard(self) -> None:
        """Throw the draft away, unless it has been committed."""
        self._discarded = True
        if self._fd is not None:
            fd, self._fd = self._fd, None
            with contextlib.suppress(OSError):
                os.close(fd)
        remove(self.path)

    close = discard

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.discard()


def replace_file(path: Path, data: bytes) -> None:
    """Write a whole small file: readers see the old content or the new, never a part.

    Args:
        path: the file; its folder must exist.
        data: its new content.

    Raises:
        OSError: where it cannot be written; the old content is then untouched.
    """
    with Draft(path) as draft:
        draft.write(data)
        draft.commit()
    fsync_folder(path.parent)
