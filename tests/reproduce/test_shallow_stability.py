"""The recipe shallow-stability: its smoke run, and what it concludes from made-up runs."""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any
from unittest.mock import patch

import pytest

from gradwise.analysis.stability import shallow_stability as measured
from gradwise.errors import UserError
from gradwise.reproduce.claims import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED, Conclusion
from gradwise.reproduce.experiments import shallow_stability
from gradwise.reproduce.recipe import load_recipe
from gradwise.reproduce.run import reproduce

SETTINGS = {
    **load_recipe("shallow-stability").at("small"),
    "seeds": [0, 1, 2, 3],
    "device": "cpu",
    "data_dir": None,
}
NS, STEPS = [25, 50, 100, 200], [100, 400, 1600]


# --- the smoke run ---


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("stability")
    found = reproduce("shallow-stability", scale="smoke", out=out, jobs=0, device="cpu")
    assert {path.name for path in out.glob("*.svg")} == {"stability-law.svg", "stability-gap.svg"}
    return found


def value(found: dict[str, Any], name: str, n: int, step: int) -> list[float]:
    return [cell["sizes"][str(n)][name][cell["at"].index(step)] for cell in found["cells"].values()]


@pytest.mark.parametrize("step", [20, 80, 320])
def test_stability_follows_its_law(smoke: dict[str, Any], step: int) -> None:
    """From 10 to 40 samples eps^2 falls nearer to 1/16 than to 1/4 of what it was."""
    drops = [
        math.log(small / large, 4)
        for small, large in zip(
            value(smoke, "eps_squared", 10, step),
            value(smoke, "eps_squared", 40, step),
            strict=True,
        )
    ]
    assert len(drops) == 4
    assert 1.5 < fmean(drops) < 2.5


def test_stability_wears_off_and_the_bound_holds(smoke: dict[str, Any]) -> None:
    for n in (10, 20, 40):
        early, middle, late = (value(smoke, "eps_squared", n, t) for t in (20, 80, 320))
        for a, b, c in zip(early, middle, late, strict=True):
            assert 0 < a < b < c
        for step in (20, 80, 320):
            gaps, bounds = value(smoke, "gap", n, step), value(smoke, "bound", n, step)
            assert all(gap < bound for gap, bound in zip(gaps, bounds, strict=True))
        assert value(smoke, "eps_squared", n, 0) == [0.0] * 4


def test_the_gap_falls_with_n(smoke: dict[str, Any]) -> None:
    for step in (20, 80, 320):
        assert fmean(value(smoke, "gap", 40, step)) < fmean(value(smoke, "gap", 10, step))


def test_a_cell_is_what_the_analysis_says() -> None:
    settings = {
        **SETTINGS,
        "ns": [4, 8],
        "steps": [5, 20],
        "replaced": 3,
        "width": 6,
        "test_samples": 50,
    }
    told: list[tuple[int, int]] = []
    found = shallow_stability.run(settings, {"seed": 2}, lambda *done: told.append(done))
    assert told[-1] == (240, 240)
    assert told == sorted(told)
    at = found["at"]
    assert {0, 5, 20} <= set(at)
    direct = measured(8, steps=at, replaced=3, width=6, test_samples=50, seed=2)
    assert found["sizes"]["8"]["eps_squared"] == direct.eps_squared.tolist()
    assert found["sizes"]["8"]["bound"] == direct.bound().tolist()
    assert found["sizes"]["8"]["constant"][0] is None  # 0 / 0 at the start
    # (lr^2 t / n^2) times the trapezoidal sum of the losses
    losses, last = found["sizes"]["8"]["train_loss"], len(at) - 1
    area = sum((losses[k] + losses[k + 1]) / 2 * (at[k + 1] - at[k]) for k in range(last))
    expected = direct.eps_squared[-1].item() / (0.25 * 20 * area / 64)
    assert found["sizes"]["8"]["constant"][-1] == pytest.approx(expected)


# --- conclusions from made-up runs ---


def made_up(**laws: Any) -> dict[str, dict[str, Any]]:
    """Results with eps^2 = t / n^2 and a gap of 1/n; laws are functions of n and t."""
    usual = {
        "eps_squared": lambda n, t: t / n**2,
        "gap": lambda n, t: 1 / n,
        "bound": lambda n, t: 3 / n,
        "train_loss": lambda n, t: 0.1,
        "constant": lambda n, t: 0.2,
    }
    results = {}
    for seed in range(4):
        wobble = 1 + 0.05 * math.sin(3 * seed)
        sizes = {
            str(n): {
                name: [wobble * law(n, t) for t in STEPS] for name, law in {**usual, **laws}.items()
            }
            for n in NS
        }
        results[f"seed={seed}"] = {"at": STEPS, "sizes": sizes}
    return results


