"""Writing a run: an append-only folder that a crash at any moment leaves readable."""

import math
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy.typing as npt

from gradwise.errors import UserError
from gradwise.watch.store.files import WriteError
from gradwise.watch.store.housekeeping import Housekeeper
from gradwise.watch.store.opening import claim, continued, cut_back
from gradwise.watch.store.outbox import Outbox
from gradwise.watch.store.runfile import (
    RunFile,
    check_edges,
    check_meta,
    check_names,
    now,
)

__all__ = ["RunWriter"]

# Records are written at the latest when they take this much memory...
_FLUSH_BYTES = 8 * 2**20
# ...and while the disk refuses them, the oldest are given up beyond this much.
_WAITING_BYTES = 64 * 2**20

_WORK_SHARE = 0.25  # of the time between flushes, at most, goes into merging...
_WORK_LEAST = 0.1  # ...as if that time were no less than this many seconds...
_MANY_PARTS = 64  # ...and more, where merging has fallen behind by this many parts or more
_REST_SECONDS = 10.0  # after a merge that failed
_CLOSE_SECONDS = 5.0  # what closing may spend on merges that are under way


class RunWriter:
    """Records a run into a folder of Parquet files.

    `append` only copies; about once a second what has come together is written as one small
    file a table, synced, and renamed into place. Between these writes small files are merged
    into large ones and older steps are kept once more as min/mean/max pyramids, a bit at a
    time, so the folder stays small in files and quick to read, and memory stays bounded however
    long the run. Calls from several threads are put in order by a lock.

    A disk that refuses never makes `append` fail: it is counted in `errors`, the records wait in
    memory (up to 64 MiB; what had to be given up is counted in `lost_steps`) and are tried again.

    Args:
        out: the run folder; made if it does not exist.
        layers: the layers' names, all different.
        layer_metrics: the columns each layer has in each record.
        step_metrics: columns each record has once; more may come with any record.
        meta: anything worth keeping with the run, as plain JSON values; continuing a run adds to
            what is there.
        resume_from: None for a new run. A number k continues the run in `out` from a checkpoint
            taken before step k: records of steps < k are kept, all others are dropped.
        units: the units of metrics that gradwise does not know, for `run.json`.
        keep_steps: drop the layers' records once they are about this many steps old and the
            pyramid has them; None keeps all. The steps table is always kept whole.
        flush_every: seconds after which records that wait are written by the next `append`.
        histogram_edges: the edges between the bins of `append_histograms`; empty for a run
            without histograms. Continuing a run keeps those it has.

    Attributes:
        path: the run folder.
        errors: how many times something could not be written.
        last_error: the last of these errors.
        lost_steps: records given up for good because they could not be written.

    Raises:
        UserError: where the folder is not new and `resume_from` is None, is no run or one with
            other layers otherwise, is being written, cannot be written, or is of a newer format;
            and where an argument is out of its bounds. Nothing that was there is then changed.

    Examples:
        >>> import tempfile, numpy as np
        >>> from gradwise.watch.store import load
        >>> out = tempfile.mkdtemp()
        >>> with RunWriter(out, ["conv", "head"], layer_metrics=["norm"]) as writer:
        ...     writer.append(
        ...         np.arange(3), {"norm": np.ones((3, 2))}, {"loss": np.array([2.0, 1.0, 0.5])}
        ...     )
        >>> load(out).steps.to_pydict()
        {'step': [0, 1, 2], 'loss': [2.0, 1.0, 0.5]}
    """

    def __init__(
        self,
        out: str | Path,
        layers: Sequence[str],
        *,
        layer_metrics: Sequence[str],
        step_metrics: Sequence[str] = (),
        meta: Mapping[str, Any] | None = None,
        resume_from: int | None = None,
        units: Mapping[str, str] | None = None,
        keep_steps: int | None = None,
        flush_every: float = 1.0,
        histogram_edges: Sequence[float] = (),
    ) -> None:
        for name, value in (("resume_from", resume_from), ("keep_steps", keep_steps)):
            if value is not None and value < 0:
                raise UserError(f"expected {name} >= 0, got {name}={value}")
        if not (math.isfinite(flush_every) and flush_every >= 0):
            raise UserError(f"expected a finite flush_every >= 0, got flush_every={flush_every}")
        self.path = Path(out)
        self._info = RunFile(
            layers=check_names("layers", layers, columns=False),
            layer_metrics=check_names("layer_metrics", layer_metrics, columns=True),
            step_metrics=check_names("step_metrics", step_metrics, columns=True),
            histogram_edges=check_edges(histogram_edges),
            units=dict(units or {}),
            meta=check_meta(meta or {}),
        )
        self.errors = 0
        self.last_error: OSError | None = None
        self.lost_steps = 0
        self._flush_every = flush_every
        self._thread_lock = threading.RLock()
        self._due = math.inf
        self._refused = False
        self._rest_until = -math.inf
        self._closed = False
        self._lock = claim(self.path, resume=resume_from is not None)
        try:
            self._begin(resume_from, keep_steps)
        except OSError as error:
            self._lock.release()
            raise UserError(
                f"cannot write to the run folder {self.path}: {error.strerror or error}"
            ) from error
        except BaseException:
            self._lock.release()
            raise

    def _begin(self, resume_from: int | None, keep_steps: int | None) -> None:
        if resume_from is not None:
            continued(self.path, self._info, resume_from)
        info = self._info
        self._tables = cut_back(self.path, info.tables, resume_from or 0)
        info.write(self.path)
        self._outbox = Outbox(self.path, info, self._tables)
        self._keeper = Housekeeper(self.path, self._tables, keep_steps)

    @property
    def last_step(self) -> int | None:
        """The last step taken in, on the disk or not; None before the first."""
        return self._outbox.last if self._outbox.last >= 0 else None

    @property
    def steps_waiting(self) -> int:
        """Number of records taken in that are not on the disk yet."""
        return self._outbox.steps_waiting

    def append(
        self,
        steps: npt.NDArray[Any],
        layers: Mapping[str, npt.NDArray[Any]],
        scalars: Mapping[str, npt.NDArray[Any]],
    ) -> None:
        """Take in K records; they are copied, so the arrays may be used again at once.

        Args:
            steps: [K] step numbers, strictly ascending and after all that came before.
            layers: layer metric -> [K, L], in the order of the run's layers; a metric that is
                left out is NaN in these records. Kept as float32.
            scalars: step metric -> [K]; new names may come at any time, and one that is left out
                is NaN in these records. Kept as float64.

        Raises:
            UserError: where shapes, names or steps do not fit; nothing has then been taken in.
            ValueError: where the writer is closed.
        """
        with self._thread_lock:
            self._check_open()
            self._outbox.take(steps, layers, scalars)
            self._write_if_due()

    def append_histograms(self, steps: npt.NDArray[Any], counts: npt.NDArray[Any]) -> None:
        """Take in histograms of K sampled steps, which need not be those of any `append`.

        They show up to readers once a record of their step, or a later one, is on the disk.

        Args:
            steps: [K] step numbers, strictly ascending and after those of earlier histograms.
            counts: [K, L, B] whole numbers, B one more than there are `histogram_edges`: values
                below the first edge, between each two, and from the last edge on.

        Raises:
            UserError: where shapes or steps do not fit, or the run has no histograms.
            ValueError: where the writer is closed.
        """
        with self._thread_lock:
            self._check_open()
            self._outbox.take_histograms(steps, counts)
            self._write_if_due()

    def flush(self) -> None:
        """Put everything taken in so far on the disk, synced and readable by others.

        Like a timed write it then merges for up to a quarter of `flush_every`.

        Raises:
            WriteError: where the disk refuses; the records go on waiting, up to 64 MiB of them.
            ValueError: where the writer is closed.
        """
        with self._thread_lock:
            self._check_open()
            error = self._write()
            if error is not None:
                raise error

    def close(self) -> None:
        """Flush, merge what is small, and let go of the folder; calling it again does nothing.

        Raises:
            WriteError: where the last records could not be written and are lost. The folder is
                let go of all the same.
        """
        with self._thread_lock:
            if self._closed:
                return
            if not self._lock.held:  # a forked child unwinds what belongs to its parent
                self._closed = True
                return
            try:
                error = self._write(work=False)
                if error is not None:
                    self.lost_steps += self.steps_waiting
                    self._outbox.forget()
                    raise error
                self._finish()
            finally:
                self._closed = True
                self._keeper.abandon()
                self._lock.release()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"the writer of {self.path} is closed")
        if not self._lock.held:
            raise ValueError(f"the writer of {self.path} belongs to the process that opened it")

    def _write_if_due(self) -> None:
        waiting = self._outbox.nbytes
        if not waiting:
            return
        time_now = time.monotonic()
        self._due = min(self._due, time_now + self._flush_every)
        if self._due <= time_now or (waiting >= _FLUSH_BYTES and not self._refused):
            self._write()
        self.lost_steps += self._outbox.shrink(_WAITING_BYTES)

    def _note(self, error: OSError) -> None:
        self.errors += 1
        self.last_error = error

    def _write(self, *, work: bool = True) -> WriteError | None:
        """Write what waits, then merge a bit; returns what went wrong with the records."""
        try:
            self._outbox.write()
        except OSError as error:
            self._note(error)
            self._refused = True
            self._due = time.monotonic() + self._flush_every
            told = WriteError(
                error.errno, f"cannot write records: {error.strerror or error}", str(self.path)
            )
            told.steps_waiting = self.steps_waiting
            told.__cause__ = error
            return told
        self._due, self._refused = math.inf, False
        if work and time.monotonic() >= self._rest_until:
            self._work()
        return None

    def _work(self) -> None:
        """Merge for a share of the time between flushes; what fails there costs no record."""
        parts = max(len(shelf.parts) for shelf in self._tables.values())
        seconds = max(self._flush_every, _WORK_LEAST) * _WORK_SHARE * max(1.0, parts / _MANY_PARTS)
        try:
            self._keeper.work(seconds)
            self._keeper.retire(self._outbox.last)
        except OSError as error:
            self._note(error)
            self._rest_until = time.monotonic() + _REST_SECONDS

    def _finish(self) -> None:
        try:
            self._keeper.finish(_CLOSE_SECONDS)
            self._info.closed = now()
            self._info.write(self.path)
        except OSError as error:  # the records are safe; only tidiness is lost
            self._note(error)

    def __enter__(self) -> Self:
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
