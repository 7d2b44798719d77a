"""Hooks on a model are nobody's trouble: copies, pickles and checkpoints of it, and its end."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gradwise.watch.probes.noise import NoiseProbe
from noise.loops import Loop, looped, loss_of, network
from noise.test_noise_probe import hooks


def pickled(thing: Any) -> Any:
    return pickle.loads(pickle.dumps(thing))


def saved(thing: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.fixture
def loop() -> Loop:
    """In the middle of a measured step: a hook before and after each accumulation."""
    loop = looped(every=3)
    loop.step()
    loop.step()
    loss_of(loop.model, 0).backward()
    assert hooks(loop.model) == 9
    return loop


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved])
def test_a_copy_of_the_model_has_no_hooks(loop: Loop, copied: Callable[[Any], Any]) -> None:
    twin = copied(loop.model)
    assert hooks(twin) == 0
    assert hooks(loop.model) == 9
    backwards = loop.probe.backwards
    loss_of(twin, 1).backward()
    assert loop.probe.backwards == backwards
    for a, b in zip(twin.parameters(), loop.model.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved])
def test_state_dicts(loop: Loop, copied: Callable[[Any], Any]) -> None:
    for thing in (loop.model.state_dict(), loop.optimizer.state_dict()):
        assert copied(thing).keys() == thing.keys()
    copied(loop.optimizer)
    copied(list(loop.model.parameters()))
    buffer = io.BytesIO()
    torch.save(loop.model.state_dict(), buffer)
    buffer.seek(0)
    torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved])
def test_leaves_that_are_no_parameters(copied: Callable[[Any], Any]) -> None:
    leaf = torch.randn(3, requires_grad=True)
    probe = NoiseProbe([leaf], every=1)
    for _ in range(2):
        leaf.grad = None
        for _ in range(2):
            (leaf * 2).sum().backward()
        probe.gradients([leaf.grad])
        probe.end()
    assert leaf._backward_hooks
    twin: Tensor = copied(leaf)  # torch warns of hooks that get lost, and warnings are errors here
    assert torch.equal(twin, leaf)
    assert not twin._backward_hooks


def test_a_probe_that_is_forgotten_takes_its_hooks_along() -> None:
    for closed in (False, True):
        loop = looped()
        assert hooks(loop.model) == 9
        ref = weakref.ref(loop.probe)
        if closed:
            loop.probe.close()
        loop.probe = None  # type: ignore[assignment]
        gc.collect()
        assert ref() is None
        assert hooks(loop.model) == 0
        loss_of(loop.model, 0).backward()


def test_a_model_that_is_forgotten_is_freed() -> None:
    model = network()
    probe = NoiseProbe(list(model.parameters()), every=1)
    loop = Loop(model, probe)
    loop.step()
    loop.step()
    refs = [weakref.ref(model), weakref.ref(probe), weakref.ref(model[0].weight)]
    loop.probe.close()
    del model, probe, loop
    gc.collect()
    assert [ref() for ref in refs] == [None] * 3


def test_closed_in_the_middle_of_a_step(loop: Loop) -> None:
    loop.probe.close()
    assert hooks(loop.model) == 0
    assert loop.step() == {}
    assert hooks(loop.model) == 0


def test_hooks_of_others_stay() -> None:
    seen: list[int] = []
    model = network()
    model[0].weight.register_hook(lambda g: seen.append(1))
    model[0].weight.register_post_accumulate_grad_hook(lambda p: seen.append(2))
    loop = Loop(model, NoiseProbe(list(model.parameters()), every=2), passes=2)
    for _ in range(4):
        loop.step()
    assert seen == [1, 2] * 8
    loop.probe.close()
    seen.clear()
    loop.step()
    assert seen == [1, 2] * 2


def test_two_probes_on_one_model() -> None:
    model = network()
    probes = [NoiseProbe(list(model.parameters()), every=k) for k in (1, 2)]
    loop = Loop(model, probes[0])
    for step in range(5):
        grads: list[nn.Parameter] = list(model.parameters())
        probes[1].gradients([p.grad for p in grads])
        found = [loop.step(), probes[1].end()]
        if found[0] and found[1]:
            assert {k: float(v) for k, v in found[0].items()} == pytest.approx(
                {k: float(v) for k, v in found[1].items()}
            )
        assert bool(found[0]) == (step > 0)
