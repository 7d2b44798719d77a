"""A batch as a function of the weights: what evaluating it several times must not change."""

import pytest
import torch
from lab_helpers import make_trial, numbers, tiny
from torch import nn

from gradwise import registry
from gradwise.lab import methods as methods_module
from gradwise.lab.evaluation import Evaluations
from gradwise.optim.base import FoldingOptimizer
from gradwise.registry import Method


def model_with_all():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))


def batch_of(model, *, backward=True):
    inputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Evaluations(model, optimizer, lambda: model(inputs).square().mean(), backward=backward)


def test_every_evaluation_gives_the_same_loss_and_gradients():
    model = model_with_all()
    batch = batch_of(model)
    losses, grads = [], []
    for _ in range(3):
        losses.append(batch().item())
        grads.append([p.grad.clone() for p in model.parameters()])
    assert losses[0] == losses[1] == losses[2] == batch.first.item()
    for grad in grads[1:]:
        assert all(torch.equal(a, b) for a, b in zip(grads[0], grad, strict=True))
    assert batch.count == 3


def test_several_leave_what_one_would():
    left = []
    for count in (1, 4):
        model = model_with_all()
        torch.manual_seed(5)
        batch = batch_of(model)
        for i in range(count):
            batch()
            with torch.no_grad():  # as an optimizer that looks around
                for param in model.parameters():
                    param.add_(1.0 if i % 2 == 0 else -1.0)
        batch.close()
        left.append(([b.clone() for b in model.buffers()], torch.rand(4)))
    (one, random), (several, again) = left
    assert all(torch.equal(a, b) for a, b in zip(one, several, strict=True))
    assert one[2].item() == 1  # batches that the layer has seen
    assert torch.equal(random, again)


def test_an_optimizer_that_differentiates_itself_gets_the_graph_and_no_gradients():
    model = model_with_all()
    batch = batch_of(model, backward=False)
    with torch.no_grad():  # as inside a step
        loss = batch()
    assert loss.requires_grad
    assert all(p.grad is None for p in model.parameters())
    assert not batch.first.requires_grad
    for param in model.parameters():
        param.grad = torch.ones_like(param)  # the optimizer's own affair
    batch()
    assert all(bool((p.grad == 1).all()) for p in model.parameters())


class Patient(FoldingOptimizer):
    """SGD that looks at the batch from several points before it steps."""

    def __init__(self, params, lr=0.1, looks=3):
        super().__init__(params, {"lr": lr, "looks": looks})

    @torch.no_grad()
    def step(self, closure):
        params = [p for group in self.param_groups for p in group["params"]]
        for _ in range(self.param_groups[0]["looks"] - 1):
            closure()
            for p in params:
                p.sub_(0.5)
            closure()
            for p in params:
                p.add_(0.5)
        before = [p.clone() for p in params]
        loss = closure()
        self._decided()
        for p, old in zip(params, before, strict=True):
            p.copy_(old - self.param_groups[0]["lr"] * p.grad)
        return loss


class Differentiating(FoldingOptimizer):
    """SGD that takes the gradients itself."""

    def __init__(self, params, lr=0.1, *, model):
        super().__init__(params, {"lr": lr})
        self.model = model

    @torch.no_grad()
    def step(self, closure):
        params = [p for group in self.param_groups for p in group["params"]]
        loss = closure()
        grads = torch.autograd.grad(loss, params)
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        self._decided()
        for p, g in zip(params, grads, strict=True):
            p.sub_(self.param_groups[0]["lr"] * g)
        return loss.detach()


@pytest.fixture
def known(monkeypatch):
    """Registers an optimizer for a test."""
    registry.methods()

    def add(name, factory, closure=None, **defaults):
        method = Method(
            name, "optimizer", factory, defaults, f"{name} for a test", "A. Nobody, 2026",
            "https://example.org", "-", "[X]",
        )  # fmt: skip
        monkeypatch.setitem(registry._METHODS, name, method)
        if closure is not None:
            monkeypatch.setitem(methods_module.CLOSURES, name, closure)

    return add


# Batch normalisation, whose averages every forward pass changes.
SETTINGS = tiny(
    model="digits-resnet", epochs=2, limit_train=96, lr=0.05, momentum=0.0, weight_decay=0.0
)


def test_a_trial_with_a_closure_is_that_of_a_single_look(known, tmp_path):
    """Looking around changes nothing else: the numbers are those of a look at one point."""
    known("patient", Patient, "gradient")
    once = numbers(make_trial(tmp_path / "once", SETTINGS, "patient(looks=1)").run())
    often = numbers(make_trial(tmp_path / "often", SETTINGS, "patient(looks=3)").run())
    plain = numbers(make_trial(tmp_path / "plain", SETTINGS, "sgd").run())
    for key in ("init_checksum", "batches_checksum", "steps"):
        assert once[key] == often[key] == plain[key]
    assert once["history"]["train_loss"] == pytest.approx(plain["history"]["train_loss"], rel=1e-5)
    assert once["history"]["test_loss"] == pytest.approx(plain["history"]["test_loss"], rel=1e-5)
    # Weights that went to another point and back are rounded on the way.
    assert often["history"]["test_loss"] == pytest.approx(plain["history"]["test_loss"], rel=1e-3)


def test_a_trial_of_an_optimizer_that_differentiates_itself(known, tmp_path):
    known("differentiating", Differentiating, "loss")
    own = numbers(make_trial(tmp_path / "own", SETTINGS, "differentiating").run())
    plain = numbers(make_trial(tmp_path / "plain", SETTINGS, "sgd").run())
    assert own["history"]["train_loss"] == pytest.approx(plain["history"]["train_loss"], rel=1e-5)
    assert own["history"]["test_loss"] == pytest.approx(plain["history"]["test_loss"], rel=1e-5)
