"""An event file of TensorBoard's that is written at once, by the thread that asks for it.

TensorBoard's own writer hands what it gets to a thread, which dies of a full disk, says so on the
screen, and takes nothing more. A sink has a thread already; written directly, a row that the disk
refused is simply written later.
"""

from __future__ import annotations

import io
import os
import socket
import time as clock
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradwise.watch.sinks.base import load_tool

PACKAGE = "tensorboard"
VERSION = "brain.Event:2"  # of the format; TensorBoard purges only in files that name it


class EventFile:
    """A new event file in a folder, which is made where it is missing.

    Args:
        folder: where; files of other writers in it are left alone.
        purge_step: TensorBoard is to hide what the folder had from this step on.

    Raises:
        OSError: where the disk refuses.
        UserError: where tensorboard is not installed.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        self._event = load_tool("tensorboard.compat.proto.event_pb2", PACKAGE)
        self._records = load_tool("tensorboard.summary.writer.record_writer", PACKAGE).RecordWriter
        folder.mkdir(parents=True, exist_ok=True)
        self._file = _new_file(folder)
        self._end = 0
        try:
            self._write(self._event.Event(wall_time=clock.time(), file_version=VERSION))
            if purge_step is not None:
                start = self._event.SessionLog(status=self._event.SessionLog.START)
                now = clock.time()
                self._write(self._event.Event(wall_time=now, step=purge_step, session_log=start))
        except OSError:
            self.close()
            raise

    def add(self, step: int, values: Mapping[str, float], time: float) -> None:
        """Write scalars of one step, in single precision, as one event.

        Args:
            step: the step.
            values: by tag.
            time: of the step, in seconds since 1970.

        Raises:
            OSError: where the disk refuses; the file is as it was.
        """
        self._write(self._event.Event(wall_time=time, step=step, summary=summary(values)))

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _write(self, event: Any) -> None:
        record = io.BytesIO()
        self._records(record).write(event.SerializeToString())
        left = memoryview(record.getvalue())
        try:
            while left:
                left = left[os.write(self._file, left) :]
        except OSError:
            # Readers stop for good at half a record, so none is left behind.
            os.ftruncate(self._file, self._end)
            os.lseek(self._file, self._end, os.SEEK_SET)
            raise
        self._end += record.tell()


def summary(values: Mapping[str, float]) -> Any:
    """Scalars as TensorBoard's `Summary`, which one event has all of.

    Args:
        values: by tag.
    """
    kind = load_tool("tensorboard.compat.proto.summary_pb2", PACKAGE).Summary
    return kind(value=[kind.Value(tag=name, simple_value=v) for name, v in values.items()])


def _new_file(folder: Path) -> int:
    """Open a file by a name that is new; names sort by the second in which they were made."""
    begin = f"events.out.tfevents.{int(clock.time()):010d}.{socket.gethostname()}.{os.getpid()}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    number = 0
    while True:
        try:
            return os.open(folder / f"{begin}.{number}.gradwise", flags, 0o666)
        except FileExistsError:
            number += 1
