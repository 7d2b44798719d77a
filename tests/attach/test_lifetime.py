"""Attaching anew, detaching, copying, pickling, and being forgotten."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from typing import Any

import pytest
import torch

import gradwise as gw
from attach.loops import (
    SGD,
    backward,
    copy_state,
    network,
    same,
    same_state,
    train,
    train_by_function,
    values,
)
from gradwise.transforms import AutoClip, Autoscale, Center, ClipNorm

STEPS = range(4)
LATER = range(4, 8)


def adam(model: torch.nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam(model.parameters(), lr=0.02)


def hooks_of(optimizer: Any) -> list[int]:
    return [
        len(optimizer._optimizer_step_pre_hooks),
        len(optimizer._optimizer_step_post_hooks),
        len(optimizer._optimizer_state_dict_post_hooks),
        len(optimizer._optimizer_load_state_dict_pre_hooks),
        len(optimizer._optimizer_load_state_dict_post_hooks),
    ]


def test_attaching_anew_replaces() -> None:
    model, fed = network(), network()
    optimizer, twin = adam(model), adam(fed)
    first = gw.attach(optimizer, ClipNorm(0.01))
    count = hooks_of(optimizer)
    for _ in range(3):
        second = gw.autoscale(optimizer)
    assert hooks_of(optimizer) == count
    assert same(train(model, optimizer, STEPS), train_by_function(fed, twin, Autoscale(), STEPS))
    assert first.moments is None
    assert second.moments is not None
    saved = optimizer.state_dict()["param_groups"][0]
    assert not any("ClipNorm" in str(key) for key in saved)


def test_attaching_anew_begins_anew() -> None:
    model, fed = network(), network()
    optimizer, twin = adam(model), adam(fed)
    gw.autoscale(optimizer)
    train(model, optimizer, STEPS)
    train_by_function(fed, twin, Autoscale(), STEPS)
    assert gw.autoscale(optimizer).state is None
    assert same(train(model, optimizer, LATER), train_by_function(fed, twin, Autoscale(), LATER))


def test_names_observers_and_extremes_stay() -> None:
    model = network()
    optimizer = adam(model)
    first = gw.attach(optimizer, model=model)
    seen: list[gw.Attachment] = []
    first.observers.append(seen.append)
    first.extremes = True
    second = gw.autoscale(optimizer)
    assert second.names == first.names == tuple(name for name, _ in model.named_parameters())
    train(model, optimizer, [0])
    assert seen == [second]
    assert second.moments is not None
    assert second.moments.max is not None
    first.observers.remove(seen.append)  # an observer leaves where it came in
    train(model, optimizer, [1])
    assert len(seen) == 1


def test_detaching_gives_the_plain_optimizer_back() -> None:
    model, plain = network(), network()
    optimizer, other = adam(model), adam(plain)
    before = hooks_of(optimizer)
    attachment = gw.attach(optimizer, ClipNorm(1e9), AutoClip())
    attachment.detach()
    assert hooks_of(optimizer) == before
    assert vars(optimizer).keys() == vars(other).keys()
    assert same(train(model, optimizer, STEPS), train(plain, other, STEPS))
    assert attachment.moments is None
    assert optimizer.state_dict()["param_groups"] == other.state_dict()["param_groups"]


def test_detaching_in_the_middle() -> None:
    model, fed = network(), network()
    optimizer, twin = adam(model), adam(fed)
    attachment = gw.autoscale(optimizer)
    train(model, optimizer, STEPS)
    train_by_function(fed, twin, Autoscale(), STEPS)
    attachment.detach()
    state = copy_state(attachment)
    assert same(train(model, optimizer, LATER), train(fed, twin, LATER))
    assert same_state(state, attachment.state)


def test_detaching_again_does_nothing() -> None:
    model = network()
    optimizer = adam(model)
    first = gw.autoscale(optimizer)
    first.detach()
    first.detach()
    second = gw.autoscale(optimizer)
    first.detach()  # of one that is replaced: not the business of the other
    train(model, optimizer, [0])
    assert second.moments is not None
    gw.attach(optimizer)
    assert hooks_of(optimizer)[0] == 1


def test_a_copied_optimizer_is_a_plain_one() -> None:
    model, plain = network(), network()
    optimizer, other = adam(model), adam(plain)
    gw.autoscale(optimizer)
    pair, twins = copy.deepcopy((model, optimizer)), copy.deepcopy((plain, other))
    assert hooks_of(pair[1]) == [0] * 5
    assert same(train(*pair, STEPS), train(*twins, STEPS))
    again = gw.autoscale(pair[1])  # and can be attached to
    train(*pair, [0])
    assert again.moments is not None


@pytest.mark.parametrize("order", ["optimizer first", "attachment first", "no optimizer"])
def test_a_copied_attachment_works_and_is_independent(order: str) -> None:
    model = network()
    optimizer = adam(model)
    attachment = gw.attach(optimizer, Autoscale(), AutoClip(50), model=model)
    attachment.extremes = True
    train(model, optimizer, STEPS)
    attachment.observers.append(lambda a: pytest.fail("observers belong to the original"))
    if order == "optimizer first":
        net, opt, twin = copy.deepcopy((model, optimizer, attachment))
    elif order == "attachment first":
        twin, net, opt = copy.deepcopy((attachment, model, optimizer))
    else:
        net, twin = copy.deepcopy((model, attachment))
        opt = twin.optimizer
    assert twin.optimizer is opt
    assert twin is not attachment
    assert twin.transform is not attachment.transform
    assert (twin.names, twin.extremes) == (attachment.names, True)
    assert same_state(twin.state, attachment.state)
    state = copy_state(attachment)
    ahead = train(net, opt, LATER)
    assert same_state(state, attachment.state)  # the original has not moved
    assert not same(values(model), ahead)
    attachment.observers.clear()
    assert same(train(model, optimizer, LATER), ahead)  # and goes the same way
    assert same_state(twin.state, attachment.state)
    twin.detach()
    train(model, optimizer, [0])
    assert not same_state(twin.state, attachment.state)


def test_a_copy_before_the_first_step() -> None:
    model = network()
    optimizer = adam(model)
    attachment = gw.autoscale(optimizer)
    net, opt, twin = copy.deepcopy((model, optimizer, attachment))
    assert twin.state is None
    assert same(train(net, opt, STEPS), train(model, optimizer, STEPS))
    assert same_state(twin.state, attachment.state)


@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_a_pickled_optimizer_is_a_plain_one(protocol: int) -> None:
    model = network()
    optimizer = adam(model)
    gw.autoscale(optimizer)
    train(model, optimizer, [0])
    loaded_model, loaded = pickle.loads(pickle.dumps((model, optimizer), protocol))
    assert hooks_of(loaded) == [0] * 5
    plain = copy.deepcopy((model, optimizer))
    assert same(train(loaded_model, loaded, STEPS), train(*plain, STEPS))


def test_torch_save_of_a_whole_optimizer() -> None:
    model = network()
    optimizer = adam(model)
    gw.attach(optimizer, Center())
    train(model, optimizer, [0])
    file = io.BytesIO()
    torch.save(optimizer, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert hooks_of(loaded) == [0] * 5
    assert len(loaded.param_groups[0]["params"]) == 7


@pytest.mark.parametrize("end", ["as it is", "detached", "replaced", "raised"])
def test_nothing_holds_on_to_an_optimizer(end: str) -> None:
    def use() -> list[weakref.ref[Any]]:
        model = network()
        optimizer = SGD(model.parameters(), lr=0.02)
        attachment = gw.autoscale(optimizer, model=model)
        train(model, optimizer, [0])
        if end == "detached":
            attachment.detach()
        if end == "replaced":
            gw.attach(optimizer, Center())
        if end == "raised":

            def broken(*_: object) -> None:
                raise ValueError("stop")

            optimizer.register_step_pre_hook(broken)
            with pytest.raises(ValueError, match="stop"):
                optimizer.step()
        grad = next(model.parameters()).grad
        return [weakref.ref(x) for x in (optimizer, attachment, next(model.parameters()), grad)]

    references = use()
    gc.collect()
    assert [reference() for reference in references] == [None] * 4


def test_a_detached_attachment_holds_no_hook_and_may_outlive() -> None:
    model = network()
    optimizer = adam(model)
    attachment = gw.autoscale(optimizer)
    train(model, optimizer, [0])
    attachment.detach()
    backward(model, 1)
    optimizer.step()
    assert attachment.moments is not None
    assert attachment.moments.total_norm > 0
