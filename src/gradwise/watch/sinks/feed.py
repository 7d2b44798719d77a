"""Brings records to a sink, whatever the sink does: raise, hang, or be slow."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gradwise.errors import UserError
from gradwise.watch.block import Block, Consumer
from gradwise.watch.sinks.base import Sink, check, matches
from gradwise.watch.sinks.names import step_name
from gradwise.watch.sinks.sampling import Row, Sampler

LOG = logging.getLogger("gradwise")

TRIES = 3  # a row that fails as often is given up: it may be the row that is at fault
FIRST_PAUSE = 1.0  # seconds after an error; doubled with every further one
LONGEST_PAUSE = 60.0
LAST_PAUSE = 0.1  # when the feed is being closed


class SinkFeed(Consumer):
    """Takes blocks of records and hands the rows that a sink wants to it, in a thread of its own.

    `take` never waits for the sink. Rows that the sink has not taken yet wait in memory, no more
    than `capacity` of them; the oldest make way. An error is logged once (logger "gradwise") and
    counted from then on, and the row is tried again, after pauses of 1 s, 2 s, 4 s, ..., 60 s.

    In a process that was forked from the one that made it, a feed does nothing: the sink belongs to
    the parent.

    Args:
        sink: where the rows go.
        meta: what the run says of itself, passed on to the sink.
        capacity: rows that wait at most; one with 500 layers and 2 metrics takes about 8 KB.
        patience: seconds that `close` waits for a sink to take what is left.

    Attributes:
        errors: how often the sink raised.
        lost: rows that never arrived.
        sent: rows that did.

    Raises:
        UserError: where the sink's attributes make no sense, or it is no `Sink`.

    Examples:
        >>> import numpy as np
        >>> from gradwise.watch.block import Block, Consumer
        >>> class Collector(Sink):
        ...     rows = []
        ...     def write(self, step, values, time):
        ...         self.rows.append((step, values))
        >>> feed = SinkFeed(Collector(every=2, layer_metrics=["norm"]))
        >>> norms = np.array([[1.0], [2.0], [3.0]])
        >>> feed.take(Block(("w",), np.arange(3), {"norm": norms}, {"grad_norm": norms[:, 0]}))
        >>> feed.close()
        >>> for step, values in Collector.rows:
        ...     print(step, values)
        0 {'grad/norm': 1.0, 'grad/layer/w/norm': 1.0}
        2 {'grad/norm': 3.0, 'grad/layer/w/norm': 3.0}
    """

    def __init__(
        self,
        sink: Sink,
        meta: Mapping[str, Any] | None = None,
        *,
        capacity: int = 1000,
        patience: float = 5.0,
    ) -> None:
        if not isinstance(sink, Sink):
            raise UserError(
                f"expected sinks of type gradwise.watch.sinks.Sink, got {type(sink).__name__}"
            )
        check(sink)
        if capacity < 1:
            raise UserError(f"expected capacity >= 1, got capacity={capacity}")
        self.sink = sink
        self.errors = 0
        self.lost = 0
        self.sent = 0
        self._meta = dict(meta or {})
        self._capacity = capacity
        self._patience = patience
        self._names: tuple[str, ...] | None = None
        self._sampler: Sampler | None = None
        self._rows: deque[Row] = deque()
        self._news = threading.Condition()
        self._closing = False
        self._opened = False
        self._pause = FIRST_PAUSE
        self._said: set[str] = set()
        self._thread: threading.Thread | None = None
        self._process = os.getpid()

    def begin(self, names: tuple[str, ...]) -> None:
        """Say which layers the run has, and let the sink open; `take` does it where nobody did.

        Worth a call as soon as the names are known: a program that ends right afterwards may be too
        far gone to start threads when the first block comes.

        Args:
            names: the run's layers.
        """
        if self._foreign() or names == self._names:
            return
        if self._sampler is not None:  # layers joined or left: what is held belongs to the old ones
            self._put([self._sampler.rest()])
        self._names = names
        self._sampler = sampler = Sampler(self.sink, names)
        if not sampler.chosen and names and self.sink.layer_metrics:
            self._say(
                "layers", f"no layer is called like {self.sink.layers!r}; one is {names[0]!r}"
            )
        self._run()

    def take(self, block: Block) -> None:
        """Pick the rows that are due; they are sent from the feed's own thread."""
        if self._foreign() or self._closing:
            return
        self.begin(block.names)
        assert self._sampler is not None
        self._put(self._sampler.rows(block))

    def amend(self, step: int, scalars: Mapping[str, float]) -> None:
        """Send what became known of a step after its row, as a row of its own.

        Args:
            step: the step.
            scalars: by the names that they were logged under.
        """
        names = {metric: step_name(metric) for metric in scalars}
        wanted = {
            name: float(scalars[metric])
            for metric, name in names.items()
            if name is not None and matches(name, self.sink.scalars)
        }
        if wanted and not self._foreign() and not self._closing:
            self._put([Row(step, time.time(), wanted)])

    def stop(self) -> None:
        """There will be no more, said without waiting; `close` waits.

        Of several feeds, stop all before you close the first, so that slow ones are waited for
        side by side.
        """
        if self._foreign() or self._closing:
            return
        if self._sampler is not None:
            self._put([self._sampler.rest()])
        with self._news:
            self._closing = True
            self._news.notify_all()

    def close(self) -> None:
        """Send what is left and close the sink, within `patience` seconds."""
        if self._foreign():
            return
        self.stop()
        if self._thread is None:
            return
        self._thread.join(self._patience)
        if self._thread.is_alive():
            with self._news:
                left = len(self._rows)
                self.lost += left
                self._rows.clear()
            self._say(
                "close",
                f"does not finish within {self._patience:g} s and is left alone, {left} rows "
                "were not sent",
            )

    def __repr__(self) -> str:
        return f"SinkFeed({self.sink!r}, sent={self.sent}, lost={self.lost}, errors={self.errors})"

    def _foreign(self) -> bool:
        return os.getpid() != self._process

    def _put(self, rows: Sequence[Row | None]) -> None:
        with self._news:
            for row in rows:
                if row is None:
                    continue
                if len(self._rows) == self._capacity:
                    self._rows.popleft()
                    self.lost += 1
                self._rows.append(row)
            self._news.notify_all()
            lost = self.lost
        if lost:
            self._say("slow", "does not keep up or fails: the oldest rows are dropped and counted")
        self._run()

    def _run(self) -> None:
        """Have a thread; a sink that ended its own (SystemExit) gets another."""
        if self._thread is not None and self._thread.is_alive():
            return
        thread = threading.Thread(target=self._work, name=f"gradwise {self.sink!r}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the interpreter is on its way out
            with self._news:
                self.lost += len(self._rows)
                self._rows.clear()
            self._say("thread", f"gets no thread any more ({error}), the last rows are lost")
        else:
            self._thread = thread

    def _work(self) -> None:
        if not self._ready():
            return
        while True:
            with self._news:
                self._news.wait_for(lambda: bool(self._rows) or self._closing)
                if not self._rows:
                    break
                row = self._rows.popleft()
            self._deliver(row)
        self._attempt(self.sink.close)

    def _ready(self) -> bool:
        """Open the sink, however often it takes; False where it cannot be until the end."""
        late = 0
        while not self._opened:
            if self._attempt(self.sink.open, self._names or (), self._meta):
                self._opened = True
                self._pause = FIRST_PAUSE
                break
            late += self._closing
            if late == TRIES:
                with self._news:
                    self.lost += len(self._rows)
                    self._rows.clear()
                break
            self._wait()
        return self._opened

    def _deliver(self, row: Row) -> None:
        for _ in range(TRIES):
            if self._attempt(self.sink.write, row.step, row.values(), row.time):
                self.sent += 1
                self._pause = FIRST_PAUSE
                return
            self._wait()
        with self._news:
            self.lost += 1
            if self._closing:  # there is no time left for the sink to recover
                self.lost += len(self._rows)
                self._rows.clear()

    def _attempt(self, action: Callable[..., None], *arguments: Any) -> bool:
        try:
            action(*arguments)
        except Exception as error:
            self.errors += 1
            reason = str(error).partition("\n")[0]
            self._say("error", f"failed ({type(error).__name__}: {reason}) and is tried again")
            return False
        return True

    def _wait(self) -> None:
        """Pause after an error; at the end only for a moment."""
        if self._closing:
            time.sleep(LAST_PAUSE)
            return
        with self._news:
            self._news.wait_for(lambda: self._closing, timeout=self._pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _say(self, key: str, what: str) -> None:
        """One warning of a kind; later ones are only counted."""
        if key not in self._said:
            self._said.add(key)
            LOG.warning("%s %s; training goes on", self.sink, what)
