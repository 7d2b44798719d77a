"""Writing a run: an append-only folder that a crash at any moment leaves readable."""

import math
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from gradwise.errors import UserError
from gradwise.watch.store.closing import Closing
from gradwise.watch.store.flusher import Flusher
from gradwise.watch.store.housekeeping import Housekeeper
from gradwise.watch.store.opening import claim, continued, cut_back
from gradwise.watch.store.outbox import Outbox
from gradwise.watch.store.runfile import RunFile, check_edges, check_meta, check_names

__all__ = ["RunWriter"]


class RunWriter(Closing):
    """Records a run into a folder of Parquet files.

    `append` only copies; about once a second what has come together is written as one small
    file a table, synced, and renamed into place. Between these writes small files are merged
    into large ones and older steps are kept once more as min/mean/max pyramids, a bit at a
    time, so the folder stays small in files and quick to read, and memory stays bounded however
    long the run. Calls from several threads are put in order by a lock.

    A disk that refuses never makes `append` fail: it is counted in `errors`, the records wait in
    memory (up to 64 MiB; what had to be given up is counted in `lost_steps`) and are tried again.
    `amend` completes records that have been taken in, also those that are on the disk.

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
        flush_every: seconds after which records that wait are written by the next `append` or
            `flush_if_due`.
        histogram_edges: the edges between the bins of `append_histograms`; empty for a run
            without histograms. Continuing a run keeps those it has.

    Attributes:
        path: the run folder.

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
        self._thread_lock = threading.RLock()
        self._closed = False
        self._lock = claim(self.path, resume=resume_from is not None)
        try:
            self._begin(resume_from, keep_steps, flush_every)
        except OSError as error:
            self._lock.release()
            raise UserError(
                f"cannot write to the run folder {self.path}: {error.strerror or error}"
            ) from error
        except BaseException:
            self._lock.release()
            raise

    def _begin(self, resume_from: int | None, keep_steps: int | None, every: float) -> None:
        if resume_from is not None:
            continued(self.path, self._info, resume_from)
        tables = cut_back(self.path, self._info.tables, resume_from or 0)
        self._info.write(self.path)
        self._outbox = Outbox(self.path, self._info, tables)
        self._keeper = Housekeeper(self.path, tables, keep_steps)
        self._flusher = Flusher(self.path, tables, self._outbox, self._keeper, every)

    @property
    def errors(self) -> int:
        """How many times something could not be written."""
        return self._flusher.errors

    @property
    def last_error(self) -> OSError | None:
        """The last of these errors."""
        return self._flusher.last_error

    @property
    def lost_steps(self) -> int:
        """Number of records given up for good because they could not be written."""
        return self._flusher.lost_steps

    @property
    def lost_amendments(self) -> int:
        """Number of steps whose amendment could not be written, or had no record left."""
        return self._flusher.lost_amendments

    @property
    def last_step(self) -> int | None:
        """The last step taken in, on the disk or not; None before the first."""
        return self._outbox.last if self._outbox.last >= 0 else None

    @property
    def steps_waiting(self) -> int:
        """Number of records taken in that are not on the disk yet."""
        return self._outbox.steps_waiting

    @property
    def amendments_waiting(self) -> int:
        """Number of records on the disk that are not yet what `amend` has made of them."""
        return len(self._outbox.amendments)

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
            self._flusher.if_due()

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
            self._flusher.if_due()

    def amend(self, steps: npt.NDArray[Any], scalars: Mapping[str, npt.NDArray[Any]]) -> None:
        """Complete K records by scalars that became known after they were taken in.

        Records that wait in memory are simply completed. Those on the disk are completed at the
        next timed write, or at a later one where many of them would take too much of the time:
        their part of the `steps` table is written anew, in one stroke for whoever reads, and the
        pyramid of the steps is built anew from there on. So amending what is seconds or minutes
        old costs little, and amending the beginning of a long run some seconds of merging.

        Args:
            steps: [K] step numbers, strictly ascending, each of a record taken in before.
            scalars: step metric -> [K], which replaces what is there; NaN leaves it. New names
                may come this way, too.

        Raises:
            UserError: where shapes or names do not fit, or a step has no record; nothing has then
                been changed.
            ValueError: where the writer is closed.

        Examples:
            >>> import tempfile, numpy as np
            >>> from gradwise.watch.store import load
            >>> out = tempfile.mkdtemp()
            >>> with RunWriter(out, [], layer_metrics=[]) as writer:
            ...     writer.append(np.arange(2), {}, {"loss": np.array([2.0, 1.0])})
            ...     writer.flush()
            ...     writer.amend(np.array([1]), {"accuracy": np.array([0.5])})
            >>> load(out).steps.to_pydict()
            {'step': [0, 1], 'loss': [2.0, 1.0], 'accuracy': [nan, 0.5]}
        """
        with self._thread_lock:
            self._check_open()
            lost = self._outbox.amend(steps, scalars, gaps=self.lost_steps > 0)
            self._flusher.lost_amendments += lost
            self._flusher.if_due()

    def flush_if_due(self) -> None:
        """Write what has waited for `flush_every`, and merge a bit where nothing waits.

        For a thread that has nothing to append: called now and then, it makes sure that what has
        been taken in is on the disk after `flush_every`, whatever the training does. It costs
        next to nothing where nothing is due. What the disk refuses is counted in `errors`.

        Raises:
            ValueError: where the writer is closed.
        """
        with self._thread_lock:
            self._check_open()
            self._flusher.if_due()
            self._flusher.if_idle()

    def flush(self) -> None:
        """Put everything taken in so far on the disk, synced and readable by others.

        Like a timed write it then merges for up to a quarter of `flush_every`.

        Raises:
            WriteError: where the disk refuses; the records go on waiting, up to 64 MiB of them.
            ValueError: where the writer is closed.
        """
        with self._thread_lock:
            self._check_open()
            error = self._flusher.write()
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
                error = self._flusher.write(work=False)
                if error is not None:
                    self._flusher.give_up()
                    raise error
                self._flusher.finish(self._info)
            finally:
                self._closed = True
                self._keeper.abandon()
                self._lock.release()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"the writer of {self.path} is closed")
        if not self._lock.held:
            raise ValueError(f"the writer of {self.path} belongs to the process that opened it")
