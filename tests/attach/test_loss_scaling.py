"""GradScaler with plain and fused optimizers: true units, and overflows left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradwise as gw
from attach.loops import (
    SGD,
    TRANSFORMS,
    backward,
    close,
    copy_state,
    loss_of,
    network,
    same,
    same_state,
    train,
    values,
)
from gradwise.transforms import AutoClip, Autoscale, ClipNorm, chain

STEPS = range(5)
SCALE = 1024.0  # a power of two multiplies without rounding
OPTIMIZERS = ("SGD", "Adam", "AdamW", "Adagrad")  # those with a fused form on the CPU
FUSED = pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])


def build(name: str, model: nn.Module, fused: bool) -> Any:
    return getattr(torch.optim, name)(model.parameters(), lr=0.02, fused=fused)


def scaled_steps(
    model: nn.Module,
    optimizer: Any,
    scaler: torch.amp.GradScaler,
    *,
    mode: str = "implicit",
    overflow: int | None = None,
    look: Callable[[int], None] = lambda step: None,
) -> list[Tensor]:
    """A mixed-precision loop as people write it; `overflow` is a step with an infinite gradient."""
    for step in STEPS:
        model.zero_grad()
        scaler.scale(loss_of(model, step)).backward()
        if step == overflow:
            grad = next(model.parameters()).grad
            assert grad is not None
            grad.view(-1)[0] = torch.inf
        if mode != "implicit":
            scaler.unscale_(optimizer)
        if mode == "clipped":
            nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        scaler.step(optimizer)
        scaler.update()
        look(step)
    return values(model)


def true_steps(model: nn.Module, optimizer: Any, *, mode: str = "implicit", skip: int = -1) -> Any:
    """The same steps without a loss scale."""
    for step in STEPS:
        if step == skip:
            continue
        backward(model, step)
        if mode == "clipped":
            nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
    return values(model)


def scaler_of(scale: float = SCALE) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)


@FUSED
@pytest.mark.parametrize("mode", ["implicit", "unscaled", "clipped"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_same_as_without_a_scale(name: str, mode: str, fused: bool) -> None:
    model, twin = network(), network()
    optimizer, other = build(name, model, fused), build(name, twin, fused)
    transform = chain(Autoscale(), ClipNorm(0.5))  # the second one reads the unit
    attachment, truth = gw.attach(optimizer, transform), gw.attach(other, transform)
    got = scaled_steps(model, optimizer, scaler_of(), mode=mode)
    assert close(got, true_steps(twin, other, mode=mode))
    assert attachment.moments is not None
    assert truth.moments is not None
    torch.testing.assert_close(attachment.moments.norm, truth.moments.norm, rtol=1e-5, atol=1e-12)
    torch.testing.assert_close(attachment.moments.mean, truth.moments.mean, rtol=1e-4, atol=1e-9)
    for key, value in truth.numbers.items():
        torch.testing.assert_close(attachment.numbers[key], value, rtol=1e-5, atol=1e-9)
    assert attachment.skipped == 0


@FUSED
@pytest.mark.parametrize("key", TRANSFORMS)
def test_every_transform_sees_the_true_unit(key: str, fused: bool) -> None:
    model, twin = network(), network()
    optimizer, other = build("SGD", model, fused), build("SGD", twin, fused)
    gw.attach(optimizer, TRANSFORMS[key]())
    gw.attach(other, TRANSFORMS[key]())
    assert close(scaled_steps(model, optimizer, scaler_of()), true_steps(twin, other))


def test_the_map_is_in_the_true_unit() -> None:
    model, twin = network(), network()
    optimizer, other = build("Adam", model, True), build("Adam", twin, True)
    attachment, truth = gw.autoscale(optimizer), gw.autoscale(other)
    scaled_steps(model, optimizer, scaler_of())
    true_steps(twin, other)
    assert attachment.affine.shift is not None
    assert truth.affine.shift is not None
    torch.testing.assert_close(attachment.affine.shift, truth.affine.shift, rtol=1e-4, atol=1e-9)


@FUSED
@pytest.mark.parametrize("mode", ["implicit", "unscaled", "clipped"])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("key", ["autoscale", "zclip", "autoclip", "center+clip"])
def test_an_overflow_changes_nothing(key: str, name: str, mode: str, fused: bool) -> None:
    model, twin = network(), network()
    optimizer, other = build(name, model, fused), build(name, twin, fused)
    attachment = gw.attach(optimizer, TRANSFORMS[key]())
    gw.attach(other, TRANSFORMS[key]())
    after: dict[int, tuple[list[Tensor], Any, int]] = {}

    def look(step: int) -> None:
        after[step] = (values(model), copy_state(attachment), attachment.skipped)

    scaler = scaler_of()
    got = scaled_steps(model, optimizer, scaler, mode=mode, overflow=2, look=look)
    before = after[1]
    assert same(before[0], after[2][0])
    forget_gap(after[2][1])
    assert same_state(before[1], after[2][1])
    # GradScaler steps a fused optimizer on an overflow too, and leaves the rest to it.
    assert (before[2], after[2][2], attachment.skipped) == (0, int(fused), int(fused))
    assert scaler.get_scale() == SCALE / 2
    assert close(got, true_steps(twin, other, mode=mode, skip=2))


def forget_gap(state: dict[str, Tensor] | None) -> None:
    """A history has a NaN for a step that does not count."""
    for key, value in (state or {}).items():
        if key.endswith("history") and len(value) == 3:
            assert value[-1].isnan()
            state[key] = value[:-1]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_scale_that_the_user_sets(name: str) -> None:
    # Fused optimizers divide by `grad_scale`, whoever set it.
    model, twin = network(), network()
    optimizer, other = build(name, model, True), build(name, twin, True)
    attachment, truth = (gw.attach(o, Autoscale(), ClipNorm(0.5)) for o in (optimizer, other))
    optimizer.grad_scale = torch.tensor(8.0)
    for step in STEPS:
        backward(model, step)
        for param in model.parameters():
            assert param.grad is not None
            param.grad.mul_(8.0)
        optimizer.step()
    assert close(values(model), train(twin, other, STEPS))
    assert attachment.moments is not None
    assert truth.moments is not None
    torch.testing.assert_close(attachment.moments.norm, truth.moments.norm, rtol=1e-5, atol=1e-12)


def test_a_user_scale_under_a_grad_scaler() -> None:
    model, twin = network(), network()
    optimizer, other = build("AdamW", model, True), build("AdamW", twin, True)
    gw.attach(optimizer, ClipNorm(0.5))
    gw.attach(other, ClipNorm(0.5))
    scaler = scaler_of()
    for step in STEPS:
        model.zero_grad()
        scaler.scale(4.0 * loss_of(model, step)).backward()
        optimizer.grad_scale = torch.tensor(4.0)  # GradScaler multiplies its own by it
        scaler.step(optimizer)
        scaler.update()
    assert close(values(model), train(twin, other, STEPS))


def test_an_optimizer_that_does_not_divide_has_no_scale() -> None:
    model, twin = network(), network()
    optimizer, other = (torch.optim.RMSprop(m.parameters(), lr=0.02) for m in (model, twin))
    for o in (optimizer, other):
        gw.attach(o, ClipNorm(0.5))
    optimizer.grad_scale = torch.tensor(8.0)  # RMSprop has no fused form and ignores it
    assert same(train(model, optimizer, STEPS), train(twin, other, STEPS))


@pytest.mark.parametrize("transform", [Autoscale(), AutoClip(50), ClipNorm(0.5)])
def test_an_overflow_elsewhere(transform: gw.transforms.Transform) -> None:
    # Sharded training sets `found_inf` where another process overflowed, with finite numbers here.
    model = network()
    optimizer = build("AdamW", model, True)
    attachment = gw.attach(optimizer, transform)
    train(model, optimizer, [0, 1])
    before, weights = copy_state(attachment), values(model)
    optimizer.found_inf = torch.tensor(1.0)
    backward(model, 2)
    grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    optimizer.step()
    assert same(weights, values(model))
    assert same(grads, [p.grad for p in model.parameters() if p.grad is not None])
    after = copy_state(attachment)
    forget_gap(after)
    assert same_state(before, after)
    assert attachment.skipped == 1


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("key", TRANSFORMS)
def test_without_a_scaler_a_bad_step_passes_untouched(key: str, value: float) -> None:
    # What to do about such a step is the loop's decision; the transform keeps out of it.
    model = network()
    optimizer = SGD(model.parameters(), lr=0.02)
    attachment = gw.attach(optimizer, TRANSFORMS[key]())
    weights = train(model, optimizer, [0, 1])
    before = copy_state(attachment)
    backward(model, 2)
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    grads[-1][0] = value
    kept = [grad.clone() for grad in grads]
    optimizer.step()
    assert same(grads, kept)
    after = copy_state(attachment)
    forget_gap(after)
    assert same_state(before, after)
    put_back(model, weights)
    moved = not same(weights, train(model, optimizer, [3]))
    assert moved or key == "autoscale-log"  # whose factor is 0 for so large a gradient
    assert attachment.skipped == 1


def put_back(model: nn.Module, weights: list[Tensor]) -> None:
    """Undo a step, as loops with a look at their loss do."""
    with torch.no_grad():
        for param, weight in zip(model.parameters(), weights, strict=True):
            param.copy_(weight)


@pytest.mark.parametrize("backend", ["", "cpu", "foreach", "reference"])
def test_a_step_under_autocast_is_the_same(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADWISE_BACKEND", backend)
    model, twin = network(), network()
    optimizer, other = build("SGD", model, False), build("SGD", twin, False)
    attachment, truth = gw.autoscale(optimizer), gw.autoscale(other)
    for step in STEPS:
        backward(model, step)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            optimizer.step()
        train(twin, other, [step])
        assert attachment.moments is not None
        assert truth.moments is not None
        assert same([attachment.moments.m2], [truth.moments.m2])
    assert same(values(model), values(twin))


def test_skipped_counts_up() -> None:
    model = network()
    weights = values(model)
    optimizer = SGD(model.parameters(), lr=0.02)
    attachment = gw.autoscale(optimizer)
    assert attachment.skipped == 0
    for bad, count in [(False, 0), (True, 1), (True, 2), (False, 2), (True, 3)]:
        backward(model, 0)
        if bad:
            next(model.parameters()).grad.fill_(torch.nan)
        optimizer.step()
        put_back(model, weights)
        assert attachment.skipped == count
    assert "skipped=3" in repr(attachment)
