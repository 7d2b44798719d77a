"""`gradwise analyse noise`: the numbers of the analysis, on built-in and own problems."""

import json

import pytest
import torch

from gradwise.analysis.noise import (
    Direction,
    DirectionNoise,
    gradient_noise,
    search_direction_noise,
)
from gradwise.lab.data import load
from gradwise.lab.models import build

SMALL = ["--model", "mlp", "--limit", "200", "--batches", "5", "--batch-size", "20"]
R = "regression_of_user"


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_all_rules_from_one_measurement_are_those_of_the_analysis(beta):
    torch.manual_seed(0)
    model, loss_fn = torch.nn.Linear(3, 1), torch.nn.MSELoss()
    data = torch.randn(40, 3), torch.randn(40, 1)
    measured = gradient_noise(model, loss_fn, data, batch_size=4)
    for rule in (Direction.sgd(), Direction.heavy_ball(beta), Direction.normalized(beta)):
        expected = search_direction_noise(model, loss_fn, data, rule, batch_size=4)
        got = DirectionNoise.at_rest(measured, rule)
        assert got.gradient == expected.gradient
        assert (got.lag, got.spread) == pytest.approx((expected.lag, expected.spread))
        assert got.inherited == pytest.approx(expected.inherited)


def test_numbers_are_those_of_python(analyse, here):
    found = analyse("noise", *SMALL, "--seed", "3", "--beta", "0.8")
    digits = load("digits")
    torch.manual_seed(3)
    model = build("mlp", num_classes=10, in_shape=(1, 8, 8))
    inputs = digits.train_x[:200].float() / 255 - digits.mean.view(1, -1, 1, 1)
    data = inputs / digits.std.view(1, -1, 1, 1), digits.train_y[:200]
    loss_fn = torch.nn.CrossEntropyLoss()
    expected = gradient_noise(model, loss_fn, data, batch_size=20, batches=5, seed=3)
    assert found["found"]["gradient"] == pytest.approx(expected.to_dict(), rel=1e-4)
    rules = found["found"]["rules"]
    assert list(rules) == ["sgd", "heavy-ball", "normalized"]
    assert rules["sgd"]["lag"] == 0
    assert rules["heavy-ball"]["lag"] == pytest.approx(4 * expected.norm, rel=1e-4)
    assert rules["normalized"]["spread"] == pytest.approx(expected.variance / 9, rel=1e-4)
    assert found["settings"]["beta"] == 0.8
    assert found["settings"]["parameters"] == sum(p.numel() for p in model.parameters())
    assert found["versions"]["torch"] == torch.__version__
    assert found["command"].startswith("gradwise analyse noise --model mlp")


def test_chosen_rules_in_the_usual_order(analyse, here):
    rules = ["--rule", "normalized", "--rule", "sgd"]
    found = analyse("noise", *SMALL, *rules)
    assert list(found["found"]["rules"]) == ["sgd", "normalized"]


def test_words_with_units_and_a_sentence(gradwise, here):
    code, out, err = gradwise("analyse", "noise", *SMALL)
    assert (code, err) == (0, "")
    assert "normalised heavy ball" in out
    assert "(loss / parameter)²" in out
    assert "divides the spread by 19." in " ".join(out.split())


def test_a_loader_of_the_user(analyse, gradwise, own):
    found = analyse("noise", "--model", f"{R}:net", "--data", f"{R}:loader", "--batches", "4")
    gradient, settings = found["found"]["gradient"], found["settings"]
    assert (gradient["samples"], gradient["batch_size"], gradient["batches"]) == (96, 16, 4)
    assert (settings["loss"], settings["samples"]) == ("mse", None)
    code, out, err = gradwise(
        "analyse", "noise", "--model", f"{R}:net", "--data", f"{R}:loader", "--batch-size", "8"
    )
    assert (code, out) == (2, "")
    assert "batch_size nor replacement beside a loader" in err


def test_what_the_user_prints_is_not_in_the_answer(gradwise, own):
    code, out, err = gradwise(
        "analyse", "noise", "--model", f"{R}:Shaped", "--data", f"{R}:loader", "--json"
    )
    assert code == 0
    assert json.loads(out)["found"]["gradient"]["samples"] == 96
    assert "loading" in err
    assert "forward" in err


def test_a_language_model(analyse, own):
    given = ["--model", "tokens_of_user:Decoder", "--batches", "3", "--batch-size", "8"]
    found = analyse("noise", *given, "--data", "tokens_of_user:text")
    assert found["settings"]["loss"] == "cross-entropy"
    assert found["found"]["gradient"]["samples"] == 40
    assert 2.0 < found["found"]["gradient"]["loss"] < 3.5  # about log 11
    named = analyse("noise", "--model", "tokens_of_user:Named", "--data", "tokens_of_user:batches")
    assert named["found"]["gradient"]["loss"] == pytest.approx(found["found"]["gradient"]["loss"])


def test_a_batch_of_all_samples_has_no_noise(analyse, gradwise, own):
    given = ["--model", f"{R}:net", "--data", f"{R}:tensors", "--batch-size", "96"]
    found = analyse("noise", *given, "--batches", "2")
    assert found["found"]["gradient"]["variance"] < 1e-10
    assert found["found"]["gradient"]["noise_scale"] is None
    code, out, _ = gradwise("analyse", "noise", *given, "--out", "o")
    assert code == 0
    assert "A batch is the whole set" in out


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--beta", "1"], "expected 0 <= beta < 1, got beta=1.0"),
        (["--beta", "-0.1", "--rule", "sgd"], "got beta=-0.1"),
        (["--batches", "0"], "expected batches >= 1, got batches=0"),
        (["--batch-size", "0"], "expected batch_size >= 1, got batch_size=0"),
        (["--batch-size", "201"], "expected 1 <= batch_size <= 200, got batch_size=201"),
    ],
)
def test_mistakes(gradwise, here, given, told):
    code, out, err = gradwise("analyse", "noise", *SMALL, *given, "--out", "o")
    assert (code, out) == (2, "")
    assert told in err
    assert len(err.splitlines()) == 1
    assert list(here.iterdir()) == []
