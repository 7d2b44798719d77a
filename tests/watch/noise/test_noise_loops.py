"""Training loops of other forms: closures, loss scales, second derivatives, recomputation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import gradwise as gw
from gradwise.watch.noise import NoiseScale
from gradwise.watch.probes import cycle
from gradwise.watch.probes.noise import ALONE, NoiseProbe
from noise.loops import Loop, agrees, expected, looped, loss_of, network, numbers, vector


class Attached:
    """A probe on an optimizer with real hooks, as a watch has it."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.params = list(model.parameters())
        self.probe = NoiseProbe(self.params, every=1)
        self.found: list[dict[str, Tensor | float]] = []
        self.attachment = gw.attach(optimizer)
        self.attachment.observers.append(
            lambda _: self.probe.gradients([p.grad for p in self.params])
        )
        optimizer.register_step_post_hook(lambda *_: self.found.append(self.probe.end()))


def test_a_line_search_has_no_micro_batches() -> None:
    model = network()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=4, line_search_fn="strong_wolfe")
    attached = Attached(model, optimizer)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    assert attached.found == [{}, {}, {}]
    assert attached.probe.reason == cycle.SEVERAL


@pytest.mark.parametrize("zeroed", [True, False])
def test_a_pass_in_the_middle_of_the_step_is_no_micro_batch(zeroed: bool) -> None:
    loop = looped(2)
    probe, params = loop.probe, list(loop.model.parameters())
    loop.zero()
    for m in range(2):
        loss_of(loop.model, m).backward()
    probe.gradients([p.grad for p in params])
    if zeroed:
        loop.zero()
    loss_of(loop.model, 2).backward()
    assert probe.end() == {}
    assert probe.reason == cycle.SEVERAL


def test_a_step_that_is_announced_twice_is_one() -> None:
    loop = looped(2)
    loop.before_step = lambda: loop.probe.gradients([p.grad for p in loop.model.parameters()])
    truth = expected(loop.true(), 1 / 2)
    assert loop.probe._cycle is not None
    assert agrees(loop.step(), truth)


def test_a_closure_with_micro_batches_is_one_step() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    attached = Attached(model, optimizer)

    def closure() -> Tensor:
        optimizer.zero_grad()
        for m in range(3):
            loss_of(model, m).backward()
        return torch.zeros(())

    micro = [vector(torch.autograd.grad(loss_of(model, m), attached.params)) for m in range(3)]
    for _ in range(3):
        optimizer.step(closure)
    assert attached.found[0] == {}
    assert agrees(attached.found[1], expected(micro))
    assert agrees(attached.found[2], expected(micro))


@pytest.mark.parametrize("fused", [False, True])
def test_a_loss_scale_stays_in_both_norms(fused: bool) -> None:
    model = network(torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=fused)
    attached = Attached(model, optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=4096.0)
    micro = [vector(torch.autograd.grad(loss_of(model, m), attached.params)) for m in range(3)]
    for _ in range(3):
        optimizer.zero_grad()
        for m in range(3):
            scaler.scale(loss_of(model, m)).backward()
        if not fused:
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        scaler.step(optimizer)
        scaler.update()
    assert agrees(attached.found[-1], expected(micro, 4096.0), rel=1e-5)


def test_an_overflow_is_left_out() -> None:
    loop = looped()
    loop.before_step = loop.optimizer.zero_grad  # nothing moves
    scale = NoiseScale()
    for step in range(14):
        handle = loop.model[0].weight.register_hook(lambda g, step=step: g / float(step != 5))
        loop.step()  # the next one has its hooks after those of others, and sees what they make
        scale.add(*numbers(loop.step()))
        handle.remove()
    assert scale.samples == 13


