"""What a recorder asks of who measures more than the moments of the gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from gradwise.attach import Attachment
from gradwise.watch.page import Page, Row


class Probes:
    """Nothing besides; what a `Recorder` asks of its probes.

    Attributes:
        extremes: whether the gradients' extremes and zeros are measured.
        layer_metrics: the columns that come of it, one value a layer.
        step_metrics: the columns that come of it, one value a step.
        histogram_edges: see `RunWriter`.
        units: of columns that have another one than usual.
    """

    extremes = False
    layer_metrics: tuple[str, ...] = ()
    step_metrics: tuple[str, ...] = ()
    histogram_edges: tuple[float, ...] = ()
    units: Mapping[str, str] = MappingProxyType({})

    @property
    def backwards(self) -> int:
        """Backward passes since the last step, as far as they are counted."""
        return 0

    def after_step(
        self, optimizer: torch.optim.Optimizer, call: Callable[[], None]
    ) -> RemovableHandle | None:
        """Have a function called after each update, if that is of any use."""
        return None

    def read(
        self,
        attachment: Attachment,
        grads: Sequence[Tensor | None],
        scale: Tensor | None,
        recorded: bool,
    ) -> None:
        """Look at the gradients before the transforms."""

    def fill(self, page: Page, row: Row, attachment: Attachment) -> None:
        """Put what was found so far into the page's last row."""

    def end(self, page: Page | None) -> None:
        """Put what is known after the update into the last row of the page, if it is recorded."""

    def deriver(self) -> Callable[[Sequence[Row], dict[str, Any]], None]:
        """What replaces columns [K] of rows by what follows from them, in another thread.

        It must not keep the parameters alive.
        """
        return _nothing

    def close(self) -> None:
        """Leave the parameters alone."""


def _nothing(rows: Sequence[Row], columns: dict[str, Any]) -> None:
    """Leave the columns as they are."""
