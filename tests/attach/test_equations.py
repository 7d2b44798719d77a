"""Attached transforms against other people's code and the bare equations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import gradwise as gw
from attach.loops import SGD, backward, network, same, values
from gradwise.errors import UserError
from gradwise.transforms import AGC, AutoClip, Autoscale, Center, ClipNorm

STEPS = range(6)


def matches(got: list[Tensor], wanted: list[Tensor], rtol: float) -> None:
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * float(b.abs().max()))


@pytest.mark.parametrize("max_norm", [0.01, 0.5, 3.0, 1e6])
@pytest.mark.parametrize("kind", ["SGD", "Adam"])
def test_clip_is_torchs_clip(kind: str, max_norm: float) -> None:
    model, twin = network(), network()
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.02)
    other = getattr(torch.optim, kind)(twin.parameters(), lr=0.02)
    attachment = gw.attach(optimizer, ClipNorm(max_norm))
    norms = []
    for step in STEPS:
        backward(model, step)
        backward(twin, step)
        norm = nn.utils.clip_grad_norm_(twin.parameters(), max_norm)
        norms.append(norm.item())
        optimizer.step()
        other.step()
        assert attachment.moments is not None
        assert attachment.moments.total_norm.item() == pytest.approx(norm.item(), rel=1e-6)
        matches([p.grad for p in model.parameters()], [p.grad for p in twin.parameters()], 1e-6)
        # The next step of both begins at the same place: errors do not add up.
        model.load_state_dict(twin.state_dict())
        optimizer.load_state_dict(other.state_dict())
    if max_norm == 0.5:  # some steps are clipped and some are not
        assert min(norms) < max_norm < max(norms)


def test_clip_of_bfloat16_is_torchs_clip_up_to_its_rounding() -> None:
    # torch rounds every tensor's norm to bfloat16 (8 bits), gradwise none: 2^-8 apart at most each.
    model, twin = network().bfloat16(), network().bfloat16()
    optimizer = SGD(model.parameters(), lr=0.02)
    gw.attach(optimizer, ClipNorm(0.5))
    for step in STEPS:
        backward(model, step)
        backward(twin, step)
        exact = [p.grad.double() for p in model.parameters()]
        norm = math.sqrt(sum(float(g.square().sum()) for g in exact))
        wanted = [g * min(1.0, 0.5 / (norm + 1e-6)) for g in exact]
        nn.utils.clip_grad_norm_(twin.parameters(), 0.5)
        optimizer.step()
        got = [p.grad for p in model.parameters()]
        for new, truth, theirs in zip(got, wanted, twin.parameters(), strict=True):
            torch.testing.assert_close(new, truth.bfloat16(), rtol=2**-8, atol=0.0)
            torch.testing.assert_close(new, theirs.grad, rtol=3 * 2**-8, atol=0.0)
        twin.load_state_dict(model.state_dict())


def test_center_by_row_is_gradient_centralization() -> None:
    # (1.7): g - mean(g over all dims but 0), for gradients with two dims or more.
    model = network()
    optimizer = SGD(model.parameters(), lr=0.02)
    gw.attach(optimizer, Center(per="row"))
    for step in STEPS:
        backward(model, step)
        raw = [p.grad.clone() for p in model.parameters()]
        optimizer.step()
        for param, grad in zip(model.parameters(), raw, strict=True):
            if grad.dim() < 2:
                assert same([param.grad], [grad])
            else:
                axes = tuple(range(1, grad.dim()))
                wanted = grad - grad.mean(dim=axes, keepdim=True)
                matches([param.grad], [wanted], 1e-6)
                rest = param.grad.mean(dim=axes).abs().max()
                assert rest < 1e-6 * grad.abs().max()


def clipped_by_unit(weight: Tensor, grad: Tensor, clipping: float, eps: float = 1e-3) -> Tensor:
    """G_i min(1, lambda max(||W_i||, eps) / ||G_i||), a unit a row, or all of a vector."""
    rows = grad.reshape(len(grad), -1) if grad.dim() > 1 else grad.reshape(1, -1)
    units = weight.reshape(rows.shape)
    bound = clipping * units.norm(dim=1, keepdim=True).clamp(min=eps)
    norm = rows.norm(dim=1, keepdim=True)
    return torch.where(norm > bound, rows * bound / norm, rows).reshape(grad.shape)


@pytest.mark.parametrize("exclude", [(), ("5.weight",), ("5.weight", "5.bias")])
def test_agc_by_name(exclude: tuple[str, ...]) -> None:
    model = network()
    with torch.no_grad():
        model[3].weight[0] = 0.0  # a unit that eps alone lets move
    optimizer = SGD(model.parameters(), lr=0.02)
    gw.attach(optimizer, AGC(clipping=0.05, exclude=exclude), model=model)
    kept = clipped = 0
    for step in STEPS:
        backward(model, step)
        raw = {name: p.grad.clone() for name, p in model.named_parameters()}
        weights = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer.step()
        for name, param in model.named_parameters():
            if name in exclude:
                assert same([param.grad], [raw[name]])
                continue
            matches([param.grad], [clipped_by_unit(weights[name], raw[name], 0.05)], 1e-5)
            kept += int(same([param.grad], [raw[name]]))
            clipped += int(not same([param.grad], [raw[name]]))
    assert clipped > kept > 0


def test_agc_names_what_it_does_not_know() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.02)
    attachment = gw.attach(optimizer, AGC(exclude=["head.weight"]), model=model)
    backward(model, 0)
    grads, weights = [p.grad.clone() for p in model.parameters()], values(model)
    with pytest.raises(UserError, match=r"^AGC excludes 'head\.weight', which is no parameter's"):
        optimizer.step()
    assert same(grads, [p.grad for p in model.parameters()])
    assert same(weights, values(model))
    assert attachment.state is None
    assert attachment.moments is None


def test_names_come_from_the_model_the_optimizer_or_a_count() -> None:
    model = network()
    names = tuple(name for name, _ in model.named_parameters())
    plain = SGD(model.parameters(), lr=0.1)
    assert gw.autoscale(plain, model=model).names == names
    assert gw.autoscale(SGD(model.named_parameters(), lr=0.1)).names == names
    groups = [{"params": [p]} for p in model.parameters()]
    numbered = tuple(f"group{i}.0" for i in range(len(names)))
    assert gw.autoscale(SGD(groups, lr=0.1)).names == numbered
    assert gw.autoscale(SGD(model.named_parameters(), lr=0.1), model).names == names


def test_numbers_are_what_the_transforms_have_to_say() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.02)
    attachment = gw.attach(optimizer, Autoscale(), AutoClip(50), ClipNorm(0.5))
    assert attachment.numbers == {}
    for step in STEPS:
        backward(model, step)
        optimizer.step()
    numbers = attachment.numbers
    assert sorted(numbers) == [
        *(f"0.Autoscale[trend].{name}" for name in ("alpha", "memory", "sigma", "step")),
        *(f"1.AutoClip.{name}" for name in ("factor", "threshold")),
        "2.ClipNorm.factor",
    ]
    assert attachment.affine.scale is not None
    product = numbers["0.Autoscale[trend].alpha"] * numbers["1.AutoClip.factor"]
    scale = product * numbers["2.ClipNorm.factor"]
    assert attachment.affine.scale.item() == pytest.approx(scale.item(), rel=1e-12)
