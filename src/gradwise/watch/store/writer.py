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
from gradwise.watch.store.buffer import Block, Buffer
from gradwise.watch.store.files import WriteError
from gradwise.watch.store.grid import write_grid
from gradwise.watch.store.housekeeping import Housekeeper
from gradwise.watch.store.opening import claim, cut_back, same_layers
from gradwise.watch.store.runfile import RunFile, check_meta, check_names, now, read_run_file

__all__ = ["RunWriter"]

# Records are written at the latest when they take this much memory...
_FLUSH_BYTES = 8 * 2**20
# ...and while the disk refuses them, the oldest are given up beyond this much.
_WAITING_BYTES = 64 * 2**20

_WORK_SHARE = 0.25  # of the time between flushes, at most, goes into merging
_MANY_PARTS = 256  # beyond this many the merges get more
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
            units=dict(units or {}),
            meta=check_meta(meta or {}),
        )
        self.errors = 0
        self.last_error: OSError | None = None
        self.lost_steps = 0
        self._flush_every = flush_every
        self._thread_lock = threading.RLock()
        self._buffer = Buffer()
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
        info = self._info
        if resume_from is not None:
            old = read_run_file(self.path)
            same_layers(self.path, old, info.layers)
            info.layer_metrics = tuple(dict.fromkeys([*old.layer_metrics, *info.layer_metrics]))
            info.step_metrics = tuple(dict.fromkeys([*old.step_metrics, *info.step_metrics]))
            info.units = old.units | info.units
            info.meta = old.meta | info.meta
            info.created = old.created
            info.resumed = (*old.resumed, resume_from)
        self._tables = cut_back(self.path, info.tables, resume_from or 0)
        info.write(self.path)
        self._scalars = dict.fromkeys(info.step_metrics)
        # Scalars that came along the way go on having a column.
        self._scalars |= dict.fromkeys(self._tables["steps"].columns())
        self._last = max(shelf.last for shelf in self._tables.values())
        self._keeper = Housekeeper(self.path, self._tables, keep_steps)

    @property
    def last_step(self) -> int | None:
        """The last step taken in, on the disk or not; None before the first."""
        return self._last if self._last >= 0 else None

    @property
    def steps_waiting(self) -> int:
        """Number of records taken in that are not on the disk yet."""
        return self._buffer.records

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
            block = Block.check(
                steps,
                layers,
                scalars,
                width=len(self._info.layers),
                metrics=self._info.layer_metrics,
                after=self._last,
            )
            if not len(block.steps):
                return
            self._buffer.add(block)
            self._scalars |= dict.fromkeys(block.scalars)
            self._last = int(block.steps[-1])
            time_now = time.monotonic()
            self._due = min(self._due, time_now + self._flush_every)
            large = self._buffer.nbytes >= _FLUSH_BYTES and not self._refused
            if self._due <= time_now or large:
                self._write()
            self.lost_steps += self._buffer.shrink(_WAITING_BYTES)

    def flush(self) -> None:
        """Put everything taken in so far on the disk, synced and readable by others.

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
                    self.lost_steps += self._buffer.records
                    self._buffer.clear()
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

    def _note(self, error: OSError) -> None:
        self.errors += 1
        self.last_error = error

    def _write(self, *, work: bool = True) -> WriteError | None:
        """Write what waits, then merge a bit; returns what went wrong with the records."""
        try:
            self._write_tables()
        except OSError as error:
            self._note(error)
            self._refused = True
            self._due = time.monotonic() + self._flush_every
            told = WriteError(
                error.errno, f"cannot write records: {error.strerror or error}", str(self.path)
            )
            told.steps_waiting = self._buffer.records
            told.__cause__ = error
            return told
        self._due, self._refused = math.inf, False
        self._buffer.clear()
        if work and time.monotonic() >= self._rest_until:
            self._work()
        return None

    def _write_tables(self) -> None:
        # Each table goes on after its own last step: had the first been written and the second
        # not, trying again doubles nothing.
        for name, shelf in self._tables.items():
            if name == "layers":
                metrics, width = self._info.layer_metrics, shelf.spec.width
                grid = self._buffer.layers(metrics, width, shelf.last)
            else:
                grid = self._buffer.scalars(list(self._scalars), shelf.last)
            if grid is not None:
                shelf.add(write_grid(self.path, shelf.spec, grid), grid.steps)

    def _work(self) -> None:
        """Merge for a share of the time between flushes; what fails there costs no record."""
        parts = max(len(shelf.parts) for shelf in self._tables.values())
        seconds = self._flush_every * _WORK_SHARE * max(1.0, parts / _MANY_PARTS)
        try:
            self._keeper.work(seconds)
            self._keeper.retire(self._last)
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
