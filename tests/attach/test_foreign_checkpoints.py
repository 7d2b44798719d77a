"""Checkpoints of others, and damaged ones: one sentence, and training goes on."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

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
from attach.loops import copy_state, network, same, same_state, train
from gradwise.errors import UserError
from gradwise.transforms import AutoClip, Autoscale, Center, ClipNorm, ZClip, chain

ORDERS = pytest.mark.parametrize("way", [attach_then_load, load_then_attach])
BEGIN_ANEW = r"^the transforms begin anew, without the state in the checkpoint: "


@ORDERS
@pytest.mark.parametrize("transform", [AutoClip(50), Autoscale("ratio"), Center()])
def test_state_of_other_transforms_is_left_out_with_one_warning(transform: Any, way: Any) -> None:
    model, optimizer, _ = half_a_run()
    fresh = adam(model)
    with pytest.warns(UserWarning, match=BEGIN_ANEW) as caught:
        attachment = way(fresh, stored(optimizer.state_dict()), lambda: transform)
    assert len(caught) == 1
    name = attachment.transform.name
    message = f"expected state of {name!r}, got state of 'Autoscale[trend]'"
    assert str(caught[0].message).endswith(message)
    assert (attachment.state, attachment.skipped) == (None, 0)
    train(model, fresh, REST)  # and works
    assert attachment.moments is not None
    assert fresh.state[next(model.parameters())]["step"] == len(FIRST) + len(REST)


def test_what_was_there_does_not_survive_a_checkpoint_of_others() -> None:
    _, optimizer, _ = half_a_run("clip")
    model, other, attachment = half_a_run()
    with pytest.warns(UserWarning, match=BEGIN_ANEW):
        other.load_state_dict(stored(optimizer.state_dict()))
    assert (attachment.state, attachment.skipped) == (None, 0)
    train(model, other, REST)
    assert attachment.state is not None
    assert attachment.state["0.Autoscale[trend].step"] == len(REST)


MALFORMED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a string": (
        lambda group: group.update({"gradwise:Autoscale[trend]:0.Autoscale[trend].alpha": "1"}),
        r"expected '0.Autoscale\[trend\].alpha' of 'Autoscale\[trend\]' to be a tensor, got '1'",
    ),
    "a number": (
        lambda group: group.update({"gradwise:Autoscale[trend]:skipped": 3}),
        r"expected 'skipped' of 'Autoscale\[trend\]' to be an integer tensor, got 3",
    ),
    "a list of counts": (
        lambda group: group.update({"gradwise:Autoscale[trend]:skipped": torch.tensor([1, 2])}),
        r"expected 'skipped' of .* to be an integer tensor, got tensor\(\[1, 2\]\)",
    ),
    "a fraction": (
        lambda group: group.update({"gradwise:Autoscale[trend]:skipped": torch.tensor(0.5)}),
        r"expected 'skipped' of .* to be an integer tensor, got tensor\(0.5000\)",
    ),
    "no count": (
        lambda group: group.pop("gradwise:Autoscale[trend]:skipped"),
        r"expected 'skipped' of .* to be an integer tensor, got None",
    ),
    "no name": (
        lambda group: group.update({"gradwise:": torch.ones(())}),
        r"expected state of 'Autoscale\[trend\]', got state of ''",
    ),
    "somebody else's": (
        lambda group: group.update({"gradwise:Prodigy:d": torch.ones(())}),
        r"expected state of 'Autoscale\[trend\]', got state of 'Prodigy'",
    ),
}


@ORDERS
@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_entries_get_one_sentence(case: str, way: Any) -> None:
    model, optimizer, _ = half_a_run()
    saved = stored(optimizer.state_dict())
    damage, message = MALFORMED[case]
    damage(saved["param_groups"][0])
    fresh = adam(model)
    with pytest.warns(UserWarning, match=BEGIN_ANEW + message) as caught:
        attachment = way(fresh, saved, Autoscale)
    assert len(caught) == 1
    assert attachment.state is None
    assert fresh.param_groups[0].keys() == adam(network()).param_groups[0].keys()
    train(model, fresh, REST)
    assert fresh.state[next(model.parameters())]["step"] == len(FIRST) + len(REST)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (ZClip(warmup=3), ZClip(warmup=7)),
        (chain(ClipNorm(1.0), ZClip(warmup=3)), chain(ClipNorm(1.0), ZClip(warmup=2))),
    ],
)
def test_state_of_other_settings_is_found_out_at_the_first_step(first: Any, second: Any) -> None:
    model = network()
    optimizer = adam(model)
    gw.attach(optimizer, first)
    train(model, optimizer, FIRST)
    other = copy.deepcopy(model)
    fresh = adam(model)
    attachment = attach_then_load(fresh, stored(optimizer.state_dict()), lambda: second)
    with pytest.warns(UserWarning, match=r"the loaded state does not fit chain\(.*ZClip") as caught:
        got = train(model, fresh, REST)
    assert len(caught) == 1
    # The optimizer goes on where it was, the transforms are new.
    twin = adam(other)
    twin.load_state_dict(optimizer.state_dict())
    for key in [key for key in twin.param_groups[0] if key.startswith("gradwise")]:
        del twin.param_groups[0][key]
    anew = gw.attach(twin, second)
    assert same(got, train(other, twin, REST))
    assert same_state(attachment.state, anew.state)


@pytest.mark.parametrize("entry", ["missing", "too many", "wrong shape", "wrong kind"])
def test_entries_that_do_not_fit_are_found_out_at_the_first_step(entry: str) -> None:
    model, optimizer, _ = half_a_run()
    saved = stored(optimizer.state_dict())
    group, prefix = saved["param_groups"][0], "gradwise:Autoscale[trend]:0.Autoscale[trend]."
    if entry == "missing":
        del group[prefix + "memory"]
    elif entry == "too many":
        group[prefix + "extra"] = torch.ones(())
    elif entry == "wrong shape":
        group[prefix + "memory"] = torch.ones(3)
    else:
        group[prefix + "memory"] = torch.ones((), dtype=torch.int64)
    fresh = adam(model)
    attachment = attach_then_load(fresh, saved, Autoscale)
    with pytest.warns(UserWarning, match=r"^the transforms begin anew: the loaded state does not"):
        train(model, fresh, REST[:1])
    assert attachment.state is not None
    assert attachment.state["0.Autoscale[trend].step"] == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, fresh, REST[1:])


def test_a_checkpoint_that_torch_refuses_changes_nothing() -> None:
    _, optimizer, attachment = half_a_run()
    state, saved = copy_state(attachment), stored(optimizer.state_dict())
    saved["param_groups"].append(saved["param_groups"][0])
    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict(saved)
    assert same_state(attachment.state, state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transform": "ClipNorm"}, r"^expected state of 'Autoscale\[trend\]', got state of 'Clip"),
        ({"transform": None}, r"^expected state of 'Autoscale\[trend\]', got state of None$"),
        ({"state": None}, r"^expected the state of 'Autoscale\[trend\]' to be a dict, got None$"),
        ({"state": {"alpha": 1.0}}, r"^expected 'alpha' of .* to be a tensor, got 1.0$"),
        ({"skipped": 1}, r"^expected 'skipped' of .* to be an integer tensor, got 1$"),
    ],
)
def test_attachments_refuse_what_is_not_theirs(change: Any, message: str) -> None:
    _, _, attachment = half_a_run()
    state = copy_state(attachment)
    with pytest.raises(UserError, match=message):
        attachment.load_state_dict({**attachment.state_dict(), **change})
    with pytest.raises(UserError, match=r"^expected state of 'Autoscale\[trend\]', got state of N"):
        attachment.load_state_dict({})
    assert same_state(attachment.state, state)


def test_who_only_measures_hands_the_state_of_transforms_on() -> None:
    """As where a watch is made of a loaded optimizer before the transforms are attached."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gw.autoscale(optimizer)
    train(model, optimizer, range(3))
    state = optimizer.state_dict()
    for load_first in (True, False):
        other = network()
        its = torch.optim.SGD(other.parameters(), lr=0.1)
        if load_first:
            its.load_state_dict(state)
        gw.attach(its)
        if not load_first:
            its.load_state_dict(state)
        again = its.state_dict()  # saved by who cannot use it
        third = torch.optim.SGD(network().parameters(), lr=0.1)
        third.load_state_dict(again)
        for of in (its, third):
            found = gw.autoscale(of)
            assert found.state is not None
            assert float(found.state["0.Autoscale[trend].step"]) == 3


def test_a_checkpoint_of_who_only_measured_is_nothing_to_transforms() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gw.attach(optimizer)
    train(model, optimizer, range(3))
    other = torch.optim.SGD(network().parameters(), lr=0.1)
    other.load_state_dict(optimizer.state_dict())
    assert gw.autoscale(other).state is None  # and no warning
