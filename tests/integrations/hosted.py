"""What the tests of all integrations share: an optimizer that spies, and how runs are checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import gradwise as gw

Step = list[Tensor]  # a gradient each parameter


class Spy(torch.optim.Optimizer):
    """Gradient descent that keeps a copy of the gradients that each update uses.

    Args:
        params: as for any optimizer.
        lr: as for any optimizer.
        events: where it writes "update", at each.
    """

    def __init__(self, params: Any, lr: float = 0.1, events: list[str] | None = None) -> None:
        super().__init__(params, {"lr": lr})
        self.used: list[Step] = []
        self.events = [] if events is None else events

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        params = [p for group in self.param_groups for p in group["params"]]
        self.events.append("update")
        self.used.append([torch.full_like(p, torch.nan) if p.grad is None else p.grad.clone()
                          for p in params])  # fmt: skip
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad, alpha=group["lr"])
        return loss


def note_readings(optimizer: torch.optim.Optimizer, events: list[str]) -> None:
    """Write "read" into `events` whenever gradwise reads the gradients of an optimizer."""
    attachment = gw.watch.watch.watch_of(optimizer).attachment  # type: ignore[union-attr]
    attachment.readers.append(lambda *_: events.append("read"))


def norm_of(step: Step) -> float:
    return float(torch.cat([g.double().flatten() for g in step]).norm())


def column(run: gw.watch.Run, name: str) -> list[float]:
    """A column of the steps, NaN where nothing was recorded."""
    table = run.steps
    assert table["step"].to_pylist() == list(range(table.num_rows)), "steps are missing or doubled"
    return [np.nan if v is None else v for v in table[name].to_pylist()]


def noted(run: gw.watch.Run, name: str) -> dict[int, float]:
    """Where a scalar was recorded, and what."""
    steps = run.steps
    pairs = zip(steps["step"].to_pylist(), steps[name].to_pylist(), strict=True)
    return {step: value for step, value in pairs if value is not None and not np.isnan(value)}


def check_gradients(folder: str | Path, names: Iterable[str], used: list[Step]) -> None:
    """The run has the gradients' statistics, step by step and layer by layer."""
    run = gw.watch.load(folder)
    names = tuple(names)
    assert run.layer_names == names
    close = {"rtol": 1e-5, "atol": 1e-9}
    np.testing.assert_allclose(column(run, "grad_norm"), [norm_of(step) for step in used], **close)
    layers = run.layers.to_pandas().set_index(["step", "layer"]).sort_index()
    assert len(layers) == len(used) * len(names)
    for at, step in enumerate(used):
        for name, grad in zip(names, step, strict=True):
            row, grad = layers.loc[(at, name)], grad.double()
            found = [row["mean"], row["std"], row["norm"], row["max_abs"]]
            wanted = [grad.mean(), grad.std(correction=0), grad.norm(), grad.abs().max()]
            np.testing.assert_allclose(found, [float(x) for x in wanted], err_msg=name, **close)


def plain_training(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[list[Any]],
    loss_of: Callable[[nn.Module, Any], Tensor],
    clip: float | None = None,
) -> list[Step]:
    """The training that a host ought to do, in the plainest words; returns gradients as used.

    Args:
        batches: the micro-batches of each step.
        clip: to this norm.
    """
    used = []
    for micro in batches:
        optimizer.zero_grad()
        for batch in micro:
            (loss_of(model, batch) / len(micro)).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        used.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        optimizer.step()
    return used


def values(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(ones: Iterable[Tensor], others: Iterable[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ones, others, strict=True))
