"""One line attaches to every optimizer of torch.optim, and they get what the function gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import gradwise as gw
from attach.loops import TRANSFORMS, Feed, loss_of, network, same, train, train_by_function, values
from gradwise.transforms import Autoscale, ClipNorm

STEPS = range(4)
# All that torch has, whatever it is called: a new one joins by itself.
CLASSES = sorted(
    (
        kind
        for kind in vars(torch.optim).values()
        if isinstance(kind, type)
        and issubclass(kind, torch.optim.Optimizer)
        and kind is not torch.optim.Optimizer
    ),
    key=lambda kind: kind.__name__,
)
STEPPED = [kind for kind in CLASSES if kind.__name__ not in ("LBFGS", "SparseAdam")]
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "nesterov": ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "maximize": ("SGD", {"maximize": True}),
    "foreach": ("AdamW", {"foreach": True}),
    "one by one": ("AdamW", {"foreach": False}),
    "fused": ("AdamW", {"fused": True}),
    "fused sgd": ("SGD", {"fused": True, "momentum": 0.9}),
    "amsgrad": ("Adam", {"amsgrad": True, "maximize": True}),
    "tensor lr": ("Adam", {"lr": torch.tensor(0.02)}),
}


def build(kind: type[torch.optim.Optimizer], model: nn.Module, **settings: Any) -> Any:
    return kind(model.parameters(), **{"lr": 0.02, **settings})


def net_for(kind: type[torch.optim.Optimizer]) -> nn.Module:
    return network(bias=kind.__name__ != "Muon")  # Muon takes matrices only


def test_the_list_is_complete() -> None:
    names = {kind.__name__ for kind in CLASSES}
    assert {"SGD", "Adam", "AdamW", "LBFGS", "SparseAdam", "Adafactor", "Rprop", "ASGD"} <= names
    public = {n for n in torch.optim.__all__ if isinstance(getattr(torch.optim, n), type)}
    assert names == public - {"Optimizer"}


@pytest.mark.parametrize("kind", STEPPED)
def test_gets_what_the_function_gives(kind: type[torch.optim.Optimizer]) -> None:
    attached, plain, fed = net_for(kind), net_for(kind), net_for(kind)
    optimizer = build(kind, attached)
    gw.autoscale(optimizer)
    got = train(attached, optimizer, STEPS)
    assert same(got, train_by_function(fed, build(kind, fed), Autoscale(), STEPS))
    assert not same(got, train(plain, build(kind, plain), STEPS))


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_get_what_the_function_gives(name: str) -> None:
    kind, settings = getattr(torch.optim, VARIANTS[name][0]), VARIANTS[name][1]
    attached, plain, fed = network(), network(), network()
    optimizer = build(kind, attached, **settings)
    gw.autoscale(optimizer)
    got = train(attached, optimizer, STEPS)
    assert same(got, train_by_function(fed, build(kind, fed, **settings), Autoscale(), STEPS))
    assert not same(got, train(plain, build(kind, plain, **settings), STEPS))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transform_does_what_its_function_does(name: str) -> None:
    attached, fed = network(), network()
    optimizer = build(torch.optim.Adam, attached)
    attachment = gw.attach(optimizer, TRANSFORMS[name]())
    twin = build(torch.optim.Adam, fed)
    got = train(attached, optimizer, range(6))
    # As attached: one chain, which names its links' state.
    assert same(got, train_by_function(fed, twin, attachment.transform, range(6)))
    assert attachment.skipped == 0


@pytest.mark.parametrize("kind", STEPPED)
def test_a_schedule_made_after_attaching(kind: type[torch.optim.Optimizer]) -> None:
    # LR schedulers look into `optimizer.step`, and warn where they do not recognise it.
    attached, fed = net_for(kind), net_for(kind)
    optimizer, twin = build(kind, attached), build(kind, fed)
    gw.autoscale(optimizer)
    schedules = [torch.optim.lr_scheduler.StepLR(o, 1, gamma=0.5) for o in (optimizer, twin)]
    feed = Feed(fed, Autoscale())
    for step in STEPS:
        for model in (attached, fed):
            model.zero_grad()
            loss_of(model, step).backward()
        feed()
        optimizer.step()
        twin.step()
        for schedule in schedules:
            schedule.step()
    assert optimizer.param_groups[0]["lr"] == twin.param_groups[0]["lr"] == 0.02 * 0.5**4
    assert same(values(attached), values(fed))


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_lbfgs_gets_it_at_every_evaluation(search: str | None) -> None:
    attached, plain, fed = network(), network(), network()

    def run(model: nn.Module, feed: Feed | None, attach: bool) -> tuple[int, int]:
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, line_search_fn=search, max_iter=5)
        evaluations = 0
        observed = []
        if attach:
            gw.autoscale(optimizer).observers.append(observed.append)
        for step in range(2):

            def closure(step: int = step) -> torch.Tensor:
                nonlocal evaluations
                evaluations += 1
                optimizer.zero_grad()
                loss = loss_of(model, step)
                loss.backward()
                if feed is not None:
                    feed()
                return loss

            optimizer.step(closure)
        return evaluations, len(observed)

    evaluations, observed = run(attached, None, True)
    assert observed == evaluations > 4
    assert run(fed, Feed(fed, Autoscale()), False) == (evaluations, 0)
    assert same(values(attached), values(fed))
    run(plain, None, False)
    assert not same(values(attached), values(plain))


@pytest.mark.parametrize("transform", [Autoscale(), ClipNorm(0.5)])
def test_sparse_adam(transform: gw.transforms.Transform) -> None:
    def run(attach: bool, feed: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        table = nn.Embedding(7, 3, sparse=True)
        optimizer = torch.optim.SparseAdam(table.parameters(), lr=0.1)
        if attach:
            gw.attach(optimizer, transform)
        fed = Feed(table, transform)
        for step in STEPS:
            table.zero_grad()
            rows = torch.tensor([step, step + 1, step])  # one of them twice
            (10.0**step * table(rows).square().sum()).backward()
            assert table.weight.grad is not None
            assert table.weight.grad.is_sparse
            if feed:
                fed()
            optimizer.step()
        return values(table)

    got = run(attach=True, feed=False)
    assert same(got, run(attach=False, feed=True))
    # Centring would make it dense, so autoscale leaves it alone; clipping does not.
    assert same(got, run(attach=False, feed=False)) == isinstance(transform, Autoscale)
