"""The recipe over-the-air: its split, its smoke run, and what it concludes from made-up runs."""

from __future__ import annotations

import math
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradwise.errors import UserError
from gradwise.federated import Channel
from gradwise.lab.seeding import derived_seed
from gradwise.reproduce.claims import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED, Conclusion
from gradwise.reproduce.experiments import _over_the_air, over_the_air
from gradwise.reproduce.experiments._over_the_air import Task, dirichlet_split, read, train
from gradwise.reproduce.experiments._over_the_air_page import keys
from gradwise.reproduce.recipe import load_recipe
from gradwise.reproduce.run import reproduce

HERE = {"device": "cpu", "data_dir": None}
SMALL = {**load_recipe("over-the-air").at("small"), **HERE}
SMOKE = {**load_recipe("over-the-air").at("smoke"), **HERE}

# --- clients and their training ---


@pytest.mark.parametrize("clients", [1, 7, 200])
@pytest.mark.parametrize("concentration", [0.01, 100.0])
def test_each_row_has_one_client_and_no_client_is_empty(clients: int, concentration: float) -> None:
    labels = torch.arange(300) % 10
    parts = dirichlet_split(labels, clients, concentration, seed=3)
    assert len(parts) == clients
    assert min(map(len, parts)) >= 1
    assert torch.cat(parts).sort().values.equal(torch.arange(300))


def test_a_small_concentration_gives_clients_few_classes() -> None:
    labels = torch.arange(5000) % 10

    def largest(concentration: float) -> float:
        parts = dirichlet_split(labels, 10, concentration, seed=0)
        return fmean(float(labels[p].bincount().max()) / len(p) for p in parts)

    assert largest(1000.0) < 0.15 < 0.5 < largest(0.05)


@pytest.mark.parametrize(("clients", "concentration"), [(0, 1.0), (11, 1.0), (2, 0.0)])
def test_splits_that_cannot_be(clients: int, concentration: float) -> None:
    with pytest.raises(UserError, match="got c"):
        dirichlet_split(torch.zeros(10, dtype=torch.long), clients, concentration, seed=0)


def toy() -> Task:
    x = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    return Task((x[:40], y[:40]), (x[40:50], y[40:50]), (x[50:], y[50:]), 2)


TOY = {"rounds": 4, "checks": 4, "hidden": 3, "batch": 2, "concentration": 1.0, "scale": 0.0}


def test_a_training_is_what_a_loop_over_clients_does() -> None:
    """The same weights, batches and gains, but one client after another, and SGD by hand."""
    task, ends = toy(), []
    accuracy = _over_the_air._accuracy

    def spy(net: nn.Module, rows: Any) -> float | None:
        ends.append([p.detach().clone() for p in net.parameters()])
        return accuracy(net, rows)

    with patch.object(_over_the_air, "_accuracy", spy):
        train(task, TOY, method="sgd", lr=0.5, alpha=1.5, clients=3, seed=1)

    parts = dirichlet_split(task.train[1], 3, 1.0, derived_seed(1, "split"))
    source = _over_the_air._Clients(parts, derived_seed(1, "batches"))
    net = _over_the_air._network(task, 3, derived_seed(1, "weights"))
    channel = Channel("rayleigh", scale=0.0, seed=derived_seed(1, "channel"))
    for _ in range(4):
        rows = source.draw(2)
        for part, drawn in zip(parts, rows, strict=True):
            assert set(drawn.tolist()) <= set(part.tolist())
        gains = channel.gains(3)
        loss = sum(
            gain * F.cross_entropy(net(task.train[0][r]), task.train[1][r]) / 3
            for gain, r in zip(gains, rows, strict=True)
        )
        grads = torch.autograd.grad(loss, list(net.parameters()))
        with torch.no_grad():
            for p, g in zip(net.parameters(), grads, strict=True):
                p -= 0.5 * g
    for got, wanted in zip(ends[-1], net.parameters(), strict=True):
        torch.testing.assert_close(got, wanted.detach(), rtol=1e-5, atol=1e-6)


