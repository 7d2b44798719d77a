"""The recipe sparse-features: its models, its smoke run, and what it makes of made-up runs."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest

from gradwise.errors import UserError
from gradwise.reproduce.claims import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED, Conclusion
from gradwise.reproduce.experiments import sparse_features
from gradwise.reproduce.experiments._sparse_diagonal import Regression, descend, largest, regression
from gradwise.reproduce.experiments._sparse_images import train_images
from gradwise.reproduce.experiments._sparse_relu import fit
from gradwise.reproduce.recipe import load_recipe
from gradwise.reproduce.run import reproduce

RECIPE = load_recipe("sparse-features")
SETTINGS = {
    **RECIPE.at("small"),
    "seeds": [0, 1, 2, 3],
    "device": "cpu",
    "data_dir": None,
}
TINY = {**RECIPE.at("smoke"), "device": "cpu", "data_dir": None, "epochs": 2, "train_images": 64}
PICTURES = [f"sparse-{name}" for name in ("losses", "features", "test-loss", "functions")]

# --- the models ---


def notebook() -> Regression:
    """The authors' problem for gradient descent, by their generator and seed."""
    generator = np.random.RandomState(0)
    n, d, r = 40, 100, 20
    inputs = generator.multivariate_normal(np.zeros(d), np.eye(d), n)
    test = generator.multivariate_normal(np.zeros(d), np.eye(d), 1000)
    solution = generator.randn(d)
    solution[r:] = 0
    solution = np.abs(solution) / np.linalg.norm(solution)
    steps = 5000  # they have 100,000, and the same test loss from a few hundred on
    order = np.zeros(steps, dtype=np.int64)
    return Regression(inputs, inputs @ solution, test, test @ solution, order)


def test_the_authors_number_for_gradient_descent() -> None:
    """Their notebook prints a test loss of 0.168 at a rate of 2.0."""
    found = descend(
        notebook(), 2.0, decay_at=None, factor=1.0, stochastic=False, records=10, least=1e-50
    )
    assert found is not None
    assert found["test_loss"] == pytest.approx(0.168, abs=5e-4)
    assert found["train_loss"] < 1e-12
    assert found["at"][0] == 0
    assert found["at"][-1] == 5000


@pytest.mark.parametrize("stochastic", [True, False])
def test_a_step_is_that_of_the_gradient(stochastic: bool) -> None:
    problem = regression(6, 4, 2, steps=1, seed=0)
    assert np.linalg.norm(problem.inputs @ np.r_[1, 1, 0, 0]) > 0
    found = descend(
        problem, 0.1, decay_at=None, factor=1.0, stochastic=stochastic, records=1, least=1e-50
    )
    assert found is not None
    # u = 0.1, v = 0: u stays, v moves against (1/n) X^T (X (u v) - y) u
    k = [problem.order[0]] if stochastic else list(range(6))
    x, y = problem.inputs[k], problem.targets[k]
    v = 0.1 * 0.1 * (y @ x) / len(k)
    loss = np.mean((problem.inputs @ (0.1 * v) - problem.targets) ** 2) / 2
    assert found["losses"][-1] == pytest.approx(loss)
    assert found["counts"] == [0, 4]


def test_the_rate_is_divided_once() -> None:
    problem = regression(6, 4, 2, steps=10, seed=0)
    found = descend(
        problem, 0.1, decay_at=0.5, factor=4.0, stochastic=True, records=10, least=1e-50
    )
    assert found is not None
    assert found["rates"] == [0.1] * 5 + [0.025] * 6


def test_what_diverges_is_none_and_the_next_rate_is_tried() -> None:
    problem = regression(6, 4, 2, steps=2000, seed=0)
    tried = []

    def train(rate: float) -> dict[str, Any] | None:
        tried.append(rate)
        return descend(
            problem, rate, decay_at=None, factor=1.0, stochastic=True, records=5, least=1e-50
        )

    found = largest(train, [500.0, 0.05, 0.01])
    assert found is not None
    assert found[0] == 0.05
    assert tried == [500.0, 0.05]
    assert largest(train, [500.0]) is None


def test_the_network_on_a_line_is_the_one_that_is_analysed() -> None:
    found = fit(10, rate=1e-3, peak=2.0, decay_at=0.5, steps=300, records=5, seed=1)
    assert found is not None
    at_point = np.interp(0.195, found["grid"], found["function"])  # (0.5 / 4) + 0.07
    again = fit(10, rate=1e-3, peak=2.0, decay_at=0.5, steps=300, records=5, seed=1)
    assert again == found
    assert found["actives"][-1] == found["active"]
    assert math.isfinite(at_point)
    assert fit(10, rate=10.0, peak=1.0, decay_at=0.5, steps=2000, records=5, seed=1) is None


