"""No step makes the host wait for a device: shown without one, and on one where there is one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import gradwise as gw
from attach.counting import watched
from attach.loops import SGD, TRANSFORMS, backward, close, loss_of, network, train, values


@pytest.fixture
def _device_route(monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs on an accelerator, on the CPU."""
    monkeypatch.setenv("GRADWISE_BACKEND", "foreach")


@pytest.mark.parametrize("scaled", [False, True], ids=["true unit", "scaled"])
@pytest.mark.parametrize("key", TRANSFORMS)
def test_nothing_is_read_where_there_is_nothing_to_read(
    key: str, scaled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GRADWISE_BACKEND", raising=False)
    # Tensors of the meta device have no values, and torch refuses to hand any of them out.
    model = network().to("meta")
    optimizer = SGD(model.parameters(), lr=0.1, foreach=False)
    if scaled:
        optimizer._step_supports_amp_scaling = True
    attachment = gw.attach(optimizer, TRANSFORMS[key]())
    with pytest.raises(RuntimeError, match="meta"):
        torch.zeros((), device="meta").item()
    attachment._transform_gradients()  # before there are any
    for step in range(3):
        if scaled:
            optimizer.grad_scale = torch.empty((), device="meta")
            optimizer.found_inf = torch.empty((), device="meta")
        for i, param in enumerate(model.parameters()):
            param.grad = torch.empty_like(param) if i >= step else None
        attachment._transform_gradients()
    assert attachment.moments is not None
    assert attachment.moments.device.type == "meta"
    assert attachment.state is not None
    assert all(value.device.type == "meta" for value in attachment.state.values())


@pytest.mark.usefixtures("_device_route")
@pytest.mark.parametrize("key", TRANSFORMS)
def test_a_steady_step_asks_for_nothing_that_waits(key: str) -> None:
    # The first step with a set of gradients copies what is known about them; later ones do not.
    model = network()
    optimizer = SGD(model.parameters(), lr=0.02)
    runs = watched(gw.attach(optimizer, TRANSFORMS[key]()))
    train(model, optimizer, range(4))
    assert len(runs) == 4
    for calls in runs[1:]:
        assert calls.waits == []
        assert calls.names


@pytest.mark.usefixtures("_device_route")
@pytest.mark.parametrize("key", TRANSFORMS)
@pytest.mark.parametrize("overflow", [False, True])
def test_nor_does_one_under_a_loss_scale(key: str, overflow: bool) -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, fused=True)
    runs = watched(gw.attach(optimizer, TRANSFORMS[key]()))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(4):
        model.zero_grad()
        scaler.scale(loss_of(model, step)).backward()
        if overflow and step == 2:
            next(model.parameters()).grad.fill_(torch.inf)
        scaler.step(optimizer)
        scaler.update()
    assert len(runs) == 4
    for calls in runs[1:]:
        assert calls.waits == []


@pytest.mark.usefixtures("_device_route")
def test_the_watch_would_see_a_read() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.02)
    attachment = gw.attach(optimizer)
    attachment.observers.append(lambda a: a.moments.total_norm.item())
    runs = watched(attachment)
    train(model, optimizer, range(2))
    assert runs[1].waits == ["_local_scalar_dense"]


@pytest.mark.parametrize("backend", ["foreach", "reference"])
@pytest.mark.parametrize("key", TRANSFORMS)
def test_the_routes_agree(key: str, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(dtype: torch.dtype) -> list[torch.Tensor]:
        model = network().to(dtype)
        with torch.no_grad():  # rows, a matrix and a vector that take the route of large tensors
            model.add_module("7", nn.Linear(3, 30_000, dtype=dtype))
            model[-1].weight.fill_(0.01)
            model[-1].bias.fill_(0.0)
        optimizer = SGD(model.parameters(), lr=0.02)
        gw.attach(optimizer, TRANSFORMS[key]())
        return train(model, optimizer, range(4))

    host = [run(torch.float32), run(torch.float64)]
    monkeypatch.setenv("GRADWISE_BACKEND", backend)
    for route, other in zip(host, [run(torch.float32), run(torch.float64)], strict=True):
        assert close(route, other, rtol=1e-5 if route[0].dtype == torch.float32 else 1e-10)


@pytest.mark.parametrize("backend", ["foreach", "cpu"])
@pytest.mark.parametrize("key", TRANSFORMS)
def test_the_routes_agree_on_mixed_types(
    key: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    types = (torch.float32, torch.float64, torch.complex64, torch.bfloat16, torch.float32)

    def run() -> list[torch.Tensor]:
        torch.manual_seed(0)
        params = [nn.Parameter(torch.randn(4, 3, dtype=dtype)) for dtype in types]
        optimizer = SGD(params, lr=0.1)
        gw.attach(optimizer, TRANSFORMS[key]())
        for size in (1.0, 20.0, 3.0):
            for param in params:
                param.grad = size * torch.randn_like(param) + 0.5
            optimizer.step()
        return [p.detach() for p in params]

    monkeypatch.setenv("GRADWISE_BACKEND", "reference")
    plain = run()
    monkeypatch.setenv("GRADWISE_BACKEND", backend)
    for one, other in zip(plain, run(), strict=True):
        assert close([one], [other], rtol=2**-7 if one.dtype == torch.bfloat16 else 1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("key", TRANSFORMS)
def test_on_a_device(key: str) -> None:
    model, host = network().cuda(), network()
    optimizer, other = SGD(model.parameters(), lr=0.02), SGD(host.parameters(), lr=0.02)
    gw.attach(optimizer, TRANSFORMS[key]())
    gw.attach(other, TRANSFORMS[key]())
    for step in range(4):
        backward(host, step)
        for param, twin in zip(model.parameters(), host.parameters(), strict=True):
            param.grad = twin.grad.cuda()
        torch.cuda.set_sync_debug_mode("error" if step > 1 else "default")
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        other.step()
    assert close([value.cpu() for value in values(model)], values(host), rtol=1e-4)
