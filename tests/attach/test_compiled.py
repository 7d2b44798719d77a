"""torch.compile: around the model, and around the step itself."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

import gradwise as gw
from attach.loops import SGD, TRANSFORMS, backward, close, loss_of, network, same, train, values

STEPS = range(5)
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),  # of torch's own imports
]


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    logging.getLogger("torch._logging._internal").setLevel(logging.ERROR)
    yield
    torch._dynamo.reset()


def breaks(reason: str = "") -> int:
    return sum(count for why, count in counters["graph_break"].items() if reason in why)


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def frames() -> int:
    return counters["frames"]["total"]


@pytest.mark.parametrize("key", ["autoscale", "center+clip", "agc"])
@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_a_compiled_step(kind: str, key: str) -> None:
    model, eager = network(), network()
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.02)
    other = getattr(torch.optim, kind)(eager.parameters(), lr=0.02)
    attachment = gw.attach(optimizer, TRANSFORMS[key]())
    truth = gw.attach(other, TRANSFORMS[key]())
    observed: list[object] = []
    attachment.observers.append(observed.append)
    step = torch.compile(lambda: optimizer.step(), backend="eager")
    for i in STEPS:
        backward(model, i)
        step()
        train(eager, other, [i])
        # A compiled Adam keeps its step count in a tensor, and rounds it like one.
        assert close(values(model), values(eager), rtol=1e-4 if kind == "Adam" else 1e-6)
    assert len(observed) == len(STEPS)
    torch.testing.assert_close(attachment.numbers, truth.numbers, rtol=1e-3, atol=0.0)


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_one_graph_break_and_no_recompilation(kind: str) -> None:
    def run(attach: bool) -> tuple[int, int]:
        torch._dynamo.reset()
        counters.clear()
        model = network()
        optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.02)
        if attach:
            gw.autoscale(optimizer)
        step = torch.compile(lambda: optimizer.step(), backend="eager")
        for i in STEPS:
            backward(model, i)
            step()
            if i == 0:
                first = frames()
        assert frames() == first  # nothing is compiled twice
        return breaks("StepHook"), graphs()

    assert run(attach=False) == (0, 1)
    assert run(attach=True) == (1, 1)  # the update is still one graph


def test_a_subclass_that_calls_its_base_is_transformed_once() -> None:
    class Sub(SGD):
        def step(self, closure: Any = None) -> Any:
            return super().step(closure)

    model, eager = network(), network()
    optimizer, other = Sub(model.parameters(), lr=0.02), Sub(eager.parameters(), lr=0.02)
    attachment = gw.attach(optimizer, TRANSFORMS["autoclip"]())
    gw.attach(other, TRANSFORMS["autoclip"]())
    step = torch.compile(lambda: optimizer.step(), backend="eager")
    for i in STEPS:
        backward(model, i)
        step()
        train(eager, other, [i])
    assert attachment.state is not None
    assert attachment.state["0.AutoClip.history"].shape == (len(STEPS),)
    assert close(values(model), values(eager), rtol=1e-6)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_under_an_eager_step(backend: str) -> None:
    model, eager = network(), network()
    optimizer, other = SGD(model.parameters(), lr=0.02), SGD(eager.parameters(), lr=0.02)
    attachment = gw.autoscale(optimizer, model=model)
    gw.autoscale(other)
    compiled: nn.Module = torch.compile(model, backend=backend)  # type: ignore[assignment]
    for i in STEPS:
        compiled.zero_grad()
        loss_of(compiled, i).backward()
        optimizer.step()
        train(eager, other, [i])
    assert close(values(model), values(eager), rtol=1e-5)
    assert breaks() == 0
    assert attachment.names[0] == "0.weight"


@pytest.mark.skipif(COMPILER is None, reason="inductor needs a C++ compiler")
def test_inductor_compiles_the_step() -> None:
    model, eager = network(bias=False), network(bias=False)
    optimizer, other = SGD(model.parameters(), lr=0.02), SGD(eager.parameters(), lr=0.02)
    gw.autoscale(optimizer)
    gw.autoscale(other)
    step = torch.compile(lambda: optimizer.step())
    for i in STEPS:
        backward(model, i)
        step()
        train(eager, other, [i])
    assert close(values(model), values(eager), rtol=1e-6)
    assert (breaks(), graphs()) == (1, 1)


def test_a_compiled_training_step() -> None:
    # Forward, backward and step in one function: graph breaks fall where torch puts them.
    model, eager = network(bias=False), network(bias=False)
    optimizer, other = SGD(model.parameters(), lr=0.02), SGD(eager.parameters(), lr=0.02)
    gw.autoscale(optimizer)
    gw.autoscale(other)
    data = torch.randn(4, 6)

    def one(net: nn.Module, opt: Any) -> None:
        opt.zero_grad()
        net(data).square().mean().backward()
        opt.step()

    compiled = torch.compile(one, backend="eager")
    for _ in STEPS:
        compiled(model, optimizer)
        one(eager, other)
    assert close(values(model), values(eager), rtol=1e-5)
    assert not same(values(model), values(network(bias=False)))


@pytest.mark.parametrize("tensor", [True, False], ids=["lr as tensor", "lr as number"])
@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
def test_model_and_step_compiled_under_a_schedule(kind: str, tensor: bool) -> None:
    # 20 steps, each with a learning rate of its own.
    def run(attach: bool) -> tuple[int, int, int, list[int]]:
        torch._dynamo.reset()
        counters.clear()
        model, eager = network(), network()
        optimizers = [
            getattr(torch.optim, kind)(
                net.parameters(), lr=torch.tensor(0.02) if tensor else 0.02, foreach=not tensor
            )
            for net in (model, eager)
        ]
        schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.9) for o in optimizers]
        if attach:
            for optimizer in optimizers:
                gw.autoscale(optimizer)
        compiled: nn.Module = torch.compile(model, backend="eager")  # type: ignore[assignment]
        step = torch.compile(lambda: optimizers[0].step(), backend="eager")
        seen = []
        for i in range(20):
            compiled.zero_grad()
            loss_of(compiled, i).backward()
            step()
            train(eager, optimizers[1], [i])
            for schedule in schedules:
                schedule.step()
            seen.append(frames())
        assert close(values(model), values(eager), rtol=1e-3)
        assert float(optimizers[0].param_groups[0]["lr"]) == pytest.approx(0.02 * 0.9**20)
        return breaks(), breaks("StepHook"), graphs(), [n - seen[0] for n in seen]

    plain, attached = run(attach=False), run(attach=True)
    # A scheduler wraps `step` in something that torch itself breaks at; beside that there may be
    # the documented one.
    assert attached[1] <= 1
    assert attached[0] <= plain[0] + 1
    assert attached[2] == plain[2]  # the model and the update, as without gradwise
    assert attached[3] == plain[3]  # nothing is compiled again that would not be without
    if tensor:
        assert attached[3] == [0] * 20
