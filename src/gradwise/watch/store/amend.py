"""What becomes known of a record after it has gone to the disk, and how it gets there too."""

import math
import time
from collections.abc import Mapping

import numpy as np

from gradwise.watch.store.grid import PartWriter
from gradwise.watch.store.parts import Part
from gradwise.watch.store.pieces import Piece, read_pieces
from gradwise.watch.store.reading import DamagedPartError, PartReader, VanishedPartError
from gradwise.watch.store.shelf import Shelf

__all__ = ["Amendments"]


class Amendments:
    """Values that wait to be put into records of the `steps` table which are on the disk.

    A part is completed by writing it anew under its own name, which the system does at one stroke:
    whoever reads sees the old part or the new one. The caller drops the pyramid from the first
    step on before that, so that no bin is ever older than the records it stands for.

    Examples:
        >>> waiting = Amendments()
        >>> waiting.add(7, {"accuracy": 0.5})
        >>> waiting.add(7, {"accuracy": 0.75})
        >>> waiting.first, len(waiting)
        (7, 1)
    """

    def __init__(self) -> None:
        self._values: dict[int, dict[str, float]] = {}

    def __len__(self) -> int:
        """Number of steps of which something waits."""
        return len(self._values)

    @property
    def first(self) -> int:
        """The first of these steps."""
        return min(self._values)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Take in values of a step; they replace what waits under the same names.

        Args:
            step: the step.
            values: step metric -> value.
        """
        self._values.setdefault(step, {}).update(values)

    def shrink(self, steps: int) -> int:
        """Forget the first steps, until there are no more than so many.

        Args:
            steps: the bound.

        Returns:
            Number of steps that have been forgotten.
        """
        lost = sorted(self._values)[: max(len(self) - steps, 0)]
        for step in lost:
            del self._values[step]
        return len(lost)

    def write(self, shelf: Shelf, seconds: float = math.inf) -> int:
        """Put what waits into the parts on the disk, the oldest first.

        Args:
            shelf: the `steps` table; no job may be reading its parts.
            seconds: how long at most, not counting the last part; the rest goes on waiting.

        Returns:
            Number of steps that turned out to have no record, which happens where a part was
            damaged, or records were given up.

        Raises:
            OSError: where the disk refuses; what has not been written goes on waiting.
        """
        lost = 0
        end = time.monotonic() + seconds
        while self._values:
            step = self.first
            part = next((part for part in shelf.parts if part.first <= step <= part.last), None)
            if part is None:
                del self._values[step]
                lost += 1
                continue
            inside = {
                one: values
                for one, values in self._values.items()
                if part.first <= one <= part.last
            }
            try:
                lost += _rewrite(shelf, part, inside)
            except (DamagedPartError, VanishedPartError) as damage:
                shelf.give_up(damage)  # put aside; or, where it was only touched, tried again
                continue
            for one in inside:
                del self._values[one]
            if time.monotonic() >= end:
                break
        return lost


def _rewrite(shelf: Shelf, part: Part, changes: Mapping[int, Mapping[str, float]]) -> int:
    """Write a part anew with other values; returns how many of the steps it does not have."""
    reader = PartReader(part, shelf.spec)
    names = (name for values in changes.values() for name in values)
    columns = list(dict.fromkeys([*reader.columns, *names]))
    steps = reader.keys["step"]
    grid = read_pieces([Piece(reader, 0, len(steps))], shelf.spec, columns)
    missing = 0
    for step, values in changes.items():
        at = int(np.searchsorted(steps, step))
        if steps[at] != step:
            missing += 1
            continue
        for name, value in values.items():
            grid.values[name][0, at] = value
    with PartWriter(shelf.folder, part.first, part.last, part.tier) as writer:
        writer.write(grid, None)
        shelf.add(writer.commit(unlike=part.stamp), len(steps))
    return missing
