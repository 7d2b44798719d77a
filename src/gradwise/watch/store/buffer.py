"""Records on their way to the disk: checked, copied, and bounded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwise.errors import UserError
from gradwise.watch.store.grid import Grid
from gradwise.watch.store.runfile import check_names

__all__ = ["Block", "Buffer"]


@dataclass(frozen=True)
class Block:
    """Some consecutive records.

    Attributes:
        steps: step numbers [records], strictly ascending.
        layers: layer metrics [records, layers].
        scalars: step metrics [records].
    """

    steps: npt.NDArray[np.int64]
    layers: dict[str, npt.NDArray[np.float32]]
    scalars: dict[str, npt.NDArray[np.float64]]

    @property
    def nbytes(self) -> int:
        """Bytes that the arrays take."""
        arrays: list[npt.NDArray[Any]] = [self.steps, *self.layers.values(), *self.scalars.values()]
        return sum(array.nbytes for array in arrays)

    @classmethod
    def check(
        cls,
        steps: npt.NDArray[Any],
        layers: Mapping[str, npt.NDArray[Any]],
        scalars: Mapping[str, npt.NDArray[Any]],
        *,
        width: int,
        metrics: Sequence[str],
        after: int,
    ) -> "Block":
        """Copy what a caller hands in, if it fits the run.

        Args:
            steps: [K] whole numbers, strictly ascending.
            layers: metric -> [K, width].
            scalars: metric -> [K].
            width: number of layers in the run.
            metrics: the run's layer metrics.
            after: the last step recorded so far.

        Raises:
            UserError: where something does not fit; nothing has then been taken in.
        """
        if steps.ndim != 1 or (steps.size and steps.dtype.kind not in "iu"):
            raise UserError(
                f"expected steps of shape [K] and a whole-number type, got {list(steps.shape)} "
                f"of {steps.dtype}"
            )
        numbers = steps.astype(np.int64)
        count = len(numbers)
        if count and (numbers[0] <= after or np.any(np.diff(numbers) <= 0)):
            bad = int(numbers[np.argmax(np.diff(numbers, prepend=after) <= 0)])
            raise UserError(
                f"expected steps that ascend strictly, each >= 0 and after step {after}, got {bad}"
                if after >= 0
                else f"expected steps that ascend strictly, each >= 0, got {bad}"
            )
        for name in layers:
            if name not in metrics:
                raise UserError(f"expected layer metrics among {list(metrics)}, got {name!r}")
        check_names("scalars", list(scalars), columns=True)
        return cls(
            numbers,
            {name: _floats(name, layers[name], (count, width), np.float32) for name in layers},
            {name: _floats(name, scalars[name], (count,), np.float64) for name in scalars},
        )


def _floats(
    name: str, values: npt.NDArray[Any], shape: tuple[int, ...], dtype: type[np.floating[Any]]
) -> npt.NDArray[Any]:
    array = np.asarray(values)
    if array.shape != shape:
        raise UserError(f"expected {name!r} of shape {list(shape)}, got {list(array.shape)}")
    if array.dtype.kind not in "fiub":
        raise UserError(f"expected real numbers in {name!r}, got {array.dtype}")
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and shows as that
        return np.array(array, dtype=dtype)


class Buffer:
    """Blocks that are not on the disk yet, in step order."""

    def __init__(self) -> None:
        self._blocks: list[Block] = []
        self.nbytes = 0

    @property
    def records(self) -> int:
        """Number of records in it."""
        return sum(len(block.steps) for block in self._blocks)

    def add(self, block: Block) -> None:
        """Take a block in.

        Args:
            block: records that come after all others.
        """
        self._blocks.append(block)
        self.nbytes += block.nbytes

    def clear(self) -> None:
        """Forget everything."""
        self._blocks.clear()
        self.nbytes = 0

    def shrink(self, nbytes: int) -> int:
        """Forget the oldest blocks until no more than `nbytes` are left; the newest one stays.

        Args:
            nbytes: the bound.

        Returns:
            Number of records forgotten.
        """
        lost = 0
        while self.nbytes > nbytes and len(self._blocks) > 1:
            block = self._blocks.pop(0)
            self.nbytes -= block.nbytes
            lost += len(block.steps)
        return lost

    def layers(self, metrics: Sequence[str], width: int, after: int) -> Grid | None:
        """The layer metrics of the records behind a step.

        Args:
            metrics: the columns; NaN where a block has none.
            width: number of layers.
            after: leave out records up to this step.

        Returns:
            A grid, or None where no record is left.
        """

        def column(block: Block, name: str) -> npt.NDArray[np.float32]:
            found = block.layers.get(name)
            if found is None:
                return np.full((len(block.steps), width), np.nan, np.float32)
            return found

        steps, low = self._steps(after)
        if low == len(steps):
            return None
        values = {
            name: np.concatenate([column(block, name) for block in self._blocks])[low:].T
            for name in metrics
        }
        return Grid({"step": steps[low:]}, values)

    def scalars(self, metrics: Sequence[str], after: int) -> Grid | None:
        """The step metrics of the records behind a step.

        Args:
            metrics: the columns; NaN where a block has none.
            after: leave out records up to this step.

        Returns:
            A grid with one row, or None where no record is left.
        """

        def column(block: Block, name: str) -> npt.NDArray[np.float64]:
            found = block.scalars.get(name)
            return np.full(len(block.steps), np.nan) if found is None else found

        steps, low = self._steps(after)
        if low == len(steps):
            return None
        values = {
            name: np.concatenate([column(block, name) for block in self._blocks])[None, low:]
            for name in metrics
        }
        return Grid({"step": steps[low:]}, values)

    def _steps(self, after: int) -> tuple[npt.NDArray[np.int64], int]:
        none = np.empty(0, np.int64)
        steps = np.concatenate([none, *(block.steps for block in self._blocks)])
        return steps, int(np.searchsorted(steps, after, "right"))
