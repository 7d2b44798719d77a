"""Where a sender and its workers meet: a folder in the comparison's, only while trials are sent."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

from gradwise.lab.files import write_json

NAME = ".cluster"
LEASE_SECONDS = 120.0  # shared folders may show a file's new content half a minute late
_SIGN_SECONDS = 5.0


class Desk:
    """A sender's place in the folder.

    Attributes:
        sign: the file that moves as long as the sender lives.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()
        self.sign = folder / "sign"

    def ticket(self) -> Path:
        """A path for the next task's ticket; never the same twice, also not in a later call."""
        return self._folder / f"{next(self._numbers)}.jsonl"


@contextlib.contextmanager
def open_desk(out: Path) -> Iterator[Desk]:
    """Open a desk; what an earlier sender left goes, and so ends what still runs for it.

    Args:
        out: the comparison's folder, which this process holds.

    Returns:
        A context with the desk, which is gone afterwards.

    Raises:
        OSError: where nothing can be written there.
    """
    above = out.resolve() / NAME
    shutil.rmtree(above, ignore_errors=True)
    folder = above / uuid.uuid4().hex
    folder.mkdir(parents=True)
    desk = Desk(folder)
    write_json(desk.sign, {"beat": 0})
    closed = threading.Event()

    def move() -> None:
        for beat in itertools.count(1):
            if closed.wait(_SIGN_SECONDS):
                return
            with contextlib.suppress(OSError):  # a full disk is told by what needs it
                write_json(desk.sign, {"beat": beat})

    mover = threading.Thread(target=move, daemon=True)
    mover.start()
    try:
        yield desk
    finally:
        closed.set()
        mover.join()
        shutil.rmtree(above, ignore_errors=True)
