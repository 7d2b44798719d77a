"""What a writer has taken in and not written yet, and how it gets onto the disk."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwise.errors import UserError
from gradwise.watch.store.amend import Amendments
from gradwise.watch.store.buffer import Buffer, Rows, check_steps, copied, shrink
from gradwise.watch.store.grid import write_grid
from gradwise.watch.store.runfile import RunFile, check_names
from gradwise.watch.store.shelf import Shelf

__all__ = ["Outbox"]


class Outbox:
    """Checks and copies records, and writes them as one small part a table.

    Args:
        root: the run folder.
        info: what the run holds.
        tables: its tables, in the order in which they are written: a step counts from the moment
            its row in the last of them is on the disk.

    Attributes:
        last: the last step taken in, -1 before the first.
        last_histogram: the last step of a histogram taken in, -1 before the first.
        amendments: what waits to be put into records on the disk.
    """

    def __init__(self, root: Path, info: RunFile, tables: Mapping[str, Shelf]) -> None:
        self._root = root
        self._info = info
        self._tables = dict(tables)
        self.amendments = Amendments()
        self._buffers = {name: Buffer(shelf.spec) for name, shelf in tables.items()}
        # Scalars that came along the way go on having a column.
        self._scalars = dict.fromkeys([*info.step_metrics, *tables["steps"].columns()])
        self.last = max(shelf.last for name, shelf in tables.items() if name != "histograms")
        self.last_histogram = tables["histograms"].last if "histograms" in tables else -1

    @property
    def steps_waiting(self) -> int:
        """Number of records that are not on the disk."""
        return self._buffers["steps"].records

    @property
    def nbytes(self) -> int:
        """Bytes that the records take."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def take(
        self,
        steps: npt.NDArray[Any],
        layers: Mapping[str, npt.NDArray[Any]],
        scalars: Mapping[str, npt.NDArray[Any]],
    ) -> None:
        """Take in K records.

        Args:
            steps: [K] step numbers.
            layers: layer metric -> [K, L].
            scalars: step metric -> [K].

        Raises:
            UserError: where something does not fit; nothing has then been taken in.
        """
        info = self._info
        numbers = check_steps(steps, self.last)
        count = len(numbers)
        for name in layers:
            if name not in info.layer_metrics:
                known = list(info.layer_metrics)
                raise UserError(f"expected layer metrics among {known}, got {name!r}")
        check_names("scalars", list(scalars), columns=True)
        shape = (count, len(info.layers))
        rows = {name: copied(name, layers[name], shape, np.float32) for name in layers}
        row = {name: copied(name, scalars[name], (count,), np.float64)[:, None] for name in scalars}
        if not count:
            return
        self._scalars |= dict.fromkeys(row)
        self.last = int(numbers[-1])
        if "layers" in self._buffers:
            self._buffers["layers"].blocks.append(Rows(numbers, rows))
        self._buffers["steps"].blocks.append(Rows(numbers, row))

    def amend(
        self,
        steps: npt.NDArray[Any],
        scalars: Mapping[str, npt.NDArray[Any]],
        *,
        gaps: bool,
    ) -> int:
        """Put scalars into K records taken in before; those on the disk wait in `amendments`.

        Args:
            steps: [K] step numbers.
            scalars: step metric -> [K]; NaN leaves what is there.
            gaps: whether records have been lost, so that a step without one is nobody's mistake.

        Returns:
            Number of steps whose record has been lost.

        Raises:
            UserError: where something does not fit, or a step was never taken in; nothing has
                then been changed.
        """
        numbers = check_steps(steps, -1).tolist()
        names = check_names("scalars", list(scalars), columns=True)
        columns = {n: copied(n, scalars[n], (len(numbers),), np.float64).tolist() for n in names}
        waiting, shelf = self._buffers["steps"], self._tables["steps"]
        # Where the disk cannot say, the record is taken to be there; writing will tell.
        there = {step: waiting.holds(step) or shelf.holds(step) is not False for step in numbers}
        gaps = gaps or shelf.holes
        for step, found in there.items():
            if not found and (not gaps or step > self.last):
                raise UserError(f"expected steps that have been recorded, got {step}")
        self._scalars |= dict.fromkeys(names)
        for at, step in enumerate(numbers):
            values = {n: value[at] for n, value in columns.items() if not math.isnan(value[at])}
            if there[step] and values and not waiting.amend(step, values):
                self.amendments.add(step, values)
        return sum(not found for found in there.values())

    def take_histograms(self, steps: npt.NDArray[Any], counts: npt.NDArray[Any]) -> None:
        """Take in histograms of K steps.

        Args:
            steps: [K] step numbers.
            counts: [K, L, B].

        Raises:
            UserError: where something does not fit, or the run has no histograms.
        """
        if "histograms" not in self._buffers:
            raise UserError("expected a run with layers and histogram_edges, got one without")
        names = self._info.histogram_bins
        numbers = check_steps(steps, self.last_histogram)
        kept = copied(
            "counts", counts, (len(numbers), len(self._info.layers), len(names)), np.int64
        )
        if len(numbers):
            self.last_histogram = int(numbers[-1])
            bins = {name: kept[:, :, i] for i, name in enumerate(names)}
            self._buffers["histograms"].blocks.append(Rows(numbers, bins))

    def write(self) -> None:
        """Write all records that wait.

        Raises:
            OSError: where the disk refuses; what has not been written goes on waiting.
        """
        columns = {
            "histograms": self._info.histogram_bins,
            "layers": self._info.layer_metrics,
            "steps": tuple(self._scalars),
        }
        # Each table goes on after its own last step: had the first been written and the second
        # not, trying again doubles nothing.
        for name, shelf in self._tables.items():
            grid = self._buffers[name].grid(columns[name], shelf.last)
            if grid is not None:
                shelf.add(write_grid(self._root, shelf.spec, grid), grid.steps)
        self.forget()

    def forget(self) -> None:
        """Throw away the records that wait."""
        for buffer in self._buffers.values():
            buffer.blocks.clear()

    def shrink(self, nbytes: int) -> int:
        """Throw away the oldest records that wait, until they take no more than `nbytes`.

        Args:
            nbytes: the bound.

        Returns:
            Number of steps of which something has been thrown away.
        """
        return shrink(self._buffers.values(), nbytes)
