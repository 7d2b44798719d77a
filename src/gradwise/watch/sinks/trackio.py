"""Trackio: rows in the script's run, or in one of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gradwise.errors import UserError
from gradwise.watch.sinks.base import Sink, load_tool

# Trackio writes these itself; another metric of that name it would rename with a warning.
RESERVED = ("project", "run", "timestamp", "step", "time", "metrics")


class Trackio(Sink):
    """Sends rows to Trackio, at the optimizer's step.

    A Trackio run has one step. Rows that the script logs without saying at which come after the
    last row there is, so use `trackio.log(row, step=...)` beside this sink, or give it a run of its
    own with `project=`: the dashboard draws the runs of a project together.

    Infinite values are sent. After a resume Trackio keeps what was logged for the same steps
    before.

    Args:
        run: what `trackio.init` returned; None takes the current run, where no project is given.
        project: opens a run of the sink's own in this project, as `trackio.init` does, and finishes
            it at the end.
        name: of that run; None lets Trackio choose.
        every: steps from row to row.
        layer_metrics: what of each layer, see `Sink`.
        layers: which layers, as shell patterns.
        layers_every: steps from one row with layers to the next, see `Sink`.
        scalars: which of the other numbers, as shell patterns; one that is called like a field of
            Trackio's (project, run, timestamp, metrics) is put below `user/`.

    Raises:
        UserError: where trackio is not installed, there is no run, or both a run and a project are
            given.
    """

    def __init__(
        self,
        run: Any = None,
        *,
        project: str | None = None,
        name: str | None = None,
        every: int = 10,
        layer_metrics: Sequence[str] = ("norm", "std"),
        layers: str | Sequence[str] | None = None,
        layers_every: int | None = None,
        scalars: str | Sequence[str] | None = None,
    ) -> None:
        super().__init__(
            every=every,
            layer_metrics=layer_metrics,
            layers=layers,
            layers_every=layers_every,
            scalars=scalars,
        )
        self._tool = load_tool("trackio", "trackio")
        if project is not None and run is not None:
            raise UserError(f"expected a run or a project, got a run and project={project!r}")
        if project is None and name is not None:
            raise UserError(f"expected name only with project, got name={name!r}")
        if project is None and run is None:
            # Trackio knows the current run of a thread only, so it is asked here, in the user's.
            run = self._tool.context_vars.current_run.get()
            if run is None:
                raise UserError(
                    "there is no current Trackio run: call trackio.init first, or pass project=..."
                )
        if run is not None and not hasattr(run, "log"):
            raise UserError(f"expected run to be a Trackio run, got {type(run).__name__}")
        self._run = run
        self._project = project
        self._name = name

    def open(self, names: tuple[str, ...], meta: Mapping[str, Any]) -> None:
        """Open a run of the sink's own, where that was asked for."""
        if self._project is not None:
            # In this thread, where Trackio knows of no other run that it would finish.
            self._run = self._tool.init(
                self._project,
                name=self._name,
                config={key: value for key, value in meta.items() if not key.startswith("_")},
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )

    def write(self, step: int, values: Mapping[str, float], time: float) -> None:
        """Hand a row to Trackio, which stores it from a thread of its own."""
        taken = {f"user/{n}" if n in RESERVED else n: value for n, value in values.items()}
        self._run.log(taken, step=step)

    def close(self) -> None:
        """Finish the sink's own run; the script's stays open."""
        if self._project is not None:
            self._run.finish()
