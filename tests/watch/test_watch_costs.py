"""What watching asks of a training step: no wait, no growth, few calls. Counts, never times."""

import threading

import pytest
import torch
from torch import nn
from watch_helpers import learn, network, steps_of

import gradwise as gw
from attach.counting import Calls
from gradwise.watch import ledger as ledger_module
from gradwise.watch import page as page_module


@pytest.mark.parametrize("transform", [None, "autoscale"])
def test_no_step_waits_for_the_device(tmp_path, monkeypatch, transform):
    monkeypatch.setenv("GRADWISE_BACKEND", "foreach")  # as on an accelerator
    model, optimizer = network()
    if transform:
        gw.attach(optimizer, gw.registry.build(transform))
    options = {"histograms": 2, "directions": 2, "noise_every": 2, "weights_every": 3}
    with gw.watch(optimizer, model, tmp_path / "a", **options) as watch:
        learn(model, optimizer, 6, watch, passes=2)  # constants and buffers are made once
        with Calls() as calls:
            learn(model, optimizer, 100, watch, passes=2)
        waits = [name for name in calls.waits if name != "lift_fresh"]
        assert waits == []
    assert steps_of(tmp_path / "a")["step"] == list(range(106))


def test_watching_a_transform_asks_only_for_the_copy_out(monkeypatch):
    """With autoscale attached the gradients are read no more often than without the watch."""
    monkeypatch.setenv("GRADWISE_BACKEND", "foreach")
    reads = []
    for watched in (False, True):
        model, optimizer = network()
        attachment = gw.autoscale(optimizer, model)
        if watched:
            watch = gw.watch(optimizer, model, weights_every=0, noise_every=0)
            attachment.extremes = False
        learn(model, optimizer, 3)
        loss = model(torch.randn(8, 4)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        with Calls([p.grad for p in model.parameters()]) as calls:
            optimizer.step()
        reads.append(calls.reads)
        if watched:
            watch.close()
    assert reads[0] == reads[1]


def test_memory_is_bounded_when_nobody_takes_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger_module, "PAGES", 3)
    model, optimizer = network()
    with gw.watch(optimizer, model, tmp_path / "a") as watch:
        learn(model, optimizer, 2, watch)
        recorder = watch._recorder
        with recorder._courier._pump.turn:  # as if the disk did not answer
            learn(model, optimizer, 6 * page_module.ROWS, watch)
            assert len(recorder._ledger._pages) <= 3
            assert recorder.lost_steps > 0
        learn(model, optimizer, 5, watch)
    steps = steps_of(tmp_path / "a")["step"]
    assert len(steps) == 6 * page_module.ROWS + 7 - recorder.lost_steps
    assert steps == sorted(set(steps))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of torch's own imports
def test_a_compiled_step_breaks_twice_and_is_compiled_once(tmp_path):
    torch._dynamo.reset()
    model, optimizer = network()
    counters = torch._dynamo.utils.counters
    counters.clear()
    step = torch.compile(lambda: optimizer.step(), backend="eager")
    with gw.watch(optimizer, model, tmp_path / "a"):
        for i in range(6):
            optimizer.zero_grad()
            model(torch.randn(8, 4)).square().mean().backward()
            step()
            if i == 2:
                frames = counters["frames"]["total"]
        assert counters["frames"]["total"] == frames  # no recompilation later on
    assert steps_of(tmp_path / "a")["step"] == list(range(6))
    torch._dynamo.reset()


def test_one_pass_in_the_training_thread_and_threads_that_end(tmp_path):
    before = threading.active_count()
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(50)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gw.watch(optimizer, model, tmp_path / "a"):
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()
    assert threading.active_count() == before
