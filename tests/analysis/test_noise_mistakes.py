"""What measuring noise leaves alone, and what it refuses."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from analysis.measured_models import Wandering, linear, per_sample, regression, shuffled, untouched
from gradwise.analysis._frozen import frozen
from gradwise.analysis.noise import (
    Direction,
    c2_bound,
    critical_batch_size,
    gradient_noise,
    gradient_noise_scale,
    search_direction_noise,
)
from gradwise.errors import UserError

MSE = nn.MSELoss()


def test_nothing_of_the_model_changes() -> None:
    model, (x, y) = Wandering(), regression()
    data = x.float(), y.float()
    MSE(model(data[0]), data[1]).backward()
    model.net[0].weight.requires_grad_(False)
    model.net[3].eval()
    loader = shuffled(data, 4)
    for source, size in ((loader, None), (data, 4)):
        with untouched(model, loader):
            first = gradient_noise(model, MSE, source, batch_size=size)
        with untouched(model, loader), torch.no_grad():
            assert gradient_noise(model, MSE, source, batch_size=size) == first

    def fails(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("on the way")

    with untouched(model, loader), pytest.raises(RuntimeError, match="on the way"):
        gradient_noise(model, fails, loader)


def test_streams_that_are_not_torchs_go_on_where_they_were() -> None:
    """Looked at without calls in between whose checked annotations draw from Python's stream."""
    model, (x, _) = Wandering(), regression()
    measuring = frozen(model)
    python, numpy = random.getstate(), np.random.get_state()[2]
    with measuring:
        model(x.float())
        changed = random.getstate() != python and np.random.get_state()[2] != numpy
    assert changed
    assert random.getstate() == python
    assert np.random.get_state()[2] == numpy


def test_norm_layers_use_their_running_statistics() -> None:
    model, (x, y) = Wandering(), regression()
    data = x.float(), y.float()
    frozen_rows = per_sample(model.eval(), data)  # single samples make sense only like this
    found = gradient_noise(model.train(), MSE, data, batch_size=1, batches=400)
    assert found.norm == pytest.approx(np.linalg.norm(frozen_rows.mean(0)), rel=1e-5)


def test_nested_batches_sparse_and_complex_gradients() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(5, 3, sparse=True)
            self.turn = nn.Parameter(torch.ones(3, dtype=torch.complex64))

        def forward(self, inputs: dict[str, Any]) -> torch.Tensor:
            return (self.table(inputs["words"]) * self.turn).abs().sum(1)

    batches = [({"words": torch.tensor([k, 1])}, torch.zeros(2)) for k in range(5)]
    found = gradient_noise(Words(), lambda out, _: out.mean(), batches)
    assert found.samples == 10
    assert 0 < found.variance < math.inf


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": None}, "1 <= batch_size <= 24, got batch_size=None"),
        ({"batch_size": 25}, "batch_size=25"),
        ({"batch_size": 0, "replacement": True}, "batch_size=0"),
        ({"batches": 0}, "batches=0"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"data": (torch.ones(3), torch.ones(4))}, "3 inputs and 4 targets"),
        ({"data": (torch.ones(3),)}, "got 1 tensors"),
        ({"data": iter([]), "batch_size": None}, "iterated again"),
        ({"data": [], "batch_size": None}, "got 0 tensors"),
        ({"data": [3], "batch_size": None}, "batches \\(inputs, targets\\)"),
        ({"data": [("a", "b")], "batch_size": None}, "got one with none"),
        ({"data": {}, "batch_size": None}, "at least one batch"),
        ({"data": [regression()]}, "neither batch_size nor replacement"),
        ({"loss_fn": lambda a, b: a - b}, "one real number, got shape"),
        ({"loss_fn": lambda a, b: b.mean()}, "got a constant"),
        ({"loss_fn": lambda a, b: a.mean() / 0}, "finite loss and gradient"),
        ({"model": nn.Flatten()}, "requires a gradient, got none"),
        ({"model": nn.LazyLinear(1)}, "without a shape"),
    ],
)
def test_mistakes_are_named(change: dict[str, Any], words: str) -> None:
    given_ = {"model": linear(), "loss_fn": MSE, "data": regression(), "batch_size": 4, **change}
    with pytest.raises(UserError, match=words):
        gradient_noise(**given_)


def test_foreign_optimizers_and_buffers_are_refused() -> None:
    model = nn.Linear(4, 1, dtype=torch.float64)
    params = list(model.parameters())
    sgd = torch.optim.SGD
    several = [{"params": params[:1], "momentum": 0.5}, {"params": params[1:]}]
    for optimizer, words in [
        (torch.optim.Adam(params), "got Adam"),
        (sgd(params, momentum=0.9, nesterov=True), "nesterov=False"),
        (sgd(params, maximize=True), "maximize=False"),
        (sgd(several), "got several"),
        (sgd(params[:1]), "'bias' is not there"),
        (sgd(params, momentum=0.9), "has made a step"),
    ]:
        with pytest.raises(UserError, match=words):
            Direction.of(optimizer, model)
    assert Direction.of(sgd(params), model).buffer is None
    for direction, words in [
        (Direction(buffer=(torch.ones(2),)), "a buffer of the shapes"),
        (Direction(weight_decay=(0.1,)), "2 numbers for weight_decay, got 1"),
    ]:
        with pytest.raises(UserError, match=words):
            search_direction_noise(model, MSE, regression(), direction, batch_size=4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Direction.heavy_ball(1.0), "beta=1.0"),
        (lambda: Direction(weight=0.0), "weight=0.0"),
        (lambda: critical_batch_size([(8, 3)]), "at least two batch sizes, got 1"),
        (lambda: critical_batch_size([(8, 0), (4, 1)]), r"got \(8, 0\)"),
        (lambda: critical_batch_size([(8, None), (4, None)]), "got none"),
        (lambda: c2_bound(0, threshold=1.0, lr=1.0), "batch_size=0"),
        (lambda: c2_bound(1, threshold=0.0, lr=1.0), "threshold=0.0"),
        (lambda: c2_bound(1, threshold=1.0, lr=math.inf), "lr=inf"),
        (lambda: c2_bound(1, threshold=1.0, lr=1.0, beta=1.0), "beta=1.0"),
        (lambda: gradient_noise_scale([], 1), "at least two batches, got 0"),
        (lambda: gradient_noise_scale([[torch.ones(1)]] * 2, 0), "batch_size=0"),
        (lambda: gradient_noise_scale([[torch.ones(1)]] * 2, 4, samples=7), "samples=7"),
        (lambda: gradient_noise_scale([[torch.ones(1)], [torch.ones(2)]], 1), "batch 1"),
        (lambda: gradient_noise_scale([[torch.tensor([math.nan])]] * 2, 1), "batch 0 are not"),
    ],
)
def test_numbers_out_of_bounds(call: Callable[[], object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        call()
