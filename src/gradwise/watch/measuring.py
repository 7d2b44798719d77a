"""Everything that a `Watch` measures besides the moments of the gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gradwise.attach import Attachment
from gradwise.watch.columns import DIRECTION_METRICS, WEIGHT_METRICS
from gradwise.watch.noise import NoiseScale
from gradwise.watch.page import Page, Row
from gradwise.watch.probes.directions import Directions
from gradwise.watch.probes.histograms import Histograms
from gradwise.watch.probes.noise import NoiseProbe
from gradwise.watch.probes.weights import Weights
from gradwise.watch.probing import Probes

NEVER = 1 << 62


class AllProbes(Probes):
    """Everything that a `Watch` records.

    Args:
        attachment: whose parameters these are.
        weights_every: in how many steps every layer has its turn to be compared with itself before
            the update; 0 leaves weights alone.
        histograms: every so many steps; 0 for none.
        directions: every so many steps; 0 for none.
        noise_every: every so many steps; 0 for none.
        batch_size: samples in one backward pass, as unit of the noise scale.
        model: that the parameters are of, if it is known.
    """

    extremes = True

    def __init__(
        self,
        attachment: Attachment,
        *,
        weights_every: int = 10,
        histograms: int = 0,
        directions: int = 0,
        noise_every: int = 10,
        batch_size: int | None = None,
        model: nn.Module | None = None,
    ) -> None:
        self._model = model
        self._every = {
            "weights": weights_every,
            "histograms": histograms,
            "directions": directions,
            "noise": noise_every,
        }
        self.noise_scale = NoiseScale(batch_size)
        self.units = {"noise_scale": self.noise_scale.unit}
        self.layer_metrics = (
            *(WEIGHT_METRICS if weights_every else ()),
            *(DIRECTION_METRICS if directions else ()),
        )
        self.step_metrics = ("skipped", "backwards", "lr", "noise_scale", "time")
        self._histograms = Histograms(histograms) if histograms else None
        if self._histograms is not None:
            self.histogram_edges = self._histograms.edges
        self._noise: NoiseProbe | None = None
        self._params: Sequence[Tensor] | None = None
        self._found: dict[str, Tensor] = {}
        self._waiting: dict[str, Tensor | float] = {}  # for the next row
        self._counts: Tensor | None = None
        self._look_at(attachment)

    def _look_at(self, attachment: Attachment) -> None:
        """Probes of the optimizer's parameters as they are now."""
        params = [p for group in attachment.optimizer.param_groups for p in group["params"]]
        every = self._every
        self._params = params
        self._weights = (
            Weights(params, attachment.names, every["weights"]) if every["weights"] else None
        )
        self._directions = Directions(every["directions"]) if every["directions"] else None
        if self._noise is not None:
            self._noise.close()
        # It counts the backward passes of every step, whether the noise scale is wanted or not.
        self._noise = NoiseProbe(params, every=every["noise"] or NEVER, model=self._model)

    @property
    def backwards(self) -> int:
        """Backward passes since the last step."""
        return 0 if self._noise is None else self._noise.backwards

    def after_step(
        self, optimizer: torch.optim.Optimizer, call: Callable[[], None]
    ) -> RemovableHandle:
        """Have a function called after each update."""
        # Compiled steps get a graph break here, as in `StepHook`.
        return optimizer.register_step_post_hook(
            torch.compiler.disable(lambda *_: call())  # type: ignore[no-untyped-call]
        )

    def read(
        self,
        attachment: Attachment,
        grads: Sequence[Tensor | None],
        scale: Tensor | None,
        recorded: bool,
    ) -> None:
        """Look at the gradients before the transforms, and at the weights before the update."""
        if attachment.params is not self._params:
            if not _same(attachment.params, self._params):
                self._look_at(attachment)
            self._params = attachment.params
        if self._noise is not None:
            self._noise.gradients(grads)
        self._found, self._counts = {}, None
        if not recorded:
            return
        if self._weights is not None:
            self._weights.before()
        if self._directions is not None:
            self._found = self._directions.look(grads)
        if self._histograms is not None:
            self._counts = self._histograms.look(grads, scale)

    def fill(self, page: Page, row: Row, attachment: Attachment) -> None:
        """Directions, histograms, the transforms' own numbers, learning rates, counters."""
        for name, values in self._found.items():
            page.put(name, values)
        if self._counts is not None:
            page.put_histogram(self._counts)
        for name, value in attachment.numbers.items():
            page.put(f"transform/{name}", value)
        if attachment.skips is not None:
            page.put("skipped", attachment.skips)
        for at, group in enumerate(attachment.optimizer.param_groups):
            lr = group.get("lr")
            name = "lr" if at == 0 else f"lr/{at}"
            if isinstance(lr, Tensor):
                page.put(name, lr.detach().reshape(()))
            elif isinstance(lr, (int, float)):
                row.scalars[name] = float(lr)
        row.scalars["backwards"] = float(self.backwards)

    def end(self, page: Page | None) -> None:
        """Weights and updates, and the two sums of squares that the noise scale follows from."""
        found: dict[str, Any] = {} if self._weights is None else dict(self._weights.after())
        if self._noise is not None:
            self._waiting |= self._noise.end()
            self.noise_scale.reason = self._noise.reason
        if page is None:  # a step that is not recorded
            return
        found |= self._waiting
        self._waiting = {}
        for name, value in found.items():
            if isinstance(value, Tensor):
                page.put(name, value)
            else:
                page.rows[-1].scalars[name] = float(value)

    def deriver(self) -> Callable[[Sequence[Row], dict[str, Any]], None]:
        """The noise scale at each row from all pairs of sums so far."""
        return partial(_noise_column, self.noise_scale)

    def close(self) -> None:
        """Take the hooks off the parameters."""
        if self._noise is not None:
            self._noise.close()


def _same(ones: Sequence[Tensor], others: Sequence[Tensor] | None) -> bool:
    return (
        others is not None
        and len(ones) == len(others)
        and all(one is other for one, other in zip(ones, others, strict=True))
    )


def _noise_column(scale: NoiseScale, rows: Sequence[Row], columns: dict[str, Any]) -> None:
    small, big, ratio = (
        columns.pop(f"noise_{name}", np.full(len(rows), np.nan))
        for name in ("small", "big", "ratio")
    )
    told = np.array([row.scalars.pop("noise_ratio", np.nan) for row in rows])
    columns["noise_scale"] = scale.column(small, big, np.where(np.isnan(told), ratio, told))
