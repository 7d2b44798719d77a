"""Manual optimization under Lightning: the order of events, and the plain loop's numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gradwise as gw
from gradwise.attach import attachment_of
from gradwise.transforms import Autoscale

pl = pytest.importorskip("lightning.pytorch", reason="Lightning is not installed")

from gradwise.integrations.lightning import WatchCallback  # noqa: E402
from integrations.hosted import (  # noqa: E402
    Spy,
    check_gradients,
    same,
    values,
)
from integrations.lit_models import batches, loader, loss_of, network, trainer  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated"),
]
MICRO, BOUND = 2, 0.05  # batches a step, and the head's clipping norm


class Body(nn.Module):
    """Two parts that are trained in turns, each by an optimizer and a loss of its own."""

    def __init__(self) -> None:
        super().__init__()
        whole = network()
        self.body, self.head = whole[:2], whole[2:]

    def forward(self, x: Any) -> Any:
        return self.head(self.body(x))


def losses_of(net: nn.Module, batch: Any) -> tuple[Any, Any]:
    """The body's loss, which counts double, and the head's."""
    return 2 * loss_of(net, batch), loss_of(net, batch)


class Manual(pl.LightningModule):  # type: ignore[misc,name-defined]
    """Accumulates by hand, toggles, clips one of two optimizers and steps a scheduler by hand."""

    def __init__(self, attach: bool = False) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net, self.attach = Body(), attach
        self.events: list[str] = []
        self.spies: list[Spy] = []

    def on_train_start(self) -> None:
        for spy, name in zip(self.spies, ("body", "head"), strict=True):
            attachment = attachment_of(spy)
            attachment.readers.append(lambda *_, n=name: self.events.append(f"read {n}"))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        last = (batch_idx + 1) % MICRO == 0
        for at, name in enumerate(("body", "head")):
            optimizer = self.optimizers()[at]
            if batch_idx % MICRO == 0:
                optimizer.zero_grad()
            self.toggle_optimizer(optimizer)
            self.events.append(f"toggle {name}")
            self.manual_backward(losses_of(self.net, batch)[at] / MICRO)
            if last:
                if name == "head":
                    self.clip_gradients(
                        optimizer, gradient_clip_val=BOUND, gradient_clip_algorithm="norm"
                    )
                    self.events.append("clip head")
                optimizer.step()
            self.untoggle_optimizer(optimizer)
        if last:
            for scheduler in self.lr_schedulers():
                scheduler.step()

    def on_after_backward(self) -> None:
        self.events.append("backward")

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.events.append("on_before_optimizer_step")

    def configure_optimizers(self) -> Any:
        self.spies = [
            Spy(part.parameters(), lr, self.events)
            for part, lr in ((self.net.body, 0.5), (self.net.head, 0.2))
        ]
        if self.attach:
            for spy in self.spies:
                gw.attach(spy, Autoscale(), model=self.net)
        decay = [torch.optim.lr_scheduler.StepLR(spy, 1, 0.5) for spy in self.spies]
        return self.spies, decay


def plain_loop(steps: int) -> tuple[list[Spy], Body]:
    """The same training without Lightning."""
    net = Body()
    parts = net.body, net.head
    spies = [Spy(part.parameters(), lr) for part, lr in zip(parts, (0.5, 0.2), strict=True)]
    for spy in spies:
        gw.attach(spy, Autoscale())
    data = batches(MICRO * steps)
    for step in range(steps):
        for micro in range(MICRO):
            for at, spy in enumerate(spies):
                if micro == 0:
                    spy.zero_grad()
                loss = losses_of(net, data[step * MICRO + micro])[at] / MICRO
                own = [p for group in spy.param_groups for p in group["params"]]
                for p, grad in zip(own, torch.autograd.grad(loss, own), strict=True):
                    p.grad = grad if p.grad is None else p.grad + grad
                if micro == MICRO - 1:
                    if at == 1:
                        nn.utils.clip_grad_norm_(own, BOUND)
                    spy.step()
        for spy in spies:
            spy.param_groups[0]["lr"] *= 0.5
    return spies, net


@pytest.mark.parametrize("attach", [True, False], ids=["gw.attach", "the callback"])
def test_order_and_numbers(tmp_path: Path, attach: bool) -> None:
    module = Manual(attach)
    callbacks = [] if attach else [WatchCallback(tmp_path / "run", transforms=[Autoscale()])]
    trainer(tmp_path, *callbacks).fit(module, loader(6))
    body, head = "toggle body", "toggle head"
    ready = ["on_before_optimizer_step"]
    assert module.events == 3 * [
        *[body, "backward", head, "backward"],
        *[body, "backward", *ready, "read body", "update"],
        *[head, "backward", "clip head", *ready, "read head", "update"],
    ]
    spies, net = plain_loop(3)
    assert same(values(module.net), values(net))
    for ours, theirs in zip(module.spies, spies, strict=True):
        assert len(ours.used) == 3
        for one, other in zip(ours.used, theirs.used, strict=True):
            assert same(one, other)
        found, wanted = map(attachment_of, (ours, theirs))
        assert {k: float(v) for k, v in found.numbers.items()} == {
            k: float(v) for k, v in wanted.numbers.items()
        }
    if not attach:
        for at in (0, 1):
            run = gw.watch.load(tmp_path / "run" / f"{at}-Spy")
            assert run.last_step == 2
            assert run.steps["lr"].to_pylist() == [(0.5, 0.2)[at] * 0.5**s for s in range(3)]


def test_a_watch_alone_reads_what_is_used(tmp_path: Path) -> None:
    module = Manual()
    trainer(tmp_path, WatchCallback(tmp_path / "run")).fit(module, loader(4))
    for at, part in enumerate(("body", "head")):
        names = [n for n, _ in module.named_parameters() if n.startswith(f"net.{part}")]
        check_gradients(tmp_path / "run" / f"{at}-Spy", names, module.spies[at].used)
