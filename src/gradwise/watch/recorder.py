"""From an attachment's moments to whoever wants them: rows on the device, a thread behind.

Nothing that a training step calls waits for the device, the disk or a consumer.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from operator import methodcaller
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradwise.attach import Attachment
from gradwise.errors import UserError
from gradwise.watch.archive import Archive
from gradwise.watch.block import Consumer
from gradwise.watch.columns import (
    Layers,
    block_of,
    histograms_of,
    layer_metrics,
    step_metrics,
)
from gradwise.watch.page import Page, Row
from gradwise.watch.place import WatchWarning
from gradwise.watch.probing import Probes
from gradwise.watch.pump import Pump, close_at_exit
from gradwise.watch.store import RunWriter, WriteError

FRESH = 0.5  # seconds after which a row is handed on though the next step has not begun
FLUSH = 0.7  # seconds between two writes; with `FRESH` or a period of the pump less than one
PAGES = 64  # that wait where the thread behind does not get on; then the oldest are given up
_log = logging.getLogger("gradwise")
_TAKEN = {
    *step_metrics(extremes=True),
    *("alpha", "skipped", "backwards", "noise_scale", "time"),
    *("step", "first_step", "last_step"),
}


class Recorder:
    """Records the gradients' dynamics of an optimizer with an `Attachment`.

    A row belongs to one step. Left alone, the recorder counts the optimizer's steps; a loop that
    counts its own says which one is under way with `begin`, and has then a row also for a step
    that the optimizer skipped (as `GradScaler` makes it do after an overflow), with NaN for what
    was not measured.

    Args:
        attachment: what measures; record without transforms through `attach(optimizer)`.
        out: the run folder, new or, with `resume_from`, the one to continue; None keeps nothing.
        every: record every so many steps, counted from step 0.
        meta: facts about the run that are stored with it.
        resume_from: the step that comes next, where a run in `out` continues from a checkpoint;
            rows of that step and later ones are dropped.
        first_step: the number of the first step of a run that is new in `out`.
        layers: the run's layers; None makes each of the optimizer's parameters one.
        probes: what is measured besides the gradients' moments.
        consumers: who else takes the records.

    Attributes:
        step: the last step that began.
        lost_steps: rows given up because the thread behind did not get on.
        failures: how many times a consumer raised something; the first is logged.

    Raises:
        UserError: where the folder belongs to another run, see `RunWriter`, or a number is out of
            its bounds.

    Examples:
        >>> import tempfile, torch, gradwise as gw
        >>> from gradwise.watch import Recorder, load
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> out = tempfile.mkdtemp()
        >>> with Recorder(gw.autoscale(optimizer, model), out) as recorder:
        ...     for _ in range(3):
        ...         loss = model(torch.ones(4, 3)).square().mean()
        ...         loss.backward()
        ...         optimizer.step()
        ...         recorder.log(loss=loss)
        >>> load(out).steps.column_names[:2], load(out).last_step
        (['step', 'grad_norm'], 2)
    """

    def __init__(
        self,
        attachment: Attachment,
        out: str | Path | None,
        *,
        every: int = 1,
        meta: Mapping[str, Any] | None = None,
        resume_from: int | None = None,
        first_step: int = 0,
        layers: Layers | None = None,
        probes: Probes | None = None,
        consumers: Sequence[Consumer] = (),
    ) -> None:
        for name, value, low in (("every", every, 1), ("first_step", first_step, 0)):
            if value < low:
                raise UserError(f"expected {name} >= {low}, got {name}={value}")
        self.every = every
        self.step = (first_step if resume_from is None else resume_from) - 1
        self.lost_steps = self.failures = 0
        self._attachment = attachment
        self._layers = layers or Layers.of(attachment.names)
        self._probes = probes or Probes()
        self._out = None if out is None else Path(out)
        self._writer = None if self._out is None else self._open(self._out, meta, resume_from)
        archive = [] if self._writer is None else [Archive(self._writer)]
        self._consumers: list[Consumer] = [*consumers, *archive]
        self._lock = threading.Lock()  # over all that follows, for the thread behind
        self._pages: deque[Page] = deque()
        self._row: Row | None = None  # of the last step, where it is recorded
        self._carried: dict[str, float | Tensor] = {}  # logged for the row that comes next
        self._late: list[tuple[int, dict[str, float]]] = []  # logged after the row was handed on
        self._recorded: tuple[int, set[str]] | None = None  # the last row's step, what was logged
        self._told_of: tuple[str, ...] = ()  # names with strangers among them
        self._begun = False  # the step under way has its row
        self._sent = time.monotonic()
        self._closed = False
        attachment.readers.append(self.read)
        attachment.observers.append(self._observe)
        self._hook = self._probes.after_step(attachment.optimizer, self._end)
        self._pump = Pump(self._hand_on)
        close_at_exit(self)

    @property
    def errors(self) -> int:
        """How many times the disk refused something; recording goes on, see `RunWriter`."""
        return 0 if self._writer is None else self._writer.errors

    def begin(self, step: int) -> None:
        """Say which step is under way, before the optimizer's own.

        Args:
            step: above the last one.

        Raises:
            UserError: where it is not.
        """
        if step <= self.step:
            raise UserError(f"expected a step above {self.step}, the last one, got step={step}")
        with self._lock:
            self._begin(step)

    def log(self, **scalars: float | Tensor) -> None:
        """Add scalars to the row of the last step; tensors stay on the device until written.

        Between a backward pass and the step that it is for, they go into the row of that step. At
        steps that are not recorded, they wait for the next row.

        Args:
            scalars: numbers, or tensors with one real value, which is taken as it is now.

        Raises:
            UserError: for a name that the recorder uses itself, or a tensor of several values.
        """
        for name, value in scalars.items():
            if name in _TAKEN:
                raise UserError(f"expected a name other than {sorted(_TAKEN)} in log, got {name!r}")
            if isinstance(value, Tensor) and (value.numel() != 1 or value.is_complex()):
                raise UserError(
                    f"expected one real number for {name!r} in log, got a tensor of shape "
                    f"{list(value.shape)} and dtype {value.dtype}"
                )
        if self._closed or not self._pump.here:
            return
        with self._lock:
            row, page = self._row, self._pages[-1] if self._pages else None
            coming = self._probes.backwards > 0 and not self._begun
            if row is None or page is None or coming:
                # Cloned: a running total is likely to be added to in place.
                for name, value in scalars.items():
                    kept = value.detach().clone() if isinstance(value, Tensor) else value
                    self._carried[name] = kept
                return
            assert self._recorded is not None
            self._recorded[1].update(scalars)
            if page.rows[-1] is row and page.taken < len(page.rows):
                _fill(page, row, scalars)
            else:  # asks the device, long after the step
                self._late.append((row.step, {k: float(v) for k, v in scalars.items()}))

    def flush(self) -> None:
        """Write all rows there are, that of the last step included.

        This waits for the device and the disk.

        Raises:
            WriteError: where the disk refuses; the rows wait in memory for another attempt.
        """
        with self._pump.turn:
            self._hand_on(everything=True)
            if self._writer is not None:
                self._writer.flush()

    def close(self, last_step: int | None = None) -> None:
        """Write everything and leave the attachment alone; calling it again does nothing.

        Args:
            last_step: rows of later steps are dropped, where a loop found out late that they mean
                nothing; None keeps all.

        Raises:
            WriteError: where the last rows could not be written and are lost.
        """
        if self._closed or not self._pump.here:
            return
        self._closed = True
        for call, calls in (
            (self.read, self._attachment.readers),
            (self._observe, self._attachment.observers),
        ):
            if call in calls:
                calls.remove(call)  # type: ignore[arg-type]
        if self._hook is not None:
            self._hook.remove()
        self._probes.close()
        self._pump.close()
        self._keep_what_waits()
        try:
            with self._pump.turn:
                self._hand_on(everything=True)
        finally:
            self._each(methodcaller("stop"))
            with contextlib.ExitStack() as stack:  # each is closed, whatever the others raise
                for consumer in self._consumers:
                    stack.callback(consumer.close)
        if last_step is None or self._writer is None or self._out is None:
            return
        written = self._writer.last_step
        if written is not None and written > last_step:
            self._open(self._out, {}, resume_from=last_step + 1).close()

    def _keep_what_waits(self) -> None:
        """Give what was logged after the last row to that row, where it does not have it."""
        if self._recorded is not None:
            step, names = self._recorded
            late = {k: float(v) for k, v in self._carried.items() if k not in names}
            self._late.append((step, late))

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except WriteError:
            if kind is None:  # otherwise the caller's own error is the one to see
                raise

    def __del__(self) -> None:
        if hasattr(self, "_pump"):  # otherwise the constructor failed
            with contextlib.suppress(Exception):
                self.close()

    def _open(
        self, out: Path, meta: Mapping[str, Any] | None, resume_from: int | None
    ) -> RunWriter:
        probes = self._probes
        return RunWriter(
            out,
            self._layers.names,
            layer_metrics=(*layer_metrics(probes.extremes), *probes.layer_metrics),
            step_metrics=(*step_metrics(probes.extremes), "alpha", *probes.step_metrics),
            flush_every=FLUSH,
            histogram_edges=probes.histogram_edges,
            meta=dict(meta or {}),
            resume_from=resume_from,
        )

    # In the training thread, at each step

    def _begin(self, step: int) -> None:
        self.step, self._begun, self._row = step, True, None
        if self._pages:
            self._send(FRESH)
        if step % self.every:
            return
        if not self._pages or self._pages[-1].full:
            names = self._pages[-1].names if self._pages else ()
            self._pages.append(Page(names))
            if len(self._pages) > PAGES:
                given_up = self._pages.popleft()
                self.lost_steps += len(given_up.rows) - given_up.taken
        page = self._pages[-1]
        self._row = Row(step, {"time": time.time()} if self._probes.step_metrics else {})
        page.rows.append(self._row)
        _fill(page, self._row, self._carried)
        self._recorded = step, set()
        self._carried = {}

    def read(
        self, attachment: Attachment, grads: Sequence[Tensor | None], scale: Tensor | None
    ) -> None:
        """Begin the row of the step under way; for who makes a recorder in the midst of a step.

        Args:
            attachment: the one that calls.
            grads: as they are before the transforms.
            scale: the loss scale that is still in them.
        """
        if self._closed or not self._pump.here:
            return
        with self._lock:
            if not self._begun:
                self._begin(self.step + 1)
            self._probes.read(attachment, grads, scale, recorded=self._row is not None)

    @torch.no_grad()
    def _observe(self, attachment: Attachment) -> None:
        if self._closed or not self._pump.here:
            return
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
            self._probes.fill(page, row, attachment)
            if self._hook is None:
                row.since = time.monotonic()

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

    def _end(self) -> None:
        """After the optimizer's update."""
        if self._closed or not self._pump.here:
            return
        with self._lock:
            row = self._row
            self._probes.end(self._pages[-1] if row is not None else None)
            if row is not None:
                row.since = time.monotonic()
                self._send(FRESH)

    def _send(self, seconds: float) -> None:
        """Send what is there, if that was not done for so long."""
        if time.monotonic() - self._sent >= seconds or self._pages[-1].full:
            for page in self._pages:
                page.send()
            self._sent = time.monotonic()

    # In the thread behind, or in place of it

    def _hand_on(self, everything: bool = False) -> None:
        with self._lock:
            if everything:
                for page in self._pages:
                    page.send()
                    page.wait()
            cuts = [cut for page in self._pages if (cut := self._cut(page, everything))]
            while len(self._pages) > 1 and self._pages[0].taken == len(self._pages[0].rows):
                self._pages.popleft()
            late, self._late = self._late, []
            idle = any(rows[-1] is self._row for _, rows, _ in cuts)
        for page, rows, columns in cuts:
            self._probes.derive(rows, columns)
            block = block_of(rows, columns, page.names, self._layers, self._probes.extremes)
            histograms = histograms_of(rows, page.names, self._layers)
            self._each(methodcaller("take", block))
            if histograms is not None:
                self._each(methodcaller("take_histograms", *histograms))
        for step, scalars in late:
            self._each(methodcaller("amend", step, scalars))
        if self._writer is None:
            return
        if idle:  # nothing comes in the next moment that could be written with it
            with contextlib.suppress(WriteError):  # it is counted, and tried again
                self._writer.flush()
        else:
            self._writer.flush_if_due()

    def _cut(self, page: Page, everything: bool) -> tuple[Page, list[Row], dict[str, Any]] | None:
        """The rows of a page that can be handed on."""
        first = last = page.taken
        stale = time.monotonic() - FRESH
        for row in page.rows[first:]:
            whole = everything or row is not self._row or (row.since or np.inf) < stale
            if not (whole and page.has_come(row)):
                break
            last += 1
        if last == first:
            return None
        page.taken = last
        return page, page.rows[first:last], page.views(first, last)

    def _each(self, call: Callable[[Consumer], None]) -> None:
        """Call something of every consumer; one that fails is no reason to forget the others."""
        for consumer in self._consumers:
            try:
                call(consumer)
            except Exception:
                self.failures += 1
                if self.failures == 1:
                    name = type(consumer).__name__
                    _log.warning("recording goes on, but %s failed", name, exc_info=True)


def _fill(page: Page, row: Row, scalars: Mapping[str, float | Tensor]) -> None:
    for name, value in scalars.items():
        if isinstance(value, Tensor):
            page.put(name, value.detach().reshape(()))
            row.scalars.pop(name, None)
        else:
            row.scalars[name] = float(value)
