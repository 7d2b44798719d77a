"""`gradwise analyse sparsity`: which layers it looks at, and what it finds there."""

import sys

import pytest
import torch

from gradwise.analysis.sparsity import feature_sparsity
from gradwise.lab.data import load
from gradwise.lab.models import build

SMALL = ["--limit", "100"]
R = "regression_of_user"

LAYERED = """
import torch
from torch import nn

class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
    def forward(self, x):
        return nn.functional.relu(self.inner(x))

def load():
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    return x, x.sum(1)

def net():
    return nn.Sequential(
        nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Flatten(),
        nn.Sequential(nn.Linear(6, 4), nn.ReLU()), Functional(), nn.Linear(4, 1))

def pooled():
    return nn.Sequential(
        nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 3, 1), nn.BatchNorm1d(3), nn.ReLU(inplace=True),
        nn.MaxPool1d(2), nn.Flatten(), nn.Linear(6, 1))

def smooth():
    return nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 1))

def linear():
    return nn.Linear(4, 1)

def dead():
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 1))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.tensor([-1.0, -1.0, -1.0, 1.0, 1.0, 1.0]))
    return model
"""


@pytest.fixture
def layered(here):
    (here / "layered_of_user.py").write_text(LAYERED)
    yield lambda name: ["--model", f"layered_of_user:{name}", "--data", "layered_of_user:load"]
    sys.modules.pop("layered_of_user", None)


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("net", ["1", "4.1", "5"]),  # one in place, one in a container, one as a function
        ("pooled", ["3"]),  # not the pooling that hands it on, nor what it was in place of
        ("smooth", ["1"]),
    ],
)
def test_layers_that_end_in_a_relu_are_found(analyse, layered, name, layers):
    found = analyse("sparsity", *layered(name))
    assert list(found["found"]["layers"]) == layers
    assert found["settings"]["layers"] == layers


def test_numbers_are_those_of_python(analyse, here):
    found = analyse("sparsity", *SMALL, "--neurons", "50", "--threshold", "0.9", "--seed", "1")
    layers = found["found"]["layers"]
    assert list(layers) == ["stage1.0", "stage1.1", "stage2.0", "stage2.1", "stage3.0"]
    digits = load("digits")
    torch.manual_seed(1)
    model = build("digits-resnet", num_classes=10, in_shape=(1, 8, 8))
    inputs = digits.train_x[:100].float() / 255 - digits.mean.view(1, -1, 1, 1)
    data = inputs / digits.std.view(1, -1, 1, 1), digits.train_y[:100]
    how = {"limit": 50, "threshold": 0.9, "seed": 1}
    (expected,) = feature_sparsity(model, data, "stage2.0", **how).values()
    got = layers["stage2.0"]
    assert got["active"] == pytest.approx(expected.active, abs=1e-3)
    assert got["distinct_active"] == pytest.approx(expected.distinct_active, abs=1e-3)
    assert (got["neurons"], got["examined"], got["samples"]) == (256, 50, 100)
    assert abs(got["rank"] - expected.rank) <= 1


def test_half_of_the_neurons_are_dead(analyse, gradwise, layered):
    (one,) = analyse("sparsity", *layered("dead"))["found"]["layers"].values()
    assert (one["active"], one["dead"], one["rank"]) == (0.5, 3, 1)
    code, out, _ = gradwise("analyse", "sparsity", *layered("dead"))
    assert code == 0
    assert "3 of 6 neurons are never on" in " ".join(out.split())


def test_jacobian(analyse, layered):
    given = [*layered("linear"), "--layer", "", "--jacobian"]
    found = analyse("sparsity", *given)
    jacobian = found["found"]["jacobian"]
    assert (jacobian["rank"], jacobian["rows"], jacobian["parameters"]) == (5, 50, 5)
    assert found["settings"]["points"] == 50
    few = analyse("sparsity", *given, "--points", "3")["found"]["jacobian"]
    assert (few["rank"], few["rows"]) == (3, 3)


def test_a_language_model_and_a_loader(analyse, own):
    found = analyse(
        "sparsity", "--model", "tokens_of_user:Decoder", "--data", "tokens_of_user:text",
        "--layer", "block.linear1",
    )  # fmt: skip
    assert found["found"]["layers"]["block.linear1"]["neurons"] == 8 * 32
    found = analyse("sparsity", "--model", f"{R}:net", "--data", f"{R}:loader", "--limit", "40")
    assert found["found"]["layers"]["1"]["samples"] == 40
    assert found["settings"]["samples"] == 40


def test_a_page_with_two_pictures(gradwise, layered, here):
    code, _, _ = gradwise("analyse", "sparsity", *layered("net"), "--jacobian", "--out", "o")
    assert code == 0
    assert {path.suffix for path in (here / "o").iterdir()} >= {".html", ".md", ".svg", ".json"}
    assert "(sparsity-spectra.svg)" in (here / "o/report.md").read_text()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--layer", "nowhere"], "it has no 'nowhere'"),
        (["--neurons", "0"], "expected limit >= 1, got limit=0"),
        (["--threshold", "1"], "expected 0 < threshold < 1, got threshold=1.0"),
        (["--rtol", "1e-9"], "got rtol=1e-09"),
        (["--points", "3"], "expected --points beside --jacobian"),
        (["--jacobian", "--points", "0"], "expected points >= 1, got points=0"),
        (["--model", "mlp"], "found no module whose output is that of a ReLU"),
    ],
)
def test_mistakes(gradwise, here, given, told):
    code, out, err = gradwise("analyse", "sparsity", *SMALL, *given, "--out", "o")
    assert (code, out) == (2, "")
    assert told in err
    assert len(err.splitlines()) == 1
    assert list(here.iterdir()) == []
