"""Reading the named files of a set, from a folder or straight out of its .tar.gz archive."""

import gzip
import io
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from gradwise.errors import UserError

# The largest single file, the training pickle of CIFAR-100, has 155 MB; all of an archive 187 MB.
MAX_MEMBER = 256 * 2**20
MAX_ARCHIVE = 512 * 2**20


@dataclass(frozen=True)
class Member:
    """One file of a set: its name there, its contents, and what to call it in messages."""

    name: str
    data: bytes
    where: str


def folder_members(paths: Iterable[Path]) -> Iterator[Member]:
    """Read files one after the other.

    Raises:
        UserError: a file is larger than any that the set has.
    """
    for path in paths:
        size = path.stat().st_size
        if size > MAX_MEMBER:
            raise UserError(f"expected at most {MAX_MEMBER} bytes in {path}, got {size}")
        yield Member(path.name, path.read_bytes(), str(path))


def archive_members(path: Path, folder: str, names: tuple[str, ...]) -> Iterator[Member]:
    """Read the wanted files of a gzipped tar archive in one pass, in memory.

    Nothing is written to disk, names lead nowhere, links are not followed, and what is
    decompressed in all is bounded, so a small file cannot unfold into a huge one.

    Args:
        path: the archive.
        folder: the folder within it that holds the files.
        names: the files wanted; others are passed over.

    Yields:
        The wanted files in the order of the archive.

    Raises:
        UserError: the archive is damaged or truncated, unfolds beyond its bound, or holds a
            wanted file twice.
    """
    seen: set[str] = set()
    try:
        with gzip.open(path) as stream:
            bounded = _Bounded(stream, path)
            with tarfile.open(fileobj=bounded, mode="r|") as archive:
                for entry in archive:
                    name = PurePosixPath(entry.name).name
                    if name not in names or PurePosixPath(entry.name).parts[-2:-1] != (folder,):
                        continue
                    where = f"{entry.name} in {path}"
                    if not entry.isfile() or entry.issparse():
                        raise UserError(f"expected a plain file as {where}")
                    if entry.size > MAX_MEMBER:
                        raise UserError(
                            f"expected at most {MAX_MEMBER} bytes in {where}, got {entry.size}"
                        )
                    if name in seen:
                        raise UserError(f"expected {where} once, found it twice")
                    seen.add(name)
                    opened = archive.extractfile(entry)
                    data = b"" if opened is None else opened.read()
                    if len(data) != entry.size:
                        raise EOFError
                    yield Member(name, data, where)
            # gzip compares its checksum at the very end, behind the last file.
            while bounded.read(2**20):
                pass
    except (EOFError, gzip.BadGzipFile, zlib.error, tarfile.TarError) as error:
        raise UserError(f"cannot read the archive {path}: it is truncated or damaged") from error


class _Bounded(io.BufferedIOBase):
    """A stream that refuses to give more than an archive of such a set can hold."""

    def __init__(self, stream: gzip.GzipFile, path: Path) -> None:
        self._stream = stream
        self._path = path
        self._left = MAX_ARCHIVE

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as any stream does, and count."""
        if size is None or size < 0 or size > self._left:
            size = self._left + 1
        data = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise UserError(
                f"refused to read the archive {self._path}: it unfolds to more than "
                f"{MAX_ARCHIVE} bytes"
            )
        return data
