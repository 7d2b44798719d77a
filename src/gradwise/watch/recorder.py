"""From an attachment's moments to the run store: a block of steps on the device, one copy a block.

Nothing is read by the host before a block is full, so a step never waits; the price is that the
last unfinished block is lost where the process dies.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradwise.attach import Attachment
from gradwise.watch.store import RunWriter

BLOCK = 64  # steps that wait on the device before they are copied and written together
LAYER_METRICS = ("mean", "std", "norm", "nonfinite")
STEP_METRICS = ("grad_norm", "grad_mean", "grad_std", "applied_norm", "alpha")


class Recorder:
    """Records the gradients' dynamics of an optimizer with an `Attachment`.

    A row belongs to one optimizer step, counted from 0; it is complete when the next one begins, so
    that `log` can add what is known only after the step.

    Args:
        attachment: what measures; record without transforms through `attach(optimizer)`.
        out: the run folder, new or, with `resume_from`, the one to continue.
        every: record every so many steps.
        meta: facts about the run that are stored with it.
        resume_from: the step that comes next, where a run continues from a checkpoint.

    Raises:
        UserError: where the folder belongs to another run; see `RunWriter`.
    """

    def __init__(
        self,
        attachment: Attachment,
        out: str | Path,
        *,
        every: int = 1,
        meta: Mapping[str, Any] | None = None,
        resume_from: int | None = None,
    ) -> None:
        self.every = every
        self.step = (resume_from or 0) - 1  # of the row under way
        self._attachment = attachment
        self._names = attachment.names
        self._writer = RunWriter(
            out,
            self._names,
            layer_metrics=LAYER_METRICS,
            step_metrics=STEP_METRICS,
            meta=dict(meta or {}),
            resume_from=resume_from,
        )
        self._steps: list[int] = []
        self._layers: Tensor | None = None  # [BLOCK, metrics, L]
        self._globals: Tensor | None = None  # [BLOCK, metrics]
        self._scalars: list[dict[str, float | Tensor]] = []
        self._recording = False
        attachment.observers.append(self._observe)

    def log(self, **scalars: float | Tensor) -> None:
        """Add scalars to the row of the last step; 0-d tensors stay on the device until written."""
        if self._recording:
            kept = {k: v.detach() if isinstance(v, Tensor) else v for k, v in scalars.items()}
            self._scalars[-1].update(kept)

    def flush(self) -> None:
        """Write all complete rows; this waits for the device and the disk."""
        self._write_block()
        self._writer.flush()

    def close(self) -> None:
        """Write everything and leave the attachment alone; calling it again does nothing."""
        if self._observe in self._attachment.observers:
            self._attachment.observers.remove(self._observe)
            self._write_block()
            self._writer.close()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @torch.no_grad()
    def _observe(self, attachment: Attachment) -> None:
        if len(self._steps) == BLOCK:
            self._write_block()
        self.step += 1
        self._recording = self.step % self.every == 0
        if not self._recording:
            return
        moments = attachment.moments
        assert moments is not None
        layers = moments.per_tensor()
        pooled = layers.pooled()
        applied = moments.through(attachment.affine).total_norm
        alpha = attachment.affine.scale
        if alpha is None:
            alpha = torch.ones_like(applied)
        elif alpha.dim() > 0:  # every layer its own factor: there is no common one
            alpha = torch.full_like(applied, torch.nan)
        values = [layers.mean, layers.std, layers.norm, layers.nonfinite.to(layers.mean.dtype)]
        totals = [pooled.norm[0], pooled.mean[0], pooled.std[0], applied, alpha]
        if self._layers is None or self._globals is None:
            shape = (BLOCK, len(LAYER_METRICS), len(layers))
            self._layers = torch.zeros(shape, dtype=torch.float32, device=moments.device)
            self._globals = layers.mean.new_zeros(BLOCK, len(STEP_METRICS))
        place = len(self._steps)
        self._layers[place].copy_(torch.stack(values))
        self._globals[place].copy_(torch.stack(totals))
        self._steps.append(self.step)
        self._scalars.append({})

    def _write_block(self) -> None:
        if not self._steps or self._layers is None or self._globals is None:
            return
        count = len(self._steps)
        layers = self._layers[:count].cpu().numpy()
        totals = self._globals[:count].cpu().numpy()
        scalars = {name: totals[:, i] for i, name in enumerate(STEP_METRICS)}
        logged = dict.fromkeys(name for row in self._scalars for name in row)
        for name in logged:
            column = [float(row.get(name, np.nan)) for row in self._scalars]
            scalars[name] = np.array(column)
        self._writer.append(
            np.array(self._steps, dtype=np.int64),
            {name: layers[:, i] for i, name in enumerate(LAYER_METRICS)},
            scalars,
        )
        self._steps, self._scalars, self._recording = [], [], False
