"""What only a GPU can show: no waiting, CUDA graphs, and the numbers of compiled kernels."""

from __future__ import annotations

import pytest
import torch

import gradwise as gw
from attach.loops import close
from gradwise import backends
from gradwise.backends.gpu import tables

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
SHAPES = [(4, 3), (7,), (8192,), (3, 8193), (2000, 500)]
KINDS = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _kernels() -> None:
    why = backends.missing("triton")
    if why is not None:
        pytest.skip(why)
    assert backends.choose(torch.device("cuda")) == "triton"


def drawn(kind: torch.dtype, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(shape, generator=generator) * (i + 1) for i, shape in enumerate(SHAPES)]
    return [value.to("cuda", kind) for value in values]


def train(cls, kind, steps=3, on="cuda", **options):
    params = [torch.nn.Parameter(value.to(on)) for value in drawn(kind)]
    optimizer = cls(params, lr=0.01, **options)
    for step in range(steps):
        for param, grad in zip(params, drawn(kind, step + 1), strict=True):
            param.grad = grad.to(on)
        torch.cuda.set_sync_debug_mode("error" if step > 1 else "default")
        try:
            optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return [param.detach().float().cpu() for param in params]


@pytest.mark.parametrize("per", ["tensor", "row"])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_measure(kind, per):
    grads = drawn(kind)
    found, right = gw.measure(grads, per=per), gw.measure(grads, per=per, backend="reference")
    assert (found.zeros == right.zeros).all()
    assert (found.min == right.min).all()
    assert (found.max == right.max).all()
    assert ((found.mean - right.mean).abs() <= 1e-6 * right.std + 1e-15 * right.mean.abs()).all()
    assert ((found.m2 - right.m2).abs() <= 1e-5 * right.m2).all()
    again = gw.measure(grads, per=per)
    assert torch.equal(found.m2, again.m2)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("name", ["Center", "ClipNorm", "Autoscale", "ZNorm"])
def test_steps_through_the_hook(name, kind, monkeypatch):
    make = {"ClipNorm": lambda: gw.transforms.ClipNorm(1.0)}.get(name, getattr(gw.transforms, name))

    def made(params, lr):
        optimizer = torch.optim.SGD(params, lr=lr)
        gw.attach(optimizer, make())
        return optimizer

    found = train(made, kind)
    monkeypatch.setenv("GRADWISE_BACKEND", "reference")
    # The reference waits for nothing either.
    assert close(found, train(made, kind), rtol=1e-5 if kind == torch.float32 else 2**-6)


@pytest.mark.parametrize("kind", KINDS[:2], ids=str)
@pytest.mark.parametrize("capturable", [False, True])
def test_folded_steps(capturable, kind):
    options = {"transform": gw.transforms.ClipNorm(1.0), "capturable": capturable}
    found = train(gw.optim.AdamW, kind, fused=True, **options)
    plain = train(gw.optim.AdamW, kind, foreach=True, **options)
    assert close(found, plain, rtol=1e-4 if kind == torch.float32 else 2**-6)
    found = train(gw.optim.SGD, kind, momentum=0.9, nesterov=True, fused=True)
    plain = train(torch.optim.SGD, kind, momentum=0.9, nesterov=True, foreach=True)
    assert close(found, plain, rtol=1e-5 if kind == torch.float32 else 2**-6)


@pytest.mark.parametrize("folded", [False, True])
def test_in_a_cuda_graph(folded):
    def made():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.Linear(30, 5)).cuda()
        if folded:
            transform = gw.transforms.Autoscale()
            return model, gw.optim.AdamW(
                model.parameters(), lr=0.01, capturable=True, transform=transform
            )
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, capturable=True)
        gw.autoscale(optimizer)
        return model, optimizer

    data = [torch.randn(8, 20, device="cuda") for _ in range(8)]

    def step(model, optimizer, x):
        optimizer.zero_grad(set_to_none=True)
        (10 * model(x)).square().mean().backward()
        optimizer.step()

    model, optimizer = made()
    static = data[0].clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for x in data[:3]:
            static.copy_(x)
            step(model, optimizer, static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        step(model, optimizer, static)
    assert tables._captured
    for i, x in enumerate(data[3:]):
        static.copy_(x)
        graph.replay()
        # Other work of gradwise in between must not disturb what the graph looks at.
        gw.measure([torch.randn(50, device="cuda") for _ in range(4 + i)])
    twin, other = made()
    for x in data:
        step(twin, other, x)
    for param, right in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(param, right, rtol=1e-4, atol=1e-5)
