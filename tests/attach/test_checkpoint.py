"""The transforms' state in the optimizer's own checkpoint: there and back, whatever the order."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

import gradwise as gw
from attach.checkpoints import (
    FIRST,
    REST,
    adam,
    attach_then_load,
    half_a_run,
    load_then_attach,
    stored,
)
from attach.loops import TRANSFORMS, copy_state, network, same, same_state, train, values
from gradwise.transforms import AutoClip, Autoscale


def ours(optimizer: Any) -> list[str]:
    return [key for key in optimizer.state_dict()["param_groups"][0] if key.startswith("gradwise")]


def through_a_plain_optimizer(optimizer: Any, saved: Any, make: Callable[[], Any]) -> gw.Attachment:
    carrier = adam(network())  # a run without gradwise in between, which saves what it loaded
    carrier.load_state_dict(saved)
    return attach_then_load(optimizer, stored(carrier.state_dict()), make)


def over_another_run(optimizer: Any, saved: Any, make: Callable[[], Any]) -> gw.Attachment:
    attachment = gw.attach(optimizer, make())
    for _ in range(3):
        for param in optimizer.param_groups[0]["params"]:
            param.grad = torch.randn_like(param)
        optimizer.step()
    optimizer.load_state_dict(saved)
    return attachment


def by_the_attachment(optimizer: Any, saved: Any, make: Callable[[], Any]) -> gw.Attachment:
    optimizer.load_state_dict(saved)
    parts = gw.attach(optimizer, make()).state_dict()
    attachment = gw.attach(optimizer, make())
    attachment.load_state_dict(stored(parts))
    return attachment


WAYS = (
    attach_then_load,
    load_then_attach,
    through_a_plain_optimizer,
    over_another_run,
    by_the_attachment,
)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("key", TRANSFORMS)
def test_a_resumed_run_is_the_uninterrupted_one(key: str, way: Any) -> None:
    model, optimizer, attachment = half_a_run(key)
    saved, weights = stored(optimizer.state_dict()), stored(model.state_dict())
    whole = train(model, optimizer, REST)

    other = network()
    fresh = adam(other)
    resumed = way(fresh, saved, TRANSFORMS[key])
    other.load_state_dict(weights)
    assert same(train(other, fresh, REST), whole)
    assert same_state(resumed.state, attachment.state)
    assert ours(fresh) == ours(optimizer) != []


def test_state_matters() -> None:
    # The test above could not fail for a transform that remembers nothing.
    model, optimizer, _ = half_a_run()
    weights, saved = stored(model.state_dict()), stored(optimizer.state_dict())
    whole = train(model, optimizer, REST)
    for key in [key for key in saved["param_groups"][0] if key.startswith("gradwise")]:
        del saved["param_groups"][0][key]
    other = network()
    other.load_state_dict(weights)
    fresh = adam(other)
    attach_then_load(fresh, saved, Autoscale)
    assert not same(train(other, fresh, REST), whole)


def test_skipped_steps_are_remembered() -> None:
    model, optimizer, attachment = half_a_run()
    next(model.parameters()).grad.fill_(torch.nan)
    optimizer.step()
    optimizer.step()
    assert attachment.skipped == 2
    other = network()
    fresh = adam(other)
    resumed = attach_then_load(fresh, stored(optimizer.state_dict()), Autoscale)
    assert resumed.skipped == 2
    train(other, fresh, [0])
    assert resumed.skipped == 2
    next(other.parameters()).grad.fill_(torch.nan)
    fresh.step()
    assert resumed.skipped == 3


def test_entries_are_plain_tensors_that_later_steps_do_not_change() -> None:
    model, optimizer, attachment = half_a_run("autoscale+autoclip+agc")
    saved = optimizer.state_dict()
    group = saved["param_groups"][0]
    entries = {key: group[key] for key in ours(optimizer)}
    kept = copy.deepcopy(entries)
    grown = {key: value for key, value in entries.items() if key.endswith("history")}
    assert [type(value) for value in grown.values()] == [list]  # of what gets longer
    rest = {key: value for key, value in entries.items() if key not in grown}
    assert all(type(value) is Tensor for value in rest.values())
    train(model, optimizer, REST)
    assert same_state(rest, {key: kept[key] for key in rest})
    assert grown == {key: kept[key] for key in grown}
    assert not same_state(attachment.state, half_a_run("autoscale+autoclip+agc")[2].state)


def test_an_attachment_copies_what_it_loads() -> None:
    _, _, attachment = half_a_run("autoscale+autoclip+agc")
    saved = copy.deepcopy(attachment.state_dict())
    resumed = gw.attach(adam(network()), TRANSFORMS["autoscale+autoclip+agc"]())
    resumed.load_state_dict(saved)
    for value in (*saved["state"].values(), saved["skipped"]):
        if isinstance(value, list):
            value[:] = [99.0]
        else:
            value.fill_(99)
    assert same_state(resumed.state, attachment.state)
    assert resumed.skipped == 0


def test_the_optimizers_own_groups_stay_clean() -> None:
    _, optimizer, _ = half_a_run()
    plain = adam(network())
    assert optimizer.param_groups[0].keys() == plain.param_groups[0].keys()
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups[0].keys() == plain.param_groups[0].keys()
    plain.load_state_dict(optimizer.state_dict())
    gw.autoscale(plain)
    assert optimizer.param_groups[0].keys() == plain.param_groups[0].keys()


@pytest.mark.parametrize("way", WAYS[:2])
def test_the_users_dict_is_left_as_it_is(way: Any) -> None:
    _, optimizer, _ = half_a_run("autoscale+autoclip+agc")
    saved = stored(optimizer.state_dict())
    kept = copy.deepcopy(saved)
    other = network()
    fresh = adam(other)
    way(fresh, saved, TRANSFORMS["autoscale+autoclip+agc"])
    train(other, fresh, REST)
    assert saved["param_groups"][0].keys() == kept["param_groups"][0].keys()
    for key, value in kept["param_groups"][0].items():
        now = saved["param_groups"][0][key]
        assert same([now], [value]) if isinstance(value, Tensor) else now == value


@pytest.mark.parametrize("way", WAYS[:2])
def test_a_checkpoint_without_gradwise(way: Any) -> None:
    model = network()
    plain = adam(model)
    train(model, plain, FIRST)
    other = copy.deepcopy(model)
    fresh = adam(other)
    attachment = way(fresh, stored(plain.state_dict()), Autoscale)
    assert attachment.state is None
    gw.autoscale(plain)
    assert same(train(other, fresh, REST), train(model, plain, REST))


def test_a_checkpoint_of_the_very_beginning_begins_anew() -> None:
    # Searching for a learning rate means going back to the start many times.
    model = network()
    optimizer = adam(model)
    attachment = gw.attach(optimizer, Autoscale(), AutoClip(50))
    start, weights = stored(optimizer.state_dict()), stored(model.state_dict())
    first = train(model, optimizer, FIRST)
    state = copy_state(attachment)
    model.load_state_dict(weights)
    optimizer.load_state_dict(start)
    assert (attachment.state, attachment.skipped) == (None, 0)
    assert same(train(model, optimizer, FIRST), first)
    assert same_state(attachment.state, state)


def test_a_history_grows_on() -> None:
    model, optimizer, _ = half_a_run("autoclip")
    fresh = adam(model)
    resumed = attach_then_load(fresh, stored(optimizer.state_dict()), TRANSFORMS["autoclip"])
    assert resumed.state is not None
    assert resumed.state["0.AutoClip.history"].shape == (len(FIRST),)
    train(model, fresh, REST)
    assert resumed.state["0.AutoClip.history"].shape == (len(FIRST) + len(REST),)


def test_schedules_and_groups() -> None:
    def begin(net: nn.Module) -> tuple[Any, Any]:
        params = list(net.parameters())
        optimizer = torch.optim.Adam([{"params": params[:3]}, {"params": params[3:], "lr": 0.1}])
        return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)

    model = network()
    optimizer, schedule = begin(model)
    gw.autoscale(optimizer)
    for step in FIRST:
        train(model, optimizer, [step])
        schedule.step()
    saved = stored((model.state_dict(), optimizer.state_dict(), schedule.state_dict()))
    other = network()
    fresh, again = begin(other)
    gw.autoscale(fresh)
    for item, state in zip((other, fresh, again), saved, strict=True):
        item.load_state_dict(state)
    for step in REST:
        for net, opt, plan in ((model, optimizer, schedule), (other, fresh, again)):
            train(net, opt, [step])
            plan.step()
    assert same(values(model), values(other))
    assert [g["lr"] for g in fresh.param_groups] == [g["lr"] for g in optimizer.param_groups]


def test_torchs_distributed_checkpoints_carry_it() -> None:
    model, optimizer, attachment = half_a_run()
    saved = get_optimizer_state_dict(model, optimizer)
    other = network()
    other.load_state_dict(model.state_dict())
    fresh = adam(other)
    resumed = gw.autoscale(fresh)
    set_optimizer_state_dict(other, fresh, stored(saved))
    assert same_state(resumed.state, attachment.state)
    assert same(train(other, fresh, REST), train(model, optimizer, REST))
