"""Every kind of parameter and gradient that a model may hand to an optimizer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import gradwise as gw
from attach.loops import (
    SGD,
    TRANSFORMS,
    close,
    loss_of,
    network,
    same,
    values,
)
from gradwise.transforms import Autoscale, Center, ClipNorm, Transform, chain

STEPS = range(4)
DTYPES = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
)
SHAPES: dict[str, tuple[int, ...]] = {
    "0-d": (),
    "one value": (1, 1),
    "no values": (0, 3),
    "no rows": (3, 0, 2),
    "vector": (7,),
    "matrix": (3, 5),
    "kernel": (4, 2, 3, 3),
}


def param_of(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape, dtype=dtype))


def grads_for(params: list[nn.Parameter], step: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    wide = [p.dtype if p.is_complex() else torch.float32 for p in params]
    return [
        (torch.randn(p.shape, dtype=kind, generator=generator) * (step + 1) + 0.5).to(p.dtype)
        for p, kind in zip(params, wide, strict=True)
    ]


def follows(params: list[nn.Parameter], transform: Transform, *, bits: bool = True) -> None:
    """Gradients after each step are the function's, and the parameters moved by just them."""
    optimizer = SGD(params, lr=0.5)
    attachment = gw.attach(optimizer, transform)
    fed: Transform = attachment.transform
    state = None
    for step in STEPS:
        grads, before = grads_for(params, step), [p.detach().clone() for p in params]
        wanted, state = fed.update(grads, state, before)
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        optimizer.step()
        got = [p.grad for p in params if p.grad is not None]
        assert same(got, wanted) if bits else close(got, wanted)
        moved = [b.add(g, alpha=-0.5) for b, g in zip(before, got, strict=True)]
        assert same([p.detach() for p in params], moved)
    assert attachment.skipped == 0


@pytest.mark.parametrize("key", TRANSFORMS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(dtype: torch.dtype, key: str) -> None:
    follows([param_of(shape, dtype) for shape in SHAPES.values()], TRANSFORMS[key]())


@pytest.mark.parametrize("key", TRANSFORMS)
def test_all_dtypes_in_one_optimizer(key: str) -> None:
    follows([param_of((3, 4), dtype) for dtype in (*DTYPES, *DTYPES)], TRANSFORMS[key]())


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_parameter_alone(shape: tuple[int, ...]) -> None:
    follows([param_of(shape)], chain(Autoscale(), ClipNorm(0.5)))


@pytest.mark.parametrize("key", TRANSFORMS)
def test_large_tensors(key: str) -> None:
    # Other routes through measure and apply than those of small ones.
    follows([param_of((300, 301)), param_of((70_000,)), param_of((3, 3))], TRANSFORMS[key]())


@pytest.mark.parametrize("key", TRANSFORMS)
def test_channels_last(key: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    model = model.to(memory_format=torch.channels_last)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    plain.load_state_dict(model.state_dict())
    data = torch.randn(2, 3, 8, 8)
    results = []
    for net in (model, plain):
        optimizer = SGD(net.parameters(), lr=0.1)
        gw.attach(optimizer, TRANSFORMS[key]())
        for size in (1.0, 9.0):
            net.zero_grad()
            (size * net(data).square().mean()).backward()
            optimizer.step()
        results.append(values(net))
    kernel = model[0].weight
    assert kernel.grad.is_contiguous(memory_format=torch.channels_last)
    assert kernel.grad.stride() == kernel.stride()  # mapped in place, its format kept
    assert close(*results, rtol=1e-4)


def test_gradients_that_share_one_buffer() -> None:
    # As DistributedDataParallel's `gradient_as_bucket_view` and flat optimizers lay them out.
    params = [param_of((3, 4)), param_of((5,)), param_of((2, 2, 2))]
    apart = [nn.Parameter(p.detach().clone()) for p in params]
    flat = torch.randn(sum(p.numel() for p in params))
    at = 0
    for param, twin in zip(params, apart, strict=True):
        part = flat[at : at + param.numel()].view_as(param)
        param.grad, twin.grad = part, part.clone()
        at += param.numel()
    for group in (params, apart):
        optimizer = SGD(group, lr=0.5)
        gw.attach(optimizer, Center(), ClipNorm(0.5))
        optimizer.step()
    assert params[0].grad.data_ptr() == flat.data_ptr()
    assert same([p.grad for p in params], [p.grad for p in apart])


PLACES: dict[str, Callable[[Tensor], Tensor]] = {
    # How a gradient of 4 x 6 may lie in a buffer of 100 values.
    "transposed": lambda flat: flat[:24].view(6, 4).t(),
    "every other column": lambda flat: flat[:48].view(4, 12)[:, ::2],
    "every other row": lambda flat: flat[:48].view(8, 6)[::2],
    "a part of wider rows": lambda flat: flat[:40].view(4, 10)[:, 2:8],
    "somewhere inside": lambda flat: flat[31:55].view(4, 6),
    "permuted": lambda flat: flat[:24].view(2, 4, 3).permute(1, 0, 2),
    "channels last": lambda flat: (
        flat[:24].view(2, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    ),
    "channels last in part": lambda flat: flat[:96].view(2, 4, 3, 4).permute(0, 3, 1, 2)[:, :2],
}


@pytest.mark.parametrize("backend", ["", "cpu", "foreach"])
@pytest.mark.parametrize("key", ["autoscale", "center-row", "clip", "agc", "znorm"])
@pytest.mark.parametrize("place", PLACES)
def test_gradients_wherever_they_lie(
    place: str, key: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADWISE_BACKEND", "reference")
    flat = torch.randn(100) + 0.3
    grad = PLACES[place](flat)
    outside = flat.clone()
    PLACES[place](outside).zero_()
    param = nn.Parameter(torch.randn(grad.shape))
    transform = TRANSFORMS[key]()
    (wanted,), _ = transform.update([grad.contiguous()], None, [param.detach()])
    monkeypatch.setenv("GRADWISE_BACKEND", backend)
    optimizer = SGD([param], lr=0.5)
    gw.attach(optimizer, transform)
    param.grad = grad
    optimizer.step()
    assert param.grad is not None
    assert param.grad.data_ptr() == grad.data_ptr()
    assert close([param.grad], [wanted])
    if place != "channels last":  # which is a copy
        left = flat.clone()
        PLACES[place](left).zero_()
        assert same([left], [outside])  # and nothing beside it is written


def test_a_gradient_that_is_a_lazy_conjugate() -> None:
    param = param_of((3, 2), torch.complex64)
    factor = torch.randn(3, 2, dtype=torch.complex64)
    (param.conj() * factor).real.sum().backward()
    assert param.grad.is_conj()
    (wanted,), _ = chain(Center(), ClipNorm(0.5)).update([param.grad.resolve_conj()])
    optimizer = SGD([param], lr=0.5)
    gw.attach(optimizer, Center(), ClipNorm(0.5))
    optimizer.step()
    assert close([param.grad.resolve_conj()], [wanted])


def test_gradients_with_a_graph() -> None:
    def run(create_graph: bool) -> list[Tensor]:
        model = network()
        optimizer = SGD(model.parameters(), lr=0.02)
        gw.autoscale(optimizer)
        for step in STEPS:
            model.zero_grad()
            grads = torch.autograd.grad(
                loss_of(model, step), list(model.parameters()), create_graph=create_graph
            )
            for param, grad in zip(model.parameters(), grads, strict=True):
                param.grad = grad
            assert grads[0].requires_grad == create_graph
            optimizer.step()
        return values(model)

    assert same(run(True), run(False))
