"""What a measured step asks of torch, and that all others ask for nothing."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from attach.counting import Calls
from gradwise.watch.probes import cycle
from gradwise.watch.probes.noise import NoiseProbe
from noise.loops import Loop, looped, loss_of, network


def calls_of_step(loop: Loop) -> Calls:
    with Calls() as calls:
        loop.step()
    return calls


def test_no_step_waits() -> None:
    loop = looped(every=2)
    for _ in range(4):
        assert calls_of_step(loop).waits == []


def test_nor_does_one_that_begins_with_zeros() -> None:
    loop = looped()
    loop.zero = lambda: loop.optimizer.zero_grad(set_to_none=False)
    assert calls_of_step(loop).waits == []


def test_the_test_would_see_a_read(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = looped()
    inner = cycle._norm
    monkeypatch.setattr(cycle, "_norm", lambda t: inner(t).mul(inner(t).item()))
    assert "_local_scalar_dense" in calls_of_step(loop).waits


def test_nothing_is_read_where_there_is_nothing_to_read() -> None:
    model = network().to("meta")
    params = list(model.parameters())
    probe = NoiseProbe(params, every=1)
    for step in range(3):
        model.zero_grad(set_to_none=step != 2)
        for m in range(2):
            loss_of(model, m).backward()
        probe.gradients([p.grad for p in params])
        found = probe.end()
    assert probe.reason is None
    assert all(v.device.type == "meta" for v in found.values() if isinstance(v, torch.Tensor))
    assert len(found) == 3


def test_steps_that_are_not_measured_add_no_call() -> None:
    loop, plain = looped(every=3), looped(1)
    plain.passes = 3
    plain.probe.close()
    counts = [len(calls_of_step(loop).names) for _ in range(6)]
    bare = len(calls_of_step(plain).names)
    assert counts[0:2] == counts[3:5] == [bare, bare]
    # Of each of the four gradients: two norms and what they add up to, in each of three passes.
    assert counts[2] == counts[5]
    assert 4 * 3 * 3 <= counts[2] - bare <= 4 * 3 * 3 + 10


def test_gradients_are_read_twice_a_pass() -> None:
    model = network()
    params = list(model.parameters())
    probe = NoiseProbe(params, every=1)
    for step in range(2):
        model.zero_grad()
        loss_of(model, 0).backward()
        watched = Calls([p.grad for p in params])
        loss = loss_of(model, 1)
        if step:
            with watched:
                loss.backward()
        else:
            loss.backward()
        probe.gradients([p.grad for p in params])
        probe.end()
    # Of the sum: once by autograd, which adds to it, and once by the probe.
    assert watched.reads == [2.0] * 4
    assert watched.writes == [1.0] * 4


def tensors() -> list[torch.Tensor]:
    gc.collect()
    # By type: some of torch's own objects warn when they are asked for their class, and what other
    # tests left behind may be a parameter without a shape.
    return [o for o in gc.get_objects() if type(o) in (torch.Tensor, nn.Parameter)]


def test_memory_does_not_grow_with_the_passes() -> None:
    loop = looped(2)
    counts: list[int] = []
    loop.between = lambda m: counts.append(len(tensors()))
    loop.step(12)
    assert loop.probe.reason is None
    assert len(set(counts[2:])) == 1


def test_no_gradient_is_kept() -> None:
    loop = looped()
    loop.zero()
    before = sum(t.numel() > 1 for t in tensors())
    loss_of(loop.model, 0).backward()
    assert sum(t.numel() > 1 for t in tensors()) == before + 4
    loop.zero()
    assert sum(t.numel() > 1 for t in tensors()) == before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_device() -> None:
    model: nn.Module = network(torch.float32).cuda()
    loop = Loop(model, NoiseProbe(list(model.parameters()), every=1))
    loop.step()
    host = network(torch.float32)
    twin = Loop(host, NoiseProbe(list(host.parameters()), every=1))
    twin.step()
    loop.zero()
    twin.zero()
    for m in range(3):
        loss = loss_of(model, m) / 3
        torch.cuda.set_sync_debug_mode("error")
        try:
            loss.backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        (loss_of(host, m) / 3).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loop.probe.gradients([p.grad for p in model.parameters()])
        found = loop.probe.end()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    twin.probe.gradients([p.grad for p in host.parameters()])
    other = twin.probe.end()
    assert float(found["noise_small"]) == pytest.approx(float(other["noise_small"]), rel=1e-4)
    assert float(found["noise_big"]) == pytest.approx(float(other["noise_big"]), rel=1e-4)
