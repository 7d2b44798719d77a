"""`gradwise analyse stability`: paired trainings of a model of the user's."""

import json

import pytest

MINE = """
import torch

def net():
    return torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))

def dropping():
    return torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))

def load():
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(80, 3, generator=stream)
    return x, torch.tanh(x.sum(1, keepdim=True))

def same():
    return torch.ones(40, 3), torch.ones(40, 1)

def split():
    x, y = load()
    return x[:60], (y[:60] > 0).long()[:, 0], x[60:], (y[60:] > 0).long()[:, 0]

def two():
    return torch.nn.Linear(3, 2)
"""
QUICK = ["--steps", "20", "--points", "4", "--replace", "3", "--repeats", "2"]


@pytest.fixture
def mine(here):
    (here / "stable_things.py").write_text(MINE)
    return ["--model", "stable_things:net", "--data", "stable_things:load"]


@pytest.fixture
def found(gradwise):
    def call(*arguments):
        code, out, err = gradwise("analyse", "stability", *arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    return call


def test_distances_grow_from_zero(found, mine):
    result = found(*mine, *QUICK)
    got = result["found"]
    assert got["steps"] == [0, 1, 3, 7, 20]
    assert got["eps_squared"][0] == 0
    assert got["eps_squared"][-1] > got["eps_squared"][1]
    assert got["samples"] == 80 - 3 - (80 - 3) // 5
    assert len(got["indices"]) == 3
    assert got["bound"] is None
    assert result["settings"]["lr"] == 0.1


def test_samples_that_are_all_the_same_move_nothing(found, mine):
    got = found("--model", "stable_things:net", "--data", "stable_things:same", *QUICK)["found"]
    assert set(got["eps_squared"]) == {0.0}
    assert got["gap"][-1] == 0


def test_a_rate_of_zero_moves_nothing(found, mine):
    got = found(*mine, *QUICK, "--optimizer", "sgd", "--lr", "0")["found"]
    assert set(got["eps_squared"]) == {0.0}


def test_the_bound_is_asked_for(found, mine):
    got = found(*mine, *QUICK, "--smoothness", "4")["found"]
    eps2, loss = got["eps_squared"][-1], sum(got["train_loss"][-1]) / 2
    assert got["bound"][-1] == pytest.approx(2 * eps2 + (8 * loss * eps2) ** 0.5)


def test_the_other_set_gives_replacements_and_test(found, mine):
    arguments = ["--model", "stable_things:two", "--data", "stable_things:split"]
    got = found(*arguments, *QUICK)["found"]
    assert got["samples"] == 60


@pytest.mark.parametrize("optimizer", ["adamw", "sgdf", "sgd+autoscale", "implicitsgd"])
def test_optimizers_and_transforms(found, mine, optimizer):
    result = found(*mine, *QUICK, "--optimizer", optimizer, "--lr", "0.01")
    assert result["settings"]["optimizer"] == optimizer
    assert result["found"]["eps_squared"][-1] > 0


def test_transforms_take_effect(found, mine):
    plain = found(*mine, *QUICK)["found"]
    clipped = found(*mine, *QUICK, "--optimizer", "sgd+clip(max_norm=0.001)")["found"]
    assert clipped["eps_squared"][-1] < 1e-3 * plain["eps_squared"][-1]


def test_dropout_is_paired_and_differs_between_repeats(found, mine):
    """Equal samples: whatever is random is the same in both runs of a pair, or eps^2 is not 0."""
    arguments = ["--model", "stable_things:dropping", "--data"]
    got = found(*arguments, "stable_things:same", *QUICK)["found"]
    assert set(got["eps_squared"]) == {0.0}
    first, second = got["train_loss"][-1]
    assert first != second  # the data and the weights are the same: masks are what differs


def test_words_and_page(gradwise, mine, here):
    code, out, err = gradwise("analyse", "stability", *mine, *QUICK, "--out", "page")
    assert code == 0, err
    assert "After 20 steps" in out
    assert (here / "page" / "stability.svg").exists()
    assert "7 trainings" not in (here / "page" / "report.md").read_text()
    assert "9 trainings" in (here / "page" / "report.md").read_text()  # 2 (3 + 1) + 1


def test_the_same_command_says_the_same(found, mine):
    one, two = found(*mine, *QUICK)["found"], found(*mine, *QUICK)["found"]
    assert one == two
    assert found(*mine, *QUICK, "--seed", "1")["found"] != one


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--steps", "0"], "steps >= 1"),
        (["--replace", "0"], "replace >= 1"),
        (["--repeats", "0"], "repeats >= 1"),
        (["--points", "0"], "points >= 1"),
        (["--replace", "70"], "expected replace <= 8"),
        (["--replace", "90"], "more samples to replace"),
        (["--smoothness", "0"], "0 < smoothness"),
        (["--optimizer", "sdg"], "sgd"),
        (["--optimizer", "reng"], "cannot be paired"),
        (["--lr", "1e30"], "finite"),
    ],
)
def test_mistakes(gradwise, mine, arguments, words):
    code, out, err = gradwise("analyse", "stability", *mine, *QUICK, *arguments)
    assert code == 2
    assert words in " ".join(err.split())
    assert out == ""
