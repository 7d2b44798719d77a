"""Groups, frozen parameters, gradients that are not there, and parameters that change."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import gradwise as gw
from attach.loops import (
    SGD,
    TRANSFORMS,
    Feed,
    backward,
    close,
    loss_of,
    network,
    same,
    train,
    values,
)
from gradwise.transforms import Autoscale

STEPS = range(4)


def test_accumulation_counts_steps_and_not_backwards() -> None:
    pieces, whole = network(), network()
    optimizer, other = SGD(pieces.parameters(), lr=0.02), SGD(whole.parameters(), lr=0.02)
    attachment = gw.autoscale(optimizer)
    seen: list[float] = []
    attachment.observers.append(lambda a: seen.append(a.moments.total_norm.item()))
    gw.autoscale(other)
    for step in STEPS:
        pieces.zero_grad()
        whole.zero_grad()
        for part in range(3):
            loss_of(pieces, 3 * step + part).backward()
            assert len(seen) == step
        sum(loss_of(whole, 3 * step + part) for part in range(3)).backward()
        optimizer.step()
        other.step()
    assert attachment.state is not None
    assert attachment.state["0.Autoscale[trend].step"] == len(seen) == len(STEPS)
    assert close(values(pieces), values(whole))


def test_groups_keep_their_own_settings() -> None:
    # One factor over all groups, each group's own learning rate.
    model, fed = network(), network()

    def optimizer_of(net: nn.Module) -> torch.optim.SGD:
        params = list(net.parameters())
        groups = [{"params": params[:2], "lr": 0.01}, {"params": params[2:], "weight_decay": 0.1}]
        return SGD(groups, lr=0.05, momentum=0.9)

    optimizer, twin = optimizer_of(model), optimizer_of(fed)
    gw.autoscale(optimizer)
    feed = Feed(fed, Autoscale())
    for step in STEPS:
        backward(model, step)
        backward(fed, step)
        feed()
        optimizer.step()
        twin.step()
    assert same(values(model), values(fed))


def test_frozen_parameters() -> None:
    model, fed = network(), network()
    for net in (model, fed):
        net[0].weight.requires_grad_(False)
    optimizer, twin = SGD(model.parameters(), lr=0.02), SGD(fed.parameters(), lr=0.02)
    attachment = gw.autoscale(optimizer, model=model)
    feed = Feed(fed, Autoscale())
    for step in STEPS:
        backward(model, step)
        backward(fed, step)
        feed()
        optimizer.step()
        twin.step()
    assert close(values(model), values(fed), rtol=1e-6)
    assert same([model[0].weight.detach()], [network()[0].weight.detach()])
    assert attachment.moments is not None
    assert attachment.moments.names[0] == "0.weight"  # its place is kept, with no values in it
    assert attachment.moments.count[0] == 0


@pytest.mark.parametrize("key", TRANSFORMS)
def test_gradients_that_come_and_go(key: str) -> None:
    # Layers that are dropped in some steps; in one of them all are.
    model, fed = network(), network()
    optimizer, twin = SGD(model.parameters(), lr=0.02), SGD(fed.parameters(), lr=0.02)
    attachment = gw.attach(optimizer, TRANSFORMS[key]())
    feed = Feed(fed, attachment.transform)
    absent: list[tuple[int, ...]] = [(), (0, 3), tuple(range(7)), (2,), (0, 3), ()]
    for step, gone in enumerate(absent):
        for net in (model, fed):
            backward(net, step)
            for i, param in enumerate(net.parameters()):
                if i in gone:
                    param.grad = None
        if len(gone) < 7:
            feed()
        optimizer.step()
        twin.step()
        assert close(values(model), values(fed), rtol=1e-5)
    assert sum(p.grad is not None for p in model.parameters()) == 7


def test_any_pattern_of_absence_needs_bounded_memory() -> None:
    params = [nn.Parameter(torch.randn(2, 3)) for _ in range(6)]
    optimizer = SGD(params, lr=0.1)
    attachment = gw.autoscale(optimizer)
    for pattern in range(1, 64):
        for i, param in enumerate(params):
            param.grad = torch.ones(2, 3) if pattern >> i & 1 else None
        optimizer.step()
    assert len(attachment._layouts) <= 16


def test_a_group_added_later() -> None:
    model, fed = network(), network()

    def begin(net: nn.Module) -> torch.optim.SGD:
        return SGD(net[5].parameters(), lr=0.05)

    optimizer, twin = begin(model), begin(fed)
    attachment = gw.autoscale(optimizer, model=model)
    assert attachment.names == ("5.weight", "5.bias")
    transform, state = Autoscale(), None
    for step in STEPS:
        if step == 2:
            optimizer.add_param_group({"params": list(model[3].parameters()), "lr": 0.01})
            twin.add_param_group({"params": list(fed[3].parameters()), "lr": 0.01})
        backward(model, step)
        backward(fed, step)
        params = [p for group in twin.param_groups for p in group["params"]]
        new, state = transform.update([p.grad for p in params], state)
        for param, grad in zip(params, new, strict=True):
            param.grad = grad
        optimizer.step()
        twin.step()
    assert attachment.names == ("5.weight", "5.bias", "3.weight", "3.bias")
    assert attachment.moments is not None
    assert attachment.moments.names == attachment.names
    assert same(values(model), values(fed))


def test_other_parameters_in_the_same_places() -> None:
    # Some people put new parameters into a group; these have the old ones' number, not their size.
    first, second = [nn.Parameter(torch.randn(4, 6))], [nn.Parameter(torch.randn(3, 2))]
    optimizer = SGD(first, lr=0.5)
    attachment = gw.autoscale(optimizer)
    first[0].grad = torch.randn(4, 6)
    optimizer.step()
    optimizer.param_groups[0]["params"] = second
    second[0].grad = grad = torch.randn(3, 2)
    (wanted,), _ = attachment.transform.update([grad], attachment.state)
    optimizer.step()
    assert same([second[0].grad], [wanted])
    assert attachment.moments is not None
    assert attachment.moments.count.tolist() == [6]


@pytest.mark.parametrize("key", ["autoscale", "zclip", "autoclip"])
def test_state_follows_the_gradients_to_another_device(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GRADWISE_BACKEND", raising=False)
    model, there = network(), network().to("meta")  # a device that every machine has
    optimizer = SGD(model.parameters(), lr=0.02, foreach=False)
    attachment = gw.attach(optimizer, TRANSFORMS[key]())
    train(model, optimizer, [0, 1])
    optimizer.param_groups[0]["params"] = list(there.parameters())
    for param in there.parameters():
        param.grad = torch.empty_like(param)
    optimizer.step()
    assert attachment.state is not None
    assert {value.device.type for value in attachment.state.values()} == {"meta"}
    assert attachment._skipped is not None
    assert attachment._skipped.device.type == "meta"


def test_a_model_that_changes_its_type() -> None:
    model = network()
    optimizer = SGD(model.parameters(), lr=0.02)
    attachment = gw.autoscale(optimizer)
    train(model, optimizer, [0])
    model.double()
    optimizer.zero_grad()
    loss_of(model, 1).backward()
    grads = [p.grad.clone() for p in model.parameters()]
    wanted = gw.measure(grads, backend="reference")
    optimizer.step()
    assert attachment.moments is not None
    torch.testing.assert_close(attachment.moments.m2, wanted.m2, rtol=1e-13, atol=0.0)


def test_tied_weights_count_once() -> None:
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Tanh(), nn.Linear(6, 6, bias=False))
    model[2].weight = model[0].weight
    optimizer = SGD(model.parameters(), lr=0.1)
    attachment = gw.autoscale(optimizer, model=model)
    assert attachment.names == ("0.weight",)
    model(torch.randn(3, 6)).square().mean().backward()
    grad = model[0].weight.grad.clone()
    optimizer.step()
    torch.testing.assert_close(model[2].weight.grad, grad - grad.mean())
    assert attachment.moments is not None
    assert attachment.moments.count.tolist() == [36]


def test_maximize_climbs() -> None:
    up, down = network(), network()
    climbing = SGD(up.parameters(), lr=0.02, maximize=True)
    falling = SGD(down.parameters(), lr=0.02)
    gw.autoscale(climbing)
    gw.autoscale(falling)
    train(up, climbing, [0])
    train(down, falling, [0])
    start = values(network())
    there = [u - s for u, s in zip(values(up), start, strict=True)]
    back = [s - d for d, s in zip(values(down), start, strict=True)]
    assert close(there, back, rtol=1e-4)
    assert any(t.abs().max() > 1e-3 for t in there)
