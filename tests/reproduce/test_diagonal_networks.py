"""The recipe diagonal-networks: its smoke run, and what it concludes from made-up runs."""

from __future__ import annotations

import math
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from gradwise.errors import UserError
from gradwise.reproduce.claims import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED, Conclusion
from gradwise.reproduce.experiments import diagonal_networks
from gradwise.reproduce.recipe import load_recipe
from gradwise.reproduce.run import reproduce

SETTINGS = {
    **load_recipe("diagonal-networks").at("small"),
    "seeds": [0, 1, 2, 3],
    "device": "cpu",
    "data_dir": None,
}
PICTURES = {"diagonal-distance.svg", "diagonal-recovered.svg", "diagonal-alpha.svg"}


# --- the smoke run ---


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("diagonal")
    found = reproduce("diagonal-networks", scale="smoke", out=out, jobs=0, device="cpu")
    assert {path.name for path in out.glob("*.svg")} == PICTURES
    return found


def runs(found: dict[str, Any], method: str, gamma: float) -> list[dict[str, Any]]:
    return [
        run
        for cell in found["cells"].values()
        for run in cell["runs"]
        if (run["method"], run["gamma"]) == (method, gamma)
    ]


def test_noise_brings_every_problem_closer(smoke: dict[str, Any]) -> None:
    for gamma in (0.02, 0.05):
        gd, sgd = runs(smoke, "gd", gamma), runs(smoke, "sgd", gamma)
        assert len(sgd) == 3
        for flow, noisy in zip(gd, sgd, strict=True):
            assert noisy["distance"][-1] < flow["distance"][-1]
            assert noisy["off_support"] < flow["off_support"]
    for fast, slow in zip(runs(smoke, "sgd", 0.05), runs(smoke, "sgd", 0.02), strict=True):
        assert fast["distance"][-1] < slow["distance"][-1]
        assert fast["loss"][-1] < 1e-4  # it interpolates


def test_alpha_shrinks_as_predicted(smoke: dict[str, Any]) -> None:
    for fast, slow in zip(runs(smoke, "sgd", 0.05), runs(smoke, "sgd", 0.02), strict=True):
        assert fast["shrunk"] < slow["shrunk"] < 0.99
        assert fast["ratio"] == pytest.approx(1, abs=0.02)
        assert fast["kkt_start"] > 3 * fast["kkt_effective"]
    for run in runs(smoke, "gd", 0.02):  # no noise: nearly the first alpha
        assert run["shrunk"] == pytest.approx(1, abs=0.005)


def test_courses_start_at_the_solution_s_norm(smoke: dict[str, Any]) -> None:
    for cell in smoke["cells"].values():
        assert cell["at"][0] == 0
        assert cell["at"][-1] == 5000
        assert sum(x * x for x in cell["solution"]) == pytest.approx(1)
        for run in cell["runs"]:
            assert run["distance"][0] == pytest.approx(1)
            assert len(run["distance"]) == len(cell["at"])


def test_a_run_twice_is_the_same() -> None:
    settings = {**SETTINGS, "n": 8, "d": 12, "r": 2, "steps": 50, "records": 5}
    told: list[tuple[int, int]] = []
    one, two = (
        diagonal_networks.run(settings, {"seed": 3}, lambda *done: told.append(done))
        for _ in range(2)
    )
    assert one == two
    assert told[-1] == (100, 100)
    assert [(r["method"], r["alpha"], r["gamma"]) for r in one["runs"]] == [
        (method, alpha, gamma)
        for method in ("sgd", "gd")
        for alpha in (0.1, 0.01)
        for gamma in (0.02, 0.05)
    ]


# --- conclusions from made-up runs ---


def made_up() -> dict[str, dict[str, Any]]:
    """SGD is closer by 10 and by 20 %, in agreement with everything that is claimed."""
    results = {}
    for seed in range(4):
        made = []
        wobble = 1 + 0.01 * math.sin(5 * seed)
        for method in ("sgd", "gd"):
            for alpha in (0.1, 0.01):
                for gamma in (0.02, 0.05):
                    gain = {0.02: 0.1, 0.05: 0.2}[gamma] if method == "sgd" else 0.0
                    made.append(
                        {
                            "method": method,
                            "alpha": alpha,
                            "gamma": gamma,
                            "distance": [1.0, (1 - gain) * alpha * wobble],
                            "loss": [0.25, 1e-9],
                            "off_support": (1 - gain) * alpha * wobble,
                            "shrunk": 1 - gain,
                            "predicted": (1 - gain) * wobble,
                            "ratio": 1 + 0.5 * (wobble - 1),
                            "kkt_effective": 0.001,
                            "kkt_start": 0.01 * wobble,
                            "beta": [0.9, 0.05],
                        }
                    )
        results[f"seed={seed}"] = {"at": [0, 60000], "solution": [1.0, 0.0], "runs": made}
    return results