def test_images_of_one_seed_start_alike_and_repeat() -> None:
    large, small, again = (
        train_images(TINY, schedule, 0, lambda *_: None) for schedule in ("large", "small", "large")
    )
    assert large is not None
    assert small is not None
    assert large == again
    assert large["course"][0] == small["course"][0]
    assert large["losses"][0] == small["losses"][0]
    assert large["losses"][-1] != small["losses"][-1]


def test_images_that_diverge_are_none() -> None:
    assert train_images({**TINY, "large_rate": 1e30}, "large", 0, lambda *_: None) is None


# --- the smoke run ---


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("sparse")
    found = reproduce("sparse-features", scale="smoke", out=out, jobs=0, device="cpu")
    assert {path.stem for path in out.glob("*.svg")} == set(PICTURES)
    return found


def cells(found: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [found["cells"][f"{kind}-seed={seed}"] for seed in (0, 1)]


def test_large_steps_silence_neurons(smoke: dict[str, Any]) -> None:
    for large, small in zip(
        cells(smoke, "images-large"), cells(smoke, "images-small"), strict=True
    ):
        for a, b in zip(large["run"]["active"], small["run"]["active"], strict=True):
            assert a < b - 0.1


def test_long_phases_leave_fewer_coordinates(smoke: dict[str, Any]) -> None:
    for cell in cells(smoke, "diagonal"):
        short, long = (run["nonzero"] for run in cell["sgd"]["runs"])
        assert long < short < 60


def test_large_steps_without_noise_generalise_worse(smoke: dict[str, Any]) -> None:
    for cell in cells(smoke, "diagonal"):
        for run in cell["gd"]["runs"]:
            assert run["test_loss"] > 1.3 * cell["gd"]["constant"]["test_loss"]


def test_a_longer_warm_up_makes_simpler_functions(smoke: dict[str, Any]) -> None:
    for cell in cells(smoke, "relu"):
        short, long = cell["0.02"], cell["0.5"]
        assert long["singular_sum"] < 0.6 * short["singular_sum"]
        assert long["active"] < short["active"] - 0.1
        assert long["rank"] < short["rank"]


# --- conclusions from made-up runs ---


def made_up() -> dict[str, dict[str, Any]]:
    """All that is claimed holds."""
    results: dict[str, dict[str, Any]] = {}
    for seed in range(4):
        w = 1 + 0.02 * math.sin(4 * seed)
        for schedule, active, accuracy in (("large", 0.2, 0.6), ("small", 0.6, 0.5)):
            results[f"images-{schedule}-seed={seed}"] = {
                "run": {
                    "train_loss": 0.1,
                    "test_loss": 2.0,
                    "accuracy": accuracy * w,
                    "active": [active * w] * 3,
                    "distinct_active": [active * w] * 3,
                    "rank": [100] * 3,
                    "share": 0.9 * w,
                    "level": 1.5,
                    "at": [1, 2],
                    "losses": [2.0, 1.5],
                    "course": [
                        {"step": 0, "active": [0.6] * 3},
                        {"step": 2, "active": [active] * 3},
                    ],
                }
            }

        def trained(test_loss: float, nonzero: float, w: float = w) -> dict[str, Any]:
            return {
                "train_loss": 1e-6,
                "test_loss": test_loss * w,
                "nonzero": nonzero * w,
                "rank": 70,
                "at": [0, 100],
                "losses": [0.5, 1e-6],
                "counts": [0, nonzero],
                "rates": [0.1, 0.1],
            }

        results[f"diagonal-seed={seed}"] = {
            method: {
                "rate": 0.282,
                "constant": trained(0.1, 200),
                "runs": [trained(0.1 * x**k, 200 - 40 * k) for k in (1, 2, 3)],
            }
            for method, x in (("sgd", 0.5), ("gd", 2.0))
        }
        results[f"relu-seed={seed}"] = {
            q: {
                "train_loss": 1e-4,
                "active": 0.5 * part * w,
                "distinct_active": 0.05,
                "singular_sum": 100 * part * w**2,
                "rank": 100 * part,
                "grid": [-1.0, 1.0],
                "function": [0.0, part],
                "at": [0, 100],
                "losses": [9.0, 1e-4],
                "actives": [0.5, 0.5 * part],
            }
            for q, part in (("0.02", 1.0), ("0.5", 0.5 + 0.01 * seed))
        }
    return results


def concluded(results: dict[str, dict[str, Any]], drawn: bool = False, **more: Any) -> Conclusion:
    settings = {**SETTINGS, **more}
    if drawn:
        return sparse_features.conclude(settings, results)
    with patch.object(sparse_features, "pictures", return_value=()):  # they take seconds
        return sparse_features.conclude(settings, results)


def verdicts(results: dict[str, dict[str, Any]]) -> list[str]:
    return [claim.verdict for claim in concluded(results).claims]


def swapped(results: dict[str, dict[str, Any]], a: str, b: str, seeds: Any) -> None:
    for seed in seeds:
        one, two = f"{a}-seed={seed}", f"{b}-seed={seed}"
        results[one], results[two] = results[two], results[one]


def test_what_is_claimed_is_reproduced() -> None:
    assert verdicts(made_up()) == [REPRODUCED] * 7


def test_images_the_other_way_round() -> None:
    results = made_up()
    swapped(results, "images-large", "images-small", range(4))
    found = verdicts(results)
    assert [found[0], found[6]] == [NOT_REPRODUCED] * 2
    assert set(found[1:6]) == {REPRODUCED}


def test_images_that_disagree_settle_nothing() -> None:
    results = made_up()
    swapped(results, "images-large", "images-small", (0, 1))
    found = verdicts(results)
    assert [found[0], found[6]] == [INCONCLUSIVE] * 2


def test_one_stage_that_is_not_sparser_is_enough() -> None:
    results = made_up()
    for seed in range(4):
        results[f"images-large-seed={seed}"]["run"]["active"][1] = 0.7
    claim = concluded(results).claims[0]
    assert claim.verdict == NOT_REPRODUCED
    assert "ones: stage 2:" in claim.measured


def test_noise_and_no_noise_the_other_way_round() -> None:
    results = made_up()
    for seed in range(4):
        cell = results[f"diagonal-seed={seed}"]
        cell["sgd"], cell["gd"] = cell["gd"], cell["sgd"]
    found = verdicts(results)
    assert [found[2], found[3]] == [NOT_REPRODUCED] * 2


def test_coordinates_that_stay() -> None:
    results = made_up()
    for seed in range(4):
        results[f"diagonal-seed={seed}"]["sgd"]["runs"][2]["nonzero"] = 190
    claim = concluded(results).claims[1]
    assert claim.verdict == NOT_REPRODUCED
    assert "30 % to 50 %" in claim.measured


def test_a_loss_that_never_hovers() -> None:
    results = made_up()
    for seed in range(4):
        results[f"images-large-seed={seed}"]["run"]["share"] = 0.1 * seed
    assert verdicts(results)[5] == NOT_REPRODUCED


@pytest.mark.parametrize("name", ["singular_sum", "active", "rank"])
def test_features_that_are_not_simpler(name: str) -> None:
    results = made_up()
    for seed in range(4):
        results[f"relu-seed={seed}"]["0.5"][name] *= 4 + seed
    assert verdicts(results)[4] == NOT_REPRODUCED


def test_runs_that_diverged_are_left_out_and_counted() -> None:
    results = deepcopy(made_up())
    results["images-large-seed=3"]["run"] = None
    results["diagonal-seed=0"]["sgd"]["runs"][1] = None
    results["diagonal-seed=1"]["gd"] = {"rate": None, "constant": None, "runs": [None] * 3}
    results["relu-seed=2"]["0.5"] = None
    found = concluded(results, drawn=True)
    assert {claim.verdict for claim in found.claims} == {REPRODUCED}
    assert all("n = 3" in found.claims[k].measured for k in (0, 1, 2, 3, 4, 5, 6))
    assert found.notes[-1] == "Runs that diverged and are left out: 7."
    assert [picture.name for picture in found.pictures] == PICTURES


@pytest.mark.parametrize("bad", [None, math.nan])
def test_numbers_that_are_not_finite_are_left_out(bad: float | None) -> None:
    results = made_up()
    results["images-large-seed=3"]["run"]["active"][0] = bad
    results["diagonal-seed=0"]["sgd"]["runs"][1]["test_loss"] = bad
    found = concluded(results)
    assert {claim.verdict for claim in found.claims} == {REPRODUCED}
    assert "n = 3" in found.claims[0].measured


def test_nothing_at_all_is_inconclusive() -> None:
    results = {
        name: dict.fromkeys(cell) if "images" in name else cell
        for name, cell in made_up().items()
        if "images" in name
    }
    found = concluded(results, drawn=True)
    assert {claim.verdict for claim in found.claims} == {INCONCLUSIVE}


def test_the_authors_numbers_stand_beside_ours_where_schedules_agree() -> None:
    rows = concluded(made_up()).tables[1].rows
    assert [row[-2] for row in rows] == [
        *("3.5e-3", "6.6e-4", "2.8e-4", "1.5e-4"),
        *("0.168", "0.449", "0.438", "0.497"),
    ]
    other = concluded(made_up(), decays=[0.1, 0.2, 0.5]).tables[1].rows
    assert {row[-1] for row in other} == {""}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"decays": [0.5, 0.1, 0.3]}, "got decays="),
        ({"decays": [0.5]}, "got decays="),
        ({"decays": [0.1, 0.5]}, "got gd_factors="),
        ({"sgd_rates": []}, "got sgd_rates="),
        ({"gd_rates": [1.0, 2.0]}, "got gd_rates="),
    ],
)
def test_bad_settings(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        sparse_features.cells({**SETTINGS, **changes})


def test_a_cell_for_each_model_and_seed() -> None:
    names = [cell.name for cell in sparse_features.cells(SETTINGS)]
    assert len(names) == len(set(names)) == 16
    assert names[0] == "images-large-seed=0"
