"""One transform a step, however many `step` methods and hooks a step runs through."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradwise as gw
from attach.loops import SGD, Feed, loss_of, network, same, train_by_function, values
from gradwise.transforms import Autoscale, ClipNorm

STEPS = range(4)


class Once(SGD):
    """A subclass that adds something and leaves the rest to its base."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


class Twice(Once):
    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else closure()
        super().step()
        return loss


class Breaks(Once):
    """Raises after the hooks of both `step`s ran, where told to."""

    broken = False

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        if self.broken:
            raise RuntimeError("out of memory")
        return loss


@pytest.fixture(autouse=True)
def _hooks_everywhere() -> None:
    # torch wraps a class's `step` when the first object of that very class is made.
    for kind in (SGD, Once, Twice, Breaks):
        kind(nn.Linear(1, 1).parameters(), lr=0.1)


def closure_for(model: nn.Module, step: int) -> Any:
    def closure() -> Tensor:
        model.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        return loss

    return closure


@pytest.mark.parametrize("how", ["plain", "positional", "keyword"])
@pytest.mark.parametrize("kind", [Once, Twice, Breaks])
def test_super_step(kind: type[SGD], how: str) -> None:
    model, fed = network(), network()
    optimizer = kind(model.parameters(), lr=0.02)
    attachment = gw.autoscale(optimizer)
    observed: list[object] = []
    attachment.observers.append(observed.append)
    for step in STEPS:
        closure = closure_for(model, step)
        if how == "plain":
            closure()
            optimizer.step()
        elif how == "positional":
            assert optimizer.step(closure) is not None
        else:
            assert optimizer.step(closure=closure) is not None
    assert len(observed) == len(STEPS)
    twin = SGD(fed.parameters(), lr=0.02)
    assert same(values(model), train_by_function(fed, twin, Autoscale(), STEPS))


def test_a_step_that_raises_and_the_next_one() -> None:
    model, fed = network(), network()
    optimizer = Breaks(model.parameters(), lr=0.02)
    attachment = gw.autoscale(optimizer)
    observed: list[object] = []
    attachment.observers.append(observed.append)
    for step in STEPS:
        closure_for(model, step)()
        optimizer.broken = step == 1
        if optimizer.broken:
            with pytest.raises(RuntimeError, match="out of memory"):
                optimizer.step()
        else:
            optimizer.step()
    assert len(observed) == len(STEPS)
    twin = SGD(fed.parameters(), lr=0.02)
    assert same(values(model), train_by_function(fed, twin, Autoscale(), STEPS))


def test_the_second_attempt_of_a_step_is_a_step() -> None:
    # What was transformed before the step raised is in the gradients: a second attempt without a
    # new backward transforms them again, as clipping by hand would.
    model = network()
    optimizer = Breaks(model.parameters(), lr=0.02)
    attachment = gw.attach(optimizer, ClipNorm(0.1))
    closure_for(model, 3)()
    optimizer.broken = True
    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step()
    optimizer.broken = False
    optimizer.step()
    assert attachment.moments is not None
    assert attachment.moments.total_norm.item() == pytest.approx(0.1, rel=1e-4)


class Outer(torch.optim.Optimizer):
    """Steps another optimizer of the same parameters, then its own way (as Lookahead does)."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        super().__init__(inner.param_groups[0]["params"], {"lr": 0.02})
        self.base = inner

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        loss = self.base.step(closure)
        for param in self.param_groups[0]["params"]:
            param.sub_(param.grad, alpha=0.01)
        return loss


@pytest.mark.parametrize("attached", ["inner", "outer", "both"])
def test_nested_optimizers(attached: str) -> None:
    model, fed = network(), network()
    inner = SGD(model.parameters(), lr=0.02)
    outer = Outer(inner)
    at = {"inner": [inner], "outer": [outer], "both": [outer, inner]}[attached]
    attachments = [gw.attach(optimizer, ClipNorm(0.3), Autoscale("ratio")) for optimizer in at]
    twin_inner = SGD(fed.parameters(), lr=0.02)
    twin_outer = Outer(twin_inner)
    feeds = [Feed(fed, attachment.transform) for attachment in attachments]
    for step in STEPS:
        for net in (model, fed):
            closure_for(net, step)()
        outer.step()
        for feed in feeds:  # each optimizer has its own transform and its own turn
            feed()
        twin_outer.step()
    assert same(values(model), values(fed))


def test_a_step_inside_a_closure_of_another_optimizer() -> None:
    # Adversarial training: the discriminator steps while the generator's closure runs.
    first, second = network(), network()
    one, two = SGD(first.parameters(), lr=0.02), SGD(second.parameters(), lr=0.02)
    attachments = [gw.autoscale(one), gw.autoscale(two)]
    for step in STEPS:

        def closure(step: int = step) -> Tensor:
            two.step(closure_for(second, step))
            return closure_for(first, step)()

        one.step(closure)
    for attachment in attachments:
        assert attachment.state is not None
        assert attachment.state["0.Autoscale[trend].step"] == len(STEPS)
    assert same(values(first), values(second))
