"""Records on their way to the disk: checked, copied, and bounded."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwise.errors import UserError
from gradwise.watch.store.grid import Array, Grid, TableSpec

__all__ = ["Buffer", "Rows", "check_steps", "copied", "shrink"]


def check_steps(steps: npt.NDArray[Any], after: int) -> npt.NDArray[np.int64]:
    """Step numbers as int64, if they go on where the last ones ended.

    Args:
        steps: [K] whole numbers, strictly ascending.
        after: the last step recorded so far, -1 where there is none.

    Raises:
        UserError: where they do not.

    Examples:
        >>> check_steps(np.array([4, 7]), 3)
        array([4, 7])
    """
    if steps.ndim != 1 or (steps.size and steps.dtype.kind not in "iu"):
        raise UserError(
            f"expected steps of shape [K] and a whole-number type, got {list(steps.shape)} "
            f"of {steps.dtype}"
        )
    numbers = steps.astype(np.int64)
    back = np.diff(numbers, prepend=after) <= 0
    if np.any(back):
        floor = f"each >= 0 and after step {after}" if after >= 0 else "each >= 0"
        bad = int(numbers[np.argmax(back)])
        raise UserError(f"expected steps that ascend strictly, {floor}, got {bad}")
    return numbers


def copied(
    name: str, values: npt.NDArray[Any], shape: tuple[int, ...], dtype: type[np.number[Any]]
) -> Array:
    """A copy of what a caller hands in, in the type it is kept in.

    Args:
        name: what it is called, for the error.
        values: the values.
        shape: the shape they must have.
        dtype: the type wanted.

    Raises:
        UserError: where they have another shape or are no real numbers, or no whole ones where
            the type is.
    """
    array = np.asarray(values)
    if array.shape != shape:
        raise UserError(f"expected {name!r} of shape {list(shape)}, got {list(array.shape)}")
    whole = issubclass(dtype, np.integer)
    if array.dtype.kind not in ("iub" if whole else "fiub"):
        kind = "whole" if whole else "real"
        raise UserError(f"expected {kind} numbers in {name!r}, got {array.dtype}")
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and shows as that
        return np.array(array, dtype=dtype)


@dataclass(frozen=True)
class Rows:
    """Some consecutive records of one table.

    Attributes:
        steps: step numbers [records], strictly ascending.
        values: columns [records, layers]; they are changed where a record is amended.
    """

    steps: npt.NDArray[np.int64]
    values: dict[str, Array]

    @property
    def nbytes(self) -> int:
        """Bytes that the arrays take."""
        return self.steps.nbytes + sum(array.nbytes for array in self.values.values())


class Buffer:
    """The records of one table that are not on the disk yet, in step order.

    Args:
        spec: the table.
    """

    def __init__(self, spec: TableSpec) -> None:
        self._spec = spec
        self.blocks: list[Rows] = []

    @property
    def records(self) -> int:
        """Number of records in it."""
        return sum(len(block.steps) for block in self.blocks)

    @property
    def nbytes(self) -> int:
        """Bytes that the records take."""
        return sum(block.nbytes for block in self.blocks)

    def holds(self, step: int) -> bool:
        """Whether there is a record of a step.

        Args:
            step: the step.
        """
        return self._find(step) is not None

    def amend(self, step: int, values: Mapping[str, float]) -> bool:
        """Put values into the record of a step, the same for all its layers.

        Args:
            step: the step.
            values: column -> value; columns may be new.

        Returns:
            Whether there is such a record.
        """
        found = self._find(step)
        if found is None:
            return False
        block, at = found
        for name, value in values.items():
            if name not in block.values:
                block.values[name] = self._column(block, name)
            block.values[name][at] = value
        return True

    def _find(self, step: int) -> tuple[Rows, int] | None:
        for block in reversed(self.blocks):  # what is asked for is most likely new
            if block.steps[0] <= step:
                at = int(np.searchsorted(block.steps, step))
                there = at < len(block.steps) and block.steps[at] == step
                return (block, at) if there else None
        return None

    def grid(self, columns: Sequence[str], after: int) -> Grid | None:
        """The records behind a step, as they will be written.

        Args:
            columns: the value columns; "not recorded" where a block has none.
            after: leave out records up to this step.

        Returns:
            A grid, or None where no record is left.
        """
        if not self.blocks:
            return None
        steps = np.concatenate([block.steps for block in self.blocks])
        low = int(np.searchsorted(steps, after, "right"))
        if low == len(steps):
            return None
        values = {
            name: np.concatenate([self._column(block, name) for block in self.blocks])[low:].T
            for name in columns
        }
        return Grid({"step": steps[low:]}, values)

    def _column(self, block: Rows, name: str) -> Array:
        found = block.values.get(name)
        if found is None:
            return np.full((len(block.steps), self._spec.width), self._spec.missing(name))
        return found


def shrink(buffers: Iterable[Buffer], nbytes: int) -> int:
    """Forget the oldest records of several tables until no more than `nbytes` are left.

    The newest block of each table stays, whatever its size.

    Args:
        buffers: the tables' buffers.
        nbytes: the bound on all of them together.

    Returns:
        Number of steps of which something has been forgotten.
    """
    lost = set()
    left = list(buffers)
    while sum(buffer.nbytes for buffer in left) > nbytes:
        full = [buffer for buffer in left if len(buffer.blocks) > 1]
        if not full:
            break
        oldest = min(int(buffer.blocks[0].steps[0]) for buffer in full)
        for buffer in full:
            if buffer.blocks[0].steps[0] == oldest:
                lost.update(buffer.blocks.pop(0).steps.tolist())
    return len(lost)