def changed(
    results: dict[str, dict[str, Any]], name: str, change: Any, method: str = "sgd"
) -> dict[str, dict[str, Any]]:
    """With a number of each run of a method at the larger step size changed."""
    results = deepcopy(results)
    for seed, result in enumerate(results.values()):
        for run in result["runs"]:
            if run["method"] == method and run["gamma"] == 0.05:
                last = isinstance(run[name], list)
                new = change(run[name][-1] if last else run[name], seed)
                run[name] = [1.0, new] if last else new
    return results


def concluded(results: dict[str, dict[str, Any]], drawn: bool = False, **more: Any) -> Conclusion:
    settings = {**SETTINGS, **more}
    if drawn:
        return diagonal_networks.conclude(settings, results)
    with patch.object(diagonal_networks, "pictures", return_value=()):  # they take seconds
        return diagonal_networks.conclude(settings, results)


def verdicts(results: dict[str, dict[str, Any]]) -> list[str]:
    return [claim.verdict for claim in concluded(results).claims]


def test_what_is_claimed_is_reproduced() -> None:
    assert verdicts(made_up()) == [REPRODUCED] * 5


@pytest.mark.parametrize(
    ("name", "change", "claims"),
    [
        ("distance", lambda x, _: 1.5 * x, (0, 2)),
        ("off_support", lambda x, _: 1.5 * x, (1,)),
        ("ratio", lambda x, _: 0.03 + x, (3,)),
        ("kkt_start", lambda x, _: 0.25 * x, (4,)),
    ],
)
def test_the_opposite_is_not(name: str, change: Any, claims: tuple[int, ...]) -> None:
    found = verdicts(changed(made_up(), name, change))
    for k, verdict in enumerate(found):
        assert verdict == (NOT_REPRODUCED if k in claims else REPRODUCED)


@pytest.mark.parametrize(
    ("name", "claim"), [("distance", 0), ("off_support", 1), ("ratio", 3), ("kkt_start", 4)]
)
def test_seeds_that_disagree_settle_nothing(name: str, claim: int) -> None:
    bad = changed(made_up(), name, lambda x, seed: x * (3 if seed % 2 else 0.2))
    assert verdicts(bad)[claim] == INCONCLUSIVE


def test_the_measured_words_carry_interval_and_seeds() -> None:
    claim = concluded(made_up()).claims[3]
    assert "allowed is 2 %" in claim.measured
    assert claim.measured.count("n = 4") == 4
    assert "95 % interval" in claim.measured


@pytest.mark.parametrize("bad", [None, math.nan, math.inf])
def test_what_is_not_finite_is_left_out_and_said(bad: float | None) -> None:
    results = made_up()
    results["seed=2"]["runs"][1]["distance"] = [1.0, bad]
    results["seed=2"]["runs"][1]["beta"] = [bad, 0.0]
    found = concluded(results, drawn=True)
    assert found.claims[0].verdict == REPRODUCED
    assert "n = 3" in found.claims[0].measured
    assert any("SGD at alpha 0.1, gamma 0.05" in note for note in found.notes)
    assert {f"{picture.name}.svg" for picture in found.pictures} == PICTURES


def test_no_effect_without_violation_at_all() -> None:
    """An exact solution has a residual of 0, of which there is no ratio."""
    found = verdicts(changed(made_up(), "kkt_effective", lambda *_: 0.0))
    assert found[4] == INCONCLUSIVE


def test_one_seed_has_no_interval() -> None:
    found = concluded({"seed=0": made_up()["seed=0"]}, seeds=[0])
    assert {claim.verdict for claim in found.claims} == {INCONCLUSIVE}


def test_the_table_has_a_row_for_each_run() -> None:
    table = concluded(made_up()).tables[0]
    assert len(table.rows) == 8
    assert table.rows[0][:3] == ("0.1", "0.02", "SGD")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gammas": [0.02, 0.02]}, "got gammas="),
        ({"alphas": [0.0, 0.1]}, "got alphas="),
        ({"gammas": []}, "got gammas="),
        ({"records": 0}, "got records=0"),
    ],
)
def test_bad_settings(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        diagonal_networks.cells({**SETTINGS, **changes})


def test_a_step_size_that_diverges_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="converge"):
        reproduce(
            "diagonal-networks",
            scale="smoke",
            out=tmp_path / "out",
            overrides={"gammas": [5.0], "seeds": [0]},
            jobs=0,
            device="cpu",
        )
