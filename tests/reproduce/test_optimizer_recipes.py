"""The recipes of four optimizers: smoke runs, mechanisms, conclusions from made-up trainings."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from gradwise.errors import UserError
from gradwise.reproduce import load_recipe, plan, reproduce
from gradwise.reproduce.claims import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED, Conclusion
from gradwise.reproduce.experiments import optimizers
from gradwise.reproduce.experiments._optimizer_mechanisms import PROBES, Probe

NAMES = ("sgdf", "hgm", "adamomentum", "adarem")
UNSEEN = {"device": "cpu", "data_dir": None}

# --- smoke ---


@pytest.fixture(scope="module", params=["sgdf", "hgm", "adamomentum", "adarem"])
def smoke(request, tmp_path_factory) -> tuple[str, dict[str, Any], Path]:
    out = tmp_path_factory.mktemp(request.param)
    found = reproduce(request.param, scale="smoke", out=out, jobs=2, device="cpu")
    return request.param, found, out


def histories(found: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    told: dict[str, list[dict[str, Any]]] = {}
    for one in found["cells"].values():
        for spec, facts in one["summary"]["methods"].items():
            paths = [Path(one["folder"], folder, "result.json") for folder in facts["folder"]]
            told[spec.partition("(")[0]] = [json.loads(path.read_text()) for path in paths]
    return told


def test_smoke(smoke: tuple[str, dict[str, Any], Path]) -> None:
    name, found, out = smoke
    told = histories(found)
    baseline = "sgd" if name == "sgdf" else "adam"
    assert set(told) == {name, baseline}
    # It learns: far below guessing in the loss, and no worse than one and a half baselines.
    final = {key: [run["history"]["train_loss"][-1] for run in runs] for key, runs in told.items()}
    for at, run in enumerate(told[name]):
        losses = run["history"]["train_loss"]
        assert losses == sorted(losses, reverse=True)
        assert losses[-1] < 0.4 * math.log(10)
        assert losses[-1] < 1.5 * final[baseline][at]
        assert run["test_accuracy"] > 0.8
        # Same weights and batches as the baseline's, though they may be of another comparison.
        other = told[baseline][at]
        for key in ("seed", "init_checksum", "batches_checksum"):
            assert run[key] == other[key]
    assert any("saw the same batches" in note for note in found["notes"])
    assert len(found["tables"][0]["rows"]) == 2
    assert {path.name for path in out.glob("*.svg")} == {
        "curves.svg",
        "differences.svg",
        "mechanism.svg",
    }
    assert (out / "report.html").stat().st_size > 10_000
    # The mechanism does not depend on the scale, so neither do its verdicts.
    made_up = [c["verdict"] for c in found["claims"] if c["text"].startswith("Made-up")]
    assert (
        made_up
        == {
            "sgdf": [REPRODUCED, REPRODUCED],
            "hgm": [REPRODUCED, REPRODUCED, NOT_REPRODUCED],
            "adamomentum": [],
            "adarem": [NOT_REPRODUCED],
        }[name]
    )
    claims = [c for c in found["claims"] if not c["text"].startswith("Made-up")]
    assert len(claims) == 2
    gains = [
        a["test_accuracy"] - b["test_accuracy"]
        for a, b in zip(told[name], told[baseline], strict=True)
    ]
    assert f"{100 * sum(gains) / 2:.3g} points" in claims[0]["measured"]


# --- mechanisms: closed forms and directions ---


@pytest.fixture(scope="module")
def probes() -> dict[str, Probe]:
    return {name: PROBES[name](name) for name in NAMES}


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_the_filter_lies_between_gradient_and_average(probes: dict[str, Probe]) -> None:
    probe = probes["sgdf"]
    error = {name: [mean(probe.at(name, x)) for x in probe.x] for name in probe.series}
    assert error["gradient itself"] == pytest.approx([1.0] * 5, rel=0.02)  # the noise
    # An average of independent noise keeps (1 - b) / (1 + b) of its variance.
    assert error["fixed average, 0.9"][-1] == pytest.approx(0.1 / 1.9, rel=0.1)
    # Response of the average to a sine: 0.1 / (1 - 0.9 exp(-iw)).
    for place, period in enumerate(probe.x):
        angle = 2 * math.pi / period
        response = 0.1 / (1 - 0.9 * complex(math.cos(angle), -math.sin(angle)))
        lag = abs(1 - response) ** 2
        assert error["fixed average, 0.9"][place] == pytest.approx(lag + 0.1 / 1.9, rel=0.03)
    for place in (0, 1, 2):
        best = min(error["gradient itself"][place], error["fixed average, 0.9"][place])
        assert error["sgdf"][place] < best
    for place in (3, 4):  # and no miracle: where changes are slow the fixed average is better
        assert error["fixed average, 0.9"][place] < error["sgdf"][place] < 0.2


def test_without_average_the_filter_is_the_gradient() -> None:
    probe = PROBES["sgdf"]("sgdf(betas=(0.0, 0.999))")
    for ours, plain in zip(probe.series["sgdf"], probe.series["gradient itself"], strict=True):
        assert ours == pytest.approx(plain, rel=1e-9)
    assert probe.claims[0].verdict == NOT_REPRODUCED


def test_the_rate_of_hgm(probes: dict[str, Probe]) -> None:
    probe = probes["hgm"]
    constant = probe.series["constant gradient under noise"]
    assert [row[0] for row in constant] == pytest.approx([math.exp(0.5)] * 8, rel=1e-6)
    means = [mean(list(column)) for column in zip(*constant, strict=True)]
    assert means == sorted(means, reverse=True)
    turning = probe.at("gradient that turns each step", 0.0)
    assert turning == pytest.approx([math.exp(-0.5)] * 8, rel=1e-3)
    for name in ("nothing but noise", "noise around a minimum"):
        assert mean(probe.at(name, 0.0)) == pytest.approx(1.0, abs=0.005)


def test_without_its_idea_hgm_is_adam() -> None:
    probe = PROBES["hgm"]("hgm(gamma=0.0)")
    for rows in probe.series.values():
        for row in rows:
            assert row == pytest.approx([1.0] * 5, rel=1e-9)
    assert [claim.verdict for claim in probe.claims] == [NOT_REPRODUCED] * 3


def test_steps_of_adamomentum_do_not_shrink_in_noise(probes: dict[str, Probe]) -> None:
    probe = probes["adamomentum"]
    for name in probe.series:
        assert probe.at(name, 0.0) == pytest.approx([1.0] * 8, abs=0.05)
    ours, adam = (mean(probe.at(name, 10.0)) for name in ("adamomentum", "adam"))
    assert ours == pytest.approx(1.0, abs=0.05)
    # The mean has 1/100 of the noise's power, the averaged noise 0.1 / 1.9 of it.
    assert adam == pytest.approx(math.sqrt((1 + 100 * 0.1 / 1.9) / 101), rel=0.03)


def test_oscillations_on_quadratics(probes: dict[str, Probe]) -> None:
    probe = probes["adarem"]
    for place in probe.x:
        plain, ours = (mean(probe.at(n, place)) for n in ("sgd without momentum", "adarem"))
        assert 0.9 * plain < ours < plain  # less, and not much less
    same = PROBES["adarem"]("adarem(lam=0.0)").series
    for ours_row, plain_row in zip(same["adarem"], same["sgd without momentum"], strict=True):
        assert ours_row == pytest.approx(plain_row, rel=1e-9)


# --- conclusions from made-up trainings ---

SETTINGS = {
    **load_recipe("sgdf").at("small"),
    **UNSEEN,
    "seeds": [0, 1, 2, 3],
    "epochs": 4,
    "method": "tame",  # an optimizer without a probe: trainings alone are judged
    "rates": {"tame": [0.1, 0.3], "sgd": [0.03, 0.1], "adam": [1e-3, 3e-3]},
    "accuracy_above": ["sgd"],
    "accuracy_near": ["adam"],
    "faster_than": ["sgd"],
    "margin": 0.005,
}
ACCURACY = {"tame": 0.60, "sgd": 0.55, "adam": 0.60}
LOSS = {"tame": 1.0, "sgd": 1.2, "adam": 0.9}
WOBBLE = (0.0, 0.002, -0.001, 0.001)


def training(name: str, at: int, accuracy: float, loss: float, **changes: Any) -> dict[str, Any]:
    shift = 0.0 if name == "sgd" else WOBBLE[at]
    return {
        "status": "finished",
        "seed": at,
        "test_accuracy": accuracy + shift,
        "learning_rate": SETTINGS["rates"][name][1],
        "wall_time_s": 3.0,
        "init_checksum": f"w{at}",
        "batches_checksum": f"b{at}",
        "history": {
            "train_loss": [2.2, loss + shift, 0.8 * loss, 0.7 * loss],
            "test_accuracy": [0.2, 0.3, 0.4, accuracy + shift],
        },
        **changes,
    }


Made = dict[str, list[dict[str, Any]]]


@pytest.fixture
def made() -> Made:
    return {
        name: [training(name, at, ACCURACY[name], LOSS[name]) for at in range(4)]
        for name in ("tame", "sgd", "adam")
    }


@pytest.fixture
def concluded(tmp_path: Path) -> Callable[..., Conclusion]:
    """Write trainings as comparisons do, and conclude from them."""

    def conclude(made: Made, change: Callable[[Any], None] = lambda results: None, **other: Any):
        results: dict[str, Any] = {}
        for name, runs in made.items():
            folders = []
            for run in runs:
                folder = Path("trials", name, f"seed-{run.get('seed')}")
                (tmp_path / name / folder).mkdir(parents=True, exist_ok=True)
                (tmp_path / name / folder / "result.json").write_text(json.dumps(run))
                folders.append(str(folder))
            grid = [
                {
                    "learning_rate": rate,
                    "validation_accuracy": {"mean": 0.5 + place / 10},
                    "test_accuracy": {"mean": 0.55},
                }
                for place, rate in enumerate(SETTINGS["rates"][name])
            ]
            facts = {"seeds": [0, 1, 2, 3], "folder": folders, "grid": grid}
            results[name] = {
                "summary": {"methods": {name: facts}},
                "folder": str(tmp_path / name),
            }
        change(results)
        return optimizers.conclude({**SETTINGS, **other}, results)

    return conclude


def verdicts(conclusion: Conclusion) -> list[str]:
    return [claim.verdict for claim in conclusion.claims]


def moved(made: Made, name: str, accuracy: float = 0.0, loss: float = 0.0) -> Made:
    changed = deepcopy(made)
    for run in changed[name]:
        run["test_accuracy"] += accuracy
        run["history"]["train_loss"] = [v + loss for v in run["history"]["train_loss"]]
    return changed


def test_what_a_paper_says_and_what_we_found(made: Made, concluded: Any) -> None:
    conclusion = concluded(made)
    assert verdicts(conclusion) == [REPRODUCED, REPRODUCED, REPRODUCED]
    assert "5.05 points" in conclusion.claims[0].measured
    assert "0.5 points below" in conclusion.claims[1].text
    assert "epoch 2 of 4" in conclusion.claims[2].text
    assert "less tame 0.199 nats" in conclusion.claims[2].measured
    assert [table.title for table in conclusion.tables] == ["Accuracy and loss", "Learning rates"]
    assert [row[-1] for row in conclusion.tables[1].rows] == ["", "chosen"] * 3
    assert [picture.name for picture in conclusion.pictures] == ["curves", "differences"]
    # The larger of two rates was chosen for each: there may be a better one beyond.
    assert sum("lies at an end" in note for note in conclusion.notes) == 3


@pytest.mark.parametrize(
    ("name", "accuracy", "loss", "expected"),
    [
        ("tame", -0.10, 0.0, [NOT_REPRODUCED, NOT_REPRODUCED, REPRODUCED]),
        ("tame", 0.0, 0.5, [REPRODUCED, REPRODUCED, NOT_REPRODUCED]),
        # Not above by more than what does not matter.
        ("sgd", 0.05, 0.0, [NOT_REPRODUCED, REPRODUCED, REPRODUCED]),
        # Slightly below, but by less than the margin.
        ("adam", 0.003, 0.0, [REPRODUCED, REPRODUCED, REPRODUCED]),
        ("adam", 0.02, 0.0, [REPRODUCED, NOT_REPRODUCED, REPRODUCED]),
    ],
)
def test_claims_turn(
    name: str, accuracy: float, loss: float, expected: list[str], made: Made, concluded: Any
) -> None:
    assert verdicts(concluded(moved(made, name, accuracy, loss))) == expected


def test_a_wide_spread_decides_nothing(made: Made, concluded: Any) -> None:
    for at, run in enumerate(made["tame"]):
        run["test_accuracy"] += (-1) ** at * 0.1
        run["history"]["train_loss"][1] += (-1) ** at * 0.5
    assert verdicts(concluded(made)) == [INCONCLUSIVE] * 3


def test_seeds_are_paired(made: Made, concluded: Any) -> None:
    """What all optimizers share in a seed is no uncertainty of their difference."""
    for runs in made.values():
        for at, run in enumerate(runs):
            run["test_accuracy"] += (0.3, -0.3, 0.2, -0.2)[at]
    assert verdicts(concluded(made)) == [REPRODUCED] * 3


def test_a_training_that_diverged_counts_as_guessing(made: Made, concluded: Any) -> None:
    for run in made["tame"]:
        run |= {"status": "diverged", "test_accuracy": 0.1}
        run["history"] = {"train_loss": [2.2], "test_accuracy": [0.12]}
    conclusion = concluded(made)
    assert verdicts(conclusion) == [NOT_REPRODUCED] * 3
    assert f"{math.log(10):.3f} with tame" in conclusion.claims[2].measured
    assert conclusion.tables[0].rows[0][6] == "4 of 4"
    # Batches that were not seen any more are no sign of an unfair comparison.
    assert any("saw the same batches" in note for note in conclusion.notes)


def test_an_unfair_comparison_is_told(made: Made, concluded: Any) -> None:
    made["adam"][2]["batches_checksum"] = "other"
    assert any("differ between optimizers at seed 3" in n for n in concluded(made).notes)


def drop(results: Any) -> None:
    del results["adam"]


def shorten(results: Any) -> None:
    results["adam"]["summary"]["methods"]["adam"]["seeds"] = [0, 1]


def empty(results: Any) -> None:
    results["adam"]["summary"] = None


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (drop, "got none of adam"),
        (shorten, "comparison adam is damaged.*seeds"),
        (empty, "comparison adam is damaged"),
    ],
)
def test_missing_results(change: Any, told: str, made: Made, concluded: Any) -> None:
    with pytest.raises(UserError, match=told):
        concluded(made, change)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"status": "failed"}, "a trial is failed"),
        ({"history": {"train_loss": [1.0], "test_accuracy": [0.2]}}, "has 1 epochs, not 4"),
        ({"history": None}, "comparison sgd is damaged"),
        ({"learning_rate": None}, "comparison sgd is damaged"),
    ],
)
def test_damaged_trainings(change: dict[str, Any], told: str, made: Made, concluded: Any) -> None:
    made["sgd"][0] |= change
    with pytest.raises(UserError, match=told):
        concluded(made)


# --- settings ---


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", ["smoke", "small", "full"])
def test_every_optimizer_has_the_same_budget(name: str, scale: str, tmp_path: Path) -> None:
    planned = plan(name, scale=scale, data_dir=tmp_path, device="cpu")
    settings = planned.settings
    specs = [spec for one in planned.comparisons for spec in one.methods]
    assert sorted(specs) == sorted([settings["method"], *settings["baselines"]])
    rates = {max(len(one.settings.grid), 1) for one in planned.comparisons}
    assert len(rates) == 1
    assert planned.units == len(specs) * len(settings["seeds"]) * rates.pop()
    for one in planned.comparisons:
        for spec in one.methods:
            wanted = settings["rates"][spec.partition("(")[0]]
            assert one.settings.grid == (tuple(wanted) if len(wanted) > 1 else ())
            assert len(wanted) > 1 or one.settings.lr == wanted[0]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"baselines": []}, "at least one baseline"),
        ({"baselines": ["sgd", "sgd"]}, "expected every optimizer once, got sgd twice"),
        ({"baselines": ["sgd", "adamw"]}, "learning rates for adamw in rates"),
        ({"rates": {"sgdf": [0.5], "sgd": [0.1, 0.2], "adam": [1e-3]}}, "sgdf 1 and sgd 2"),
        ({"accuracy_near": ["rmsprop"]}, "expected accuracy_near to name baselines"),
        ({"accuracy_above": [], "accuracy_near": [], "faster_than": []}, "expected a claim"),
        ({"early": 0.0}, "expected 0 < early <= 1"),
        ({"margin": 1.0}, "expected 0 <= margin < 1"),
    ],
)
def test_wrong_settings(changes: dict[str, Any], told: str) -> None:
    settings = {**load_recipe("sgdf").at("full"), **UNSEEN, **changes}
    with pytest.raises(UserError, match=told):
        optimizers.comparisons(settings)
