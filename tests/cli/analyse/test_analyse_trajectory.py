"""`gradwise analyse trajectory`: files in, hallmarks out."""

import json
import math
import sys

import pytest
import torch
from torch import nn


def save(path, *weights, **others):
    names = ("a.weight", "b.weight")
    state = {n: torch.tensor(w) for n, w in zip(names, weights, strict=True)}
    torch.save({**state, **others}, path)
    return path


@pytest.fixture
def corner(here):
    """Three checkpoints around a right angle, with what is no parameter beside them."""
    for step, (a, b) in enumerate((([1.0, 0.0], [3.0]), ([1.0, 1.0], [3.0]), ([0.0, 1.0], [3.0]))):
        statistics = {
            "n.running_mean": torch.full((2,), 50.0 * step),
            "n.num_batches_tracked": torch.tensor(step),
        }
        save(here / f"epoch-{step}.pt", a, b, **statistics)
    return sorted(here.glob("*.pt"))


def found(gradwise, *arguments):
    code, out, err = gradwise("analyse", "trajectory", *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def test_a_right_angle(gradwise, corner):
    result = found(gradwise, *corner)["found"]
    assert result["turns"]["values"] == [pytest.approx(math.pi / 2)]
    assert result["path_length"] == pytest.approx(2)
    assert result["efficiency"] == pytest.approx(math.sqrt(0.5))
    assert result["parameters"] == 3
    assert result["map"]["cosines"][0][2] == pytest.approx(9 / 10)
    assert result["layers"] is None


def test_layers(gradwise, corner):
    layers = found(gradwise, *corner, "--layers")["found"]["layers"]
    assert set(layers) == {"a", "b"}
    assert layers["a"]["efficiency"] == pytest.approx(math.sqrt(0.5))
    assert layers["b"]["path_length"] == 0
    assert "cosines" not in layers["a"]["map"]


def test_words_and_page(gradwise, corner, here):
    code, out, err = gradwise(
        "analyse", "trajectory", *corner, "--relative", "--layers", "--out", "page"
    )
    assert code == 0, err
    assert "Seen from the first checkpoint" in out
    assert "90.0°" in out
    names = {path.name for path in (here / "page").iterdir()}
    pictures = {f"trajectory-{name}.svg" for name in ("map", "course", "layers")}
    assert pictures | {"report.html", "report.md", "analysis.json"} <= names
    assert "digits" not in (here / "page" / "report.md").read_text()  # no data were read


def test_numbers_in_names_count_as_numbers(gradwise, here):
    for step in (2, 10, 9):
        save(here / f"run1-{step}.pt", [float(step), 1.0], [1.0])
    files = sorted(here.glob("*.pt"))
    plain, natural = found(gradwise, *files), found(gradwise, *files, "--natural")
    assert [name[-5:] for name in natural["found"]["files"]] == ["-2.pt", "-9.pt", "10.pt"]
    assert natural["found"]["efficiency"] == pytest.approx(1)
    assert plain["found"]["efficiency"] < 0.9


def test_nested_files(gradwise, here):
    for step in range(2):
        model = nn.Linear(2, 1)
        torch.save({"epoch": step, "run": {"ema": model.state_dict()}}, here / f"{step}.pt")
    assert found(gradwise, "0.pt", "1.pt", "--key", "run.ema")["found"]["parameters"] == 3
    code, _, err = gradwise("analyse", "trajectory", "0.pt", "1.pt")
    assert code == 2
    assert "--key" in err


def test_more_than_fits_goes_through_a_folder(gradwise, corner, monkeypatch, tmp_path):
    module = sys.modules["gradwise.cli.analyse.trajectory"]  # the package has the command there
    inside = found(gradwise, *corner)["found"]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(module, "IN_MEMORY", 10)
    monkeypatch.setattr(module.tempfile, "tempdir", str(scratch))
    assert found(gradwise, *corner)["found"] == inside
    assert not list(scratch.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "at least 2 checkpoints, got 0"),
        (["epoch-0.pt"], "at least 2 checkpoints, got 1"),
        (["epoch-0.pt", "missing.pt"], "cannot read missing.pt"),
        (["epoch-0.pt", "words.pt"], "words.pt to be a state dict"),
        (["epoch-0.pt", "other.pt"], "other.pt: expected a.weight to be (2,)"),
        (["epoch-0.pt", "wild.pt"], "wild.pt: expected finite parameters"),
        (["epoch-0.pt", "epoch-1.pt", "--out", "."], "--out"),
    ],
)
def test_mistakes(gradwise, corner, here, arguments, words):
    (here / "words.pt").write_text("words")
    save(here / "other.pt", [1.0, 2.0, 3.0], [1.0])
    save(here / "wild.pt", [1.0, math.nan], [1.0])
    code, out, err = gradwise("analyse", "trajectory", *arguments)
    assert code == 2
    assert words in " ".join(err.split())
    assert out == ""
