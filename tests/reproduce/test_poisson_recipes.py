"""The recipes implicit-sgd and natural-gradient: smoke runs, and conclusions from made-up runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest
import torch

from gradwise.errors import UserError
from gradwise.reproduce.claims import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED, Conclusion
from gradwise.reproduce.experiments import implicit_sgd, natural_gradient
from gradwise.reproduce.experiments._pairs import All
from gradwise.reproduce.experiments._poisson import METHODS, Poisson, Training, trial
from gradwise.reproduce.experiments._poisson_grid import run_grid
from gradwise.reproduce.recipe import load_recipe
from gradwise.reproduce.run import reproduce

HERE = {"device": "cpu", "data_dir": None}
IMPLICIT = {**load_recipe("implicit-sgd").at("small"), **HERE}
NATURAL = {**load_recipe("natural-gradient").at("small"), **HERE}
TINY = {"k": 4, "points": 8, "width": 8, "boundary": 1.0, "device": "cpu"}

# --- problem and grid ---


def test_the_problem_leaves_the_random_numbers_alone() -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    Poisson(k=4, points=8, width=8, seed=1)
    assert torch.rand(3).equal(wanted)


def test_held_out_is_the_loss_at_other_points() -> None:
    few, many = (Poisson(k=4, points=points, width=8) for points in (3, 4000))
    many.unit = few.unit
    assert few.held_out() == pytest.approx(many.loss().item(), rel=2e-3)
    assert abs(few.held_out() - few.loss().item()) > 2e-3 * few.held_out()


@pytest.mark.parametrize("wrong", [{"k": 0}, {"points": 0}, {"width": 0}, {"boundary": 0.0}])
def test_problems_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"got {next(iter(wrong))}="):
        Poisson(**wrong)


def test_what_is_given_up_is_not_finite() -> None:
    training = Training(METHODS["SGD"], 0.01, Poisson(k=4, points=8, width=8))
    found = trial(training, {"steps": 2, "evaluations": 9}, lambda t, loss: t.steps < 5)
    assert training.steps == 5
    assert found["steps"]["error"] is not None
    assert found["evaluations"]["error"] is None


def test_a_grid_tells_when_a_training_leaves_what_is_stable() -> None:
    settings = {**TINY, "evaluations": 30}
    told: list[tuple[int, int]] = []
    options = [(0.01, 0.0), (100.0, 0.0)]
    found = run_grid(METHODS["SGD"], options, settings, 0, lambda *at: told.append(at))
    calm, wild = found["trials"]
    assert told == [(1, 2), (2, 2)]
    assert calm["unstable_at"] is None
    assert calm["highest"] == 1.0
    assert calm["at"]["evaluations"]["steps"] == 30
    assert calm["course"]["evaluations"][-1] > 20
    assert 1 <= wild["unstable_at"] <= 5
    assert wild["highest"] > 10
    assert set(found["trials"][0]["at"]) == {"evaluations"}


def test_ties_settle_nothing() -> None:
    assert All({"a": [0.0, 0.0, 0.0]}).verdict == INCONCLUSIVE
    assert All({"a": [], "b": [1.0, 1.1]}).verdict == INCONCLUSIVE
    assert All({"a": [-1.0, -1.1], "b": [1.0, 1.1]}).verdict == NOT_REPRODUCED
    assert "no run that tells" in All({"a": []}).words()


# --- smoke runs ---


def smoke_run(name: str, pictures: set[str], tmp: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp.mktemp(name)
    found = reproduce(name, scale="smoke", out=out, jobs=0, device="cpu")
    assert {path.stem for path in out.glob("*.svg")} == pictures
    return found


@pytest.fixture(scope="module")
def implicit(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pictures = {"implicit-sgd-error", "implicit-sgd-rates"}
    return smoke_run("implicit-sgd", pictures, tmp_path_factory)


@pytest.fixture(scope="module")
def natural(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    pictures = {"natural-gradient-error", "natural-gradient-fit"}
    return smoke_run("natural-gradient", pictures, tmp_path_factory)


def of(found: dict[str, Any], arm: str, seed: int, value: float) -> dict[str, Any]:
    trials = found["cells"][f"{arm}-seed={seed}"]["trials"]
    (one,) = (one for one in trials if one["value"] == value)
    return one


@pytest.mark.parametrize("seed", [0, 1])
def test_implicit_sgd_is_stable_where_sgd_diverges(implicit: dict[str, Any], seed: int) -> None:
    for lr in (1.0, 100.0):
        assert of(implicit, "sgd", seed, lr)["unstable_at"] is not None
        for arm in ("implicit-lbfgs", "implicit-adam"):
            one = of(implicit, arm, seed, lr)
            assert one["unstable_at"] is None
            assert one["highest"] <= 1 + 1e-9  # of (7.2) no step ends above where it began
    assert of(implicit, "sgd", seed, 0.03)["unstable_at"] is None
    assert implicit["claims"][0]["verdict"] == REPRODUCED


@pytest.mark.parametrize("seed", [0, 1])
def test_an_implicit_step_goes_far_and_costs_much(implicit: dict[str, Any], seed: int) -> None:
    far = of(implicit, "implicit-lbfgs", seed, 100.0)["at"]["steps"]
    assert far["steps"] == 6
    assert far["evaluations"] > 10 * far["steps"]
    for arm, lr in (("sgd", 0.03), ("adam", 0.03)):
        other = of(implicit, arm, seed, lr)["at"]["steps"]
        assert other["evaluations"] == other["steps"] == 6
        assert far["error"] < 0.1 * other["error"]


@pytest.mark.parametrize("seed", [0, 1])
def test_filters_go_furthest_for_a_budget(natural: dict[str, Any], seed: int) -> None:
    adam = of(natural, "adam", seed, 0.01)["at"]["evaluations"]
    for arm in ("kalman", "rkalman"):
        found = of(natural, arm, seed, 0.3)["at"]["evaluations"]
        assert found["steps"] == 20
        assert found["error"] < 0.8 * adam["error"]
    assert adam["error"] < 0.5 * of(natural, "sgd", seed, 0.01)["at"]["evaluations"]["error"]


@pytest.mark.parametrize("seed", [0, 1])
def test_regularised_steps_are_alike_and_milder(natural: dict[str, Any], seed: int) -> None:
    """RING is RENG up to rho^2; neither leaves the start where the plain method does not."""
    reng, ring, plain = (of(natural, arm, seed, 0.003) for arm in ("reng", "ring", "natural"))
    losses = [one["at"]["evaluations"]["loss"] for one in (reng, ring)]
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert max(reng["highest"], ring["highest"]) <= plain["highest"] * (1 + 1e-9)
    assert reng["at"]["evaluations"]["steps"] == 100  # two passes a step
    assert plain["at"]["evaluations"]["steps"] == 200 or plain["highest"] > 10


@pytest.mark.parametrize("arm", ["ring", "rkalman"])
def test_a_cell_twice_is_the_same_but_for_its_time(arm: str) -> None:
    settings = {**load_recipe("natural-gradient").at("smoke", {"evaluations": 30}), **HERE}
    one, two = (
        natural_gradient.run(settings, {"arm": arm, "seed": 0}, lambda done, total: None)
        for _ in range(2)
    )
    for a, b in zip(one["trials"], two["trials"], strict=True):
        assert a["highest"] == b["highest"]
        assert a["course"]["error"] == b["course"]["error"]


# --- conclusions from made-up runs ---

End = tuple[float, float]  # the error, and the loss everywhere


def made_up(
    module: ModuleType,
    settings: dict[str, Any],
    arms: dict[str, str],
    ends: Callable[[str, float, float, str], End | None],
) -> dict[str, dict[str, Any]]:
    """Results in which `ends` says how an arm at a value and rho ended, None where it diverged."""
    results = {}
    for arm, grid in arms.items():
        for seed in settings["seeds"]:
            trials = []
            rhos = settings["rhos"] if arm in ("reng", "ring", "rkalman") else [0.0]
            for rho in rhos:
                for value in settings[grid]:
                    at, wobble = {}, 1 + 0.02 * math.sin(7 * seed + len(arm))
                    for budget in ("steps", "evaluations"):
                        if budget in settings:
                            end = ends(arm, value, rho, budget)
                            error, loss = (None, None) if end is None else end
                            at[budget] = {
                                "steps": 100,
                                "evaluations": 2000,
                                "seconds": 1.5,
                                "loss": None if loss is None else loss * wobble,
                                "error": None if error is None else error * wobble,
                            }
                    left = at["evaluations"]["error"] is None
                    course = [1.0, 0.5]
                    trials.append(
                        {
                            "value": value,
                            "rho": rho,
                            "highest": None if left else 1.0,
                            "unstable_at": 3 if left else None,
                            "at": at,
                            "held_out": None if left else at["evaluations"]["loss"],
                            "course": {
                                "steps": [1, 100],
                                "evaluations": [1, 2000],
                                "seconds": [0.1, 1.5],
                                "loss": course,
                                "error": course,
                            },
                        }
                    )
            results[f"{arm}-seed={seed}"] = {"trials": trials}
    return results


def concluded(module: ModuleType, settings: dict[str, Any], results: Any) -> Conclusion:
    with patch.object(module, "_pictures", return_value=()):  # a picture takes seconds
        return module.conclude(settings, results)


def implicit_results(
    sgd_until: float = 0.1, implicit_until: float = 1e9, error: float = 0.003, adam: float = 0.9
) -> dict[str, dict[str, Any]]:
    def ends(arm: str, lr: float, rho: float, budget: str) -> End | None:
        if arm == "sgd":
            return (0.7, 0.6) if lr <= sgd_until else None
        if arm == "adam":
            return (adam, 0.9) if budget == "steps" else (0.001, 1e-6)
        return (error, 1e-4 / lr) if lr <= implicit_until else None

    arms = dict.fromkeys(implicit_sgd.ARMS, "lrs")
    return made_up(implicit_sgd, IMPLICIT, arms, ends)


def implicit_verdicts(**how: float) -> list[str]:
    found = concluded(implicit_sgd, IMPLICIT, implicit_results(**how))
    return [claim.verdict for claim in found.claims]


def test_implicit_what_the_paper_says_is_reproduced() -> None:
    assert implicit_verdicts() == [REPRODUCED] * 3


@pytest.mark.parametrize(
    ("how", "claim"),
    [
        ({"sgd_until": 10.0, "implicit_until": 1.0}, 0),
        ({"error": 0.8}, 1),
        ({"adam": 0.002}, 2),
    ],
)
def test_implicit_what_it_does_not_say_is_not(how: dict[str, float], claim: int) -> None:
    assert implicit_verdicts(**how)[claim] == NOT_REPRODUCED


def test_implicit_a_grid_that_stops_too_early_settles_nothing() -> None:
    assert implicit_verdicts(sgd_until=1e9)[0] == INCONCLUSIVE


def test_implicit_the_decades_are_those_of_the_grid() -> None:
    found = concluded(implicit_sgd, IMPLICIT, implicit_results())
    assert "L-BFGS inside 4 (95 % interval 4 to 4, n = 6)" in found.claims[0].measured
    assert "In 12 of 12" in found.claims[0].measured
    found = concluded(implicit_sgd, IMPLICIT, implicit_results(sgd_until=0.0))
    # SGD is not stable even at 0.0003: it counts as one place below, 0.00009.
    assert "L-BFGS inside 7.05 (95 % interval 7.05 to 7.05, n = 6)" in found.claims[0].measured


def test_implicit_the_price_is_told() -> None:
    found = concluded(implicit_sgd, IMPLICIT, implicit_results())
    assert "L-BFGS inside 20.0" in found.notes[1]
    assert "Against Adam: implicit SGD, L-BFGS inside -0.47" in found.notes[2]


def test_implicit_where_all_diverge() -> None:
    results = implicit_results(sgd_until=0.0, implicit_until=0.0)
    found = implicit_sgd.conclude(IMPLICIT, results)
    assert [claim.verdict for claim in found.claims] == [INCONCLUSIVE] * 3
    assert "sgd-seed=0" in found.notes[-1]
    assert [row[2] for row in found.tables[0].rows].count("never stable") == 6


def test_implicit_a_seed_that_diverges_is_left_out() -> None:
    results = implicit_results()
    for one in results["sgd-seed=2"]["trials"]:
        one.update(highest=None, unstable_at=2)
    claims = concluded(implicit_sgd, IMPLICIT, results).claims
    assert "n = 5" in claims[1].measured
    assert "n = 6" in claims[0].measured


def natural_results(**factors: float) -> dict[str, dict[str, Any]]:
    """By arm, what its error and loss are multiplied with; `until` is the plain method's rate."""
    plain = {"sgd": 0.9, "adam": 0.3, "natural": 0.2, "kalman": 0.1}
    arms = {arm: grid for arm, (_, _, grid) in natural_gradient.ARMS.items()}

    def ends(arm: str, value: float, rho: float, budget: str) -> End | None:
        base = arm if arm in plain else natural_gradient.PLAIN[arm]
        usual = 1.0 if arm in plain else 0.5
        size = plain[base] * factors.get(arm, usual)
        if arms[arm] == "lrs":
            wild = value > factors.get(f"{arm}_until", 0.003 if arm == "natural" else 0.01)
        elif arms[arm] == "noises":
            wild = value < factors.get(f"{arm}_until", 0.1 if arm == "kalman" else 0.01)
        else:
            wild = False
        return None if wild else (size * (1 + 0.1 * abs(math.log10(rho or 0.01) + 2)), size)

    return made_up(natural_gradient, NATURAL, arms, ends)