def test_validation_rows_are_those_of_the_task() -> None:
    task = toy()
    x, y = task.test
    task.validation = (x, 1 - y)
    found = train(task, TOY, method="adam", lr=0.1, alpha=None, clients=3, seed=0)
    wrong = [1 - accuracy for accuracy in found["accuracy"][-3:]]
    assert found["validation"] == pytest.approx(wrong)


def test_a_network_that_diverges_says_so() -> None:
    found = train(toy(), {**TOY, "scale": 1e38}, method="sgd", lr=1e3, alpha=1.1, clients=3, seed=0)
    assert found["rounds"] == [1, 2, 3, 4]
    assert found["accuracy"][-1] is None
    assert found["validation"][-1] is None


def test_data_that_cannot_be_used() -> None:
    with pytest.raises(UserError, match="got validation_rows=1200"):
        read({**SMOKE, "validation_rows": 1200})


def test_no_row_is_both_trained_on_and_chosen_by() -> None:
    task = read(SMOKE)
    assert (len(task.train[0]), len(task.validation[0]), len(task.test[0])) == (1000, 200, 360)


# --- the smoke run ---


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("air")
    found = reproduce("over-the-air", scale="smoke", out=out, jobs=0, device="cpu")
    assert {path.stem for path in out.glob("*.svg")} == {
        "over-the-air-rounds",
        "over-the-air-clients",
    }
    return found


def best(smoke: dict[str, Any], condition: str, seed: int) -> float:
    """Accuracy at the end at the best of the rates, by the validation rows."""
    found = smoke["cells"][f"{condition}-clients=8-seed={seed}"]["trainings"]
    return fmean(max(found, key=lambda of: fmean(of["validation"]))["accuracy"][-3:])


@pytest.mark.parametrize("seed", [0, 1])
def test_adaptive_servers_learn_where_sgd_does_not(smoke: dict[str, Any], seed: int) -> None:
    sgd = best(smoke, "sgd-alpha=1.2", seed)
    for method in ("adagrad", "adam"):
        heavy, clean = (best(smoke, f"{method}-{tail}", seed) for tail in ("alpha=1.2", "clean"))
        assert heavy > sgd + 0.15
        assert heavy > 0.7 * clean
    assert sgd < best(smoke, "sgd-clean", seed) - 0.2


@pytest.mark.parametrize("method", ["sgd", "adagrad", "adam"])
def test_heavier_tails_do_more_harm(smoke: dict[str, Any], method: str) -> None:
    for seed in (0, 1):
        assert best(smoke, f"{method}-alpha=1.2", seed) < best(smoke, f"{method}-alpha=2", seed)


def test_a_whole_run_twice_is_the_same(tmp_path: Path) -> None:
    few = {"seeds": [0], "rounds": 6, "checks": 3, "other_clients": []}
    one, two = (
        reproduce("over-the-air", scale="smoke", out=tmp_path / name, overrides=few, jobs=0)
        for name in "ab"
    )
    assert one["cells"] == two["cells"]


# --- conclusions from made-up runs ---

USUAL = {"sgd": 0.2, "adagrad": 0.35, "adam": 0.4}


def made_up(**other: Any) -> dict[str, dict[str, Any]]:
    """Accuracies that bear all claims out, but for those of `other`, by method."""
    results = {}
    for cell in over_the_air.cells(SMALL):
        at = cell.arguments
        alpha = 3.0 if at["alpha"] is None else at["alpha"]
        level = USUAL[at["method"]] + 0.05 * (alpha - 1.2) + 0.0002 * at["clients"]
        if at["method"] in other:
            level = other[at["method"]](alpha, at["clients"])
        level += 0.003 * math.sin(5 * at["seed"] + len(cell.name))
        count = len(SMALL[f"{at['method']}_lrs"])
        results[cell.name] = {
            "chance": 0.1,
            "trainings": [
                {
                    "lr": float(i),
                    "rounds": [1, 2, 3, 4],
                    "accuracy": [level - 0.05 * (i != 1)] * 4,
                    "validation": [level - 0.05 * (i != 1)] * 3,
                }
                for i in range(count)
            ],
        }
    return results


