"""torch.compile: hooks that come and go cause no new compilation, and see the same gradients."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from gradwise.watch.probes.noise import NoiseProbe
from noise.loops import Loop, agrees, looped, loss_of, network, numbers

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


@pytest.mark.parametrize(
    "backend",
    [
        "eager",
        "aot_eager",
        pytest.param(
            "inductor",
            marks=pytest.mark.skipif(COMPILER is None, reason="inductor needs a C++ compiler"),
        ),
    ],
)
def test_a_compiled_model(backend: str) -> None:
    model, eager = network(), network()
    compiled: nn.Module = torch.compile(model, backend=backend)  # type: ignore[assignment]
    loop = Loop(compiled, NoiseProbe(list(model.parameters()), every=2))
    twin = Loop(eager, NoiseProbe(list(eager.parameters()), every=2))
    measured = 0
    for step in range(7):
        found, other = loop.step(), twin.step()
        assert set(found) == set(other)
        if found:
            measured += 1
            assert agrees(found, numbers(other), rel=1e-9)
        if step == 0:
            frames, graphs = counters["frames"]["total"], counters["stats"]["unique_graphs"]
    assert measured == 3
    assert frames >= 1
    assert counters["frames"]["total"] == frames  # nothing is compiled twice
    assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"]


# Of what torch itself does when it traces a loss that is no leaf.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_backward_pass() -> None:
    loop, twin = looped(every=2), looped(every=2)
    compilations = []
    for _ in range(7):
        loop.zero()
        with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
            for m in range(3):
                (loss_of(loop.model, 100 * loop.done + m) / 3).backward()
        loop.probe.gradients([p.grad for p in loop.model.parameters()])
        assert loop.probe.backwards == 3
        loop.optimizer.step()
        loop.done += 1
        found, other = loop.probe.end(), twin.step()
        assert set(found) == set(other)
        assert not found or agrees(found, numbers(other), rel=1e-9)
        compilations.append(counters["stats"]["unique_graphs"])
    # With hooks and without, first pass and later ones: a graph each, and no more of them.
    assert compilations[-1] == compilations[-4] > 0