def natural_verdicts(**factors: float) -> list[str]:
    found = concluded(natural_gradient, NATURAL, natural_results(**factors))
    return [claim.verdict for claim in found.claims]


def test_natural_what_the_paper_says_is_reproduced() -> None:
    assert natural_verdicts() == [REPRODUCED] * 4


@pytest.mark.parametrize(
    ("factors", "claims"),
    [
        ({"ring": 2.0}, {0, 2, 3}),
        ({"rkalman": 1.2}, {0, 2}),
        ({"reng_until": 0.001}, {1}),
        ({"rkalman_until": 1.0}, {1}),
        ({"adam": 0.1, "sgd": 0.1}, {3}),
    ],
)
def test_natural_what_it_does_not_say_is_not(factors: dict[str, float], claims: set[int]) -> None:
    found = natural_verdicts(**factors)
    assert {i for i, verdict in enumerate(found) if verdict == NOT_REPRODUCED} == claims


@pytest.mark.parametrize("until", [1e-9, 1e9])
def test_natural_grids_on_which_all_or_nothing_is_stable_settle_nothing(until: float) -> None:
    assert natural_verdicts(rkalman_until=until, kalman_until=until)[1] == INCONCLUSIVE


def test_natural_seeds_at_the_end_of_the_grid_do_not_count() -> None:
    results = natural_results(rkalman_until=1e-9, kalman_until=1e-9)
    for seed in NATURAL["seeds"][:2]:
        results[f"kalman-seed={seed}"]["trials"][0]["unstable_at"] = 1
    found = concluded(natural_gradient, NATURAL, results)
    assert "R-Kalman 2 (95 % interval 2 to 2, n = 2)" in found.claims[1].measured


