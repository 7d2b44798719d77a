"""Accuracy with autoscale and without: the smoke run, and claims on made-up summaries."""

from copy import deepcopy
from pathlib import Path
from unittest.mock import patch

import pytest
from trace_helpers import BLANK

from gradwise.errors import UserError
from gradwise.lab.statistics import compare
from gradwise.reproduce import load_recipe, reproduce
from gradwise.reproduce.claims import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED
from gradwise.reproduce.experiments import autoscale_accuracy

SETTINGS = {
    **load_recipe("autoscale-accuracy").at("full"),
    "data_dir": None,
    "device": "cpu",
}
WOBBLE = (0.0, 0.001, -0.001, 0.0005, -0.0005)


# --- the smoke run ---


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    out = tmp_path_factory.mktemp("accuracy")
    return reproduce("autoscale-accuracy", scale="smoke", out=out, jobs=2, device="cpu")


def test_autoscale_learns_the_digits_as_well_as_plain_descent(smoke):
    methods = smoke["cells"]["digits-resnet"]["summary"]["methods"]
    plain, scaled = (methods[name]["test_accuracy"]["values"] for name in ("sgd", "autoscale"))
    assert min(*plain, *scaled) > 0.9
    assert all(abs(a - b) < 0.05 for a, b in zip(plain, scaled, strict=True))
    assert plain != scaled


def test_the_smoke_run_says_so(smoke):
    assert len(smoke["claims"]) == 2
    assert "digits-resnet" in smoke["claims"][0]["measured"]
    (table,) = smoke["tables"]
    assert [row[0] for row in table["rows"]] == ["sgd", "autoscale"]
    folder = Path(smoke["cells"]["digits-resnet"]["folder"])
    assert (folder.parents[1] / "accuracy-differences.svg").read_bytes().startswith(b"<?xml")
    assert not (folder / "trials/sgd/seed-0/watch").exists()  # nothing is recorded for nothing


# --- conclusions from made-up summaries ---


def summary(gains, level=0.7, diverged=(), seeds=5):
    """A comparison in which methods differ from plain descent by so much."""
    methods, values = {}, {}
    for name in SETTINGS["methods"]:
        shift = gains.get(name, 0.0)
        spread = 0.0 if name == "sgd" else 1.0
        row = [level + shift + spread * WOBBLE[seed] for seed in range(seeds)]
        methods[name] = {
            "seeds": list(range(seeds)),
            "test_accuracy": {"values": row},
            "status": ["diverged" if (name, s) in diverged else "finished" for s in range(seeds)],
        }
        values[name] = dict(enumerate(row))
    told = compare("sgd", values, resolution=1e-4)
    return {"methods": methods, "comparisons": [vars(one) for one in told]}


def results(**by_model):
    return {name: {"summary": one, "folder": name} for name, one in by_model.items()}


def claimed(found, **settings):
    with patch.object(autoscale_accuracy, "_picture", return_value=BLANK):
        return autoscale_accuracy.conclude({**SETTINGS, **settings}, found).claims


def verdicts(found, **settings):
    return [claim.verdict for claim in claimed(found, **settings)]


@pytest.mark.parametrize(
    ("gain", "expected"),
    [
        (0.01, [REPRODUCED, REPRODUCED]),
        (0.0, [REPRODUCED, NOT_REPRODUCED]),
        (-0.01, [NOT_REPRODUCED, NOT_REPRODUCED]),
        (-0.005, [INCONCLUSIVE, NOT_REPRODUCED]),
    ],
)
def test_claims(gain, expected):
    one = summary({"autoscale": gain})
    assert verdicts(results(resnet20=one, vgg16bn=one)) == expected


def test_one_model_that_loses_is_enough():
    good, bad = summary({"autoscale": 0.02}), summary({"autoscale": -0.01})
    found = results(resnet20=good, resnet56=bad)
    assert verdicts(found) == [NOT_REPRODUCED, REPRODUCED]  # 0.5 points more in the mean
    claims = claimed(found)
    assert "ResNet-56 -1 points" in claims[0].measured
    assert "ResNet-20, ResNet-56: 0.5 points" in claims[1].measured


def test_the_other_methods_decide_nothing():
    assert verdicts(results(resnet20=summary({"znorm": -0.3, "clip": 0.3}))) == [
        REPRODUCED,
        NOT_REPRODUCED,
    ]


def test_one_seed_settles_nothing():
    found = results(resnet20=summary({"autoscale": 0.1}, seeds=1))
    assert verdicts(found, seeds=[0]) == [INCONCLUSIVE, INCONCLUSIVE]


def test_tables_and_notes():
    one = summary({"autoscale": 0.01, "znorm": -0.69}, diverged={("znorm", 1), ("znorm", 4)})
    low = summary({}, level=0.05)
    found = autoscale_accuracy.conclude(SETTINGS, results(resnet20=one, vgg16bn=low))
    first, second = found.tables
    assert first.title == "ResNet-20: test accuracy, %"
    rows = {row[0]: row for row in first.rows}
    assert rows["sgd"][1:] == ("70.00", "70.00 to 70.00", "", "", "", "baseline", "0 of 5")
    assert rows["autoscale"][3] == "+1.00"
    assert rows["autoscale"][6] == "better"
    assert rows["znorm"][-1] == "2 of 5"
    assert {row[6] for row in second.rows[1:]} == {"no difference detected"}
    notes = " ".join(found.notes)
    assert "counted as guessing: ResNet-20 with znorm (seed 1, 4)" in notes
    assert "VGG-16-BN reaches 5.0 %" in notes
    assert "ResNet-20 reaches" not in notes
    assert "ResNet-56 took no part" in notes


def test_a_seed_without_a_number_is_left_out():
    one = summary({"autoscale": 0.01})
    one["methods"]["autoscale"]["test_accuracy"]["values"][2] = None
    claims = claimed(results(resnet20=one))
    assert all("n = 4" in claim.measured for claim in claims)
    assert [claim.verdict for claim in claims] == [REPRODUCED] * 2
    one["methods"]["autoscale"]["test_accuracy"]["values"] = [None] * 5
    lost = autoscale_accuracy.conclude(SETTINGS, results(resnet20=one))
    claims = lost.claims
    assert lost.tables[0].rows[2][1] == "–"
    assert [claim.verdict for claim in claims] == [INCONCLUSIVE] * 2
    assert "nothing to judge" in claims[1].measured


def test_a_damaged_summary():
    one = deepcopy(summary({}))
    del one["methods"]["sgd"]["status"]
    with pytest.raises(UserError, match="the summary of ResNet-20 is damaged"):
        autoscale_accuracy.conclude(SETTINGS, results(resnet20=one))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"methods": ["sgd", "clip"]}, "expected autoscale among methods, got sgd, clip"),
        ({"baseline": "adam"}, "expected adam among methods"),
        ({"baseline": "autoscale"}, "expected another baseline than autoscale"),
        ({"margin": 0.0}, "got margin=0"),
        ({"models": []}, "expected at least one model"),
    ],
)
def test_settings_out_of_bounds(changed, words):
    with pytest.raises(UserError, match=words):
        autoscale_accuracy.comparisons({**SETTINGS, **changed})
