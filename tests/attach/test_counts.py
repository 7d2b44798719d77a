"""How often a step goes over the gradients' memory, and how many calls it makes."""

from __future__ import annotations

import pytest
import torch

import gradwise as gw
from attach.counting import Calls, watched
from attach.loops import SGD, TRANSFORMS

SMALL, LARGE = (16, 16), (600, 600)
SIZE = pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["small", "large"])
SHIFT_AND_SCALE = ("autoscale", "znorm", "center+clip")
SHIFT = ("center",)
SCALE = ("clip", "zclip", "autoclip")
PER_TENSOR = ("none", *SHIFT_AND_SCALE, *SHIFT, *SCALE)


def step(
    key: str, shape: tuple[int, ...], count: int = 4, route: pytest.MonkeyPatch | None = None
) -> Calls:
    """What one steady step calls; `route` takes the one of an accelerator."""
    if route is not None:
        route.setenv("GRADWISE_BACKEND", "foreach")
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape)) for _ in range(count)]
    optimizer = SGD(params, lr=0.1)
    runs = watched(gw.attach(optimizer, TRANSFORMS[key]()))
    for i in range(3):
        for param in params:
            param.grad = torch.randn(shape) * (i + 1)
        optimizer.step()
    assert len(set(runs[-1].reads)) == len(set(runs[-1].writes)) == 1  # all tensors alike
    return runs[-1]


@SIZE
@pytest.mark.parametrize("key", PER_TENSOR)
def test_passes_over_host_memory(key: str, shape: tuple[int, int]) -> None:
    # Measuring reads a small tensor once and a large one twice, the second time from a cache.
    # Applying goes over it once; a small one is shifted and scaled in two passes, but two calls
    # for all of them.
    calls = step(key, shape)
    writes = 0 if key == "none" else 2 if key in SHIFT_AND_SCALE and shape == SMALL else 1
    assert calls.writes[0] <= writes
    assert calls.reads[0] <= (1 if shape == SMALL else 2) + writes
    assert (calls.writes[0] > 0) == (writes > 0)


@SIZE
@pytest.mark.parametrize("key", [*PER_TENSOR, "agc", "center-row"])
def test_passes_over_device_memory(
    key: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Two reductions to measure, one map to apply.
    calls = step(key, shape, route=monkeypatch)
    assert calls.writes[0] <= int(key != "none")
    assert calls.reads[0] <= 2 + int(key != "none")


@pytest.mark.parametrize("key", PER_TENSOR)
def test_calls_do_not_grow_with_the_number_of_small_tensors(key: str) -> None:
    few, many = step(key, SMALL, 5), step(key, SMALL, 50)
    assert len(many.names) == len(few.names) <= 90


@pytest.mark.parametrize(
    ("key", "bound"), [("none", 6), ("autoscale", 8), ("clip", 6), ("center", 6), ("agc", 34)]
)
def test_calls_for_a_large_tensor(key: str, bound: int) -> None:
    few, many = step(key, LARGE, 2), step(key, LARGE, 6)
    assert len(many.names) - len(few.names) <= 4 * bound


@pytest.mark.parametrize(
    ("key", "bound"), [("none", 18), ("autoscale", 19), ("clip", 18), ("center", 18), ("agc", 38)]
)
@SIZE
def test_calls_on_a_device(
    key: str, bound: int, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    few, many = (step(key, shape, count, monkeypatch) for count in (2, 6))
    assert len(many.names) - len(few.names) <= 4 * bound
    assert len(few.names) <= 2 * bound + 80


@pytest.mark.parametrize("backend", ["native", "cpu", "foreach"])
@pytest.mark.parametrize("key", ["none", "autoscale", "center", "center-row", "znorm"])
def test_what_is_not_eligible_is_not_written(
    key: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADWISE_BACKEND", backend)
    assert step(key, (300,)).writes == [0.0] * 4


def test_on_the_host_a_clip_that_does_not_clip_writes_nothing() -> None:
    params = [torch.nn.Parameter(torch.randn(40, 40)) for _ in range(3)]
    optimizer = SGD(params, lr=0.1)
    runs = watched(gw.attach(optimizer, gw.transforms.ClipNorm(100.0)))
    for size in (1.0, 500.0):
        for param in params:
            param.grad = torch.full_like(param, size / 40)
        optimizer.step()
    assert runs[0].writes == [0.0] * 3
    assert runs[1].writes == [1.0] * 3


def test_observing_costs_no_pass() -> None:
    # Who watches and transforms pays for one measurement.
    params = [torch.nn.Parameter(torch.randn(40, 40)) for _ in range(3)]
    optimizer = SGD(params, lr=0.1)
    attachment = gw.autoscale(optimizer)
    attachment.observers.append(lambda a: a.moments.through(a.affine).total_norm)
    runs = watched(attachment)
    for param in params:
        param.grad = torch.randn_like(param)
    optimizer.step()
    assert runs[0].reads == [2.0] * 3  # measured once, centred once
