"""The recipe online-learning: its games, its smoke run, and what it concludes from made-up runs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from gradwise.errors import UserError
from gradwise.reproduce.claims import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED, Conclusion
from gradwise.reproduce.experiments import online_learning
from gradwise.reproduce.experiments._online_games import game, smoothness, suprema, vectors
from gradwise.reproduce.experiments._online_page import LEARNERS
from gradwise.reproduce.recipe import load_recipe
from gradwise.reproduce.run import reproduce

SETTINGS = {**load_recipe("online-learning").at("small"), "device": "cpu", "data_dir": None}
WORLDS = SETTINGS["worlds"]

# --- the games ---


def sphere(count: int, dim: int) -> Tensor:
    x = torch.randn(count, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x / x.norm(dim=1, keepdim=True)


def change(x: Tensor, now: Tensor, before: Tensor) -> Tensor:
    """|grad f_t(x) - grad f_{t-1}(x)|^2 at many points."""
    z, w = x - now, x - before
    slope = z * (z.square().sum(1, keepdim=True) + 1) - w * (w.square().sum(1, keepdim=True) + 1)
    return slope.square().sum(1)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("dim", [2, 5])
def test_the_supremum_is_above_all_points_and_near_the_best(world: str, dim: int) -> None:
    centers = vectors(world, 12, dim, seed=4)
    exact = suprema(centers, 1.0)
    x = sphere(200_000 if dim == 5 else 2000, dim)
    inside = x * torch.linspace(0, 1, len(x), dtype=torch.float64)[:, None]
    for t in range(1, 12):
        found = torch.cat([change(p, centers[t], centers[t - 1]) for p in (x, inside)]).max()
        assert found.item() <= exact[t - 1].item() * (1 + 1e-12)
        assert found.item() >= exact[t - 1].item() * (0.97 if dim == 5 else 1 - 1e-4)


def test_the_supremum_in_closed_form() -> None:
    """Centers v and -v: at x = v / |v| the gradients differ by |v| (8 + 2 |v|^2)."""
    length = 0.7
    centers = torch.tensor([[length, 0.0, 0.0], [-length, 0.0, 0.0]], dtype=torch.float64)
    assert suprema(centers, 1.0).item() == pytest.approx((length * (8 + 2 * length**2)) ** 2)


@pytest.mark.parametrize("family", ["curved", "linear"])
@pytest.mark.parametrize("world", WORLDS)
def test_games_are_what_they_say(family: str, world: str) -> None:
    played = game(family, world, 9, SETTINGS, seed=1)
    x = sphere(1, 5)[0] * 0.8
    values = [float(f(x)) for f in played.losses]
    assert float(played.total(x)) == pytest.approx(math.fsum(values))
    for f, gradient in zip(played.losses, played.gradients, strict=True):
        slope = torch.func.grad(f)(x)
        torch.testing.assert_close(gradient(x), slope)
        if played.ell is not None:
            bend = torch.linalg.matrix_norm(torch.autograd.functional.hessian(f, x), 2)
            assert 1 <= bend.item() <= played.ell(slope.norm().item())
    now = torch.stack([g(x) for g in played.gradients])
    assert now.diff(dim=0).square().sum().item() <= played.variation * (1 + 1e-12)


def test_worlds_vary_as_they_should() -> None:
    def growth(world: str) -> float:
        short, long = (game("curved", world, t, SETTINGS, seed=0).variation for t in (400, 6400))
        return math.log(long / short) / math.log(16)

    assert game("curved", "static", 50, SETTINGS, seed=0).variation == 0
    assert growth("alternating") == pytest.approx(1, abs=0.01)
    assert growth("independent") == pytest.approx(1, abs=0.1)
    assert growth("fading") == pytest.approx(0.5, abs=0.05)
    assert growth("drifting") == pytest.approx(-1, abs=0.05)


@pytest.mark.parametrize(
    ("family", "world", "dim", "words"),
    [
        ("curved", "dancing", 5, "got 'dancing'"),
        ("cubic", "static", 5, "got 'cubic'"),
        ("curved", "static", 1, "got dim=1"),
    ],
)
def test_unknown_games(family: str, world: str, dim: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        game(family, world, 3, {**SETTINGS, "dim": dim}, seed=0)


# --- the smoke run ---


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("online")
    found = reproduce("online-learning", scale="smoke", out=out, jobs=0, device="cpu")
    assert json.loads((out / "results.json").read_text())["claims"] == found["claims"]
    assert {path.name for path in out.glob("*.svg")} == {"online-rates.svg", "online-hints.svg"}
    return found


def values(found: dict[str, Any], family: str, world: str, name: str) -> list[list[float]]:
    cells = [cell for key, cell in found["cells"].items() if key.startswith(family)]
    assert len(cells) == 2
    return [cell[world]["regret"][name] for cell in cells]


def test_static_functions_cost_once(smoke: dict[str, Any]) -> None:
    """With V_T = 0: regret that grew as a root would double in four times the rounds."""
    for family, names in (("curved", ["convex", "universal"]), ("linear", ["convex"])):
        for name in names:
            for short, long in values(smoke, family, "static", name):
                assert 0 < (1 - 1e-9) * short < long < 1.2 * short


def test_alternation_costs_the_root_of_the_rounds(smoke: dict[str, Any]) -> None:
    """Linear functions, V_T ~ T: between sqrt(T) and what is left of the start."""
    for short, long in values(smoke, "linear", "alternating", "convex"):
        assert 0.35 < math.log(long / short) / math.log(4) < 0.65


def test_curvature_pays_and_the_universal_method_finds_it(smoke: dict[str, Any]) -> None:
    rows = [values(smoke, "curved", "alternating", k) for k in ("convex", "strongly", "universal")]
    for convex, strongly, universal in zip(*rows, strict=True):
        assert strongly[-1] < universal[-1] < convex[-1]


def test_hints_pay_where_little_varies(smoke: dict[str, Any]) -> None:
    for family in ("curved", "linear"):
        with_hint = values(smoke, family, "drifting", "convex")
        without = values(smoke, family, "drifting", "no hint")
        for a, b in zip(with_hint, without, strict=True):
            assert a[-1] < b[-1]


def test_verdicts_of_the_smoke_run(smoke: dict[str, Any]) -> None:
    """What does not need long games is borne out even here."""
    verdicts = [claim["verdict"] for claim in smoke["claims"]]
    assert len(verdicts) == 6
    assert [verdicts[k] for k in (0, 3, 5)] == [REPRODUCED] * 3


# --- conclusions from made-up runs ---

ROUNDS = {"varied": [500, 2000, 8000], "slow": [250, 1000]}
Rate = Callable[[float], float]


def made_up(**rates: Rate) -> dict[str, dict[str, Any]]:
    """Results with V_T = T where it grows; regrets by learner as functions of T."""
    usual: dict[str, Rate] = {
        "convex": math.sqrt,
        "strongly": lambda t: 3 * math.log(t),
        "universal": lambda t: 3 * math.log(t) + 1,
        "no hint": lambda t: 2 * math.sqrt(t),
        "ogd": math.sqrt,
    }
    results: dict[str, dict[str, Any]] = {}
    for family in ("curved", "linear"):
        for seed in range(8):
            wobble = 1 + 0.01 * math.sin(7 * seed + len(family))
            worlds: dict[str, Any] = {}
            for world in WORLDS:
                slow = world in ("static", "drifting")
                lengths = ROUNDS["slow" if slow else "varied"]
                regret = {
                    name: [wobble * {**usual, **rates}[name](250 if slow else t) for t in lengths]
                    for name in LEARNERS
                }
                for name, rate in rates.items():
                    if slow:
                        regret[name] = [wobble * rate(t) for t in lengths]
                worlds[world] = {
                    "regret": regret,
                    "variation": [0.0 if slow else float(t) for t in lengths],
                    "gap": [1e-7] * len(lengths),
                    "at": [1, 2],
                    "course": {name: [0.0, 1.0] for name in LEARNERS},
                }
            results[f"{family}-seed={seed}"] = worlds
    return results


def concluded(
    results: dict[str, dict[str, Any]], drawn: bool = False, **settings: Any
) -> Conclusion:
    with ExitStack() as stack:
        if not drawn:  # a picture takes seconds
            stack.enter_context(patch.object(online_learning, "pictures", return_value=()))
        return online_learning.conclude({**SETTINGS, "seeds": list(range(8)), **settings}, results)


def verdicts(results: dict[str, dict[str, Any]]) -> list[str]:
    return [claim.verdict for claim in concluded(results).claims]


def test_the_promised_rates_are_reproduced() -> None:
    assert verdicts(made_up()) == [REPRODUCED] * 6


@pytest.mark.parametrize(
    ("rates", "claim"),
    [
        ({"convex": lambda t: 0.5 * t, "no hint": lambda t: t}, 0),
        ({"strongly": math.sqrt}, 1),
        ({"universal": math.sqrt}, 2),
        ({"universal": lambda t: 9 * math.sqrt(t)}, 3),
        ({"universal": lambda t: t**0.3}, 4),
        ({"no hint": lambda t: 0.5 * math.sqrt(t)}, 5),
    ],
)
def test_worse_rates_are_not(rates: dict[str, Rate], claim: int) -> None:
    assert verdicts(made_up(**rates))[claim] == NOT_REPRODUCED


def test_the_words_name_the_game_that_fails() -> None:
    results = made_up()
    for key, worlds in results.items():
        if key.startswith("linear"):
            worlds["fading"]["regret"]["convex"] = [500.0, 2000.0, 8000.0]
    claim = concluded(results).claims[0]
    assert claim.verdict == NOT_REPRODUCED
    assert "(linear, fading)" in claim.measured
    assert "of 6 games" in claim.measured


def test_seeds_that_disagree_settle_nothing() -> None:
    results = made_up()
    for seed in range(8):
        sign = 1 if seed % 2 else -1
        results[f"curved-seed={seed}"]["static"]["regret"]["no hint"][-1] = 15.8 + 30 * sign
    assert verdicts(results)[5] == INCONCLUSIVE


@pytest.mark.parametrize("bad", [None, math.nan, math.inf])
def test_what_is_not_finite_is_left_out_and_said(bad: float | None) -> None:
    results = made_up()
    results["linear-seed=3"]["fading"]["regret"]["convex"][1] = bad
    found = concluded(results)
    assert found.claims[0].verdict == REPRODUCED
    assert any("linear fading" in note for note in found.notes)


def test_a_game_that_no_seed_finished_is_inconclusive() -> None:
    results = deepcopy(made_up())
    for seed in range(8):
        results[f"linear-seed={seed}"]["fading"]["regret"]["convex"] = [None, None, None]
    found = concluded(results)
    assert found.claims[0].verdict == INCONCLUSIVE
    assert "1 lost" in found.claims[0].measured


def test_one_seed_has_no_interval() -> None:
    results = {key: value for key, value in made_up().items() if key.endswith("seed=0")}
    assert {claim.verdict for claim in concluded(results, seeds=[0]).claims} == {INCONCLUSIVE}


def test_tables_and_pictures() -> None:
    results = made_up()
    results["linear-seed=3"]["static"]["course"]["convex"][1] = None
    found = concluded(results, drawn=True)
    assert [table.header[:3] for table in found.tables] == [("functions", "rounds", "V_T")] * 2
    assert found.tables[0].rows[1][:3] == ("alternating", "8000", "8000")
    assert [picture.name for picture in found.pictures] == ["online-rates", "online-hints"]
    curved = concluded(made_up(), drawn=True, families=["curved"], worlds=["static"])
    assert [picture.name for picture in curved.pictures] == ["online-hints"]
    assert curved.claims[0].verdict == INCONCLUSIVE


@pytest.mark.parametrize("rounds", [[100], [200, 100], [100, 100], [0, 5]])
@pytest.mark.parametrize("name", ["rounds", "slow_rounds"])
def test_rounds_have_to_rise(name: str, rounds: list[int]) -> None:
    with pytest.raises(UserError, match=f"got {name}="):
        online_learning.cells({**SETTINGS, name: rounds})


def test_the_exponent_is_that_of_the_ratio() -> None:
    rounds = [10, 100, 1000]
    regrets = [t**0.75 - 1 for t in rounds]
    bounds = [t**0.5 - 1 for t in rounds]
    assert online_learning.exponent(rounds, regrets, bounds, 1.0) == pytest.approx(0.25)
    assert online_learning.exponent(rounds, [-5.0] * 3, [0.0] * 3, 32.0) == pytest.approx(0)


def test_additive_terms_are_counted_for_curved_functions_alone() -> None:
    claim = concluded(made_up()).claims[0]
    assert f"{SETTINGS['c'] * smoothness(0.0) * 2:g} for curved" in claim.measured


def test_a_whole_run_twice_is_the_same(tmp_path: Path) -> None:
    small = {"seeds": [0], "rounds": [8, 16], "slow_rounds": [8, 16], "worlds": ["independent"]}
    one, two = (
        reproduce("online-learning", scale="smoke", out=tmp_path / name, overrides=small, jobs=0)
        for name in "ab"
    )
    assert one["cells"] == two["cells"]
