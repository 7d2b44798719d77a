"""What kernels are told of tensors: chunks of work, made once, and addresses, copied on change."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from gradwise.backends.gpu.launching import capturing, stream_of
from gradwise.backends.launch import in_one_piece
from gradwise.errors import UserError

TYPES = (torch.float32, torch.bfloat16, torch.float16)
PROGRAMS = 4096  # a chunk has more than one block where there would be more programs than these
MOST = 16  # blocks of a chunk
SPARES = 4  # copies of a table that one capture may ask for
STREAMS = 8  # that a table is kept for
_CODES = {torch.int64: "q", torch.float64: "d"}  # of Python's arrays
LEFT, TAKEN, ALIGNED = range(3)  # how a tensor lies: not for kernels, anywhere, on 16 bytes
_PLAIN = (Tensor, torch.nn.Parameter)

# What the tables of a step that a CUDA graph replays lie in: it may do so for ever.
_captured: dict[int, object] = {}


def keep_if_captured(device: torch.device, *things: object) -> None:
    """Keep things alive for good where a graph is being captured that will look at them."""
    if capturing(device):
        _captured.update((id(thing), thing) for thing in things)


def how_it_lies(
    tensor: Tensor | None, numel: int, dtype: torch.dtype | None, rows: int, device: torch.device
) -> int:
    """Whether kernels can go through a tensor's memory: `LEFT`, `TAKEN` or `ALIGNED`.

    Args:
        tensor: any, or None.
        numel: how many values it has to have.
        dtype: the type that it has to have.
        rows: segments along dimension 0.
        device: where it has to be.

    Raises:
        ValueError: where a tensor that kernels would take has another number of values.
    """
    if (
        tensor is None
        or numel == 0
        or dtype not in TYPES
        or tensor.dtype != dtype
        or type(tensor) not in _PLAIN
        or tensor.layout != torch.strided
        or tensor.device != device
        or not in_one_piece(tensor, rows)
    ):
        return LEFT
    if tensor.numel() != numel:  # the tables are trusted: more would be read beyond the end
        raise ValueError("the tensors are not those of the layout")
    return TAKEN if tensor.data_ptr() % 16 else ALIGNED


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """A host tensor on the device, without waiting for it."""
    if device.type == "cpu":
        return values
    return values.pin_memory().to(device, non_blocking=True)


class Group(NamedTuple):
    """Neighbouring chunks that one launch goes through.

    Attributes:
        kinds: the types of their tensors.
        aligned: whether all start on 16 bytes.
        first: the first chunk.
        size: how many.
        members: the tensors, by their place.
    """

    kinds: tuple[torch.dtype, ...]
    aligned: bool
    first: int
    size: int
    members: tuple[int, ...]


class Chunks:
    """Pieces of segments, each small enough for a program, in tables on the device.

    Args:
        numels: values in each tensor.
        rows: segments of each tensor.
        offsets: where each tensor's segments start.
        kinds: the types that each tensor (and what belongs to it) has.
        lies: how each lies; what is `LEFT` gets no chunks.
        segments: how many there are in all.
        block: values that a program holds at once.
        device: where the tables go.

    Raises:
        UserError: where a CUDA graph is being captured, which cannot make tables.

    Attributes:
        count: how many chunks.
        tensor, start, length, segment: int32, int64, int32, int32 [count]: whose, from which value,
            how many, of which segment.
        begin: int32 [2, segments]: each segment's first chunk, and the one after its last.
        most: chunks of the segment that has most.
        groups: the launches.
    """

    def __init__(
        self,
        numels: Sequence[int],
        rows: Sequence[int],
        offsets: Sequence[int],
        kinds: Sequence[tuple[torch.dtype, ...]],
        lies: Sequence[int],
        segments: int,
        block: int,
        device: torch.device,
    ) -> None:
        if capturing(device):
            raise UserError(
                "expected steps with the same gradients before one is captured in a CUDA graph, "
                "got none: run a few first"
            )
        taken = [i for i, how in enumerate(lies) if how != LEFT]
        blocks = sum(-(-numels[i] // block) for i in taken)
        size = block * min(max(-(-blocks // PROGRAMS), 1), MOST)
        narrow = [min(kind.itemsize for kind in kinds[i]) for i in range(len(kinds))]

        def launched_as(i: int) -> tuple[tuple[str, ...], bool]:
            even = rows[i] == 1 or (numels[i] // rows[i] * narrow[i]) % 16 == 0
            return tuple(map(str, kinds[i])), lies[i] == ALIGNED and even

        taken.sort(key=launched_as)  # stable: tensors keep their order within a launch
        self.groups: list[Group] = []
        self.count, self.most = 0, 0
        parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        begin = torch.zeros(2, segments, dtype=torch.int32)
        for (_, aligned), members in groupby(taken, launched_as):
            first, here = self.count, tuple(members)
            for i in here:
                length = numels[i] // rows[i]
                pieces = -(-length // size)
                row = torch.arange(rows[i]).repeat_interleave(pieces)
                piece = torch.arange(pieces).repeat(rows[i])
                ends = (piece + 1).mul_(size).clamp_(max=length)
                lengths = ends - piece * size
                starts = row * length + piece * size
                parts.append((torch.full_like(row, i), starts, lengths, row + offsets[i]))
                own = torch.arange(rows[i]) * pieces + self.count
                begin[0, offsets[i] : offsets[i] + rows[i]] = own
                begin[1, offsets[i] : offsets[i] + rows[i]] = own + pieces
                self.count += rows[i] * pieces
                self.most = max(self.most, pieces)
            self.groups.append(Group(kinds[here[0]], aligned, first, self.count - first, here))
        none = (torch.zeros(0, dtype=torch.int64),) * 4
        tensor, start, length_of, segment = map(torch.cat, zip(*(parts or [none]), strict=True))
        self.tensor = to_device(tensor.int(), device)
        self.start = to_device(start, device)
        self.length = to_device(length_of.int(), device)
        self.segment = to_device(segment.int(), device)
        self.begin = to_device(begin, device)
        self._stream, self._copied = stream_of(device), None
        if device.type == "cuda":
            self._copied = torch.cuda.current_stream(device).record_event()

    def used(self, device: torch.device) -> None:
        """Say that work on the device's current stream looks at the tables.

        It comes after the copies, and their memory is not given to others before it is done. A
        graph finds the device idle when it is captured, and keeps the memory for good.
        """
        keep_if_captured(device, self)
        if self._copied is not None and stream_of(device) != self._stream and not capturing(device):
            stream = torch.cuda.current_stream(device)
            stream.wait_event(self._copied)
            for table in (self.tensor, self.start, self.length, self.segment, self.begin):
                table.record_stream(stream)


class Table:
    """Numbers of a step in the device's memory, copied there only when they have changed.

    The copy leaves from pinned memory and nobody waits for it. That memory is not written again
    before the copy is done: every copy has its own, which torch's allocator of pinned memory hands
    out anew when the device is through with it. Streams have tables of their own.

    A CUDA graph that is being captured looks at a table that is there already, or repeats the copy
    whenever it is replayed. It may do so for ever, so what it needs stays as it is, for good; some
    pinned memory is kept ready for it, because that cannot be asked for during a capture.

    Args:
        length: entries of the table.
        dtype: of the numbers.
        device: where it goes.
    """

    def __init__(self, length: int, dtype: torch.dtype, device: torch.device) -> None:
        self.device, self._length, self._dtype = device, max(length, 1), dtype
        self._there: dict[int, tuple[Sequence[float], Tensor]] = {}  # by stream
        self._spare: list[Tensor] = []

    def __call__(self, values: Sequence[float]) -> Tensor:
        """The table with these values, as many as it has entries."""
        if capturing(self.device):
            for known, there in self._there.values():
                if known == values:
                    keep_if_captured(self.device, there)
                    return there
            host = self._spare.pop() if self._spare else self._empty()
            there = self._copied(host, values)
            keep_if_captured(self.device, host, there)
            return there
        while len(self._spare) < SPARES and self.device.type == "cuda":
            self._spare.append(self._empty())
        stream = stream_of(self.device)
        found = self._there.get(stream)
        if found is None or found[0] != values:
            if len(self._there) == STREAMS:
                self._there.clear()
            found = self._there[stream] = values, self._copied(self._empty(), values)
        return found[1]

    def _copied(self, host: Tensor, values: Sequence[float]) -> Tensor:
        if values:
            given = array(_CODES[self._dtype], values)
            host.copy_(torch.frombuffer(given, dtype=self._dtype))
        return host if self.device.type == "cpu" else host.to(self.device, non_blocking=True)

    def _empty(self) -> Tensor:
        pinned = self.device.type == "cuda"
        return torch.zeros(self._length, dtype=self._dtype, pin_memory=pinned)
