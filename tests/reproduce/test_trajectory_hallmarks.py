"""The recipe trajectory-hallmarks: trainings, its smoke run, and conclusions from made-up ones."""

from __future__ import annotations

import math
from typing import Any
from unittest.mock import patch

import pytest
import torch

from gradwise.errors import UserError
from gradwise.reproduce.claims import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED, Conclusion
from gradwise.reproduce.experiments import trajectory_hallmarks
from gradwise.reproduce.experiments._trajectory_page import similarity
from gradwise.reproduce.experiments._trajectory_training import Training, train
from gradwise.reproduce.recipe import load_recipe
from gradwise.reproduce.run import reproduce

RECIPE = load_recipe("trajectory-hallmarks")
SETTINGS = {
    **RECIPE.at("small"),
    "seeds": [0, 1, 2, 3],
    "freeze_at": [0.25, 0.55],
    "part": 0.5,
    "device": "cpu",
    "data_dir": None,
}
TINY = {
    **RECIPE.at("smoke"),
    "device": "cpu",
    "data_dir": None,
    "train_images": 64,
    "epochs": 4,
    "width": 4,
    "checkpoints": 8,
    "freeze_at": [0.5],
}
CONDITIONS = ("both", "momentum", "decay", "neither")
PICTURES = [f"trajectory-{name}" for name in ("maps", "similarity", "angles")]


def tiny(**more: Any) -> dict[str, Any] | None:
    changes = {key: more.pop(key) for key in list(more) if key in TINY}
    how = {"decay": True, "momentum": True, "seed": 0, "frozen": True, "tell": lambda *_: None}
    return train({**TINY, **changes}, **{**how, **more})


# --- trainings ---


def test_a_run_twice_is_the_same_and_conditions_start_alike() -> None:
    told: list[tuple[int, int]] = []
    one, two = (tiny(tell=lambda *done: told.append(done)) for _ in range(2))
    other = tiny(decay=False, momentum=False, frozen=False)
    assert one is not None
    assert other is not None
    assert one == two
    assert told[-1] == (12, 12)  # 8 steps, and 4 of them again
    assert other["frozen"] == []
    assert other["norms"][0] == one["norms"][0]
    assert other["norms"][-1] != one["norms"][-1]
    assert one["at"] == [0.5 * k for k in range(9)]
    assert len(one["losses"]) == 8


def test_what_is_taken_up_again_goes_on_as_it_did() -> None:
    """Weights, momentum, learning rate and batches: but for the freezing nothing is different."""
    training = Training(TINY, decay=True, momentum=True, seed=1)
    for step in range(4):
        training.step(step)
    state = training.state()
    ends = []
    for _ in range(2):
        losses = [float(training.step(step)) for step in range(4, 8)]
        ends.append((losses, {k: v.clone() for k, v in training.model.state_dict().items()}))
        training.take_up(state)
    assert ends[0][0] == ends[1][0]
    for name, value in ends[0][1].items():
        assert torch.equal(value, ends[1][1][name])


def test_the_learning_rate_drops_twice() -> None:
    training = Training(TINY, decay=True, momentum=True, seed=0)
    rates = []
    for step in range(training.steps):
        training.step(step)
        rates.append(training.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.1] * 4 + [0.01] * 2 + [0.001] * 2)


@pytest.mark.parametrize(("decay", "momentum"), [(True, False), (False, True)])
def test_conditions_are_what_they_are_called(decay: bool, momentum: bool) -> None:
    group = Training(TINY, decay=decay, momentum=momentum, seed=0).optimizer.param_groups[0]
    assert group["weight_decay"] == (TINY["weight_decay"] if decay else 0)
    assert group["momentum"] == (TINY["momentum"] if momentum else 0)


def test_images_are_mirrored_where_that_is_allowed() -> None:
    training = Training(TINY, decay=False, momentum=False, seed=0)
    training.step(0)
    assert not training.mirrored.any()  # digits
    training.flip = True
    seen: list[torch.Tensor] = []
    training.model.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    training.step(0)
    chosen = training.order[: training.batch]
    x, mirrored = training.x[chosen], training.mirrored[chosen]
    assert 0 < int(mirrored.sum()) < len(mirrored)
    assert torch.equal(seen[0][mirrored], x[mirrored].flip(3))
    assert torch.equal(seen[0][~mirrored], x[~mirrored])


def test_a_run_that_diverges_is_none() -> None:
    assert tiny(lr=1e30, frozen=False) is None


# --- the smoke run ---


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("trajectory")
    found = reproduce("trajectory-hallmarks", scale="smoke", out=out, jobs=0, device="cpu")
    assert {path.stem for path in out.glob("*.svg")} == set(PICTURES)
    return found


def runs(found: dict[str, Any], condition: str) -> list[dict[str, Any]]:
    return [found["cells"][f"{condition}-seed={seed}"]["run"] for seed in (0, 1)]


