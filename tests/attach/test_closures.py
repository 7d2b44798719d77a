"""Steps with a closure: torch calls step hooks before it, the transform has to come after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradwise as gw
from attach.loops import SGD, Feed, copy_state, loss_of, network, same, same_state, train, values
from gradwise.transforms import Autoscale

STEPS = range(4)
CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "positional": lambda optimizer, closure: optimizer.step(closure),
    "keyword": lambda optimizer, closure: optimizer.step(closure=closure),
}
KINDS = ("SGD", "Adam", "Adagrad", "NAdam", "Rprop", "Adafactor", "ASGD")


def make_closure(model: nn.Module, optimizer: Any, step: int) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        return loss

    return closure


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", KINDS)
def test_same_as_without(kind: str, call: str) -> None:
    with_closure, without = network(), network()
    optimizer = getattr(torch.optim, kind)(with_closure.parameters(), lr=0.02)
    attachment = gw.autoscale(optimizer)
    twin = getattr(torch.optim, kind)(without.parameters(), lr=0.02)
    gw.autoscale(twin)
    for step in STEPS:
        CALLS[call](optimizer, make_closure(with_closure, optimizer, step))
        assert attachment.state is not None
        assert attachment.state["0.Autoscale[trend].step"] == step + 1  # once a step
    assert same(values(with_closure), train(without, twin, STEPS))


@pytest.mark.parametrize("call", CALLS)
def test_the_loss_comes_back(call: str) -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.02)
    gw.autoscale(optimizer)
    marker = object()  # whatever a closure returns is the caller's business

    def closure() -> object:
        make_closure(model, optimizer, 0)()
        return marker

    assert CALLS[call](optimizer, closure) is marker


@pytest.mark.parametrize("call", CALLS)
def test_none_is_no_closure(call: str) -> None:
    model, twin = network(), network()
    optimizer = SGD(model.parameters(), lr=0.02)
    gw.autoscale(optimizer)
    other = SGD(twin.parameters(), lr=0.02)
    gw.autoscale(other)
    for step in STEPS:
        make_closure(model, optimizer, step)()
        assert CALLS[call](optimizer, None) is None
    assert same(values(model), train(twin, other, STEPS))


def test_gradients_are_needed_only_after_the_closure() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.02)
    attachment = gw.autoscale(optimizer)
    assert all(p.grad is None for p in model.parameters())
    seen: list[bool] = []

    def closure() -> Tensor:
        seen.append(attachment.moments is None)  # nothing is measured before there are gradients
        return make_closure(model, optimizer, 0)()

    optimizer.step(closure)
    assert seen == [True]
    assert attachment.moments is not None


@pytest.mark.parametrize("call", CALLS)
def test_a_closure_that_raises_leaves_nothing_behind(call: str) -> None:
    model, twin = network(), network()
    optimizer = SGD(model.parameters(), lr=0.02)
    attachment = gw.autoscale(optimizer)
    other = SGD(twin.parameters(), lr=0.02)
    gw.autoscale(other)

    def broken() -> Tensor:
        raise KeyboardInterrupt

    CALLS[call](optimizer, make_closure(model, optimizer, 0))
    before = copy_state(attachment)
    with pytest.raises(KeyboardInterrupt):
        CALLS[call](optimizer, broken)
    assert same_state(before, attachment.state)
    for step in (1, 2):
        CALLS[call](optimizer, make_closure(model, optimizer, step))
    assert same(values(model), train(twin, other, (0, 1, 2)))


def test_lbfgs_goes_on_after_a_closure_that_raised() -> None:
    def run(stumble: bool) -> list[Tensor]:
        model = network()
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
        gw.autoscale(optimizer)

        def broken() -> Tensor:
            raise OSError("the data are gone")

        if stumble:
            with pytest.raises(OSError, match="the data are gone"):
                optimizer.step(broken)
        for step in (0, 1):
            optimizer.step(make_closure(model, optimizer, step))
        return values(model)

    assert same(run(stumble=True), run(stumble=False))


class Takes(SGD):
    """An optimizer whose `step` has another second argument, as some have."""

    seen: Any = None

    def step(self, closure: Any = None, extra: Any = None) -> Any:
        self.seen = (closure, extra)
        return super().step(closure if callable(closure) else None)


@pytest.mark.parametrize("argument", [0.5, [torch.ones(1)], None])
def test_a_second_argument_that_is_no_closure(argument: Any) -> None:
    model, fed = network(), network()
    optimizer, twin = Takes(model.parameters(), lr=0.02), SGD(fed.parameters(), lr=0.02)
    gw.autoscale(optimizer)
    for net in (model, fed):
        loss_of(net, 0).backward()
    optimizer.step(argument)
    assert optimizer.seen == (argument, None)
    Feed(fed, Autoscale())()
    twin.step()
    assert same(values(model), values(fed))


def test_other_arguments_arrive() -> None:
    model = network()
    optimizer = Takes(model.parameters(), lr=0.02)
    gw.autoscale(optimizer)
    optimizer.step(make_closure(model, optimizer, 0), "positional")
    assert optimizer.seen[1] == "positional"
    optimizer.step(closure=make_closure(model, optimizer, 0), extra="keyword")
    assert optimizer.seen[1] == "keyword"
