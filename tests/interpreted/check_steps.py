"""Whole steps over the Triton kernels, in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch

import gradwise as gw
from attach.counting import watched
from attach.loops import SGD, TRANSFORMS, close, network, train
from interpreted.common import launches

# What a step starts: two launches to measure, one to apply.
STEP = ["measure_chunks", "combine_chunks", "map_chunks"]


def run(key, dtype=torch.float32, steps=4):
    model = network().to(dtype)
    optimizer = SGD(model.parameters(), lr=0.02)
    attachment = gw.attach(optimizer, TRANSFORMS[key](), model=model)
    return train(model, optimizer, range(steps)), attachment


@pytest.mark.parametrize("key", TRANSFORMS)
def test_the_routes_agree(key, monkeypatch):
    monkeypatch.setenv("GRADWISE_BACKEND", "reference")
    plain, _ = run(key)
    monkeypatch.setenv("GRADWISE_BACKEND", "triton")
    values, attachment = run(key)
    assert close(values, plain, rtol=1e-5)
    assert attachment.skipped == 0


@pytest.mark.parametrize("key", ["autoscale", "center", "clip", "znorm"])
def test_what_a_steady_step_asks_for(key, monkeypatch):
    monkeypatch.setenv("GRADWISE_BACKEND", "triton")
    names = launches(monkeypatch)
    model = network()
    optimizer = SGD(model.parameters(), lr=0.02)
    runs = watched(gw.attach(optimizer, TRANSFORMS[key]()))
    train(model, optimizer, range(4))
    assert names == STEP * 4
    for calls in runs[1:]:
        assert calls.waits == []
        assert calls.reads == calls.writes == [0.0] * len(calls.reads)  # torch touches no gradient


def test_launches_do_not_grow_with_the_model(monkeypatch):
    monkeypatch.setenv("GRADWISE_BACKEND", "triton")
    names = launches(monkeypatch)
    asked = []
    for count in (3, 60):
        params = [torch.nn.Parameter(torch.randn(4, 4)) for _ in range(count)]
        optimizer = SGD(params, lr=0.1)
        runs = watched(gw.autoscale(optimizer))
        for _ in range(3):
            for param in params:
                param.grad = torch.randn(4, 4)
            optimizer.step()
        asked.append(len(runs[-1].names))
    assert names == STEP * 6
    assert asked[0] == asked[1]


def test_a_step_that_is_not_finite_is_left_alone(monkeypatch):
    monkeypatch.setenv("GRADWISE_BACKEND", "triton")
    params = [torch.nn.Parameter(torch.ones(4, 4)) for _ in range(2)]
    optimizer = SGD(params, lr=0.0)
    attachment = gw.autoscale(optimizer)
    for param in params:
        param.grad = 5 * torch.randn(4, 4)
    params[0].grad[0, 0] = torch.nan
    before = params[1].grad.clone()
    optimizer.step()
    assert attachment.skipped == 1
    assert torch.equal(params[1].grad, before)


def test_gradients_that_come_and_go(monkeypatch):
    def train_some():
        torch.manual_seed(2)
        params = [torch.nn.Parameter(torch.randn(3, 4)) for _ in range(3)]
        optimizer = SGD(params, lr=0.1)
        gw.autoscale(optimizer)
        for step in range(5):
            for i, param in enumerate(params):
                there = (step + i) % 3
                param.grad = (step + 1) * torch.randn(3, 4) if there else None
            optimizer.step()
        return [param.detach() for param in params]

    monkeypatch.setenv("GRADWISE_BACKEND", "reference")
    plain = train_some()
    monkeypatch.setenv("GRADWISE_BACKEND", "triton")
    assert close(train_some(), plain, rtol=1e-5)
