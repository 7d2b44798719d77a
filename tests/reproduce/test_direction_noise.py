"""The recipe direction-noise: its trainings, its smoke run, and what it makes of made-up runs."""

from __future__ import annotations

import math
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch.nn import functional as F

from gradwise.errors import UserError
from gradwise.reproduce.claims import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED, Conclusion
from gradwise.reproduce.experiments import direction_noise
from gradwise.reproduce.experiments._direction_runs import (
    RULES,
    Images,
    images,
    mean_loss,
    network,
    optimizer_of,
    train,
)
from gradwise.reproduce.recipe import load_recipe
from gradwise.reproduce.run import reproduce

RECIPE = load_recipe("direction-noise")
HERE = {"device": "cpu", "data_dir": None}
SETTINGS = {**RECIPE.at("small"), **HERE}
TINY = {**RECIPE.at("smoke"), **HERE, "train_images": 64, "epochs": 2, "draws": 32}
SIZES = SETTINGS["batch_sizes"]
PICTURES = [f"direction-{name}" for name in ("courses", "sizes", "samples")]


def quiet(done: int, total: int) -> None:
    assert 0 < done <= total


# --- the trainings ---


@pytest.mark.parametrize(("rule", "weight"), [("sgd", 1.0), ("shb", 1.0), ("nshb", 0.1)])
def test_steps_are_those_of_the_paper(rule: str, weight: float) -> None:
    """d_t = w g_t + beta d_{t-1} from d_{-1} = 0, which is not torch's first damped step."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    optimizer = optimizer_of(rule, model, 0.5, 0.9)
    beta, place, direction = (0.0 if rule == "sgd" else 0.9), 1.0, 0.0
    for _ in range(3):
        optimizer.zero_grad()
        (model.weight**2).sum().backward()
        optimizer.step()
        direction = weight * 2 * place + beta * direction
        place -= 0.5 * direction
        assert model.weight.item() == pytest.approx(place, rel=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "cnn", "mlp"])
def test_networks_fit_the_images(name: str) -> None:
    data = Images(torch.randn(2, 3, 8, 8), torch.tensor([0, 4]), 5)
    assert network(name, data)(data.inputs).shape == (2, 5)


def test_the_small_network_has_one_mode() -> None:
    data = Images(torch.randn(4, 3, 8, 8), torch.tensor([0, 4, 1, 1]), 5)
    model = network("cnn", data)
    loss = F.cross_entropy(model(data.inputs), data.targets).detach()
    assert mean_loss(model, data) == pytest.approx(float(loss))
    assert model.training


def test_a_batch_that_is_nearly_all_has_hardly_any_noise_but_a_lag() -> None:
    data = images(TINY)
    for rule in RULES:
        trained = train(TINY, data, rule, 63, 0, quiet)
        assert trained is not None
        for look in trained.found["courses"]:
            assert look["noise"] == pytest.approx(look["lag2"] + look["spread"])
            assert look["spread"] < 0.02 * look["norm"] ** 2
            assert (look["lag2"] > 0.01 * look["norm"] ** 2) == (rule != "sgd")


def test_looks_do_not_change_the_training() -> None:
    data = images(TINY)
    few, many = (
        train({**TINY, "looks": looks, "checks": looks}, data, "shb", 8, 1, quiet, also=also)
        for looks, also in ((1, ()), (4, (4, 8)))
    )
    assert few is not None
    assert many is not None
    assert few.found["losses"][-1] == many.found["losses"][-1]
    assert many.found["at"] == [4, 8, 12, 16]
    assert len(many.found["noises"]) == 2


def test_the_gradient_criterion_is_the_mean_over_the_run() -> None:
    data = images(TINY)

    def reached(threshold: float, not_before: int) -> Any:
        settings = {**TINY, "criterion": "gradient", "checks": 4, "threshold": threshold}
        trained = train({**settings, "not_before": not_before}, data, "sgd", 8, 0, quiet)
        assert trained is not None
        return trained.found["reached"]

    assert reached(100.0, 0) == 4
    assert reached(100.0, 1) == 12  # the first check after the first epoch of 8 steps
    assert reached(1e-6, 0) is None


def test_a_run_that_diverges_is_none() -> None:
    settings = {**TINY, "lr": 1e30}
    found = direction_noise.run(settings, {"batch_size": 8, "seed": 0}, quiet)
    assert [found[rule] for rule in RULES] == [None] * 3
    assert found["rest"] is None


# --- the smoke run ---


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("direction")
    found = reproduce("direction-noise", scale="smoke", out=out, jobs=0, device="cpu")
    assert {path.stem for path in out.glob("*.svg")} == set(PICTURES)
    return found


def test_heavy_ball_is_noisier_than_sgd(smoke: dict[str, Any]) -> None:
    for cell in smoke["cells"].values():
        sgd, shb, nshb = (
            math.fsum(math.log(look["noise"]) for look in cell[rule]["courses"]) for rule in RULES
        )
        assert shb > sgd
        assert nshb < shb
        assert all(look["lag2"] == 0 for look in cell["sgd"]["courses"])
    assert smoke["claims"][0]["verdict"] == REPRODUCED


def test_gradient_noise_falls_with_the_batch_size(smoke: dict[str, Any]) -> None:
    for seed in range(3):
        for small, _, large in smoke["cells"][f"b=16-seed={seed}"]["sgd"]["noises"]:
            assert math.log(large / small) / math.log(8) == pytest.approx(-1, abs=0.2)
    assert smoke["claims"][2]["verdict"] == REPRODUCED


def test_at_rest_the_spread_is_the_closed_form(smoke: dict[str, Any]) -> None:
    for seed in range(3):
        rest = smoke["cells"][f"b=8-seed={seed}"]["rest"]
        assert rest["shb"] == pytest.approx(1 / 0.19, rel=0.15)
        assert rest["nshb"] == pytest.approx(0.1 / 1.9, rel=0.15)


# --- conclusions from made-up runs ---


def made_up() -> dict[str, dict[str, Any]]:
    """All that is claimed holds."""
    samples = {2: 8000, 8: 4000, 32: 5120, 128: 12800, 512: None}
    results = {}
    for size in SIZES:
        for seed in SETTINGS["seeds"]:
            w = 1 + 0.02 * math.sin(4 * seed)
            cell: dict[str, Any] = {"samples": 2000, "rest": None}
            for rule, factor in (("sgd", 1.0), ("shb", 20.0 * w), ("nshb", 1.5 * w)):
                noise = factor * w * 40 / size
                look = {
                    "noise": noise,
                    "lag2": noise / 2 if rule != "sgd" else 0.0,
                    "spread": noise / 2 if rule != "sgd" else noise,
                    "norm": 0.5,
                    "variance": 40 / size,
                    "c2": 40.0,
                }
                total = samples[size]
                cell[rule] = {
                    "at": [10, 20],
                    "courses": [look, dict(look)],
                    "noises": [[40 * w / b ** (1 + 0.02 * math.sin(seed)) for b in SIZES]] * 2
                    if (rule, size) == ("sgd", 32)
                    else [],
                    "losses": [2.0, 1.8],
                    "steps": 20,
                    "reached": None if total is None else round(total / size * w),
                }
            if size == SIZES[0]:
                cell["rest"] = {"sgd": 1.0, "shb": 5.26 * w, "nshb": 0.0526 * w}
            results[f"b={size}-seed={seed}"] = cell
    return results


def concluded(results: dict[str, dict[str, Any]], drawn: bool = False, **more: Any) -> Conclusion:
    settings = {**SETTINGS, **more}
    if drawn:
        return direction_noise.conclude(settings, results)
    with patch.object(direction_noise, "pictures", return_value=()):  # they take seconds
        return direction_noise.conclude(settings, results)


def verdicts(results: dict[str, dict[str, Any]], **more: Any) -> list[str]:
    return [claim.verdict for claim in concluded(results, **more).claims]


def scaled(results: dict[str, Any], rule: str, size: int, factor: Any) -> dict[str, Any]:
    for seed in SETTINGS["seeds"]:
        for look in results[f"b={size}-seed={seed}"][rule]["courses"]:
            look["noise"] *= factor(seed)
    return results


def test_what_is_claimed_is_reproduced() -> None:
    found = concluded(made_up(), drawn=True)
    assert [claim.verdict for claim in found.claims] == [REPRODUCED] * 4
    assert [picture.name for picture in found.pictures] == PICTURES
    assert all("n = 4" in claim.measured for claim in found.claims)
    assert len(found.tables[0].rows) == 15
    assert found.tables[1].rows[0][1:7] == (
        "7.99e+03",
        "3.99e+03",
        "5.11e+03",
        "1.28e+04",
        "—",
        "8",
    )
    assert found.tables[2].rows[2][:2] == ("NSHB", "0.05263")


@pytest.mark.parametrize(("rule", "claim"), [("shb", 0), ("nshb", 1)])
def test_one_batch_size_with_less_noise_is_enough(rule: str, claim: int) -> None:
    expected = [REPRODUCED] * 4
    expected[claim] = NOT_REPRODUCED
    assert verdicts(scaled(made_up(), rule, 8, lambda _: 0.01)) == expected


@pytest.mark.parametrize(("rule", "claim"), [("shb", 0), ("nshb", 1)])
def test_seeds_that_disagree_settle_nothing(rule: str, claim: int) -> None:
    results = scaled(made_up(), rule, 32, lambda seed: 1e-3 if seed % 2 else 1e3)
    assert verdicts(results)[claim] == INCONCLUSIVE


def test_batch_sizes_that_the_paper_has_not_do_not_judge() -> None:
    results = scaled(made_up(), "shb", 2, lambda _: 1e-3)
    assert verdicts(results)[0] == REPRODUCED
    assert verdicts(results, judged_from=2)[0] == NOT_REPRODUCED


def test_a_little_less_noise_is_not_a_reduction() -> None:
    equal = scaled(made_up(), "nshb", 8, lambda _: 0.95 / 1.5)
    assert verdicts(equal)[1] == REPRODUCED
    assert verdicts(equal, margin=0.01)[1] == NOT_REPRODUCED


def test_noise_that_falls_otherwise() -> None:
    results = made_up()
    for seed in SETTINGS["seeds"]:
        results[f"b=32-seed={seed}"]["sgd"]["noises"] = [[1 / math.sqrt(b) for b in SIZES]]
    found = verdicts(results)
    assert found == [REPRODUCED, REPRODUCED, NOT_REPRODUCED, REPRODUCED]


def test_a_best_batch_size_at_the_end_settles_nothing() -> None:
    results = made_up()
    for seed in SETTINGS["seeds"]:
        results[f"b=2-seed={seed}"]["nshb"]["reached"] = 100
    claim = concluded(results).claims[3]
    assert claim.verdict == INCONCLUSIVE
    assert "NSHB fewest, 200, at b = 2, the end of the grid" in claim.measured


def test_a_threshold_that_nobody_reached_settles_nothing() -> None:
    results = made_up()
    for cell in results.values():
        cell["sgd"]["reached"] = None
    found = concluded(results, drawn=True)
    assert found.claims[3].verdict == INCONCLUSIVE
    assert "SGD did not get there" in found.claims[3].measured


def test_ends_as_good_as_the_best_settle_nothing() -> None:
    results = made_up()
    for seed in SETTINGS["seeds"]:
        results[f"b=2-seed={seed}"]["sgd"]["reached"] = (900, 4500)[seed % 2]
    assert verdicts(results)[3] == INCONCLUSIVE


def test_bounds_belong_to_a_threshold_of_the_gradient() -> None:
    row = concluded(made_up(), criterion="gradient", threshold=0.5).tables[1].rows[0]
    assert row[-2:] == ("20", "40")  # b eps^2 / lr, and what was measured
    assert concluded(made_up()).tables[1].rows[0][-2] == "—"


def test_runs_that_diverged_are_left_out_and_said() -> None:
    results = made_up()
    results["b=8-seed=1"]["shb"] = None
    results["b=2-seed=0"]["sgd"] = results["b=2-seed=0"]["rest"] = None
    results["b=32-seed=2"]["sgd"] = None
    found = concluded(results, drawn=True)
    assert [claim.verdict for claim in found.claims[:3]] == [REPRODUCED] * 3
    assert "n = 3" in found.claims[0].measured
    assert found.notes[-1].endswith("SGD at b = 2, SHB at b = 8, SGD at b = 32.")


@pytest.mark.parametrize("bad", [None, math.nan, 0.0])
def test_numbers_without_a_logarithm_are_left_out(bad: float | None) -> None:
    results = made_up()
    results["b=8-seed=3"]["nshb"]["courses"][0]["noise"] = bad
    found = concluded(results)
    assert found.claims[1].verdict == REPRODUCED
    assert "n = 3" in found.claims[1].measured


def test_nothing_at_all_is_inconclusive() -> None:
    results = made_up()
    for cell in results.values():
        cell.update(dict.fromkeys((*RULES, "rest")))
    found = concluded(results, drawn=True)
    assert {claim.verdict for claim in found.claims} == {INCONCLUSIVE}
    assert found.pictures == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_sizes": [8, 16]}, "got batch_sizes="),
        ({"batch_sizes": [8, 32, 16]}, "got batch_sizes="),
        ({"batch_sizes": [8, 32, 2000]}, "train_images=2000, got 2000"),
        ({"network": "vgg"}, "got network='vgg'"),
        ({"criterion": "accuracy"}, "got criterion='accuracy'"),
        ({"looks": 0}, "got looks=0"),
        ({"beta": 1.0}, "got beta=1.0"),
        ({"margin": 0.0}, "got margin=0.0"),
        ({"judged_from": 1000}, "got judged_from=1000"),
    ],
)
def test_bad_settings(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        direction_noise.cells({**SETTINGS, **changes})
