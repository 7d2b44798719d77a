"""Weights & Biases: rows join those of the script, without moving its step."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from gradwise.errors import UserError
from gradwise.watch.sinks.base import Sink, load_tool
from gradwise.watch.sinks.names import STEP

LOG = logging.getLogger("gradwise")

ROWS_UNTIL_WORD = 50  # that joined no row of the script


class WandB(Sink):
    """Sends rows to a run of Weights & Biases.

    A W&B run has one step, which each `run.log` of the script moves on, or sets. A second voice
    that moves it too would shift the script's own curves, and make W&B refuse what the script logs
    with `step=`. So by default a row only **joins the next row that the script logs**, which then
    has the latest of each number: there are as many points as the script has rows, and at most one
    every `every` steps. The curves of `grad/` and `transform/` are drawn over `grad/step`, the
    optimizer's step, whatever the script counts.

    Where nobody else logs to the run, or nobody with `step=` (Lightning and Transformers do not),
    `own_rows=True` sends every row at once.

    Of the scalars that you `log` to the watch, none is sent unless `scalars` says so: it would
    replace what the script logs under the same name. Infinite values are sent.

    After a resume with `wandb.init(id=..., resume="must")` the curves go on; W&B keeps what was
    logged after the checkpoint, so `grad/step` goes back once. Close the watch before
    `wandb.finish()`, or leave both to the end of the program.

    Args:
        run: what `wandb.init` returned; None takes the current run.
        every: steps from row to row.
        layer_metrics: what of each layer, see `Sink`.
        layers: which layers, as shell patterns.
        layers_every: steps from one row with layers to the next, see `Sink`.
        scalars: which of the other numbers, as shell patterns; None for all, those of the user
            included.
        own_rows: log rows at once, each of which moves the run's step by one.

    Raises:
        UserError: where wandb is not installed, or there is no run.
    """

    def __init__(
        self,
        run: Any = None,
        *,
        every: int = 10,
        layer_metrics: Sequence[str] = ("norm", "std"),
        layers: str | Sequence[str] | None = None,
        layers_every: int | None = None,
        scalars: str | Sequence[str] | None = ("grad/*", "transform/*", "lr", "lr/*"),
        own_rows: bool = False,
    ) -> None:
        super().__init__(
            every=every,
            layer_metrics=layer_metrics,
            layers=layers,
            layers_every=layers_every,
            scalars=scalars,
        )
        if run is None:
            run = load_tool("wandb", "wandb").run
        if run is None:
            raise UserError("there is no current W&B run: call wandb.init first, or pass its run")
        if not (hasattr(run, "log") and hasattr(run, "define_metric")):
            raise UserError(f"expected run to be a W&B run, got {type(run).__name__}")
        self._run = run
        self._own_rows = own_rows
        self._defined: set[str] = set()
        self._joined = 0
        self._step: int | None = None

    def open(self, names: tuple[str, ...], meta: Mapping[str, Any]) -> None:
        """Make the optimizer's step known to W&B."""
        self._run.define_metric(STEP, hidden=True)

    def write(self, step: int, values: Mapping[str, float], time: float) -> None:
        """Log a row, or have it join the script's next one."""
        # One by one: of two patterns that fit, W&B takes either, and trainers define "*".
        for name in values.keys() - self._defined:
            self._defined.add(name)
            if name.startswith(("grad/", "transform/")):
                self._run.define_metric(name, step_metric=STEP)
        # commit=False puts the values into the row that is under way, where they replace earlier
        # ones of the same names; the row's own step is left as it is.
        self._run.log({**values, STEP: step}, commit=self._own_rows)
        if not self._own_rows:
            self._notice()

    def _notice(self) -> None:
        """Say once that rows do not get through, where the script logs nothing."""
        self._joined += 1
        if self._joined == 1:
            self._step = self._run.step
        elif self._joined == ROWS_UNTIL_WORD and self._run.step == self._step:
            LOG.warning(
                "%d rows for W&B joined one row that the script has not logged yet, so only the "
                "latest values are kept: WandB(own_rows=True) sends each row at once",
                ROWS_UNTIL_WORD,
            )
