"""Carries rows from the ledger to whoever wants them, in a thread of its own."""

from __future__ import annotations

import atexit
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from operator import methodcaller
from typing import Any

from gradwise.watch.archive import Archive
from gradwise.watch.block import Consumer
from gradwise.watch.columns import Layers, block_of, histograms_of
from gradwise.watch.ledger import Ledger
from gradwise.watch.page import Row
from gradwise.watch.pump import Pump
from gradwise.watch.store import RunWriter, WriteError

Derive = Callable[[Sequence[Row], dict[str, Any]], None]

CARRY = 0.4  # seconds between two journeys; with `FLUSH` and a period of the pump less than one

_log = logging.getLogger("gradwise")


class Courier:
    """Hands the ledger's rows to consumers, about twice a second, until it is closed.

    It knows nothing of models and optimizers, so that its thread keeps none of them alive.

    Args:
        ledger: where rows come from.
        layers: the run's.
        derive: replaces columns [K] of rows by what follows from them.
        extremes: whether min, max and zeros were measured.
        consumers: who gets the records.
        writer: of the run's folder, closed at the end; None where nothing is kept.

    Attributes:
        failures: how many times a consumer raised something; the first is logged.
        abandoned: set to True by who will not close it, so that its thread does; nothing else may
            be done while the garbage collector runs, which it does whatever locks are held.
    """

    def __init__(
        self,
        ledger: Ledger,
        layers: Layers,
        derive: Derive,
        extremes: bool,
        consumers: Sequence[Consumer],
        writer: RunWriter | None,
    ) -> None:
        self.failures = 0
        self.abandoned = False
        self._carried = time.monotonic()
        self._ledger = ledger
        self._layers = layers
        self._derive = derive
        self._extremes = extremes
        self._writer = writer
        archive = [] if writer is None else [Archive(writer)]
        self._consumers: list[Consumer] = [*consumers, *archive]
        self._pump = Pump(self._go_on)
        _open.add(self)

    @property
    def here(self) -> bool:
        """Whether this is the process that it works in, and not a forked child."""
        return self._pump.here

    def flush(self) -> None:
        """Carry everything there is, and have it on the disk; this waits.

        Raises:
            WriteError: where the disk refuses.
        """
        with self._pump.turn:
            self._carry(everything=True)
            if self._writer is not None:
                self._writer.flush()

    def close(self) -> None:
        """Carry what is left and close the consumers; calling it again does nothing.

        Raises:
            WriteError: where the last rows could not be written and are lost.
        """
        if self in _open and self.here:
            self._pump.close()
            with self._pump.turn:
                self._finish()

    def _go_on(self) -> bool:
        """What the thread does each time; False where it was the last time."""
        if not self.abandoned:
            now = time.monotonic()
            if now >= self._carried + CARRY:  # several rows at once cost little more than one
                self._carried = now
                self._carry()
            return True
        if self in _open:
            with contextlib.suppress(WriteError):  # nobody is there to be told
                self._finish()
        return False

    def _finish(self) -> None:
        _open.discard(self)
        self._ledger.leave()
        try:
            self._carry(everything=True)
        finally:
            self._each(methodcaller("stop"))
            with contextlib.ExitStack() as stack:  # each is closed, whatever the others raise
                for consumer in self._consumers:
                    stack.callback(consumer.close)

    def _carry(self, everything: bool = False) -> None:
        taken = self._ledger.take(everything)
        for cut in taken.cuts:
            self._derive(cut.rows, cut.columns)
            block = block_of(cut.rows, cut.columns, cut.names, self._layers, self._extremes)
            histograms = histograms_of(cut.rows, cut.names, self._layers)
            self._each(methodcaller("take", block))
            if histograms is not None:
                self._each(methodcaller("take_histograms", *histograms))
        for step, scalars in taken.late:
            self._each(methodcaller("amend", step, scalars))
        if self._writer is None:
            return
        if taken.idle:  # nothing comes in the next moment that could be written with it
            with contextlib.suppress(WriteError):  # it is counted, and tried again
                self._writer.flush()
        else:
            self._writer.flush_if_due()

    def _each(self, call: Callable[[Consumer], None]) -> None:
        """Call something of every consumer; one that fails is no reason to forget the others."""
        for consumer in self._consumers:
            try:
                call(consumer)
            except Exception:  # a consumer may be anybody's code, and the run goes on
                self.failures += 1
                if self.failures == 1:
                    name = type(consumer).__name__
                    _log.warning("recording goes on, but %s failed", name, exc_info=True)


_open: set[Courier] = set()  # those that are not closed


@atexit.register
def _close_all() -> None:
    for courier in list(_open):
        with contextlib.suppress(Exception):  # what cannot be written now is lost
            courier.close()
