"""Decoded data on disk, so that every process but the first maps it instead of decoding it.

A cached set is one file in torch's own format, mapped into memory: processes that train on the
same data share its pages. A cache is a convenience and never a reason to fail: what is broken or
out of date is rebuilt, and what cannot be written is left out.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gradwise.lab.data.dataset import Dataset

# To be raised when the contents of a cached file or the way data is read change.
_FORMAT = 1
_TENSORS = ("train_x", "train_y", "test_x", "test_y", "mean", "std")
# A temporary file this old, in seconds, was left behind by a process that died.
_ABANDONED = 3600.0


@dataclass(frozen=True)
class Key:
    """Names a cached set: what it was made from, and in which state that was.

    Attributes:
        name: the set's name.
        source: digest of where the data comes from; a newer state of it replaces an older one.
        state: digest of the state of that source, as sizes and times of files.
    """

    name: str
    source: str
    state: str

    @property
    def file_name(self) -> str:
        """Name of the file in the cache folder."""
        return f"{self.name}-{self.source[:16]}-{self.state[:16]}.pt"


def files_key(name: str, files: Iterable[Path]) -> Key:
    """The key of a set read from files: changes when one is replaced, edited or moved.

    Raises:
        OSError: a file is gone.
    """
    resolved = [path.resolve() for path in files]
    stats = [path.stat() for path in resolved]
    return version_key(
        name,
        json.dumps([str(path) for path in resolved]),
        json.dumps([[stat.st_size, stat.st_mtime_ns] for stat in stats]),
    )


def version_key(name: str, source: str, state: str) -> Key:
    """The key of a set that comes from a library of a certain version."""
    return Key(name, _digest(f"{name}\n{source}"), _digest(f"{_FORMAT}\n{state}"))


def cache_folder() -> Path | None:
    """The folder of cached data, which may not exist yet; None where there is no home.

    `GRADWISE_CACHE` names it; failing that it is `gradwise` in `XDG_CACHE_HOME` or `~/.cache`.
    """
    try:
        if own := os.environ.get("GRADWISE_CACHE"):
            return Path(own).expanduser() / "data"
        if shared := os.environ.get("XDG_CACHE_HOME"):
            return Path(shared).expanduser() / "gradwise" / "data"
        return Path.home() / ".cache" / "gradwise" / "data"
    except RuntimeError:
        return None


def fetch(key: Key, *, num_classes: int, crop_padding: int, flip: bool) -> Dataset | None:
    """Map a cached set into memory.

    Args:
        key: which set, in which state.
        num_classes: number of classes, which is not read from the cache.
        crop_padding: as in `Dataset`.
        flip: as in `Dataset`.

    Returns:
        The set, or None if it is not in the cache or what is there is unusable.
    """
    folder = cache_folder()
    if folder is None:
        return None
    path = folder / key.file_name
    try:
        if not path.is_file():
            return None
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        tensors: dict[str, Tensor] = {name: content[name] for name in _TENSORS}
        return Dataset(
            name=key.name,
            **tensors,
            num_classes=num_classes,
            crop_padding=crop_padding,
            flip=flip,
            class_names=tuple(str(name) for name in content["class_names"]),
            fingerprint=str(content["fingerprint"]),
        )
    except Exception:
        # Whatever is wrong with it, from a torn file to a folder in its place: it can be rebuilt.
        return None


def store(key: Key, dataset: Dataset) -> bool:
    """Put a set into the cache, in place of older states of the same source.

    Args:
        key: which set, in which state.
        dataset: the set.

    Returns:
        Whether it is there now; False where the folder cannot be written or the disk is full.
    """
    folder = cache_folder()
    if folder is None:
        return False
    content: dict[str, object] = {name: getattr(dataset, name) for name in _TENSORS}
    content["class_names"] = list(dataset.class_names)
    content["fingerprint"] = dataset.fingerprint
    path = folder / key.file_name
    temporary: str | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{key.name}-", suffix=".tmp", dir=folder)
        with os.fdopen(handle, "wb") as stream:
            torch.save(content, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
        temporary = None
    except (OSError, RuntimeError):
        # torch reports some failures of its writer as RuntimeError.
        return False
    finally:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)
    _sweep(folder, key)
    return True


def _sweep(folder: Path, key: Key) -> None:
    """Remove older states of a source, and what killed processes left behind.

    Processes that have an older state mapped keep it: its pages live until they let go.
    """
    with suppress(OSError):
        for path in folder.glob(f"{key.name}-{key.source[:16]}-*.pt"):
            if path.name != key.file_name:
                path.unlink(missing_ok=True)
        for path in folder.glob(f".{key.name}-*.tmp"):
            if time.time() - path.stat().st_mtime > _ABANDONED:
                path.unlink(missing_ok=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