def concluded(results: dict[str, dict[str, Any]], drawn: bool = False, **more: Any) -> Conclusion:
    settings = {**SETTINGS, **more}
    if drawn:
        return shallow_stability.conclude(settings, results)
    with patch.object(shallow_stability, "pictures", return_value=()):  # they take seconds
        return shallow_stability.conclude(settings, results)


def verdicts(results: dict[str, dict[str, Any]]) -> list[str]:
    return [claim.verdict for claim in concluded(results).claims]


def test_what_is_claimed_is_reproduced() -> None:
    assert verdicts(made_up()) == [REPRODUCED] * 5


@pytest.mark.parametrize(
    ("laws", "claim"),
    [
        ({"eps_squared": lambda n, t: t / n}, 0),
        ({"eps_squared": lambda n, t: t / n**3}, 0),
        ({"constant": lambda n, t: 1 / n}, 1),
        ({"eps_squared": lambda n, t: 100 / t / n**2}, 2),
        ({"gap": lambda n, t: 0.001 * n, "bound": lambda n, t: 9.0}, 3),
        ({"bound": lambda n, t: 0.5 / n}, 4),
    ],
)
def test_other_laws_are_not(laws: dict[str, Any], claim: int) -> None:
    found = verdicts(made_up(**laws))
    for k, verdict in enumerate(found):
        assert verdict == (NOT_REPRODUCED if k == claim else REPRODUCED)


def test_the_exponent_is_told() -> None:
    claim = concluded(made_up(eps_squared=lambda n, t: t / n**1.8)).claims[0]
    assert claim.verdict == REPRODUCED
    assert "step 100: 0.2 (95 % interval" in claim.measured
    assert "n = 4" in claim.measured


def test_seeds_that_disagree_settle_nothing() -> None:
    results = made_up()
    for seed, result in enumerate(results.values()):
        power = 1.0 if seed % 2 else 3.0
        for n in NS:
            result["sizes"][str(n)]["eps_squared"] = [t / n**power for t in STEPS]
            result["sizes"][str(n)]["gap"] = [power * n - 2 * n for _ in STEPS]
            result["sizes"][str(n)]["bound"] = [0.0 for _ in STEPS]
    found = verdicts(results)
    assert [found[k] for k in (0, 3, 4)] == [INCONCLUSIVE] * 3


@pytest.mark.parametrize("bad", [None, math.nan, math.inf])
def test_what_is_not_finite_is_left_out_and_said(bad: float | None) -> None:
    results = made_up()
    results["seed=1"]["sizes"]["50"]["eps_squared"][2] = bad
    found = concluded(results, drawn=True)
    assert [claim.verdict for claim in found.claims] == [REPRODUCED] * 5
    assert "step 1600" in found.claims[0].measured
    assert "n = 3" in found.claims[0].measured
    assert any("n 50, step 1600" in note for note in found.notes)
    assert [picture.name for picture in found.pictures] == ["stability-law", "stability-gap"]


def test_one_seed_has_no_interval() -> None:
    found = concluded({"seed=0": made_up()["seed=0"]}, seeds=[0])
    assert {claim.verdict for claim in found.claims} == {INCONCLUSIVE}


def test_nothing_at_all_is_inconclusive() -> None:
    found = concluded({}, drawn=True)
    assert {claim.verdict for claim in found.claims} == {INCONCLUSIVE}
    assert found.pictures == ()


def test_the_table_has_a_row_for_each_size_and_step() -> None:
    rows = concluded(made_up()).tables[0].rows
    assert len(rows) == 12
    assert rows[-1][:2] == ("200", "1600")


@pytest.mark.parametrize("values", [[100], [200, 100], [100, 100], [0, 5]])
@pytest.mark.parametrize("name", ["ns", "steps"])
def test_sizes_and_steps_have_to_rise(name: str, values: list[int]) -> None:
    with pytest.raises(UserError, match=f"got {name}="):
        shallow_stability.cells({**SETTINGS, name: values})