def test_natural_ties_settle_nothing() -> None:
    assert natural_verdicts(ring_until=0.003)[1] == INCONCLUSIVE


def test_natural_stability_looks_at_equally_many_steps() -> None:
    """What the plain method's second half breaks, the regularised one never came to."""
    results = natural_results(natural_until=0.01)
    for seed in NATURAL["seeds"]:
        for one in results[f"natural-seed={seed}"]["trials"]:
            if one["value"] > 0.003:
                late = NATURAL["evaluations"] // 2 + (1 if one["value"] <= 0.01 else -1)
                one.update(highest=99.0, unstable_at=late)
    found = concluded(natural_gradient, NATURAL, results)
    assert "RENG 0 (no interval, n = 6)" in found.claims[1].measured


def test_natural_rho_is_chosen_by_points_that_are_not_trained_on() -> None:
    results = natural_results()
    for seed in NATURAL["seeds"]:
        for one in results[f"ring-seed={seed}"]["trials"]:
            if one["held_out"] is not None:
                one["held_out"] *= 0.1 if one["rho"] == 0.1 else 1.0
    found = concluded(natural_gradient, NATURAL, results)
    assert "RING (rho 0.1)" in found.claims[0].measured
    assert "RENG (rho 0.001)" in found.claims[0].measured
    assert "RING (rho 0.001)" in found.claims[2].measured


