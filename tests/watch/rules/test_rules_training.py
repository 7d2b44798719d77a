"""Real trainings: a sound one is quiet, and what really goes wrong is found."""

import numpy as np
import pytest
import torch
from rules_streams import Recording, batches, found, names, train
from sklearn.datasets import load_digits
from torch import nn

import gradwise as gw
from gradwise.watch import rules

SGD, ADAMW = torch.optim.SGD, torch.optim.AdamW


@pytest.fixture(scope="module")
def digits():
    inputs, targets = load_digits(return_X_y=True)
    return torch.tensor(inputs / 16, dtype=torch.float32), torch.tensor(targets)


def mlp(depth=2, act=nn.ReLU, width=64):
    layers = []
    for _ in range(depth):
        layers += [nn.Linear(64, 64), act()]
    return nn.Sequential(*layers, nn.Linear(64, 10))


def deep():
    return mlp(6, nn.GELU)


def cnn():
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(512, 10)),
    )


class Sequence(nn.Module):
    """Rows of a digit as a sequence, through attention."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, inputs):
        return self.head(self.blocks(self.inner(inputs.view(-1, 8, 8))).mean(1))


@pytest.mark.parametrize(
    ("model", "make", "steps"),
    [
        (mlp, lambda p: SGD(p, 0.1), 1500),
        (mlp, lambda p: SGD(p, 0.05, momentum=0.9), 1500),  # to a loss of next to nothing
        (mlp, lambda p: ADAMW(p, 1e-3), 1000),
        (mlp, lambda p: ADAMW(p, 1e-2), 600),
        (lambda: mlp(4, nn.GELU), lambda p: SGD(p, 0.1, momentum=0.9), 600),
        (cnn, lambda p: SGD(p, 0.1, momentum=0.9, weight_decay=5e-4), 300),
        (cnn, lambda p: ADAMW(p, 1e-3), 300),
        (Sequence, lambda p: ADAMW(p, 1e-3), 300),
        (Sequence, lambda p: SGD(p, 0.1, momentum=0.9), 300),
    ],
)
def test_a_sound_training_is_quiet(digits, model, make, steps):
    model = model()
    block = train(model, make(model.parameters()), batches(*digits), steps)
    first, last = block.scalars["loss"][:20].mean(), block.scalars["loss"][-20:].mean()
    assert last < first / 2
    assert found(block) == []


def test_a_schedule_from_nothing_to_nothing_is_quiet(digits):
    model = mlp()
    optimizer = ADAMW(model.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, 800, div_factor=1e5)
    block = train(
        model, optimizer, batches(*digits), 800, before_step=lambda i: i and schedule.step()
    )
    assert found(block) == []


@pytest.mark.parametrize(
    ("model", "make", "spoke"),
    [
        (deep, lambda p: SGD(p, 1.0, momentum=0.9), {"exploding", "non-finite"}),
        (mlp, lambda p: SGD(p, 1000.0), {"exploding", "dead"}),
        (mlp, lambda p: ADAMW(p, 3.0), {"exploding", "dead"}),
        (lambda: mlp(2, nn.Tanh), lambda p: SGD(p, 20.0), {"large-updates"}),
        (Sequence, lambda p: SGD(p, 20.0, momentum=0.9), {"non-finite"}),
    ],
)
def test_a_learning_rate_far_too_high(digits, model, make, spoke):
    model = model()
    alerts = found(train(model, make(model.parameters()), batches(*digits), 300))
    assert spoke <= set(names(alerts))
    assert any(alert.severity == "error" for alert in alerts)
    assert len(alerts) < 10


def test_a_layer_whose_units_are_all_off(digits):
    model = mlp()
    with torch.no_grad():
        model[2].bias.fill_(-100.0)
    alerts = found(train(model, SGD(model.parameters(), 0.1), batches(*digits), 100))
    # Nothing gets past its ReLU: it and all before it.
    [dead] = alerts
    assert (dead.rule, dead.step) == ("dead", 0)
    assert "5 of 6 layers" in dead.message


def test_a_layer_that_is_held_by_its_learning_rate(digits):
    model = mlp()
    groups = [
        {"params": [*model[0].parameters(), *model[4].parameters()]},
        {"params": model[2].parameters(), "lr": 0.0},
    ]
    [weight, bias] = found(train(model, SGD(groups, 0.1), batches(*digits), 200))
    assert {weight.layer, bias.layer} == {"2.weight", "2.bias"}
    assert weight.rule == bias.rule == "frozen"
    assert weight.step == 0


def test_updates_that_bfloat16_rounds_away(digits):
    model = mlp()
    model[2].to(torch.bfloat16)

    class Cast(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, x):
            x = self.inner[1](self.inner[0](x)).to(torch.bfloat16)
            return self.inner[4](self.inner[3](self.inner[2](x)).float())

    block = train(Cast(), SGD(model.parameters(), 1e-5), batches(*digits), 200)
    alerts = found(block, [rules.Frozen()])
    assert {a.layer for a in alerts} == {"inner.2.weight", "inner.2.bias"}
    assert "bfloat16" in alerts[0].advice


def test_a_part_of_the_model_that_is_not_used(digits):
    model = mlp()
    model.register_module("unused", nn.Linear(3, 3))
    model.forward = lambda x: model[4](model[3](model[2](model[1](model[0](x)))))
    alerts = found(train(model, ADAMW(model.parameters(), 1e-3), batches(*digits), 200))
    assert [(a.rule, a.layer) for a in alerts] == [
        ("frozen", "unused.weight"),
        ("frozen", "unused.bias"),
    ]
    assert "never had a gradient" in alerts[0].message


def test_sigmoids_one_after_the_other(digits):
    model = mlp(10, nn.Sigmoid)
    alerts = found(train(model, SGD(model.parameters(), 0.1), batches(*digits), 300))
    vanishing = [alert for alert in alerts if alert.rule == "vanishing"]
    assert "0.weight" in str([alert.layer or alert.message for alert in vanishing])
    # Updates that small are rounded away in float32.
    assert set(names(alerts)) == {"vanishing", "small-updates", "frozen"}
    # What is close to the output is fine.
    assert not any(alert.layer in ("16.weight", "18.weight", "20.weight") for alert in alerts)


@pytest.mark.parametrize(("unscale", "spoke"), [(False, "clipped-before-unscale"), (True, None)])
def test_clipping_with_the_loss_scale_in_it(digits, unscale, spoke):
    model = mlp()
    optimizer, data = SGD(model.parameters(), 0.1), batches(*digits)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**14)
    recording = Recording(optimizer, model.named_parameters())
    for _ in range(150):
        inputs, targets = next(data)
        optimizer.zero_grad()
        scaler.scale(nn.functional.cross_entropy(model(inputs), targets)).backward()
        if unscale:
            scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        scaler.step(optimizer)
        scaler.update()
    alerts = found(recording.block)
    assert names(alerts) == ([spoke] if spoke else [])
    if spoke:
        assert "(1 divided by 2^13)" in alerts[0].message


def test_clipping_at_every_step_before_it_is_measured(digits):
    model = mlp()
    clip = lambda step: nn.utils.clip_grad_norm_(model.parameters(), 0.01)  # noqa: E731
    optimizer = SGD(model.parameters(), 1.0)
    alerts = found(train(model, optimizer, batches(*digits), 200, before_step=clip))
    assert [(alert.rule, alert.severity) for alert in alerts] == [("already-clipped", "warning")]


def test_steps_without_a_backward_pass(digits):
    model = mlp()
    optimizer, data = SGD(model.parameters(), 0.01), batches(*digits)
    recording = Recording(optimizer, model.named_parameters())
    for step in range(60):
        if step < 30 or step % 6 == 0:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(next(data)[0]), next(data)[1]).backward()
        optimizer.step()
    [alert] = found(recording.block)
    assert (alert.rule, alert.step) == ("stale", 31)


def test_live_with_a_rule_that_raises(digits, tmp_path):
    """From the gradient through the recorder's thread to the loop, in a few blocks at most."""
    model = deep()
    optimizer, data = SGD(model.parameters(), 1.0, momentum=0.9), batches(*digits)
    mine = [rules.Exploding(action="raise"), *rules.default_rules()]

    def loop():
        with gw.watch(optimizer, model, tmp_path / "run", rules=mine):
            for _ in range(5000):
                inputs, targets = next(data)
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(inputs), targets).backward()
                optimizer.step()

    with pytest.raises(gw.watch.GradientAlert) as caught:
        loop()
    assert caught.value.alert.rule == "exploding"
    told = gw.watch.read_alerts(tmp_path / "run")
    assert told[0].key == caught.value.alert.key
    assert np.isfinite(told[0].value)
