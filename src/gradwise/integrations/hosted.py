"""A watch whose training loop, a library's, counts the steps and keeps the checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradwise.watch.watch import Watch

__all__ = ["HostedWatch", "Part"]


class HostedWatch(Watch):
    """A `Watch` of a training loop that counts its own steps and keeps its own checkpoints."""

    _said = -1  # the last step that was said to begin
    _late: tuple[dict[str, Any], int] = {}, -1  # what was loaded while it recorded, and when

    def start_at(self, step: int) -> None:
        """Give the first step its number, unless it has begun or has a higher one.

        Args:
            step: the number.
        """
        if self._recorder is None and not self._beginning.asked and step > self._beginning.step:
            self._beginning = dataclasses.replace(self._beginning, step=step)

    def begin(self, step: int | None = None) -> None:
        """Say that a step begins, so that those count as well that the optimizer then skips.

        Those before the first that is taken count and have no row.

        Args:
            step: its number, None for the next; one that has begun already changes nothing.
        """
        if self._closed or not self._writes:
            return
        last = max(self.step, self._said)
        if step is None:
            step = last + 1
        if step <= last:
            return
        self._said = step
        if self._recorder is None:
            self.start_at(step)
        else:
            self._recorder.begin(step)

    def record_in(self, out: Path) -> None:
        """Record in another folder, if the first step has not begun."""
        self._out = out

    @property
    def loaded(self) -> dict[str, Any]:
        """The state in a checkpoint that the optimizer has loaded since its last step.

        Empty where it has loaded none, or before the first step, where the watch itself goes on
        from the checkpoint.
        """
        entries, step = self._late
        return entries if step == self.step else {}

    def state_dict(self) -> dict[str, Any]:
        """Which run this is and which step comes next; empty before the first.

        `optimizer.state_dict()` carries it as well, until the watch is closed.
        """
        return self._save()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on with a run, if the first step has not begun; what is no state changes nothing."""
        self._load(dict(state_dict))

    def _load(self, entries: dict[str, Any]) -> None:
        super()._load(entries)
        if self._recorder is not None:
            self._late = entries, self.step


class Part(nn.Module):
    """The parameters of a model that one of its optimizers has, by their names in the model.

    Args:
        model: the whole.
        optimizer: whose part it is.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        super().__init__()
        self.whole = type(model).__name__
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        self._part = [(name, p) for name, p in model.named_parameters() if id(p) in held]

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """As in `nn.Module`."""
        return iter(self._part)