def test_natural_where_all_diverge() -> None:
    until = {f"{arm}_until": 0.0 for arm in ("natural", "reng", "ring")}
    until |= {f"{arm}_until": 1e9 for arm in ("kalman", "rkalman")}
    found = natural_gradient.conclude(NATURAL, natural_results(**until))
    assert [claim.verdict for claim in found.claims] == [INCONCLUSIVE] * 4
    assert "natural-seed=0" in found.notes[-1]
    assert [row[1] for row in found.tables[0].rows].count("never stable") == 5


def test_tables_and_pictures() -> None:
    found = natural_gradient.conclude(NATURAL, natural_results())
    assert [len(table.rows) for table in found.tables] == [7, 19]
    assert [one.name for one in found.pictures] == [
        "natural-gradient-error",
        "natural-gradient-fit",
    ]
    found = implicit_sgd.conclude(IMPLICIT, implicit_results())
    assert len(found.tables[0].rows) == 8
    assert [one.name for one in found.pictures] == ["implicit-sgd-error", "implicit-sgd-rates"]


@pytest.mark.parametrize("grid", [[1.0], [2.0, 1.0], [1.0, 1.0], [0.0, 1.0], [1.0, math.inf]])
@pytest.mark.parametrize(
    ("module", "settings", "name"),
    [
        (implicit_sgd, IMPLICIT, "lrs"),
        (natural_gradient, NATURAL, "lrs"),
        (natural_gradient, NATURAL, "first_lrs"),
        (natural_gradient, NATURAL, "noises"),
    ],
)
def test_grids_have_to_rise(
    module: ModuleType, settings: dict[str, Any], name: str, grid: list[float]
) -> None:
    with pytest.raises(UserError, match=f"got {name}="):
        module.cells({**settings, name: grid})


@pytest.mark.parametrize("rhos", [[], [0.0], [-0.1]])
def test_rhos_have_to_be_positive(rhos: list[float]) -> None:
    with pytest.raises(UserError, match="rhos"):
        natural_gradient.cells({**NATURAL, "rhos": rhos})
