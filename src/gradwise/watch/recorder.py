"""From an attachment's moments to whoever wants them: rows on the device, a thread behind.

Nothing that a training step calls waits for the device, the disk or a consumer.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from gradwise.attach import Attachment
from gradwise.errors import UserError
from gradwise.watch.block import Consumer
from gradwise.watch.columns import (
    Layers,
    layer_metrics,
    step_metrics,
)
from gradwise.watch.courier import Courier
from gradwise.watch.ledger import Ledger
from gradwise.watch.probing import Probes
from gradwise.watch.store import RunWriter
from gradwise.watch.store.closing import Closing

FLUSH = 0.4  # seconds that records wait in the writer at most
_log = logging.getLogger("gradwise")
_TAKEN = {
    *step_metrics(extremes=True),
    *("alpha", "skipped", "backwards", "noise_scale", "time"),
    *("step", "first_step", "last_step"),
}


class Recorder(Closing):
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
        self._attachment = attachment
        self._layers = layers or Layers.of(attachment.names)
        self._probes = probes or Probes()
        before = (first_step if resume_from is None else resume_from) - 1
        self._ledger = Ledger(every, before, self._layers, timed=bool(self._probes.step_metrics))
        self._out = None if out is None else Path(out)
        self._writer = None if self._out is None else self._open(self._out, meta, resume_from)
        self._closed = False
        attachment.readers.append(self.read)
        attachment.observers.append(self._observe)
        self._hook = self._probes.after_step(attachment.optimizer, self._end)
        self._courier = Courier(
            self._ledger,
            self._layers,
            self._probes.deriver(),
            self._probes.extremes,
            consumers,
            self._writer,
        )

    @property
    def step(self) -> int:
        """The last step that began."""
        return self._ledger.step

    @property
    def lost_steps(self) -> int:
        """Rows given up because the thread behind did not get on."""
        return self._ledger.lost_steps

    @property
    def failures(self) -> int:
        """How many times a consumer raised something; the first is logged."""
        return self._courier.failures

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
        self._ledger.begin(step)

    def log(self, **scalars: float | Tensor) -> None:
        """Add scalars to the row of the last step; tensors stay on the device until written.

        Between a backward pass and the step that it is for, they go into the row of that step. At
        steps that are not recorded, they wait for the next row.

        Args:
            scalars: numbers, or tensors with one real value, which is taken as it is now.

        Raises:
            UserError: for a name that the recorder uses itself, or a tensor of several values.
        """
        check_scalars(scalars)
        if self._closed or not self._courier.here:
            return
        self._ledger.log(scalars, coming=self._probes.backwards > 0)

    def flush(self) -> None:
        """Write all rows there are, that of the last step included.

        This waits for the device and the disk.

        Raises:
            WriteError: where the disk refuses; the rows wait in memory for another attempt.
        """
        self._courier.flush()

    def close(self, last_step: int | None = None) -> None:
        """Write everything and leave the attachment alone; calling it again does nothing.

        Args:
            last_step: rows of later steps are dropped, where a loop found out late that they mean
                nothing; None keeps all.

        Raises:
            WriteError: where the last rows could not be written and are lost.
        """
        if self._closed or not self._courier.here:
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
        self._courier.close()
        if last_step is None or self._writer is None or self._out is None:
            return
        written = self._writer.last_step
        if written is not None and written > last_step:
            self._open(self._out, {}, resume_from=last_step + 1).close()

    def __del__(self) -> None:
        if hasattr(self, "_courier"):  # otherwise the constructor failed
            self._courier.abandoned = True

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
            units=probes.units,
            histogram_edges=probes.histogram_edges,
            meta=dict(meta or {}),
            resume_from=resume_from,
        )

    def read(
        self, attachment: Attachment, grads: Sequence[Tensor | None], scale: Tensor | None
    ) -> None:
        """Begin the row of the step under way; for who makes a recorder in the midst of a step.

        Args:
            attachment: the one that calls.
            grads: as they are before the transforms.
            scale: the loss scale that is still in them.
        """
        if self._closed or not self._courier.here:
            return
        self._ledger.read(self._probes, attachment, grads, scale)

    def _observe(self, attachment: Attachment) -> None:
        if not self._closed and self._courier.here:
            self._ledger.observe(self._probes, attachment, whole=self._hook is None)

    def _end(self) -> None:
        """After the optimizer's update."""
        if not self._closed and self._courier.here:
            self._ledger.end(self._probes)


def check_scalars(scalars: Mapping[str, float | Tensor]) -> None:
    """Refuse what cannot be logged.

    Args:
        scalars: by name.

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
