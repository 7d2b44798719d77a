"""How often a step goes over the gradients' memory, and how many calls it makes."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch

import gradwise as gw
from attach.counting import Calls, watched
from attach.loops import SGD, TRANSFORMS
from gradwise.backends import native
from gradwise.transforms import Autoscale, ClipNorm

SMALL, LARGE = (16, 16), (600, 600)
SIZE = pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["small", "large"])
SHIFT_AND_SCALE = ("autoscale", "znorm", "center+clip")
SHIFT = ("center",)
SCALE = ("clip", "zclip", "autoclip")
PER_TENSOR = ("none", *SHIFT_AND_SCALE, *SHIFT, *SCALE)


def step(
    backend: str, key: str, shape: tuple[int, ...], count: int = 4, steps: int = 3
) -> tuple[Calls, gw.Attachment]:
    """What one steady step calls on torch."""
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape)) for _ in range(count)]
    optimizer = SGD(params, lr=0.1)
    attachment = gw.attach(optimizer, TRANSFORMS[key]())
    runs = watched(attachment)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADWISE_BACKEND", backend)
        for i in range(steps):
            for param in params:
                param.grad = torch.randn(shape) * (i + 1)
            optimizer.step()
    assert len(set(runs[-1].reads)) == len(set(runs[-1].writes)) == 1  # all tensors alike
    return runs[-1], attachment


@SIZE
@pytest.mark.parametrize("key", PER_TENSOR)
def test_passes_over_host_memory_without_a_compiler(key: str, shape: tuple[int, int]) -> None:
    # Measuring reads a small tensor once and a large one twice, the second time from a cache.
    # Applying goes over it once.
    calls, _ = step("cpu", key, shape)
    writes = int(key != "none")
    assert calls.writes[0] == writes
    assert calls.reads[0] <= (1 if shape == SMALL else 2) + writes


@pytest.mark.skipif(not native.available(), reason="no C compiler")
@SIZE
@pytest.mark.parametrize("key", PER_TENSOR)
def test_passes_over_host_memory(
    key: str, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # One kernel reads all, one maps all; torch is not asked to touch a gradient.
    kernels: list[str] = []
    inner = native.launch

    def run(name: str, *rest: Any) -> int:
        kernels.append(name)
        return inner(name, *rest)

    monkeypatch.setattr(native, "launch", run)
    calls, _ = step("native", key, shape)
    once = ["gradwise_measure", "gradwise_collect"]  # the second adds up what the first has found
    if key != "none":
        once.append("gradwise_apply")
    assert kernels == once * 3
    assert calls.reads == calls.writes == [0.0] * 4


@SIZE
@pytest.mark.parametrize("key", [*PER_TENSOR, "agc", "center-row"])
def test_passes_over_device_memory(key: str, shape: tuple[int, int]) -> None:
    # Two reductions to measure, one map to apply.
    calls, _ = step("foreach", key, shape)
    writes = int(key != "none")
    assert calls.writes[0] == writes
    assert calls.reads[0] <= 2 + writes


@pytest.mark.skipif(not native.available(), reason="no C compiler")
@SIZE
@pytest.mark.parametrize("key", PER_TENSOR)
def test_calls_do_not_grow_with_the_number_of_tensors(key: str, shape: tuple[int, int]) -> None:
    (few, _), (many, _) = (step("native", key, shape, count) for count in (2, 9))
    assert len(many.names) == len(few.names) <= 80


@pytest.mark.parametrize(
    ("key", "bound"),
    [("none", 0), ("autoscale", 1), ("znorm", 1), ("center", 0), ("clip", 0), ("zclip", 0)],
)
def test_calls_for_a_small_tensor_without_a_compiler(key: str, bound: int) -> None:
    (few, _), (many, _) = (step("cpu", key, SMALL, count) for count in (5, 50))
    assert len(many.names) - len(few.names) <= 45 * bound
    assert len(few.names) <= 90 + 5 * bound


@pytest.mark.parametrize(
    ("key", "bound"), [("none", 6), ("autoscale", 7), ("clip", 6), ("center", 6), ("agc", 34)]
)
def test_calls_for_a_large_tensor_without_a_compiler(key: str, bound: int) -> None:
    (few, _), (many, _) = (step("cpu", key, LARGE, count) for count in (2, 6))
    assert len(many.names) - len(few.names) <= 4 * bound


@pytest.mark.parametrize(
    ("key", "bound"), [("none", 18), ("autoscale", 19), ("clip", 18), ("center", 18), ("agc", 38)]
)
@SIZE
def test_calls_on_a_device(key: str, bound: int, shape: tuple[int, int]) -> None:
    (few, _), (many, _) = (step("foreach", key, shape, count) for count in (2, 6))
    assert len(many.names) - len(few.names) <= 4 * bound
    assert len(few.names) <= 2 * bound + 80


@pytest.mark.parametrize("backend", ["cpu", "foreach"])
@pytest.mark.parametrize("key", ["none", "center", "center-row", "znorm"])
def test_what_is_not_eligible_is_not_written(key: str, backend: str) -> None:
    calls, attachment = step(backend, key, (300,))
    assert calls.writes == [0.0] * 4
    assert attachment.moments is not None
    assert calls.reads[0] > 0


def test_on_the_host_a_clip_that_does_not_clip_writes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GRADWISE_BACKEND", "cpu")
    params = [torch.nn.Parameter(torch.randn(40, 40)) for _ in range(3)]
    optimizer = SGD(params, lr=0.1)
    runs = watched(gw.attach(optimizer, ClipNorm(100.0)))
    for size in (1.0, 500.0):
        for param in params:
            param.grad = torch.full_like(param, size / 40)
        optimizer.step()
    assert runs[0].writes == [0.0] * 3
    assert runs[1].writes == [1.0] * 3


def test_observing_costs_no_pass() -> None:
    # Who watches and transforms pays for one measurement.
    attachment_module = importlib.import_module("gradwise.attach.attachment")
    measured: list[int] = []
    params = [torch.nn.Parameter(torch.randn(40, 40)) for _ in range(3)]
    optimizer = SGD(params, lr=0.1)
    attachment = gw.attach(optimizer, Autoscale(), ClipNorm(1.0))
    attachment.observers.append(lambda a: a.moments.through(a.affine).total_norm)
    inner = attachment_module.measure_layout

    def measure_layout(*args: Any, **kwargs: Any) -> Any:
        measured.append(1)
        return inner(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attachment_module, "measure_layout", measure_layout)
        for param in params:
            param.grad = torch.randn_like(param)
        optimizer.step()
    assert measured == [1]
