"""`gradwise analyse implicit-bias`: regressions planted and of the user's."""

import json

import pytest

MINE = """
import torch

def wide():
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(20, 40, generator=stream)
    return x, x[:, 0] - x[:, 1]

def column():
    x, y = wide()
    return x, y[:, None]

def narrow():
    x, _ = wide()
    stream = torch.Generator().manual_seed(1)
    return x[:, :2], torch.randn(20, generator=stream)

def classes():
    x, y = wide()
    return x, (y > 0).long()

def several():
    x, y = wide()
    return x, torch.stack([y, y], 1)

def zeros():
    return torch.zeros(5, 8), torch.ones(5)
"""


@pytest.fixture
def mine(here):
    (here / "bias_things.py").write_text(MINE)


@pytest.fixture
def found(gradwise, here):
    def call(*arguments):
        code, out, err = gradwise("analyse", "implicit-bias", *arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    return call


def mean(results, name):
    return sum(one[name] for one in results) / len(results)


def test_sgd_is_sparser_and_its_alpha_explains_it(found):
    got = found("--planted", 20, 40, 2, "--steps", 4000, "--repeats", 3)["found"]
    sgd, gd, known = got["sgd"], got["gd"], got["references"]
    assert max(gd["loss"], *(one["loss"] for one in sgd)) < 1e-4
    assert mean(sgd, "alpha") < gd["alpha"] <= 0.1
    assert mean(sgd, "l1") < gd["l1"]
    assert mean(sgd, "kkt") < mean(sgd, "kkt_start") / 3
    assert known["smallest l1 norm"]["l1"] < mean(sgd, "l1")
    assert known["smallest l2 norm"]["l2"] < gd["l2"]
    assert mean(sgd, "predicted") == pytest.approx(mean(sgd, "alpha"), rel=0.05)
    assert len(got["beta"]["sgd"]) == 3


def test_ones_own_regression(found, mine):
    flat = found("--data", "bias_things:wide", "--steps", 500, "--repeats", 2)
    column = found("--data", "bias_things:column", "--steps", 500, "--repeats", 2)
    assert flat["found"] == column["found"]
    assert (flat["found"]["samples"], flat["found"]["coordinates"]) == (20, 40)
    assert flat["settings"]["data"] == "bias_things:wide"
    short = found("--data", "bias_things:wide", "--limit", 8, "--steps", 500, "--repeats", 2)
    assert short["found"]["samples"] == 8


def test_more_samples_a_step_are_less_noise(found):
    arguments = ["--planted", 20, 40, 2, "--steps", 2000, "--repeats", 3]
    one = found(*arguments)["found"]
    ten = found(*arguments, "--batch-size", 10)["found"]
    assert mean(one["sgd"], "alpha") < mean(ten["sgd"], "alpha") < ten["gd"]["alpha"]


def test_what_nothing_interpolates(gradwise, mine, here):
    arguments = ["--data", "bias_things:narrow", "--steps", 300, "--repeats", 2]
    code, out, err = gradwise("analyse", "implicit-bias", *arguments)
    assert code == 0, err
    assert "No beta fits these data exactly" in " ".join(out.split())


def test_words_and_page(gradwise, here):
    arguments = ["--planted", 10, 20, 2, "--steps", 300, "--repeats", 2, "--out", "page"]
    code, out, err = gradwise("analyse", "implicit-bias", *arguments)
    assert code == 0, err
    assert "SGD ends at an effective alpha of" in " ".join(out.split())
    assert "±" in out
    assert (here / "page" / "implicit-bias.svg").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--steps", "0"], "steps >= 1"),
        (["--repeats", "0"], "repeats >= 1"),
        (["--alpha", "0"], "0 < alpha"),
        (["--gamma", "-1"], "0 < gamma"),
        (["--gamma", "100"], "converge"),
        (["--batch-size", "0"], "batch_size >= 1"),
        (["--planted", "4", "8", "9"], "1 <= r <= d=8"),
        (["--planted", "4", "8", "2", "--data", "bias_things:wide"], "--data or --planted"),
        (["--data", "bias_things:classes"], "got classes"),
        (["--data", "bias_things:several"], "one target a sample"),
        (["--data", "bias_things:zeros"], "not all 0"),
        (["--data", "bias_things:missing"], "missing"),
    ],
)
def test_mistakes(gradwise, mine, arguments, words):
    code, out, err = gradwise("analyse", "implicit-bias", "--steps", 50, *arguments)
    assert code == 2
    assert words in " ".join(err.split())
    assert out == ""
