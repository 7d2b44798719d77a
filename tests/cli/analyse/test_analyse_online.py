"""`gradwise analyse online`: a model's batches as rounds."""

import json

import pytest
import torch

MINE = """
import torch

TRUE = torch.tensor([[1.0], [-1.0], [0.5]])

def line():
    return torch.nn.Linear(3, 1)

def load():
    stream = torch.Generator().manual_seed(0)
    x = torch.randn(64, 3, generator=stream)
    return x, x @ TRUE

def loader():
    x, y = load()
    return [(x[k : k + 10], y[k : k + 10]) for k in range(0, 60, 10)]

def repeated():
    x, y = load()
    return [(x, y)] * 30

def broken():
    class Broken(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.line, self.calls = torch.nn.Linear(3, 1), 0

        def forward(self, x):
            self.calls += 1
            if self.calls > 3:
                raise RuntimeError("out of luck")
            return self.line(x)

    return Broken()
"""


@pytest.fixture
def mine(here):
    (here / "online_things.py").write_text(MINE)
    return ["--model", "online_things:line", "--data", "online_things:load"]


@pytest.fixture
def found(gradwise):
    def call(*arguments):
        code, out, err = gradwise("analyse", "online", *arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    return call


def test_a_convex_game(found, mine):
    result = found(*mine, "--batch-size", "8", "--radius", "3")
    got = result["found"]
    assert got["optimistic"]["rounds"] == 8
    assert got["comparator"]["loss"] == pytest.approx(0, abs=1e-3)
    assert got["comparator"]["gap_if_convex"] <= 1e-4
    assert not got["comparator"]["at_edge"]
    assert got["optimistic"]["regret"] > 0
    cumulative = got["optimistic"]["cumulative"]
    assert cumulative[-1] == pytest.approx(got["optimistic"]["regret"])
    assert result["settings"]["batch_size"] == 8


def test_the_same_batch_again_and_again(found, mine):
    """V_T = 0, and the hint is as good as the truth."""
    got = found("--model", "online_things:line", "--data", "online_things:repeated")["found"]
    assert got["optimistic"]["rounds"] == 30
    for name in ("optimistic", "no hint"):
        assert got[name]["played_variation"][-1] == pytest.approx(0, abs=1e-9)
    assert got["optimistic"]["regret"] < got["no hint"]["regret"]


def test_a_small_ball_has_its_best_at_the_edge(found, mine):
    got = found(*mine, "--radius", "0.1")["found"]
    assert got["comparator"]["at_edge"]
    assert got["comparator"]["distance"] == pytest.approx(0.1, rel=1e-5)
    wide = found(*mine, "--radius", "0.5")["found"]
    assert wide["comparator"]["loss"] < got["comparator"]["loss"]


def test_a_loader_keeps_its_batches(found, mine):
    arguments = ["--model", "online_things:line", "--data", "online_things:loader"]
    result = found(*arguments)
    assert result["found"]["optimistic"]["rounds"] == 6
    assert result["settings"]["batch_size"] is None
    assert found(*arguments, "--rounds", "2")["found"]["optimistic"]["rounds"] == 2


def test_weights_are_where_the_game_starts(found, mine, here):
    torch.save(
        {"weight": torch.tensor([[1.0, -1.0, 0.5]]), "bias": torch.zeros(1)}, here / "best.pt"
    )
    got = found(*mine, "--weights", "best.pt")["found"]
    assert got["comparator"]["iterations"] == 0
    assert max(got["no hint"]["losses"]) < 1e-9
    assert abs(got["no hint"]["regret"]) < 1e-9


def test_words_and_page(gradwise, mine, here):
    code, out, err = gradwise(
        "analyse", "online", *mine, "--batch-size", "8", "--search", "3", "--out", "page"
    )
    assert code == 0, err
    assert "Over 8 rounds the regret is" in " ".join(out.split())
    page = (here / "page" / "report.md").read_text()
    assert "The search took 3 steps through 8 batches" in page
    assert (here / "page" / "online-regret.svg").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--radius", "0"], "0 < radius < inf"),
        (["--radius", "inf"], "0 < radius < inf"),
        (["--rounds", "0"], "rounds >= 1"),
        (["--search", "0"], "search >= 1"),
        (["--model", "online_things:broken"], "out of luck"),
    ],
)
def test_mistakes(gradwise, mine, arguments, words):
    code, out, err = gradwise("analyse", "online", *mine, *arguments)
    assert code == 2
    assert words in " ".join(err.split())
    assert out == ""
