"""Where the checkpoints of a trajectory live: in memory, or in a folder, one file each."""

from __future__ import annotations

import io
import json
import math
import os
import struct
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from gradwise.errors import UserError

_MAGIC = b"gwtraj1\n"
_HEADER = struct.Struct("<8sd")  # the magic, and the checkpoint's step
_INDEX = "trajectory.json"


@dataclass(frozen=True)
class Entry:
    """A parameter: its place among the parameters and, in bytes, in a checkpoint's file."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    position: int
    offset: int

    @property
    def numel(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


def layout(tensors: Mapping[str, Tensor]) -> tuple[Entry, ...]:
    """Entries in the order of the mapping.

    Raises:
        UserError: where there are none, or one is not of real floating-point numbers.
    """
    entries: list[Entry] = []
    offset = 0
    for position, (name, tensor) in enumerate(tensors.items()):
        if not tensor.dtype.is_floating_point:
            raise UserError(f"expected {name} to be real and floating-point, got {tensor.dtype}")
        entries.append(Entry(name, tuple(tensor.shape), tensor.dtype, position, offset))
        offset += tensor.numel() * tensor.element_size()
    if not entries:
        raise UserError("expected a model with parameters, got none")
    return tuple(entries)


class MemoryStore:
    """Checkpoints by index, readable in pieces, and blocks of numbers by key; on the host.

    Attributes:
        steps: the step of each checkpoint.
    """

    def __init__(self) -> None:
        self.steps: list[float] = []
        self._points: list[list[Tensor]] = []
        self._blocks: dict[str, Tensor] = {}

    def append(self, step: float, tensors: Iterable[Tensor]) -> None:
        """Keep copies, in the tensors' own dtypes; all of it or, where that fails, nothing."""
        self._points.append([t.to("cpu", copy=True).reshape(-1) for t in tensors])
        self.steps.append(step)

    def read(self, index: int, entry: Entry, start: int, out: Tensor) -> None:
        """Fill float64 `out` [width] from entry `start` of the flattened parameter on."""
        out.copy_(self._points[index][entry.position][start : start + len(out)])

    def cut(self, count: int) -> None:
        """Keep the first `count` checkpoints, and forget all blocks."""
        self._blocks.clear()
        del self._points[count:], self.steps[count:]

    def save(self, key: str, block: Tensor) -> None:
        """Keep a 1-d float64 tensor."""
        self._blocks[key] = block

    def load(self, key: str) -> Tensor | None:
        """What was saved, None where nothing was."""
        return self._blocks.get(key)


class FolderStore:
    """The same in a folder: an index, a file of raw numbers a checkpoint, and files of blocks.

    Files are read in pieces, never mapped, so that what is held is what was asked for. Nothing in
    them is code. Each is written under a temporary name, synced, and renamed.

    Args:
        folder: made where it is missing; one that holds a trajectory of the same parameters is
            continued.
        entries: the parameters.

    Raises:
        UserError: where the folder holds something else, or a file of it is damaged.
    """

    def __init__(self, folder: Path, entries: tuple[Entry, ...]) -> None:
        self.folder = folder
        last = entries[-1]
        self._size = _HEADER.size + last.offset + last.numel * last.dtype.itemsize
        index = {
            "format": 1,
            "byteorder": sys.byteorder,
            "tensors": [[e.name, list(e.shape), str(e.dtype)] for e in entries],
        }
        if folder.exists() and not folder.is_dir():
            raise UserError(f"expected folder={folder} to be a folder, it is a file")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / _INDEX
        if path.exists():
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                raise UserError(f"{path} is damaged: it is not JSON") from None
            if found != index:
                raise UserError(
                    f"{folder} holds the trajectory of a model with other parameters, shapes or "
                    "dtypes: use a folder of its own for each model"
                )
        elif any(p.suffix != ".tmp" for p in folder.iterdir()):
            raise UserError(f"expected folder={folder} to be empty or to hold a trajectory")
        else:
            _write(path, [json.dumps(index).encode()])
        self.steps: list[float] = []
        while (path := self._path(len(self.steps))).exists():
            self.steps.append(self._step_of(path))

    def append(self, step: float, tensors: Iterable[Tensor]) -> None:
        """Write a checkpoint's file, tensor by tensor."""
        path = self._path(len(self.steps))
        if path.exists():
            raise UserError(f"{path} was written by another recorder meanwhile")
        parts = (_bytes(tensor) for tensor in tensors)
        _write(path, [_HEADER.pack(_MAGIC, step)], parts)
        self.steps.append(step)

    def read(self, index: int, entry: Entry, start: int, out: Tensor) -> None:
        """Fill `out`."""
        size = entry.dtype.itemsize
        path = self._path(index)
        with path.open("rb", buffering=0) as file:
            file.seek(_HEADER.size + entry.offset + start * size)
            raw = _exactly(file, len(out) * size, path)
        out.copy_(torch.frombuffer(raw, dtype=entry.dtype))

    def cut(self, count: int) -> None:
        """Keep the first ones; blocks go first, so that none outlives what it was made from."""
        for path in self.folder.glob("products-*.bin"):
            path.unlink()
        while len(self.steps) > count:
            self._path(len(self.steps) - 1).unlink()
            del self.steps[-1]

    def save(self, key: str, block: Tensor) -> None:
        """Write a block's file."""
        _write(self._block(key), [_bytes(block)])

    def load(self, key: str) -> Tensor | None:
        """A block from its file."""
        path = self._block(key)
        if not path.exists() or path.stat().st_size == 0 or path.stat().st_size % 8:
            return None
        with path.open("rb", buffering=0) as file:
            raw = _exactly(file, path.stat().st_size, path)
        return torch.frombuffer(raw, dtype=torch.float64)

    def _path(self, index: int) -> Path:
        return self.folder / f"checkpoint-{index:06d}.bin"

    def _block(self, key: str) -> Path:
        return self.folder / f"products-{key}.bin"

    def _step_of(self, path: Path) -> float:
        with path.open("rb") as file:
            header = file.read(_HEADER.size)
        if path.stat().st_size != self._size or header[:8] != _MAGIC:
            raise UserError(
                f"{path} is damaged: expected {self._size} bytes of a checkpoint, got "
                f"{path.stat().st_size}"
            )
        step = float(_HEADER.unpack(header)[1])
        last = self.steps[-1] if self.steps else -math.inf
        if not last < step < math.inf:
            raise UserError(f"{path} is damaged: expected a step above {last}, got {step}")
        return step


def _bytes(tensor: Tensor) -> bytearray:
    raw = bytearray(tensor.numel() * tensor.element_size())
    if raw:
        torch.frombuffer(raw, dtype=tensor.dtype).view(tensor.shape).copy_(tensor)
    return raw


def _exactly(file: io.FileIO, size: int, path: Path) -> bytearray:
    raw = bytearray(size)
    view, done = memoryview(raw), 0
    while done < size:
        got = file.readinto(view[done:])
        if not got:
            raise UserError(f"{path} is damaged: it ends early")
        done += got
    view.release()
    return raw


def _write(path: Path, head: Iterable[bytes | bytearray], rest: Iterable[bytearray] = ()) -> None:
    draft = path.with_name(path.name + ".tmp")
    try:
        with draft.open("wb") as file:
            for parts in (head, rest):
                for part in parts:
                    file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
