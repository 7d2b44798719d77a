"""MLflow: a row is one request."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from gradwise.errors import UserError
from gradwise.watch.sinks.base import Sink, load_tool

BATCH = 1000  # metrics that MLflow takes in one request
LONGEST = 250  # letters of a metric's name


class MLflow(Sink):
    """Sends rows to a run of MLflow, each in one request (1000 metrics at most).

    MLflow's names have letters, digits and `_-./ :`, at most 250 of them, and none may be a folder
    of another: every other character becomes `_`, a longer name is cut and ends in a checksum, and
    the second learning rate is `lr_1`, since `lr` is there. Infinite values are not sent: MLflow's
    databases would make 1.8e308 of them, at which no curve can be read; `grad/nonfinite` tells.

    After a resume with the same run id MLflow keeps, and shows, what was logged for the same steps
    before.

    Args:
        run_id: the run; None takes this thread's active one.
        client: an `MlflowClient`; None makes one for the tracking URI that is set now.
        every: steps from row to row.
        layer_metrics: what of each layer, see `Sink`.
        layers: which layers, as shell patterns.
        layers_every: steps from one row with layers to the next, see `Sink`.
        scalars: which of the other numbers, as shell patterns.

    Raises:
        UserError: where mlflow is not installed, or there is no run.
    """

    def __init__(
        self,
        run_id: str | None = None,
        client: Any = None,
        *,
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
        tool = load_tool("mlflow", "mlflow")
        if run_id is None:
            # MLflow knows the active run of a thread only, so it is asked here, in the user's.
            active = tool.active_run()
            if active is None:
                raise UserError(
                    "there is no active MLflow run: call mlflow.start_run first, or pass its run_id"
                )
            run_id = active.info.run_id
        if client is not None and not hasattr(client, "log_batch"):
            raise UserError(f"expected client to be an MlflowClient, got {type(client).__name__}")
        self._client = tool.MlflowClient() if client is None else client
        self._metric = load_tool("mlflow.entities", "mlflow").Metric
        self._run_id = run_id
        self._names = Names()

    def write(self, step: int, values: Mapping[str, float], time: float) -> None:
        """Send a row and wait until it has arrived."""
        moment = int(time * 1000)
        metrics = [
            self._metric(self._names[name], value, moment, step)
            for name, value in values.items()
            if not math.isinf(value)
        ]
        for begin in range(0, len(metrics), BATCH):
            batch = metrics[begin : begin + BATCH]
            self._client.log_batch(self._run_id, metrics=batch, synchronous=True)


class Names:
    """The names that MLflow takes, one for each of ours, no two alike.

    Examples:
        >>> names = Names()
        >>> names["grad/norm"], names["lr"], names["lr/1"], names["grad/layer/w[0]/norm"]
        ('grad/norm', 'lr', 'lr_1', 'grad/layer/w_0_/norm')
        >>> names["grad/layer/w(0)/norm"]
        'grad/layer/w_0_/norm_1ca7b08a'
    """

    def __init__(self) -> None:
        self._found: dict[str, str] = {}
        self._used: set[str] = set()
        # Ours keep their names, whatever the user logs before them.
        self._folders = {"grad", "grad/applied", "grad/layer", "transform"}

    def __getitem__(self, name: str) -> str:
        if name not in self._found:
            self._found[name] = self._fit(name)
        return self._found[name]

    def _fit(self, name: str) -> str:
        parts = re.sub(r"[^/\w.\- :]", "_", name, flags=re.ASCII).split("/")
        # Empty ones and those that move through folders would name something else.
        fitting = "/".join("_" if part in ("", ".", "..") else part for part in parts)
        mark = f"_{zlib.crc32(name.encode()):08x}"
        if len(fitting) > LONGEST:
            fitting = fitting[: LONGEST - len(mark)] + mark
        folders = _folders(fitting)
        if fitting in self._folders or not folders.isdisjoint(self._used):
            fitting = fitting.replace("/", "_")
        if fitting in self._used or fitting in self._folders:
            fitting = fitting[: LONGEST - len(mark)] + mark
        self._used.add(fitting)
        self._folders |= _folders(fitting)
        return fitting


def _folders(name: str) -> set[str]:
    parts = name.split("/")
    return {"/".join(parts[:depth]) for depth in range(1, len(parts))}