def test_momentum_and_decay_turn_the_first_part(smoke: dict[str, Any]) -> None:
    for both, momentum, decay, neither in zip(*(runs(smoke, c) for c in CONDITIONS), strict=True):
        first = [similarity(run, 0, 1 / 3) for run in (both, momentum, decay, neither)]
        assert first[0] < first[1] - 0.005
        assert first[0] < first[2] - 0.02
        assert first[1] < first[3] - 0.02


def test_the_end_is_nearly_straight(smoke: dict[str, Any]) -> None:
    for condition in CONDITIONS:
        for run in runs(smoke, condition):
            assert similarity(run, 2 / 3, 1) > max(similarity(run, 0, 1 / 3), 0.999)


def test_decay_shrinks_what_norm_layers_make_scale_free(smoke: dict[str, Any]) -> None:
    for both, momentum in zip(runs(smoke, "both"), runs(smoke, "momentum"), strict=True):
        assert both["norms"][-1] < both["norms"][0] + 1 < momentum["norms"][-1]


def test_norm_layers_alone_do_well_late_and_worse_early(smoke: dict[str, Any]) -> None:
    for run in runs(smoke, "both"):
        early, late = run["frozen"]
        assert early["accuracy"] < late["accuracy"] <= run["accuracy"] + 0.02
        assert late["accuracy"] > 0.8
        assert (early["epoch"], late["epoch"]) == (2, 4)
        assert 0.97 < late["frozen_share"] < 0.99
    assert [run["frozen"] for run in runs(smoke, "neither")] == [[], []]


def test_the_map_is_that_of_checkpoints(smoke: dict[str, Any]) -> None:
    run = runs(smoke, "both")[0]
    cosines = torch.tensor(run["cosines"])
    assert cosines.shape == (17, 17)
    assert torch.equal(cosines, cosines.T)
    assert float(cosines.mean()) == pytest.approx(run["mds"], abs=1e-5)
    assert similarity(run, 0, 1) == pytest.approx(run["mds"], abs=1e-5)
    assert len(run["apex"]) == 16
    assert len(run["turns"]) == 15
    assert run["displacement"] == pytest.approx(run["efficiency"] * run["path_length"])


def test_a_full_size_network_is_the_papers() -> None:
    settings = {**TINY, "blocks": [3, 3, 3], "width": 16}
    model = Training(settings, decay=True, momentum=True, seed=0).model
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert sum(p.numel() for m in norms for p in m.parameters()) == 1376


# --- conclusions from made-up runs ---


def made_up() -> dict[str, dict[str, Any]]:
    """All that is claimed holds."""
    results = {}
    for seed in range(4):
        w = 1 + 0.02 * math.sin(4 * seed)
        for condition, early in zip(CONDITIONS, (0.4, 0.6, 0.7, 0.9), strict=True):
            # Checkpoints at 0, 1/2 of the run and its end; a half has two of them.
            cosines = [[1.0, early * w, 0.3], [early * w, 1.0, 0.99], [0.3, 0.99, 1.0]]
            frozen = [
                {"at": share, "epoch": 1, "frozen_share": 0.9936, "loss": 0.1}
                | {"test_loss": 1.0, "accuracy": accuracy * w}
                for share, accuracy in ((0.25, 0.5), (0.55, 0.597))
            ]
            results[f"{condition}-seed={seed}"] = {
                "run": {
                    "at": [0.0, 10.0, 20.0],
                    "cosines": cosines,
                    "mds": 0.7,
                    "relative_mds": 0.6,
                    "turns": [1.5],
                    "apex": [0.5, 0.1],
                    "path_length": 10.0,
                    "displacement": 8.0,
                    "efficiency": 0.8,
                    "norms": [20.0, 15.0, 14.0],
                    "step_norms": [6.0, 4.0],
                    "losses": [1.5, 0.2],
                    "test_loss": 1.0,
                    "accuracy": 0.6 * w,
                    "frozen": frozen if condition == "both" else [],
                }
            }
    return results


def concluded(results: dict[str, dict[str, Any]], drawn: bool = False, **more: Any) -> Conclusion:
    settings = {**SETTINGS, **more}
    if drawn:
        return trajectory_hallmarks.conclude(settings, results)
    with patch.object(trajectory_hallmarks, "pictures", return_value=()):  # they take seconds
        return trajectory_hallmarks.conclude(settings, results)


def verdicts(results: dict[str, dict[str, Any]]) -> list[str]:
    return [claim.verdict for claim in concluded(results).claims]


def swapped(results: dict[str, dict[str, Any]], a: str, b: str, seeds: Any) -> None:
    """Trajectories of two conditions for each other."""
    for seed in seeds:
        one, two = (results[f"{name}-seed={seed}"]["run"] for name in (a, b))
        one["cosines"], two["cosines"] = two["cosines"], one["cosines"]


