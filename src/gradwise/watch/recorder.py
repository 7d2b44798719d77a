"""From an attachment's moments to the run store: a block of steps on the device, one copy a block.

Nothing is read by the host before a block is full, so a step never waits; the price is that the
last unfinished block is lost where the process dies.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradwise.attach import Attachment
from gradwise.errors import UserError
from gradwise.watch.rows import LAYER_METRICS, STEP_METRICS, Columns, column, metrics
from gradwise.watch.store import RunWriter, WriteError

BLOCK = 64  # steps that wait on the device before they are copied and written together
_TAKEN = {*STEP_METRICS, "step"}


class Recorder:
    """Records the gradients' dynamics of an optimizer with an `Attachment`.

    A row belongs to one step. Left alone, the recorder counts the optimizer's steps; a loop that
    counts its own says which one is under way with `begin`, and has then a row also for a step
    that the optimizer skipped (as `GradScaler` makes it do after an overflow), with NaN for what
    was not measured. A row is complete when the next one begins, so that `log` can add what is
    known only after the step.

    Args:
        attachment: what measures; record without transforms through `attach(optimizer)`.
        out: the run folder, new or, with `resume_from`, the one to continue.
        every: record every so many steps, counted from step 0.
        meta: facts about the run that are stored with it.
        resume_from: the step that comes next, where a run in `out` continues from a checkpoint;
            rows of that step and later ones are dropped.
        first_step: the number of the first step of a run that is new in `out`.

    Attributes:
        step: the last step that began.

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
        out: str | Path,
        *,
        every: int = 1,
        meta: Mapping[str, Any] | None = None,
        resume_from: int | None = None,
        first_step: int = 0,
    ) -> None:
        for name, value, low in (("every", every, 1), ("first_step", first_step, 0)):
            if value < low:
                raise UserError(f"expected {name} >= {low}, got {name}={value}")
        self.every = every
        self.step = (first_step if resume_from is None else resume_from) - 1
        self._attachment = attachment
        self._names = attachment.names
        self._out = Path(out)
        self._writer = self._open(meta or {}, resume_from)
        self._steps: list[int] = []
        self._scalars: list[dict[str, float | Tensor]] = []
        # Made at the first step, when the device is known. What follows from mean and m2 is worked
        # out for a block at once: a step costs as few small operations as can be.
        self._moments: Tensor | None = None  # [BLOCK, mean and m2 and nonfinite, L]
        self._effects: Tensor | None = None  # [BLOCK, applied norm and alpha]
        self._counts: list[tuple[int, ...]] = []  # values in each layer
        self._plain: list[bool] = []  # measured, and left alone by the transforms
        self._begun = False  # by the loop, for the step under way
        self._recording = False
        self._closed = False
        attachment.observers.append(self._observe)

    @property
    def errors(self) -> int:
        """How many times the disk refused something; recording goes on, see `RunWriter`."""
        return self._writer.errors

    def begin(self, step: int) -> None:
        """Say which step is under way, before the optimizer's own.

        Args:
            step: above the last one.

        Raises:
            UserError: where it is not.
        """
        if step <= self.step:
            raise UserError(f"expected a step above {self.step}, the last one, got step={step}")
        self._begin(step)
        self._begun = True

    def log(self, **scalars: float | Tensor) -> None:
        """Add scalars to the row of the last step; tensors stay on the device until written.

        Before the first step, and at steps that are not recorded, nothing is kept.

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
        if self._recording:
            # Cloned: a running total is likely to be added to in place.
            self._scalars[-1].update(
                {k: v.detach().clone() if isinstance(v, Tensor) else v for k, v in scalars.items()}
            )

    def flush(self) -> None:
        """Write all rows there are, that of the last step included.

        This waits for the device and the disk. What is logged later for that step is not kept.

        Raises:
            WriteError: where the disk refuses; the rows wait in memory for another attempt.
        """
        self._write_block()
        self._writer.flush()

    def close(self, last_step: int | None = None) -> None:
        """Write everything and leave the attachment alone; calling it again does nothing.

        Args:
            last_step: rows of later steps are dropped, where a loop found out late that they mean
                nothing; None keeps all.

        Raises:
            WriteError: where the last rows could not be written and are lost.
        """
        if self._closed:
            return
        self._closed = True
        if self._observe in self._attachment.observers:
            self._attachment.observers.remove(self._observe)
        try:
            self._write_block()
        finally:
            self._writer.close()
        written = self._writer.last_step
        if last_step is not None and written is not None and written > last_step:
            self._open({}, resume_from=last_step + 1).close()

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

    def _open(self, meta: Mapping[str, Any], resume_from: int | None) -> RunWriter:
        return RunWriter(
            self._out,
            self._names,
            layer_metrics=LAYER_METRICS,
            step_metrics=STEP_METRICS,
            meta=dict(meta),
            resume_from=resume_from,
        )

    def _begin(self, step: int) -> None:
        if len(self._steps) == BLOCK:
            self._write_block()
        self.step = step
        self._recording = step % self.every == 0
        if self._recording:
            self._steps.append(step)
            self._counts.append(())
            self._plain.append(False)
            self._scalars.append({})

    @torch.no_grad()
    def _observe(self, attachment: Attachment) -> None:
        if self._closed:  # attached anew, the observers moved on to another list
            return
        if not self._begun:
            self._begin(self.step + 1)
        self._begun = False
        if not self._recording:
            return
        moments = attachment.moments
        assert moments is not None
        layers = moments.per_tensor()
        if self._moments is None or self._effects is None:
            self._moments = layers.mean.new_full((BLOCK, 3, len(layers)), torch.nan)
            self._effects = layers.mean.new_full((BLOCK, 2), torch.nan)
        place = len(self._steps) - 1
        measured = (layers.mean, layers.m2, layers.nonfinite.to(layers.mean.dtype))
        torch.stack(measured, out=self._moments[place])
        affine = attachment.affine
        self._counts[place] = layers.layout.numels
        self._plain[place] = affine.is_identity
        if not affine.is_identity:
            applied, alpha = moments.through(affine).total_norm, affine.scale
            if alpha is None:
                alpha = torch.ones_like(applied)
            elif alpha.dim() > 0:  # every layer its own factor: there is no common one
                alpha = torch.full_like(applied, torch.nan)
            torch.stack((applied, alpha), out=self._effects[place])

    def _write_block(self) -> None:
        """Hand the rows to the writer, which never fails for the disk's sake."""
        steps, rows, counts, plain = self._steps, self._scalars, self._counts, self._plain
        self._steps, self._scalars, self._counts, self._plain = [], [], [], []
        self._recording = False
        if not steps:
            return
        layers: Columns = {}
        scalars: Columns = {}
        if self._moments is not None and self._effects is not None:
            layers, scalars = metrics(self._moments, self._effects, counts, plain)
            self._moments.fill_(torch.nan)
            self._effects.fill_(torch.nan)
        for name in dict.fromkeys(name for row in rows for name in row):
            scalars[name] = column([row.get(name) for row in rows])
        self._writer.append(np.array(steps, dtype=np.int64), layers, scalars)
