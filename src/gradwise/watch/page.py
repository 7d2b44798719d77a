"""Rows of statistics on the gradients' device, and how they come to the host without a wait.

On an accelerator a page has a twin in pinned host memory. Copies are only asked for; behind each
one follows the copy of a ticket, and a ticket that has come says that all before it has come too.
So whoever reads the twin, in whatever thread, makes no call to the device, which could disturb a
graph that is being captured. In host memory a page is its own twin.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from gradwise.moments import Moments

ROWS = 64  # steps that wait on the device together
MOMENTS = ("mean", "m2", "nonfinite", "min", "max", "zeros")


@dataclass(eq=False)
class Row:
    """One step.

    Attributes:
        step: its number.
        scalars: what is known of it as plain numbers.
        counts: values in each tensor; nothing where the gradients were not measured.
        plain: measured, and left alone by the transforms.
        since: when it became whole but for what the loop may still log; None before.
        ticket: that will have come when the row has; None where it has to be sent (again).
        histogram: [P, B] in host memory, of few rows only.
    """

    step: int
    scalars: dict[str, float] = field(default_factory=dict)
    counts: tuple[int, ...] = ()
    plain: bool = False
    since: float | None = None
    ticket: int | None = None
    histogram: Tensor | None = None


class _Column:
    """One value, or one a tensor, for each row; NaN where nothing was put."""

    def __init__(self, shape: tuple[int, ...], like: Tensor) -> None:
        # MPS has no float64.
        dtype = torch.float32 if like.device.type == "mps" else torch.float64
        self.values = torch.full((ROWS, *shape), torch.nan, dtype=dtype, device=like.device)
        self.host = self.values if like.device.type == "cpu" else _pinned(self.values)

    @property
    def away(self) -> bool:
        """Whether the values are not in host memory to begin with."""
        return self.host is not self.values


class Page:
    """Up to `ROWS` rows of the statistics of the same tensors.

    Args:
        names: of the tensors.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self.rows: list[Row] = []
        self.taken = 0  # rows that were handed on
        self._columns: dict[str, _Column] = {}
        self._tickets = 0
        self._flag: Tensor | None = None  # in pinned host memory

    @property
    def full(self) -> bool:
        """Whether there is no place for another row."""
        return len(self.rows) == ROWS

    def slot(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """The last row's place in a column, which is made where there is none, to be written.

        Args:
            name: the column.
            shape: of one row in it.
            like: a tensor on the device where it is to be.
        """
        column = self._columns.get(name)
        if column is None:
            column = self._columns[name] = _Column(shape, like)
        self.rows[-1].ticket = None
        return column.values[len(self.rows) - 1]

    def put(self, name: str, values: Tensor) -> None:
        """Copy values into the last row."""
        self.slot(name, tuple(values.shape), values).copy_(values, non_blocking=True)

    def put_moments(self, name: str, moments: Moments) -> None:
        """Write moments, one segment a tensor, into the last row: `MOMENTS` [6, P].

        What was not measured stays NaN.
        """
        slot = self.slot(name, (len(MOMENTS), len(moments)), moments.mean)
        found = [moments.mean, moments.m2, moments.nonfinite]
        if moments.min is not None and moments.max is not None:
            found += [moments.min, moments.max]
            found += [] if moments.zeros is None else [moments.zeros]
        torch.stack([values.to(slot.dtype) for values in found], out=slot[: len(found)])

    def put_histogram(self, counts: Tensor) -> None:
        """Give the last row its histograms, [P, B]."""
        row = self.rows[-1]
        row.histogram, row.ticket = counts, None
        if counts.device.type != "cpu":
            row.histogram = _pinned(counts).copy_(counts, non_blocking=True)
            self.slot("histogram", (), counts).zero_()  # so that there is something to wait for

    def move_last(self, names: tuple[str, ...]) -> Page:
        """Take the last row away, into a page for other tensors; only single values go with it."""
        page = Page(names)
        page.rows.append(self.rows.pop())
        for name, column in self._columns.items():
            values = column.values[len(self.rows)]
            if values.dim() == 0:
                page.put(name, values)
        return page

    def send(self) -> None:
        """Ask for the rows that are not on the host yet; nothing here waits."""
        first = next((i for i, row in enumerate(self.rows) if row.ticket is None), None)
        if first is None:
            return
        self._tickets += 1
        last = len(self.rows)
        away = [column for column in self._columns.values() if column.away]
        for column in away:
            column.host[first:last].copy_(column.values[first:last], non_blocking=True)
        if away:
            ticket = torch.full((1,), self._tickets, device=away[0].values.device)
            if self._flag is None:
                self._flag = _pinned(torch.zeros_like(ticket))
                self._flag.zero_()
            self._flag.copy_(ticket, non_blocking=True)
        for row in self.rows[first:]:
            row.ticket = self._tickets

    def has_come(self, row: Row) -> bool:
        """Whether all of a row is in host memory."""
        if row.ticket is None:
            return not any(column.away for column in self._columns.values())
        return self._flag is None or int(self._flag) >= row.ticket

    def wait(self) -> None:
        """Wait for everything that was sent."""
        for column in self._columns.values():
            if column.away:
                torch.accelerator.synchronize(column.values.device)
                return

    def views(self, first: int, last: int) -> dict[str, npt.NDArray[Any]]:
        """The columns' rows in [first, last), which must have come and are not written again."""
        return {name: column.host[first:last].numpy() for name, column in self._columns.items()}


def _pinned(like: Tensor) -> Tensor:
    """Host memory that a device can write to by itself, where there is such a thing."""
    return torch.empty_like(like, device="cpu", pin_memory=like.device.type != "mps")
