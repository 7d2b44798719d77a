"""TensorBoard: an event file of the sink's own, or a writer of the user's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradwise.errors import UserError
from gradwise.watch.sinks.base import Sink, load_tool
from gradwise.watch.sinks.events import PACKAGE, EventFile, summary


class TensorBoard(Sink):
    """Sends rows to TensorBoard.

    Values arrive in single precision and at the moment of the step; infinite ones are sent, and
    TensorBoard draws them as marks.

    **A run that is resumed** writes another event file into the same folder. The steps between the
    checkpoint and the moment at which the first run died are then there twice, unless you say where
    the run goes on: `TensorBoard(folder, purge_step=checkpoint_step + 1)` has TensorBoard hide all
    that the folder held from that step on. That concerns every file of the folder, whoever wrote
    it, hence it is not done unasked; a folder of the sink's own is the safe choice. To a writer of
    yours, pass `purge_step` where you make it.

    Args:
        target: a folder, made where it is missing, or a `SummaryWriter` of yours, which stays open
            (anything with `add_scalar(name, value, step, walltime)` will do).
        every: steps from row to row.
        layer_metrics: what of each layer, see `Sink`.
        layers: which layers, as shell patterns.
        layers_every: steps from one row with layers to the next, see `Sink`.
        scalars: which of the other numbers, as shell patterns.
        purge_step: the first step of a run that is resumed in this folder.

    Raises:
        UserError: where tensorboard is not installed, the target is neither, or `purge_step` is
            given with a writer or negative.

    Examples:
        >>> import tempfile
        >>> TensorBoard(tempfile.mkdtemp(), every=50, layers="*.weight")
        TensorBoard(every=50)
    """

    def __init__(
        self,
        target: str | Path | Any,
        *,
        every: int = 10,
        layer_metrics: Sequence[str] = ("norm", "std"),
        layers: str | Sequence[str] | None = None,
        layers_every: int | None = None,
        scalars: str | Sequence[str] | None = None,
        purge_step: int | None = None,
    ) -> None:
        super().__init__(
            every=every,
            layer_metrics=layer_metrics,
            layers=layers,
            layers_every=layers_every,
            scalars=scalars,
        )
        load_tool("tensorboard", PACKAGE)
        if purge_step is not None and purge_step < 0:
            raise UserError(f"expected purge_step >= 0, got purge_step={purge_step}")
        self._folder: Path | None = None
        self._file: EventFile | None = None
        self._writer: Any = None
        self._purge_step = purge_step
        if isinstance(target, str | Path):
            self._folder = Path(target)
        elif not hasattr(target, "add_scalar"):
            raise UserError(
                f"expected a folder or a SummaryWriter for TensorBoard, got {type(target).__name__}"
            )
        elif purge_step is not None:
            raise UserError(
                f"expected purge_step only with a folder, got purge_step={purge_step} and a "
                "writer, which takes it where it is made"
            )
        else:
            self._writer = target
            torchs = load_tool("torch.utils.tensorboard", PACKAGE).SummaryWriter
            self._is_torchs = isinstance(target, torchs)

    def open(self, names: tuple[str, ...], meta: Mapping[str, Any]) -> None:
        """Begin an event file in the folder."""
        if self._folder is not None:
            self._file = EventFile(self._folder, self._purge_step)

    def write(self, step: int, values: Mapping[str, float], time: float) -> None:
        """Write a row."""
        if self._file is not None:
            self._file.add(step, values, time)
            return
        if not self._is_torchs:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step, walltime=time)
            return
        file_writer = self._writer.file_writer
        if file_writer is None:  # add_scalar would begin another file, which nobody would close
            raise RuntimeError("the SummaryWriter is closed: close the watch before it")
        # One event with all values takes a quarter of the time that an event for each would.
        file_writer.add_summary(summary(values), step, time)

    def close(self) -> None:
        """Bring everything to the disk; a writer that was given stays open."""
        if self._file is not None:
            self._file.close()
        elif hasattr(self._writer, "flush"):
            self._writer.flush()