def test_what_is_claimed_is_reproduced() -> None:
    assert verdicts(made_up()) == [REPRODUCED] * 4


@pytest.mark.parametrize(
    ("pairs", "claim"),
    [
        ([("both", "momentum"), ("decay", "neither")], 0),
        ([("both", "decay"), ("momentum", "neither")], 1),
    ],
)
@pytest.mark.parametrize(
    ("seeds", "verdict"), [((0, 1, 2, 3), NOT_REPRODUCED), ((0, 1), INCONCLUSIVE)]
)
def test_less_exploration_instead_of_more(
    pairs: list[tuple[str, str]], claim: int, seeds: tuple[int, ...], verdict: str
) -> None:
    results = made_up()
    for a, b in pairs:
        swapped(results, a, b, seeds)
    found = verdicts(results)
    assert found[claim] == verdict
    assert found[1 - claim] == REPRODUCED


def test_decay_has_to_explore_without_momentum_too() -> None:
    results = made_up()
    swapped(results, "decay", "neither", range(4))
    claim = concluded(results).claims[0]
    assert claim.verdict == NOT_REPRODUCED
    assert "it: without momentum: -0.0998 (" in claim.measured  # what speaks against it comes first


def test_a_path_that_turns_late() -> None:
    results = made_up()
    for seed in range(4):
        cosines = results[f"decay-seed={seed}"]["run"]["cosines"]
        cosines[1][2] = cosines[2][1] = 0.2
    found = verdicts(results)
    assert found == [REPRODUCED, REPRODUCED, NOT_REPRODUCED, REPRODUCED]


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (lambda _: -0.1, NOT_REPRODUCED),
        (lambda _: 0.1, NOT_REPRODUCED),  # better is no match either
        (lambda seed: 0.04 * (-1) ** seed, INCONCLUSIVE),
        (lambda seed: 0.002 * (-1) ** seed, REPRODUCED),
    ],
)
def test_norm_layers_alone(change: Any, verdict: str) -> None:
    results = made_up()
    for seed in range(4):
        results[f"both-seed={seed}"]["run"]["frozen"][1]["accuracy"] += change(seed)
    assert verdicts(results) == [REPRODUCED] * 3 + [verdict]


def test_measured_words_have_numbers_intervals_and_seeds() -> None:
    claims = concluded(made_up()).claims
    assert all("95 % interval" in claim.measured and "n = 4" in claim.measured for claim in claims)
    assert "99.36 %" in claims[3].measured
    assert "from 25 %, not judged, -9.98 points" in claims[3].measured
    assert "allowed is 2." in claims[3].measured


@pytest.mark.parametrize("bad", [None, math.nan])
def test_a_number_that_is_not_finite_is_left_out(bad: float | None) -> None:
    results = made_up()
    results["both-seed=3"]["run"]["frozen"][1]["accuracy"] = bad
    claim = concluded(results).claims[3]
    assert claim.verdict == REPRODUCED
    assert "n = 3" in claim.measured


def test_a_run_that_diverged_is_left_out_and_said() -> None:
    results = made_up()
    results["both-seed=2"] = {"run": None}
    found = concluded(results, drawn=True)
    assert {claim.verdict for claim in found.claims} == {REPRODUCED}
    assert all("n = 3" in claim.measured for claim in found.claims)
    assert "both-seed=2" in found.notes[-1]
    assert [picture.name for picture in found.pictures] == PICTURES
    assert len(found.tables[0].rows) == 4
    assert len(found.tables[1].rows) == 3


def test_a_condition_that_always_diverges_settles_nothing() -> None:
    results = {
        name: {"run": None} if name.startswith("both") else result
        for name, result in made_up().items()
    }
    found = concluded(results, drawn=True)
    assert {claim.verdict for claim in found.claims} == {INCONCLUSIVE}
    assert found.tables[0].rows[0][1] == "—"


def test_nothing_at_all_is_inconclusive() -> None:
    found = concluded({name: {"run": None} for name in made_up()}, drawn=True)
    assert {claim.verdict for claim in found.claims} == {INCONCLUSIVE}
    assert found.pictures == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"freeze_at": [0.5, 0.2]}, "got freeze_at="),
        ({"freeze_at": []}, "got freeze_at="),
        ({"freeze_at": [0.5, 0.501]}, "got freeze_at="),
        ({"freeze_at": [0.999]}, "got freeze_at="),
        ({"drops": [0.0]}, "got drops="),
        ({"part": 0.6}, "got part="),
        ({"checkpoints": 3}, "got checkpoints=3"),
    ],
)
def test_bad_settings(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        trajectory_hallmarks.cells({**SETTINGS, **changes})


def test_a_cell_for_each_condition_and_seed_the_longest_first() -> None:
    names = [cell.name for cell in trajectory_hallmarks.cells(SETTINGS)]
    assert len(names) == len(set(names)) == 16
    assert names[:4] == [f"both-seed={seed}" for seed in range(4)]