def concluded(results: dict[str, dict[str, Any]], **settings: Any) -> Conclusion:
    with patch.object(over_the_air, "pictures", return_value=()):  # a picture takes seconds
        return over_the_air.conclude({**SMALL, **settings}, results)


def verdicts(results: dict[str, dict[str, Any]]) -> list[str]:
    return [claim.verdict for claim in concluded(results).claims]


def test_what_the_paper_says_is_reproduced() -> None:
    assert verdicts(made_up()) == [REPRODUCED] * 5


@pytest.mark.parametrize(
    ("other", "claim"),
    [
        ({"adagrad": lambda a, n: 0.5 if a == 3 else 0.25}, 0),
        ({"sgd": lambda a, n: 0.45}, 1),
        ({"adagrad": lambda a, n: 0.37 - 0.02 * a}, 2),
        ({"adam": lambda a, n: 0.3}, 3),
        ({"adam": lambda a, n: 0.45 - 0.0005 * n}, 4),
    ],
)
def test_what_it_does_not_say_is_not(other: dict[str, Any], claim: int) -> None:
    assert verdicts(made_up(**other))[claim] == NOT_REPRODUCED


def test_seeds_that_disagree_settle_nothing() -> None:
    results = made_up()
    for name, result in results.items():
        if name.startswith("sgd-alpha=1.2") and name[-1] in "02":
            for one in result["trainings"]:
                one["accuracy"] = [0.6] * 4
    assert verdicts(results)[1] == INCONCLUSIVE


def test_one_seed_has_no_interval() -> None:
    results = {name: one for name, one in made_up().items() if name.endswith("seed=0")}
    found = concluded(results, seeds=[0])
    assert {claim.verdict for claim in found.claims} == {INCONCLUSIVE}


def test_a_diverged_network_counts_as_chance_and_is_named() -> None:
    results = made_up()
    for name, result in results.items():
        if name.startswith("adam-alpha=1.2-"):
            for one in result["trainings"]:
                one["accuracy"] = [0.3, None, None, None]
                one["validation"] = [None] * 3
    found = concluded(results)
    assert [claim.verdict for claim in found.claims][:2] == [NOT_REPRODUCED] * 2
    assert "Adam-OTA, alpha 1.2, seed 4" in found.notes[-1]
    (row,) = (row for row in found.tables[0].rows if row[:2] == ("Adam-OTA", "alpha 1.2"))
    assert row[3].startswith("10 %")


def test_rates_are_chosen_by_validation_rows_alone() -> None:
    results = made_up()
    for result in results.values():
        result["trainings"][3]["accuracy"] = [0.99] * 4
    rows = concluded(results).tables[0].rows
    assert {row[-1] for row in rows if row[0] == "SGD"} == {"0.03"}
    assert all(float(row[3].split()[0]) < 60 for row in rows)


def test_conditions_that_are_missing_settle_nothing() -> None:
    results = {name: one for name, one in made_up().items() if not name.startswith("adagrad")}
    found = concluded(results)
    assert [claim.verdict for claim in found.claims] == [INCONCLUSIVE] * 5
    with pytest.raises(UserError, match="at least one cell"):
        concluded({})


def test_tables_and_pictures() -> None:
    found = over_the_air.conclude(SMALL, made_up())
    assert len(found.tables[0].rows) == len(keys(SMALL)) == 19
    assert [one.name for one in found.pictures] == ["over-the-air-rounds", "over-the-air-clients"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"alphas": [1.5]},
        {"alphas": [1.8, 1.2]},
        {"alphas": [1.0, 1.5]},
        {"alphas": [1.5, 2.5]},
        {"clients_alpha": 1.3},
        {"checks": 2},
        {"rounds": 5},
    ],
)
def test_settings_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"got {next(iter(wrong))}=|and rounds=5"):
        over_the_air.cells({**SMALL, **wrong})
