"""The folded step of SGD and AdamW by the Triton kernels, in Triton's interpreter."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import gradwise as gw
from attach.loops import TRANSFORMS, close
from gradwise.backends.gpu import update
from interpreted.common import launches

BLOCK = update.BLOCK
SHAPES = [(4, 3), (7,), (), (BLOCK + 3,), (2, 3, 3, 3)]
SGD, ADAMW = gw.optim.SGD, gw.optim.AdamW
METHODS = {
    "plain": (SGD, {}),
    "momentum": (SGD, {"momentum": 0.9, "weight_decay": 0.1}),
    "nesterov": (SGD, {"momentum": 0.9, "nesterov": True, "maximize": True}),
    "dampened": (SGD, {"momentum": 0.9, "dampening": 0.5}),
    "adamw": (ADAMW, {}),
    "adamw, capturable": (ADAMW, {"capturable": True, "maximize": True, "weight_decay": 0.3}),
    "adamw, far": (ADAMW, {"betas": (0.4, 0.9), "eps": 1e-3}),
    "adamw, no memory": (ADAMW, {"betas": (0.0, 0.0)}),
}


@pytest.fixture(autouse=True)
def _forced(monkeypatch):
    monkeypatch.setenv("GRADWISE_BACKEND", "triton")


def params_of(dtype=torch.float32):
    torch.manual_seed(5)
    found = [nn.Parameter(torch.randn(shape).to(dtype)) for shape in SHAPES]
    found[-1].data = found[-1].data.contiguous(memory_format=torch.channels_last)
    return found


def train(cls, params, steps=3, missing=False, **options):
    optimizer = cls(params, lr=options.pop("lr", 0.05), **options)
    generator = torch.Generator().manual_seed(7)
    for step in range(steps):
        for i, param in enumerate(params):
            drawn = torch.randn(param.shape, generator=generator) * (1 + step) + 0.2
            param.grad = drawn.to(param.dtype).reshape(param.shape)
            if param.dim() == 4:
                param.grad = param.grad.contiguous(memory_format=torch.channels_last)
            if missing and (i + step) % 3 == 0:
                param.grad = None
        optimizer.step()
    return optimizer


def values_of(params):
    return [param.detach().clone() for param in params]


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_as_torch_has_it(method, missing, monkeypatch):
    names = launches(monkeypatch)
    cls, options = METHODS[method]
    params, others = params_of(), params_of(torch.float64)
    mine = train(cls, params, missing=missing, **options)
    theirs = getattr(torch.optim, cls.__name__)
    given = {k: v for k, v in options.items() if k != "capturable"}  # torch's needs a GPU for it
    other = train(theirs, others, missing=missing, **given)
    assert names.count("update_chunks") >= 3
    assert close(values_of(params), [v.float() for v in values_of(others)], rtol=2e-5)
    for param, twin in zip(params, others, strict=True):
        assert mine.state[param].keys() == other.state[twin].keys()
        for key, value in other.state[twin].items():
            found = mine.state[param][key]
            if value is None:
                assert found is None
            else:
                torch.testing.assert_close(found, value.float(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("key", "method"),
    [
        ("autoscale", "nesterov"),
        ("autoscale", "adamw, capturable"),
        ("center-row", "momentum"),
        ("center-row", "adamw"),
        ("clip", "plain"),
        ("clip", "adamw, far"),
        ("agc", "adamw"),
        ("center+clip", "dampened"),
    ],
)
def test_a_folded_map(key, method):
    cls, options = METHODS[method]
    params, others = params_of(), params_of()
    train(cls, params, transform=TRANSFORMS[key](), **options)
    kept = [param.grad.clone() for param in params]
    train(cls, others, transform=TRANSFORMS[key](), foreach=True, **options)
    assert close(values_of(params), values_of(others), rtol=2e-5)
    for param, grad, twin in zip(params, kept, others, strict=True):
        assert torch.equal(param.grad, grad)
        assert torch.equal(param.grad, twin.grad)  # neither writes it


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("method", ["momentum", "adamw"])
def test_narrow_types_are_rounded_once(method, dtype):
    cls, options = METHODS[method]
    params = params_of(dtype)
    others = [nn.Parameter(param.detach().float()) for param in params]
    optimizer = train(cls, params, steps=1, **options)
    train(cls, others, steps=0, **options)
    for param, other in zip(params, others, strict=True):
        other.grad = param.grad.float()
    cls(others, lr=0.05, **options).step()
    for param, other in zip(params, others, strict=True):
        if dtype == torch.bfloat16:  # the interpreter cuts off where a GPU rounds
            torch.testing.assert_close(param, other.to(dtype), rtol=2**-7, atol=0)
        else:
            assert torch.equal(param, other.to(dtype))
        assert all(s.dtype == dtype for k, s in optimizer.state[param].items() if k != "step")


def test_launches_do_not_grow_with_the_number_of_parameters(monkeypatch):
    names = launches(monkeypatch)
    for count in (3, 100):
        params = [nn.Parameter(torch.randn(4)) for _ in range(count)]
        optimizer = ADAMW(params, lr=0.1, transform=gw.transforms.ClipNorm(1.0))
        for param in params:
            param.grad = torch.randn(4)
        optimizer.step()
        assert names == ["measure_chunks", "combine_chunks", "prepare_updates", "update_chunks"]
        names.clear()


def test_what_the_kernel_does_not_take_is_updated_by_lists():
    def made():
        torch.manual_seed(3)
        params = [nn.Parameter(torch.randn(4, 6)) for _ in range(3)]
        params.append(nn.Parameter(torch.randn(5, dtype=torch.float64)))
        params.append(nn.Parameter(torch.randn(0)))
        for i, param in enumerate(params):
            param.grad = torch.randn(param.shape, dtype=param.dtype)
            if i == 1:
                param.grad = torch.randn(6, 4).t()
        return params

    params, others = made(), made()
    for group, foreach in ((params, None), (others, True)):
        optimizer = ADAMW(group, lr=0.1, foreach=foreach)
        for _ in range(3):
            optimizer.step()
        assert [optimizer.state[param]["step"].item() for param in group] == [3.0] * 5
    assert close(values_of(params), values_of(others), rtol=1e-5)
    with pytest.raises(gw.UserError, match="compiled kernel takes with fused=True"):
        ADAMW(made(), lr=0.1, fused=True).step()


def test_options_without_a_kernel_there():
    param = nn.Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    with pytest.raises(gw.UserError, match="there is none for these options there"):
        ADAMW([param], lr=0.1, fused=True, amsgrad=True).step()
    gw.optim.SGDF([param], lr=0.1).step()  # by lists
    assert not torch.equal(param.detach(), torch.ones(3))


@pytest.mark.parametrize("capturable", [False, True])
def test_a_learning_rate_in_a_tensor(capturable):
    params, others = params_of(), params_of()
    train(ADAMW, params, lr=torch.tensor(0.03), capturable=capturable)
    train(ADAMW, others, lr=0.03)
    assert close(values_of(params), values_of(others), rtol=1e-5)


def test_checkpoints_and_copies_go_on():
    params = params_of()
    optimizer = train(ADAMW, params, transform=gw.transforms.Autoscale())
    twins = [nn.Parameter(param.detach().clone()) for param in params]
    twin = ADAMW(twins, lr=0.05, transform=gw.transforms.Autoscale())
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for one, other in zip(params, twins, strict=True):
        one.grad = torch.randn_like(one)
        other.grad = one.grad.clone()
    optimizer.step()
    twin.step()
    for one, other in zip(params, twins, strict=True):
        assert torch.equal(one, other)


def test_weights_that_are_replaced_are_found():
    params, others = params_of(), params_of()
    for group, foreach in ((params, None), (others, True)):
        optimizer = train(SGD, group, momentum=0.9, foreach=foreach)
        for param in group:
            param.data = param.data * 2  # in another place
        optimizer.step()
    assert close(values_of(params), values_of(others), rtol=1e-5)


def test_autograd_is_told():
    weight = nn.Parameter(torch.randn(5))
    squared = weight.square()
    weight.grad = torch.ones(5)
    SGD([weight], lr=0.1).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squared.sum().backward()


@pytest.mark.parametrize(
    "change",
    [{"grads": []}, {"buffers": []}, {"steps": []}],
)
def test_lists_that_do_not_belong_together_are_refused(change):
    one = [torch.ones(3)]
    given = {
        "params": one,
        "grads": one,
        "buffers": [[torch.zeros(3)]] * 2,
        "steps": [torch.zeros(())],
    }
    with pytest.raises(ValueError, match="not one a parameter"):
        update.Update("adamw")(**{**given, **change}, lr=0.1, numbers=(0.9, 0.99, 1e-8))
    with pytest.raises(ValueError, match="expected one of"):
        update.Update("hgm")
