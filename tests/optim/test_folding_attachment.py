"""An attachment of an optimizer that folds: observers, leaving, replacing, copies, errors."""

import copy
import sys

import pytest
import torch
from folding_helpers import (
    PAIRS,
    SIZES,
    TRANSFORMS,
    assert_same_decisions,
    assert_same_training,
    by_route,
    each_kind,
    each_route,
    each_way,
    feed,
    folded,
    hooked,
    no_hook,
    side_by_side,
)
from optim_db import assert_same, numbers, small_model
from plain_gradwise import plain

import gradwise as gw
from gradwise.attach import attached, attachment_of
from gradwise.transforms import Autoscale, Center, ClipNorm


@each_kind
@each_way
def test_readers_and_observers(kind, way):
    """Readers see the raw gradients, observers the decision; either before a parameter moves."""
    model, optimizer, attachment = folded(kind, Center(), ClipNorm(0.5), way=way)
    start = [p.detach().clone() for p in model.parameters()]
    seen = []

    def read(asked, grads, scale):
        assert asked is attachment
        assert scale is None
        assert [g is None for g in grads] == [p.grad is None for p in model.parameters()]
        assert all(g is p.grad for g, p in zip(grads, model.parameters(), strict=True))
        seen.append("read")

    def observe(asked):
        assert asked.moments.total_norm > 0.5
        assert all(map(torch.equal, model.parameters(), start))
        seen.append("observed")

    attachment.readers.append(read)
    attachment.observers.append(observe)
    feed(model, 0)
    optimizer.step()
    assert seen == ["read", "observed"]
    assert not all(map(torch.equal, model.parameters(), start))
    optimizer.zero_grad()
    optimizer.step()  # nothing to decide on
    assert seen == ["read", "observed"]
    attachment.extremes = True
    attachment.observers.clear()
    feed(model, 1)
    optimizer.step()
    assert attachment.moments.max_abs.max() > 0


@each_kind
@each_way
@each_route
def test_detach_gives_the_plain_optimizer_back(kind, way, route):
    options = by_route(kind, route)
    model, optimizer, attachment = folded(kind, *TRANSFORMS["several"](), way=way, **options)
    for step in range(3):
        feed(model, step)
        optimizer.step()
    attachment.detach()
    assert attachment_of(optimizer) is None
    assert not any(str(k).startswith("gradwise") for k in optimizer.state_dict()["param_groups"][0])
    twin = small_model()
    plain = PAIRS[kind][1](twin.named_parameters(), **{**PAIRS[kind][2], **options})
    twin.load_state_dict(model.state_dict())
    plain.load_state_dict(optimizer.state_dict())
    for step in range(3, 6):
        for m, o in ((model, optimizer), (twin, plain)):
            feed(m, step)
            o.step()
    assert_same(numbers(model, optimizer), numbers(twin, plain))
    assert attachment.state["0.Autoscale[trend].step"] == 3
    attachment.detach()  # again does nothing


@each_kind
@each_way
def test_attaching_anew_replaces(kind, way):
    model, optimizer, first = folded(kind, ClipNorm(1e-9), way=way)
    observed = []
    first.observers.append(observed.append)
    second = gw.attach(optimizer, Autoscale())
    assert attachment_of(optimizer) is second is not first
    assert second.names == tuple(name for name, _ in model.named_parameters())
    assert no_hook(optimizer)
    side_by_side((model, optimizer, second), hooked(kind, Autoscale()), range(len(SIZES)))
    assert observed == [second] * len(SIZES)
    assert first.moments is None


@each_kind
def test_attached(kind):
    """Finds what `transform=` made; makes one that only measures where there is none."""
    model, optimizer, attachment = folded(kind, Autoscale())
    assert attached(optimizer, model) is attachment
    model, optimizer, none = folded(kind, way="attach")
    none.detach()
    measuring = attached(optimizer, model)
    side_by_side((model, optimizer, measuring), hooked(kind), range(3))
    assert measuring.numbers == {}
    assert measuring.affine.is_identity
    assert no_hook(optimizer)


@each_kind
def test_copies_fold_once(kind):
    """A copy of the optimizer or the attachment has the transforms once, and on its own."""
    model, optimizer, attachment = folded(kind, Autoscale(), ClipNorm(0.5))
    theirs = hooked(kind, Autoscale(), ClipNorm(0.5))
    side_by_side((model, optimizer, attachment), theirs, range(3))
    pair = copy.deepcopy((model, attachment))
    whole = copy.deepcopy((model, optimizer))
    for run in ((*pair, pair[1].optimizer), (whole[0], attachment_of(whole[1]), whole[1])):
        twin, twins, other = run
        assert no_hook(other)
        assert attachment_of(other) is twins is not attachment
        assert twins.names == attachment.names
        side_by_side((twin, other, twins), copied(kind, theirs), range(3, 6))
    assert attachment.numbers["0.Autoscale[trend].step"] == 3


def copied(kind, theirs):
    """Another run of torch's optimizer, from where that one is."""
    model, optimizer, attachment = hooked(kind, Autoscale(), ClipNorm(0.5))
    model.load_state_dict(theirs[0].state_dict())
    optimizer.load_state_dict(copy.deepcopy(theirs[1].state_dict()))  # torch would share it
    return model, optimizer, attachment


@pytest.mark.parametrize(
    ("thing", "told"),
    [
        ("autoscale", "str"),
        ([ClipNorm], "the class ClipNorm"),
        (ClipNorm, "the class ClipNorm"),
        (1.0, "float"),
        (lambda grad: grad, "function"),
    ],
    ids=["str", "list of classes", "class", "float", "function"],
)
def test_what_is_no_transform(thing, told):
    with plain() as gradwise:  # the type checks of the tests would speak first
        optim = sys.modules["gradwise.optim"]
        with pytest.raises(gradwise.UserError) as error:
            optim.SGD(small_model().parameters(), transform=thing)
    assert str(error.value) == f"expected transforms like ClipNorm(1.0), got {told}"


@each_kind
def test_a_subclass_with_a_step_of_its_own(kind):
    """torch fires hooks twice where `step` calls that of its base; the fold is done once."""
    cls = PAIRS[kind][1]

    class Counted(cls):
        calls = 0

        def step(self, closure=None):
            self.calls += 1
            return super().step(closure)

    model = small_model()
    options = PAIRS[kind][2]
    optimizer = Counted(model.named_parameters(), transform=Autoscale(), **options)
    theirs = hooked(kind, Autoscale())
    for step in range(5):
        feed(model, step)
        feed(theirs[0], step)
        optimizer.step()
        theirs[1].step()
        assert_same_decisions(attachment_of(optimizer), theirs[2])
        assert_same_training((model, optimizer), theirs[:2])
    assert optimizer.calls == 5