def test_gradients_asked_for_on_the_way_do_not_count() -> None:
    # autograd.grad calls hooks before accumulation too, but accumulates nothing.
    loop = looped()
    params = list(loop.model.parameters())
    loop.between = lambda m: torch.autograd.grad(7 * loss_of(loop.model, m), params) and None
    truth = expected(loop.true(), 1 / 3)
    torch.autograd.grad(loss_of(loop.model, 0), params)
    counts = []
    loop.before_step = lambda: counts.append(loop.probe.backwards)
    assert agrees(loop.step(), truth)
    assert counts == [3]


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
def test_a_backward_pass_that_can_be_differentiated() -> None:
    model = network()
    params = list(model.parameters())
    probe = NoiseProbe(params, every=1)
    for _ in range(2):
        model.zero_grad()
        for m in range(3):
            loss_of(model, m).backward(create_graph=True)
        probe.gradients([p.grad for p in params])
        found = probe.end()
    micro = [vector(torch.autograd.grad(loss_of(model, m), params)) for m in range(3)]
    assert agrees(found, expected(micro))
    assert not any(isinstance(v, Tensor) and v.requires_grad for v in found.values())
    model.zero_grad()


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_activations(reentrant: bool) -> None:
    class Checkpointed(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            x = x.requires_grad_()
            x = checkpoint(lambda v: self[1](self[0](v)), x, use_reentrant=reentrant)
            return self[2](x)

    model = Checkpointed(*network())
    plain = network()
    loop = Loop(model, NoiseProbe(list(model.parameters()), every=1))
    twin = Loop(plain, NoiseProbe(list(plain.parameters()), every=1))
    counts = []
    loop.before_step = lambda: counts.append(loop.probe.backwards)
    for _ in range(3):
        found, other = loop.step(), twin.step()
    assert agrees(found, numbers(other))
    assert counts == [3, 3, 3]


def test_an_optimizer_inside_the_backward_pass() -> None:
    # Gradients are used and dropped as they arrive, so no sum of them ever exists.
    model = network()
    params = list(model.parameters())
    probe = NoiseProbe(params, every=1)

    def use(param: Tensor) -> None:
        assert param.grad is not None
        with torch.no_grad():
            param -= 0.01 * param.grad
        param.grad = None

    for p in params:
        p.register_post_accumulate_grad_hook(use)
    for _ in range(3):
        for m in range(2):
            loss_of(model, m).backward()
        assert probe.backwards == 2
        probe.gradients([None] * len(params))
        assert probe.end() == {}
    assert probe.reason == cycle.USED_UP


def test_what_fails_while_measuring_does_not_stop_the_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop, twin = looped(), looped()

    def fails(_: Tensor) -> Tensor:
        raise RuntimeError("no memory left")

    monkeypatch.setattr(cycle, "_norm", fails)
    assert loop.step() == {}
    assert loop.probe.reason == "measuring the noise scale failed with RuntimeError: no memory left"
    monkeypatch.undo()
    twin.step()
    assert (vector(loop.model.parameters()) == vector(twin.model.parameters())).all()
    assert loop.step()


def test_a_backward_pass_that_fails_leaves_no_trace() -> None:
    loop = looped()
    handle = loop.model[0].weight.register_hook(lambda g: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loop.step()
    handle.remove()
    loop.step()
    truth = expected(loop.true(), 1 / 3)
    assert agrees(loop.step(), truth)


def test_two_optimizers_on_one_model() -> None:
    model = network()
    probes = [NoiseProbe(list(model[i].parameters()), every=1) for i in (0, 2)]
    for step in range(4):
        model.zero_grad()
        micro = [
            vector(torch.autograd.grad(loss_of(model, m), list(model.parameters())))
            for m in range(2)
        ]
        for m in range(2):
            loss_of(model, m).backward()
        found = []
        for i, probe in zip((0, 2), probes, strict=True):
            probe.gradients([p.grad for p in model[i].parameters()])
            found.append(probe.end())
        if step:
            small, big, _ = expected(micro)
            parts = [numbers(f) for f in found]
            assert sum(p[0] for p in parts) == pytest.approx(small)
            assert sum(p[1] for p in parts) == pytest.approx(big)


def test_adversaries() -> None:
    # The generator's loss leaves gradients in the discriminator, who clears them before his turn.
    generator, judge = nn.Linear(3, 2), nn.Linear(2, 1)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (generator, judge)]
    attached = [Attached(m, o) for m, o in zip((generator, judge), optimizers, strict=True)]
    for _ in range(4):
        fake = generator(torch.randn(5, 3))
        optimizers[1].zero_grad()
        judge(torch.randn(5, 2)).mean().backward()
        judge(fake.detach()).mean().backward()
        optimizers[1].step()
        optimizers[0].zero_grad()
        judge(fake).mean().backward()
        optimizers[0].step()
    assert attached[0].found == [{}] * 4
    assert attached[0].probe.reason == ALONE
    assert attached[1].found == [{}] * 4
    assert attached[1].probe.reason == cycle.CHANGED
