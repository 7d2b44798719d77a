"""The rows under way: what the training thread writes and the thread behind takes."""

from __future__ import annotations

import threading
import time
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradwise.attach import Attachment
from gradwise.watch.columns import Layers
from gradwise.watch.page import Page, Row
from gradwise.watch.place import WatchWarning
from gradwise.watch.probing import Probes

FRESH = 0.4  # seconds after which a row is handed on though the next step has not begun
PAGES = 64  # that wait where the thread behind does not get on; then the oldest are given up


@dataclass(frozen=True)
class Cut:
    """Rows that are whole and on the host.

    Attributes:
        names: of the P tensors.
        rows: K of them.
        columns: by name, [K] or [K, ..., P].
    """

    names: tuple[str, ...]
    rows: list[Row]
    columns: dict[str, Any]


@dataclass(frozen=True)
class Taken:
    """What there is to carry on.

    Attributes:
        cuts: in the order of the steps.
        late: scalars of steps that were taken before.
        idle: whether the last row is among them, because no other has begun for a while.
    """

    cuts: list[Cut]
    late: list[tuple[int, dict[str, float]]]
    idle: bool


class Ledger:
    """Gathers the rows of a run, step by step, and gives them away in pieces.

    Args:
        every: keep every so many steps, counted from step 0.
        step: the last step before the first row.
        layers: the run's.
        timed: whether each row has the time.

    Attributes:
        step: the last step that began.
        lost_steps: rows given up because nobody took them.
    """

    def __init__(self, every: int, step: int, layers: Layers, timed: bool = False) -> None:
        self.step = step
        self.lost_steps = 0
        self._every = every
        self._layers = layers
        self._timed = timed
        self._lock = threading.Lock()
        self._pages: deque[Page] = deque()
        self._row: Row | None = None  # of the last step, where it is kept
        self._carried: dict[str, float | Tensor] = {}  # logged for the row that comes next
        self._late: list[tuple[int, dict[str, float]]] = []  # logged after the row was taken
        self._logged: tuple[int, set[str]] | None = None  # of the last row: its step, the names
        self._told_of: tuple[str, ...] = ()  # names with strangers among them
        self._begun = False  # the step under way has its row
        self._sent = time.monotonic()

    def begin(self, step: int) -> None:
        """Begin the row of a step, before the optimizer's own."""
        with self._lock:
            self._begin(step)

    def read(
        self,
        probes: Probes,
        attachment: Attachment,
        grads: Sequence[Tensor | None],
        scale: Tensor | None,
    ) -> None:
        """Look at the gradients before the transforms; begins the row if nobody did."""
        with self._lock:
            if not self._begun:
                self._begin(self.step + 1)
            probes.read(attachment, grads, scale, recorded=self._row is not None)

    @torch.no_grad()
    def observe(self, probes: Probes, attachment: Attachment, whole: bool) -> None:
        """Take down the moments before and after the transforms.

        Args:
            probes: what was measured besides.
            attachment: that has just applied them.
            whole: whether nothing more comes after the update.
        """
        with self._lock:
            self._begun = False
            row, moments = self._row, attachment.moments
            if row is None or moments is None:
                return
            layers = moments.per_tensor()
            names = layers.layout.names
            page = self._pages[-1]
            if page.names != names:
                page = self._turn_to(names)
            page.put_moments("moments", layers)
            row.counts = layers.layout.numels
            affine = attachment.affine
            row.plain = affine.is_identity
            if affine.is_identity:
                row.scalars["alpha"] = 1.0
            else:
                page.put_moments("applied", moments.through(affine).per_tensor())
                if affine.scale is not None and affine.scale.dim() == 0:
                    page.put("alpha", affine.scale)
                elif affine.scale is None:
                    row.scalars["alpha"] = 1.0
            probes.fill(page, row, attachment)
            if whole:
                row.since = time.monotonic()

    def end(self, probes: Probes) -> None:
        """Take down what is known after the update."""
        with self._lock:
            row = self._row
            probes.end(self._pages[-1] if row is not None else None)
            if row is not None:
                row.since = time.monotonic()
                self._send(FRESH)

    def log(self, scalars: Mapping[str, float | Tensor], coming: bool) -> None:
        """Add scalars to the row that they belong to, see `Recorder.log`.

        Args:
            scalars: checked.
            coming: whether a backward pass has begun since the last step.
        """
        with self._lock:
            row, page = self._row, self._pages[-1] if self._pages else None
            if row is None or page is None or (coming and not self._begun):
                # Cloned: a running total is likely to be added to in place.
                for name, value in scalars.items():
                    kept = value.detach().clone() if isinstance(value, Tensor) else value
                    self._carried[name] = kept
                return
            assert self._logged is not None
            self._logged[1].update(scalars)
            if page.rows[-1] is row and page.taken < len(page.rows):
                _fill(page, row, scalars)
            else:  # asks the device, long after the step
                self._late.append((row.step, {k: float(v) for k, v in scalars.items()}))

    def leave(self) -> None:
        """Give what was logged after the last row to that row, where it does not have it."""
        with self._lock:
            if self._logged is not None:
                step, names = self._logged
                late = {k: float(v) for k, v in self._carried.items() if k not in names}
                self._late += [(step, late)] if late else []

    def take(self, everything: bool) -> Taken:
        """What can be taken away; it is not written to again.

        Args:
            everything: the last row as well, and wait for the device; otherwise nothing waits.
        """
        with self._lock:
            if everything:
                for page in self._pages:
                    page.send()
                    page.wait()
            cuts = [cut for page in self._pages if (cut := self._cut(page, everything))]
            while len(self._pages) > 1 and self._pages[0].taken == len(self._pages[0].rows):
                self._pages.popleft()
            late, self._late = self._late, []
            return Taken(cuts, late, any(cut.rows[-1] is self._row for cut in cuts))

    def _begin(self, step: int) -> None:
        self.step, self._begun, self._row = step, True, None
        if self._pages:
            self._send(FRESH)
        if step % self._every:
            return
        if not self._pages or self._pages[-1].full:
            names = self._pages[-1].names if self._pages else ()
            self._pages.append(Page(names))
            if len(self._pages) > PAGES:
                given_up = self._pages.popleft()
                self.lost_steps += len(given_up.rows) - given_up.taken
        page = self._pages[-1]
        self._row = Row(step, {"time": time.time()} if self._timed else {})
        page.rows.append(self._row)
        _fill(page, self._row, self._carried)
        self._logged = step, set()
        self._carried = {}

    def _turn_to(self, names: tuple[str, ...]) -> Page:
        """A page for these tensors, with the row under way as its last."""
        strangers = self._layers.strangers(names)
        if strangers and names != self._told_of:
            more = f" and {len(strangers) - 1} more" if len(strangers) > 1 else ""
            warnings.warn(
                f"{strangers[0]!r}{more} joined at step {self.step} and counts in the figures of "
                "all layers only: a new watch, or one that is given the model, has rows for it",
                WatchWarning,
                stacklevel=2,
            )
        self._told_of = names
        page = self._pages[-1]
        if page.names:
            page = page.move_last(names)
            self._pages.append(page)
        page.names = names
        return page

    def _send(self, seconds: float) -> None:
        """Send what is there, if that was not done for so long."""
        if time.monotonic() - self._sent >= seconds or self._pages[-1].full:
            for page in self._pages:
                page.send()
            self._sent = time.monotonic()

    def _cut(self, page: Page, everything: bool) -> Cut | None:
        """The rows of a page that can be handed on."""
        first = last = page.taken
        stale = time.monotonic() - FRESH
        for row in page.rows[first:]:
            whole = (
                everything or row is not self._row or (row.since is not None and row.since < stale)
            )
            if not (whole and page.has_come(row)):
                break
            last += 1
        if last == first:
            return None
        page.taken = last
        return Cut(page.names, page.rows[first:last], page.views(first, last))


def _fill(page: Page, row: Row, scalars: Mapping[str, float | Tensor]) -> None:
    for name, value in scalars.items():
        if isinstance(value, Tensor):
            page.put(name, value.detach().reshape(()))
            row.scalars.pop(name, None)
        else:
            row.scalars[name] = float(value)
