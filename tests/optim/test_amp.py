"""GradScaler, autocast and 16-bit parameters: what mixed precision asks of an optimizer."""

import pytest
import torch
from optim_db import (
    TRANSFORMS,
    assert_same,
    each,
    each_variant,
    numbers,
    small_model,
    train,
)

import gradwise as gw
from gradwise.attach.attachment import attachment_of

SCALE = 2.0**10  # a power of 2, so that scaling and unscaling round nothing
EVERY = pytest.mark.parametrize("transform", [None, *TRANSFORMS])


def loss_of(model, seed):
    """The loss whose gradients `optim_db.backward` makes."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(16, 5, generator=generator, dtype=torch.float64)
    y = torch.stack([x[:, 0], x[:, 1] * x[:, 2], x[:, 3].tanh()], 1)
    dtype = model.first.weight.dtype
    return (model(x.to(dtype)).to(y.dtype) - y).square().mean()


def scaled(model, optimizer, scaler, seed, parts=1, spoil=False, look=None):
    """One step under a scaler, of `parts` batches together."""
    optimizer.zero_grad()
    for part in range(parts):
        scaler.scale(loss_of(model, seed + part) / parts).backward()
    if spoil:
        model.first.bias.grad[0] = torch.inf
    if look is not None:
        scaler.unscale_(optimizer)
        look()
    scaler.step(optimizer)
    scaler.update()


def scaler_of(**options):
    return torch.amp.GradScaler("cpu", init_scale=SCALE, growth_interval=1000, **options)


def pair(entry, options=None, transform=None, dtype=torch.float64):
    model = small_model(dtype)
    given = {"lr": entry.lr, **(options or {})}
    if transform is not None:
        given["transform"] = transform()
    return model, entry.cls(model.parameters(), **given)


@each_variant
@pytest.mark.parametrize("parts", [1, 3])
def test_a_scaled_step_is_a_plain_step(entry, options, parts):
    """Also where several batches add up in the gradient."""
    plain, other = pair(entry, options), pair(entry, options)
    scaler = scaler_of()
    for seed in range(0, 4 * parts, parts):
        plain[1].zero_grad()
        for part in range(parts):
            (loss_of(plain[0], seed + part) / parts).backward()
        plain[1].step()
        scaled(*other, scaler, seed, parts)
    assert_same(numbers(*other), numbers(*plain))
    assert scaler.get_scale() == SCALE


@each
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("unscaled", [False, True])
def test_with_a_transform(entry, transform, unscaled):
    """It measures gradients in their own unit, whoever unscales them."""
    plain, other = pair(entry, transform=transform), pair(entry, transform=transform)
    scaler = scaler_of()
    seen = []
    for seed in range(4):
        train(*plain, 1, first=seed)
        look = (lambda: seen.append(other[0].scale.grad.item())) if unscaled else None
        scaled(*other, scaler, seed, look=look)
        if unscaled:
            assert seen[-1] == plain[0].scale.grad.item()
        norms = [attachment_of(optimizer).moments.total_norm for _, optimizer in (plain, other)]
        torch.testing.assert_close(*norms)
    assert_same(numbers(*other), numbers(*plain))


def everything(model, optimizer):
    """Parameters, state, and what a transform remembers."""
    found = numbers(model, optimizer)
    attachment = attachment_of(optimizer)
    if attachment is not None:
        found |= {f"transform.{k}": v.clone() for k, v in (attachment.state or {}).items()}
        found["skipped"] = torch.tensor(attachment.skipped)
    return found


@each
@EVERY
@pytest.mark.parametrize("first", [False, True])
def test_an_overflow_leaves_no_trace(entry, transform, first):
    """No state changes, nothing is counted, and the run goes on as if it had not been."""
    plain, other = pair(entry, transform=transform), pair(entry, transform=transform)
    scaler, reference = scaler_of(), scaler_of()
    for seed in range(0 if first else 2):
        scaled(*plain, reference, seed)
        scaled(*other, scaler, seed)
    before = everything(*other)
    scaled(*other, scaler, 50, spoil=True)
    assert scaler.get_scale() == SCALE / 2
    assert_same(everything(*other), before)
    assert not (first and other[1].state)
    for seed in range(2, 5):
        scaled(*plain, reference, seed)
        scaled(*other, scaler, seed)
    assert_same(everything(*other), everything(*plain), 1e-13, 1e-15)


@each
@pytest.mark.parametrize("scaling", [False, True])
def test_autocast(entry, scaling):
    """Parameters and state stay float32 while the model computes in bfloat16."""
    found = []
    for cast in (False, True):
        model, optimizer = pair(entry, dtype=torch.float32)
        scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, enabled=scaling and cast)
        losses = []
        for _ in range(20):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=cast):
                loss = loss_of(model, 0)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss.item())
        assert all(p.dtype == torch.float32 for p in model.parameters())
        floating = [v for s in optimizer.state.values() for v in s.values()]
        assert all(v.dtype == torch.float32 for v in floating)
        assert losses[-1] < losses[0]
        found.append(losses[-1])
    assert found[1] == pytest.approx(found[0], rel=0.1)


@each
@pytest.mark.parametrize("way", [{}, {"foreach": True}, {"foreach": False, "fused": False}])
def test_narrow_parameters_stay_near_the_wide_run(entry, way):
    """Fed the same gradients, bfloat16 parameters are off by their own roundings and no more."""
    start = torch.linspace(1.0, 2.0, 48).reshape(6, 8).bfloat16()
    narrow = torch.nn.Parameter(start.clone())
    wide = torch.nn.Parameter(start.float())
    optimizers = [entry.cls([p], lr=entry.lr, **way) for p in (narrow, wide)]
    generator = torch.Generator().manual_seed(0)
    steps = 10
    for _ in range(steps):
        grad = torch.randn(6, 8, generator=generator).bfloat16()
        narrow.grad, wide.grad = grad, grad.float()
        for optimizer in optimizers:
            optimizer.step()
    ulp = 2.0**-8 * wide.detach().abs().max() * 2
    assert (narrow.float() - wide).abs().max() <= steps * ulp
    assert not torch.equal(narrow, start)
    if entry.wide:  # averages of the gradients do not know that the parameter is narrow
        first = next(k for k in optimizers[0].state[narrow] if k not in ("step", "alignment"))
        states = [o.state[p][first] for o, p in zip(optimizers, (narrow, wide), strict=True)]
        torch.testing.assert_close(*states, rtol=1e-6, atol=1e-7)


@each
def test_a_scaler_with_an_attached_transform(entry):
    """`gw.autoscale` on the optimizer is the same as the argument, under a scaler too."""
    one = pair(entry, transform=gw.transforms.Autoscale)
    other = pair(entry)
    gw.autoscale(other[1])
    scaler, same = scaler_of(), scaler_of()
    for seed in range(3):
        scaled(*one, scaler, seed)
        scaled(*other, same, seed)
    assert_same(everything(*other), everything(*one))
