"""Settings: every bound has a sentence that names the value."""

import itertools
import math

import pytest
import torch

from gradwise.errors import UserError
from gradwise.lab.schedule import lr_factor
from gradwise.lab.settings import (
    MAX_SEEDS,
    Settings,
    check_seeds,
    parse_seeds,
    resolve_device,
    settings_for,
)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("batch_size", 1),
        ("threads", 0),
        ("threads", 10**6),
        ("record_every", -1),
        ("lr", 0.0),
        ("lr", -0.1),
        ("lr", math.nan),
        ("lr", math.inf),
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("momentum", math.nan),
        ("weight_decay", -1e-4),
        ("weight_decay", math.inf),
        ("weight_decay", math.nan),
        ("warmup_epochs", -1.0),
        ("warmup_epochs", 99.0),
        ("schedule", "linear"),
        ("augment", "autoaugment"),
        ("amp", "int8"),
        ("optimizer", "adamv"),
        ("device", "gpu"),
        ("device", "meta"),
    ],
)
def test_out_of_bounds(name, value):
    with pytest.raises(UserError) as caught:
        Settings(**{name: value})
    told = str(caught.value)
    assert name in told
    assert str(value) in told
    assert "\n" not in told


@pytest.mark.parametrize(
    ("name", "value"), [("epochs", 1), ("lr", 1e6), ("momentum", 0.0), ("weight_decay", 0.0)]
)
def test_in_bounds(name, value):
    assert getattr(Settings(**{name: value}), name) == value


def test_a_device_of_another_machine_is_no_mistake_until_it_is_used_here():
    settings = Settings(device="cuda:999")
    with pytest.raises(UserError, match="device 'cuda:999' cannot be used here"):
        settings.resolved()


def test_an_unknown_optimizer_gets_the_nearest_name():
    with pytest.raises(UserError, match="did you mean 'adam'"):
        Settings(optimizer="adamv")
    with pytest.raises(UserError, match="needs a closure"):
        Settings(optimizer="lbfgs")


def test_settings_survive_json_and_refuse_what_they_do_not_know(tmp_path):
    settings = Settings(lr=0.3, data_dir=str(tmp_path))
    assert Settings.from_dict(settings.to_dict()) == settings
    with pytest.raises(UserError, match="unknown setting 'colour'"):
        Settings.from_dict({**settings.to_dict(), "colour": 1})


def test_auto_is_resolved_to_what_decides_the_numbers(monkeypatch):
    settings = Settings(device="cpu", amp="auto").resolved()
    assert (settings.device, settings.amp) == ("cpu", "off")
    assert settings.resolved() == settings

    monkeypatch.setattr("gradwise.lab.settings.resolve_device", lambda name: torch.device("cuda"))
    for native, amp in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation, n=native: n
        )
        assert Settings.resolved(settings).amp == "off"  # what was asked for stays
        auto = Settings(device="cpu", amp="auto")
        assert (auto.resolved().device, auto.resolved().amp) == ("cuda", amp)


def test_devices():
    assert resolve_device("cpu") == torch.device("cpu")
    with pytest.raises(UserError, match="device 'gpu' cannot be used here"):
        resolve_device("gpu")


def test_usual_settings_by_data():
    assert settings_for("digits", {}).model == "digits-resnet"
    assert settings_for("cifar10", {"epochs": None, "lr": 0.2}).epochs == 30
    assert settings_for("cifar10", {"epochs": 2, "model": "mlp"}).model == "mlp"
    with pytest.raises(UserError, match="name a model as well"):
        settings_for("mine:load", {})


# Seeds


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("3", [0, 1, 2]), ("1", [0]), ("4,9", [4, 9]), ("7,", [7]), (" 0, 1 ", [0, 1]), ("0,", [0])],
)
def test_seeds(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    "text",
    ["", ",", "0", "-1", "1,1", "1,-2", "a", "1.5", "1,,2", "3;4", "9" * 5000, "4294967296,"],
)
def test_bad_seeds(text):
    with pytest.raises(UserError, match="seed"):
        parse_seeds(text)


def test_a_large_number_of_seeds_is_taken_for_a_slip():
    with pytest.raises(UserError, match="is written '20250101,'"):
        parse_seeds("20250101")
    with pytest.raises(UserError, match=f"at most {MAX_SEEDS}"):
        check_seeds(range(MAX_SEEDS + 1))
    with pytest.raises(UserError, match="at least one seed"):
        check_seeds([])


# Schedules


@pytest.mark.parametrize("schedule", ["cosine", "step", "constant"])
def test_schedules_begin_at_the_peak_and_never_rise(schedule):
    factors = [lr_factor(schedule, 40)(step) for step in range(41)]
    assert factors[0] == 1.0
    assert all(a >= b for a, b in itertools.pairwise(factors))
    assert factors[-1] == pytest.approx({"cosine": 0.0, "step": 0.01, "constant": 1.0}[schedule])


def test_warmup_rises_in_a_line_to_the_peak():
    factor = lr_factor("cosine", 20, warmup=4)
    assert [factor(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factor(20) == pytest.approx(0.0)


def test_the_cosine_is_torchs_own():
    weight = torch.nn.Parameter(torch.zeros(()))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30)
    factor = lr_factor("cosine", 30)
    for step in range(30):
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * factor(step), abs=1e-9)
        optimizer.step()
        schedule.step()
