"""Kernels that cannot be compiled or started: said once, and torch's own calls do it."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import gradwise as gw
from attach.loops import SGD
from gradwise import backends
from gradwise.affine import Affine
from gradwise.backends.gpu import launching, measuring
from gradwise.layout import layout_of


@pytest.fixture(autouse=True)
def _forced(monkeypatch):
    monkeypatch.setenv("GRADWISE_BACKEND", "triton")


def break_kernel(monkeypatch, name, kind=None):
    """Let one kernel fail, for one type or all, as a compiler would."""
    inner = launching._function

    class Failing:
        def __getitem__(self, grid):
            def run(*args, **options):
                if kind is None or options["KIND"] == launching.kind_of(kind):
                    raise RuntimeError("PTX assembly aborted\nwith details")
                return inner(name)[grid](*args, **options)

            return run

    monkeypatch.setattr(
        launching, "_function", lambda kernel: Failing() if kernel == name else inner(kernel)
    )


SAID = (
    r"^torch's own calls are used instead of Triton: the Triton kernel '{}' failed: "
    r"RuntimeError: PTX assembly aborted$"
)


@pytest.mark.parametrize("name", ["measure_chunks", "combine_chunks"])
def test_measuring_goes_on(name, monkeypatch):
    break_kernel(monkeypatch, name)
    grads = [torch.randn(5), torch.randn(3, 4)]
    plain = gw.measure(grads, backend="reference")
    with pytest.warns(UserWarning, match=SAID.format(name)) as said:
        found = gw.measure(grads)
    assert len(said) == 1
    torch.testing.assert_close(found.m2, plain.m2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(gw.measure(grads).m2, plain.m2)
        torch.testing.assert_close(gw.measure(grads, backend="triton").m2, plain.m2)
    assert "PTX assembly aborted" in backends.missing("triton")
    assert backends.choose(torch.device("cpu")) == "foreach"


@pytest.mark.parametrize("kind", [None, torch.float32, torch.bfloat16])
def test_nothing_is_mapped_twice(kind, monkeypatch):
    break_kernel(monkeypatch, "map_chunks", kind)
    kinds = (torch.float32, torch.bfloat16, torch.float16)
    grads = [torch.ones(4, dtype=dtype) for dtype in kinds]
    with pytest.warns(UserWarning, match=SAID.format("map_chunks")):
        backends.apply(grads, Affine(torch.tensor(0.5)), layout_of(grads))
    for grad in grads:
        assert grad.tolist() == [0.5] * 4


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("kind", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["prepare_updates", "update_chunks"])
def test_no_parameter_is_updated_twice(name, kind, capturable, monkeypatch):
    if name == "prepare_updates" and kind is not None:
        pytest.skip("that kernel knows no types")

    def made(**options):
        params = [nn.Parameter(torch.ones(3, dtype=d)) for d in (torch.float32, torch.bfloat16)]
        for param in params:
            param.grad = torch.full_like(param, 2.0)
        return params, gw.optim.AdamW(params, lr=0.1, capturable=capturable, **options)

    break_kernel(monkeypatch, name, kind)
    params, optimizer = made()
    with pytest.warns(UserWarning, match=SAID.format(name)):
        optimizer.step()
    optimizer.step()
    others, other = made(foreach=True)
    other.step()
    other.step()
    for param, twin in zip(params, others, strict=True):
        torch.testing.assert_close(param, twin, rtol=2**-7, atol=1e-6)
        assert optimizer.state[param]["step"].item() == 2.0


def test_a_training_goes_on(monkeypatch):
    break_kernel(monkeypatch, "map_chunks")
    params = [nn.Parameter(torch.ones(3, 4)) for _ in range(2)]
    optimizer = SGD(params, lr=0.0)
    gw.attach(optimizer, gw.transforms.Center())
    for step in range(3):
        for param in params:
            param.grad = torch.randn(3, 4) + 5
        if step:
            optimizer.step()
        else:
            with pytest.warns(UserWarning, match=SAID.format("map_chunks")):
                optimizer.step()
        assert all(abs(param.grad.mean().item()) < 1e-6 for param in params)


def test_kernels_are_tried_before_they_are_chosen(monkeypatch):
    device = torch.device("cpu")
    assert measuring.proven(device)
    monkeypatch.setattr(measuring, "_proven", {})
    break_kernel(monkeypatch, "map_chunks")
    with pytest.warns(UserWarning, match=SAID.format("map_chunks")):
        assert not measuring.proven(device)
    assert not measuring.proven(device)


@pytest.mark.parametrize("name", ["measure_chunks", "map_chunks"])
def test_kernels_with_wrong_numbers_are_not_chosen(name, monkeypatch):
    inner = launching.launch

    def launch(kernel, programs, *rest, **options):
        if kernel != name:
            inner(kernel, programs, *rest, **options)
        elif kernel == "measure_chunks":
            rest[5].fill_(1.0)

    monkeypatch.setattr(measuring, "launch", launch)
    with pytest.warns(UserWarning, match="its numbers are wrong"):
        assert not measuring.proven(torch.device("cpu"))
    assert "its numbers are wrong" in backends.missing("triton")


def test_no_memory_is_no_failure_of_a_kernel(monkeypatch):
    class Full:
        def __getitem__(self, grid):
            raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(launching, "_function", lambda kernel: Full())
    with pytest.raises(torch.OutOfMemoryError):
        gw.measure([torch.ones(3)])
    assert launching.broken() is None


def test_a_device_that_the_interpreter_does_not_run_on():
    with pytest.raises(
        gw.UserError, match=r"^backend 'triton' cannot run: TRITON_INTERPRET is set"
    ):
        backends.choose(torch.device("cuda"))
    assert not measuring.proven(torch.device("cuda"))
