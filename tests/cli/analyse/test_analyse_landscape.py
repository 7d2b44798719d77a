"""`gradwise analyse landscape`: margin, line and sharpness from the command line."""

import itertools
import math

import pytest

from gradwise.cli.analyse.landscape import places

SMALL = ["--model", "mlp", "--limit", "100", "--points", "5"]
R = "regression_of_user"


def test_places_hold_zero_and_end_where_they_should():
    line = places(2.0, 1.0, 1.0, 25, None)
    assert line[0] < 0.0 < line[-1] == pytest.approx(3.0)
    assert 0.0 in line
    assert len(line) == 25
    gaps = [b - a for a, b in itertools.pairwise(line)]
    assert gaps == pytest.approx([gaps[0]] * 24)
    assert places(2.0, 1.0, 1.0, 2, 7.0) == [0.0, 7.0]
    assert places(math.inf, 4.0, 2.0, 3, None)[-1] == pytest.approx(3.0)
    assert places(0.0, 4.0, 0.0, 3, None)[-1] == pytest.approx(1.5)


def test_a_quadratic(analyse, here):
    """L = mean((w x)^2) with x = 1 has the curvature 2: margin 1 from anywhere."""
    (here / "parabola_of_user.py").write_text(
        "import torch\n"
        "def load():\n"
        "    return torch.ones(4, 1), torch.zeros(4, 1)\n"
        "def net():\n"
        "    model = torch.nn.Linear(1, 1, bias=False)\n"
        "    torch.nn.init.ones_(model.weight)\n"
        "    return model\n"
    )
    found = analyse(
        "landscape", "--model", "parabola_of_user:net", "--data", "parabola_of_user:load"
    )["found"]
    assert found["margin"]["step"] == pytest.approx(1.0, rel=0.02)
    assert found["margin"]["curvature"] == pytest.approx(2.0, rel=0.02)
    assert found["sharpness"]["value"] == pytest.approx(2.0)
    assert found["sharpness"]["critical_step"] == pytest.approx(1.0)
    for step, loss in zip(found["line"]["steps"], found["line"]["losses"], strict=True):
        assert loss == pytest.approx((1 - 2 * step) ** 2, abs=1e-5)


def test_methods_agree_and_eigenvalues_fall(analyse, here):
    several = analyse("landscape", *SMALL, "--eigenvalues", "3")["found"]["sharpness"]
    power = analyse("landscape", *SMALL, "--method", "power", "--tolerance", "0.01")
    values = several["values"]
    assert values == sorted(values, reverse=True)
    assert len(values) == 3
    assert power["found"]["sharpness"]["value"] == pytest.approx(values[0], rel=0.02)
    margin = power["found"]["margin"]
    assert margin["step"] >= 0.95 * several["critical_step"]  # g^T H g <= lambda |g|^2
    line = power["found"]["line"]
    assert line["losses"][line["steps"].index(0.0)] == pytest.approx(margin["loss"])


def test_batch_size_changes_no_number(analyse, own):
    given = ["--model", f"{R}:net", "--data", f"{R}:tensors", "--points", "3"]
    one = analyse("landscape", *given, "--batch-size", "7")["found"]
    other = analyse("landscape", *given, "--batch-size", "96")["found"]
    loader = analyse("landscape", *given[:3], f"{R}:loader", "--points", "3")["found"]
    for found in (other, loader):
        assert found["margin"]["step"] == pytest.approx(one["margin"]["step"], rel=1e-2)
        assert found["sharpness"]["value"] == pytest.approx(one["sharpness"]["value"], rel=1e-3)


def test_without_eigenvalues_and_up_to(analyse, gradwise, here):
    found = analyse("landscape", *SMALL, "--eigenvalues", "0", "--up-to", "0.5")
    assert found["found"]["sharpness"] is None
    assert found["found"]["line"]["steps"][-1] == pytest.approx(0.5)
    code, out, err = gradwise("analyse", "landscape", *SMALL, "--eigenvalues", "0")
    assert (code, err) == (0, "")
    assert "lowers the loss up to a learning rate of" in " ".join(out.split())
    assert "sharpness" not in out


def test_an_attention_model_can_be_differentiated_twice(analyse, own):
    found = analyse(
        "landscape", "--model", "tokens_of_user:Decoder", "--data", "tokens_of_user:text",
        "--points", "3", "--tolerance", "0.05",
    )  # fmt: skip
    assert found["found"]["sharpness"]["value"] > 0


def test_a_page_with_its_picture(gradwise, here):
    code, out, _ = gradwise("analyse", "landscape", *SMALL, "--eigenvalues", "2", "--out", "o")
    assert code == 0
    assert out.endswith("report: o/report.html\n")
    page = (here / "o/report.html").read_text()
    assert "data:image/svg+xml;base64," in page
    assert "Largest eigenvalues" in page
    words = (here / "o/report.md").read_text()
    assert "(landscape.svg)" in words
    assert "gradwise analyse landscape --model mlp" in words
    assert b"margin" in (here / "o/landscape.svg").read_bytes()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--points", "1"], "expected points >= 2, got points=1"),
        (["--up-to", "0"], "expected 0 < up-to < inf, got up-to=0.0"),
        (["--up-to", "nan"], "got up-to=nan"),
        (["--eigenvalues", "-1"], "expected eigenvalues >= 0, got eigenvalues=-1"),
        (["--eigenvalues", "2", "--method", "power"], "expected eigenvalues <= 1"),
        (["--tolerance", "1"], "expected 0 < tolerance < 1, got tolerance=1.0"),
        (["--max-products", "0"], "expected max-products >= 1"),
        (["--method", "power", "--max-products", "2"], "no convergence within max_products=2"),
    ],
)
def test_mistakes(gradwise, here, given, told):
    code, out, err = gradwise("analyse", "landscape", *SMALL, *given, "--out", "o")
    assert (code, out) == (2, "")
    assert told in err
    assert len(err.splitlines()) == 1
    assert list(here.iterdir()) == []
