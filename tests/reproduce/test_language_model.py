"""The recipe language-model: its smoke run, its text, its trainings, and what it concludes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from torch import nn

from gradwise.errors import UserError
from gradwise.reproduce.claims import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED
from gradwise.reproduce.experiments import _char_text, language_model
from gradwise.reproduce.experiments._char_found import read, width_below
from gradwise.reproduce.experiments._char_model import Bad, CharGPT, evaluate, training_batch
from gradwise.reproduce.experiments._char_pictures import AFTER, BEFORE, around
from gradwise.reproduce.experiments._char_text import load_text
from gradwise.reproduce.experiments._char_training import (
    METHODS,
    _diverged_at,
    bad_steps,
    check,
    train,
)
from gradwise.reproduce.recipe import load_recipe
from gradwise.reproduce.run import reproduce

RECIPE = load_recipe("language-model")
HERE = {"device": "cpu", "data_dir": None}
SMOKE = {**RECIPE.at("smoke"), **HERE}
SMALL = {**RECIPE.at("small"), **HERE}
CPU = torch.device("cpu")

# --- the smoke run ---


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    out = tmp_path_factory.mktemp("smoke")
    return reproduce("language-model", scale="smoke", out=out, jobs=0), out


def test_a_burst_does_less_where_it_is_capped(smoke: tuple[dict[str, Any], Path]) -> None:
    found = read(SMOKE, smoke[0]["cells"])
    for method in found.methods:
        assert all(len(steps) >= 2 for steps in found.bad_steps.values())
        assert not found.diverged[method, "clean"].any()
    # At every learning rate and seed, the burst costs more with nothing than with either.
    cost = {m: found.test[m, "scrambled"] - found.test[m, "clean"] for m in found.methods}
    assert (cost["nothing"] > 0.3).all()
    for method in ("autoscale", "clip"):
        assert (cost[method] < cost["nothing"] - 0.05).all()
        assert cost[method].mean() < 0.6 * cost["nothing"].mean()


def test_the_loss_falls_for_all(smoke: tuple[dict[str, Any], Path]) -> None:
    found = read(SMOKE, smoke[0]["cells"])
    for method in found.methods:
        assert (found.test[method, "clean"] < found.uniform - 0.5).all()
        assert (found.best(method, "scrambled") < found.uniform - 0.02).all()
        first = found.losses[method, "clean"][:, 0]
        assert first == pytest.approx(found.uniform, abs=0.1)  # the model begins by guessing


def test_the_smoke_run_ends_in_a_page(smoke: tuple[dict[str, Any], Path]) -> None:
    result, out = smoke
    assert len(result["claims"]) == 5
    assert all(claim["text"].startswith("gradwise's own claim:") for claim in result["claims"])
    names = {path.name for path in out.glob("*.svg")}
    assert names == {
        "loss-by-learning-rate.svg",
        "training-with-bad-batches.svg",
        "around-bad-batches.svg",
    }
    told = json.loads((out / "results.json").read_text())
    assert [len(table["rows"]) for table in told["tables"]] == [6, 6]
    assert "No paper makes these claims" in (out / "report.md").read_text()


def test_a_cell_is_the_same_each_time_and_leaves_the_random_numbers_alone() -> None:
    settings = {**SMOKE, "steps": 12, "warmup": 2, "dropout": 0.2, "learning_rates": [1e-2]}
    arguments = {"condition": "random", "method": "autoscale", "seed": 3}
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    told: list[tuple[int, int]] = []
    first = language_model.run(settings, arguments, lambda done, total: told.append((done, total)))
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    assert language_model.run(settings, arguments, lambda done, total: None) == first
    assert told[-1] == (12, 12)
    assert len(first["runs"][0]["losses"]) == 12


# --- mechanism ---


def _step(method: str, weight: float, model: nn.Module, optimizer: Any, step: int) -> None:
    text = load_text("synthetic", None, 16)
    inputs, targets = training_batch(text.train, 0, step, 8, 16)
    loss = nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    optimizer.zero_grad()
    torch.autograd.backward(weight * loss)
    optimizer.step()


@pytest.mark.parametrize("method", METHODS)
def test_what_a_burst_leaves_in_the_second_moment(method: str) -> None:
    torch.manual_seed(0)
    model = CharGPT(14, 16, 1, 2, 16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    METHODS[method](optimizer, 1.0)
    for step in range(30):
        _step(method, 1.0, model, optimizer, step)
    matrices = [p for p in model.parameters() if p.ndim > 1]

    def second() -> float:
        return sum(float(optimizer.state[p]["exp_avg_sq"].sum()) for p in matrices)

    before = second()
    _step(method, 1000.0, model, optimizer, 30)
    grown = second() / before
    # (1 - beta2) k^2 of a gradient like those before is 1e3 of them, of which there were 30.
    assert grown > 1000 if method == "nothing" else grown < 2.5


def test_clip_is_what_torch_does() -> None:
    weights = []
    for by_hand in (False, True):
        torch.manual_seed(0)
        model = CharGPT(14, 16, 1, 2, 16).double()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        if not by_hand:
            METHODS["clip"](optimizer, 0.1)
        for step in range(5):
            inputs, targets = training_batch(load_text("synthetic", None, 16).train, 0, step, 8, 16)
            loss = nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            if by_hand:
                norm = nn.utils.clip_grad_norm_(model.parameters(), 0.1)
                assert norm > 0.1  # it does clip
            optimizer.step()
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-6, atol=1e-9)


# --- batches ---


def test_bad_steps_depend_on_the_seed_alone() -> None:
    settings = {**SMALL, "steps": 2000}
    steps = bad_steps(settings, "random", 0)
    assert steps == bad_steps(settings, "scrambled", 0)
    assert steps != bad_steps(settings, "random", 1)
    assert bad_steps(settings, "clean", 0) == []
    # Binomial, 2000 at 0.02: 40 give or take 4 standard deviations.
    assert 15 < len(steps) < 65


def test_what_bad_batches_hold() -> None:
    text = load_text("synthetic", None, 16)
    inputs, targets = training_batch(text.train, 0, 7, 64, 16)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    same, shuffled, weight = Bad("scrambled", 0.5, 30.0).batch(0, 7, inputs, targets, 14)
    assert torch.equal(same, inputs)
    assert weight == 30.0
    assert not torch.equal(shuffled, targets)
    assert torch.equal(shuffled.flatten().sort().values, targets.flatten().sort().values)
    a, b, weight = Bad("random", 0.5, 30.0).batch(0, 7, inputs, targets, 14)
    assert weight == 1.0
    assert set(a.flatten().tolist()) == set(b.flatten().tolist()) == set(range(13))
    assert not torch.equal(a[:, 1:], b[:, :-1])
    with pytest.raises(UserError, match="expected a bad batch to be one of random, scrambled"):
        Bad("worse", 0.5, 30.0)


# --- the model ---


def test_no_character_sees_what_follows_it() -> None:
    torch.manual_seed(0)
    model = CharGPT(9, 12, 2, 3, 8).double()
    tokens = torch.randint(9, (2, 8))
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 9
    a, b = model(tokens), model(changed)
    assert torch.equal(a[:, :5], b[:, :5])
    assert not torch.allclose(a[:, 5:], b[:, 5:])


def test_the_size_of_the_full_model() -> None:
    with torch.device("meta"):
        model = CharGPT(66, 384, 6, 6, 256)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(10.7e6, rel=0.01)
    assert not any("head" in name for name, _ in model.named_parameters())  # tied


def test_evaluation_is_the_mean_over_windows() -> None:
    torch.manual_seed(0)
    model = CharGPT(14, 16, 1, 2, 16, dropout=0.5)
    part = load_text("synthetic", None, 16).test
    got = evaluate(model, part, 16, 10_000, CPU)
    assert model.training
    model.eval()
    count = (len(part) - 1) // 16
    starts = [int(x) for x in np.linspace(0, len(part) - 17, count)]
    assert min(b - a for a, b in pairwise(starts)) >= 16
    losses = []
    with torch.no_grad():
        for start in starts:
            logs = model(part[None, start : start + 16])[0].double().log_softmax(-1)
            losses += [-logs[at, part[start + 1 + at]].item() for at in range(16)]
    assert got == pytest.approx(np.mean(losses) / math.log(2), rel=1e-5)
    nn.init.zeros_(model.embed.weight)
    assert evaluate(model, part, 16, 3, CPU) == pytest.approx(math.log2(14), rel=1e-6)


# --- divergence ---


def test_a_run_whose_weights_overflow_has_no_loss() -> None:
    text = load_text("synthetic", None, 16)
    settings = {**SMOKE, "steps": 20, "warmup": 0}
    one = train(settings, text, "nothing", "clean", 0, 1e30, lambda step: None)
    assert one["validation"] is None
    assert one["test"] is None
    assert len(one["losses"]) == 20
    assert one["losses"][-1] is None
    assert 1 <= one["diverged_at"] <= 5


@pytest.mark.parametrize(
    ("losses", "bad", "at"),
    [
        ([3.0] * 40, set(), None),
        ([3.0] * 20 + [9.0] * 20, set(), 20),
        ([9.0] * 20 + [3.0] * 20, set(), None),  # it came back
        ([3.0] * 39 + [9.0], set(), None),  # one last step is no stretch
        ([3.0] * 39 + [None], set(), 39),  # but no number is the end
        ([3.0] * 39 + [9.0], {39}, None),  # a bad batch says nothing
        ([3.0] * 20 + [9.0] * 10 + [1.0] + [9.0] * 9, {30}, 20),
        ([9.0] * 40, set(), 0),
    ],
)
def test_where_a_run_diverged(losses: list[float | None], bad: set[int], at: int | None) -> None:
    assert _diverged_at(losses, bad, 6.0) == at


# --- the text ---


def _file(tmp_path: Path, content: bytes) -> str:
    (tmp_path / "tinyshakespeare").mkdir()
    (tmp_path / "tinyshakespeare" / "input.txt").write_bytes(content)
    return str(tmp_path)


def test_what_the_training_text_does_not_hold_is_one_unknown_character(tmp_path: Path) -> None:
    folder = _file(tmp_path, ("ab\r\n" * 225 + "cé" * 50).encode())
    text = load_text("tinyshakespeare", folder, 4)
    assert text.vocabulary == 5  # \n \r a b, unknown
    assert text.uniform_bits == pytest.approx(math.log2(5))
    assert [len(text.train), len(text.validation), len(text.test)] == [900, 50, 50]
    assert text.train[:5].tolist() == [2, 3, 1, 0, 2]
    assert set(text.validation.tolist()) | set(text.test.tolist()) == {4}


def test_the_real_text(real_data: Path) -> None:
    text = load_text("tinyshakespeare", str(real_data), 64)
    assert text.facts()["characters"] == [1_003_854, 55_770, 55_770]
    assert text.vocabulary == 66
    assert int(text.train.max()) == 64


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "which is no file"),
        (b"", "expected more than 100 characters"),
        (b"a" * 90, "expected more than 100 characters"),
        (b"a" * 500 + b"\xff", "expected UTF-8 in .*, got other bytes at 500"),
        (b"a" * 2001, "expected at most 2000 bytes in"),
        ("".join(map(chr, range(256, 900))).encode(), "expected at most 300 kinds of characters"),
    ],
)
def test_a_file_that_is_no_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, says: str
) -> None:
    monkeypatch.setattr(_char_text, "_MAX_BYTES", 2000)
    monkeypatch.setattr(_char_text, "_MAX_CHARACTERS", 300)
    folder = str(tmp_path) if content is None else _file(tmp_path, content)
    with pytest.raises(UserError, match=says):
        load_text("tinyshakespeare", folder, 4)


def test_a_text_that_there_is_not() -> None:
    with pytest.raises(UserError, match="expected data_dir to be a folder"):
        load_text("tinyshakespeare", None, 4)
    with pytest.raises(UserError, match="expected data to be tinyshakespeare or synthetic"):
        load_text("bible", None, 4)


# --- settings ---


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"methods": ["nothing", "clip"]}, "expected 'autoscale' once in methods"),
        ({"methods": ["nothing", "autoscale", "clip", "clip"]}, "expected 'clip' once in methods"),
        ({"methods": ["nothing", "autoscale", "clip", "agc"]}, "got 'agc'"),
        ({"conditions": ["random"]}, "expected 'clean' once in conditions"),
        ({"conditions": ["clean", "bad"]}, "got 'bad'"),
        ({"learning_rates": []}, "expected learning_rates > 0"),
        ({"learning_rates": [0.1, 0.01]}, "in rising order"),
        ({"learning_rates": ["a"]}, "expected learning_rates > 0"),
        ({"learning_rates": [True]}, "expected learning_rates > 0"),
        ({"curve_lr": 0.5}, "got curve_lr=0.5"),
        ({"seeds": []}, "expected seeds of 0 to"),
        ({"seeds": [-1]}, "expected seeds of 0 to"),
        ({"betas": [0.9]}, "expected two betas"),
        ({"betas": [0.9, 1.0]}, "expected two betas"),
        ({"context": 0}, "expected context >= 1, got context=0"),
        ({"heads": 3}, "expected width to be a multiple of heads=3"),
        ({"warmup": 600}, "expected 0 <= warmup < steps=600"),
        ({"bad_share": 1.0}, "expected 0 <= bad_share < 1"),
        ({"dropout": -0.1}, "expected 0 <= dropout < 1"),
        ({"bad_scale": math.inf}, "expected a finite bad_scale > 0"),
        ({"margin": 0.0}, "expected a finite margin > 0"),
        ({"weight_decay": -1.0}, "expected a finite weight_decay >= 0"),
    ],
)
def test_settings_out_of_bounds(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        language_model.cells({**SMALL, **change})


@pytest.mark.parametrize("scale", ["smoke", "small", "full"])
def test_the_cells_of_each_scale(scale: str) -> None:
    settings = {**RECIPE.at(scale), **HERE}
    check(settings)
    cells = language_model.cells(settings)
    kinds = len(settings["seeds"]) * len(settings["conditions"]) * len(settings["methods"])
    assert len({cell.name for cell in cells}) == len(cells) == kinds


# --- conclusions from made-up results ---

Loss = Callable[[str, str, int, float], float | None]


def _made_up(loss: Loss, test: Loss | None = None, steps: int = 60) -> dict[str, dict[str, Any]]:
    results = {}
    for cell in language_model.cells(SMALL):
        method, condition, seed = (cell.arguments[k] for k in ("method", "condition", "seed"))
        runs = []
        for lr in SMALL["learning_rates"]:
            validation = loss(method, condition, seed, lr)
            reported = (test or loss)(method, condition, seed, lr)
            one = {"lr": lr, "validation": validation, "test": reported}
            one["diverged_at"] = 7 if validation is None else None
            if lr == SMALL["curve_lr"]:
                one["losses"] = [validation] * steps
            runs.append(one)
        results[cell.name] = {
            "text": {"characters": [90, 5, 5], "vocabulary": 64, "sha256": "ab" * 32},
            "uniform_bits": 6.0,
            "bad_steps": [] if condition == "clean" else [10 + seed, 40],
            "runs": runs,
        }
    return results


def _bowl(lr: float, best: float = 1e-2, depth: float = 0.4) -> float:
    return depth * (math.log10(lr) - math.log10(best)) ** 2


def _verdicts(results: dict[str, dict[str, Any]]) -> list[str]:
    with patch.object(language_model, "pictures", lambda found, curve_lr: ()):  # they take time
        return [claim.verdict for claim in language_model.conclude(SMALL, results).claims]


def _world(
    ours: float = 0.0, wide: float = 0.4, added: float = 0.1, noise: float = 0.0
) -> dict[str, Any]:
    """Losses in which autoscale differs by `ours`, and bad batches add 0.5 to the others."""

    def loss(method: str, condition: str, seed: int, lr: float) -> float:
        mine = method == "autoscale"
        level = 3.0 + 0.1 * seed + _bowl(lr, depth=wide if mine else 0.4)
        # Unlike seeds: noise that differs between them has no mean.
        level += (ours + noise * (-1) ** seed) if mine else 0.0
        if condition == "clean":
            return level
        return level + ((added + noise * (-1) ** (seed // 2)) if mine else 0.5)

    return _made_up(loss)


def test_all_claims_hold_where_they_do() -> None:
    assert _verdicts(_world()) == [REPRODUCED] * 7


def test_a_worse_best_loss_is_not_reproduced() -> None:
    verdicts = _verdicts(_world(ours=0.05))
    assert verdicts[:2] == [NOT_REPRODUCED] * 2
    assert _verdicts(_world(ours=0.015))[:2] == [REPRODUCED] * 2  # inside the margin


def test_a_narrower_range_is_not_reproduced() -> None:
    verdicts = _verdicts(_world(wide=4.0))
    assert verdicts[2] == NOT_REPRODUCED
    assert verdicts[:2] == [REPRODUCED] * 2


def test_damage_that_is_no_less_is_not_reproduced() -> None:
    # Half a hundredth of a bit, give or take as much, does not matter.
    assert _verdicts(_world(added=0.495, noise=0.008))[3:] == [NOT_REPRODUCED] * 4
    assert _verdicts(_world(added=0.7))[3:] == [NOT_REPRODUCED] * 4


def test_noise_leaves_it_open() -> None:
    verdicts = _verdicts(_world(added=0.4, noise=0.5))
    assert verdicts[:2] == [INCONCLUSIVE] * 2
    assert verdicts[3:] == [INCONCLUSIVE] * 4


def test_the_learning_rate_is_chosen_without_a_look_at_the_test_part() -> None:
    def validation(method: str, condition: str, seed: int, lr: float) -> float:
        return 3.0 + _bowl(lr)

    def test(method: str, condition: str, seed: int, lr: float) -> float:
        return 2.0 if lr == 1e-1 else 3.5 - (lr == 1e-2) * 0.25

    found = read(SMALL, _made_up(validation, test))
    assert found.best("clip", "clean").tolist() == [3.25] * 4


def test_the_damage_at_a_learning_rate_that_stays() -> None:
    def loss(method: str, condition: str, seed: int, lr: float) -> float:
        return 3.0 + _bowl(lr, 1e-2) if condition == "clean" else 4.0 + _bowl(lr, 1e-3)

    found = read(SMALL, _made_up(loss))
    assert found.damage("clip", "random").tolist() == pytest.approx([1.0] * 4)
    assert found.damage("clip", "random", chosen_anew=False).tolist() == pytest.approx([1.4] * 4)


def test_runs_that_diverged_count_as_guessing() -> None:
    def loss(method: str, condition: str, seed: int, lr: float) -> float | None:
        if method == "nothing" and condition == "scrambled":
            return None
        return 50.0 if lr > 0.2 else 3.0 + _bowl(lr)

    results = _made_up(loss)
    found = read(SMALL, results)
    assert found.best("nothing", "scrambled").tolist() == [6.0] * 4
    assert found.test["clip", "clean"][:, -1].tolist() == [6.0] * 4
    conclusion = language_model.conclude(SMALL, results)
    # The claims on nothing hold, those on clip cannot: it is the same as autoscale.
    assert conclusion.claims[5].verdict == REPRODUCED
    assert conclusion.claims[6].verdict == NOT_REPRODUCED
    (row,) = (row for row in conclusion.tables[0].rows if row[:2] == ("scrambled", "nothing"))
    assert row[-1] == "28 of 28"


def test_where_everything_diverged_nothing_is_claimed() -> None:
    results = _made_up(lambda method, condition, seed, lr: None)
    verdicts = _verdicts(results)
    assert verdicts[3:] == [NOT_REPRODUCED] * 4
    nan = deepcopy(results)
    for cell in nan.values():
        for one in cell["runs"]:
            one["validation"] = one["test"] = math.nan
    assert _verdicts(nan) == verdicts


def test_without_bad_batches_there_are_three_claims_and_one_picture() -> None:
    settings = {**SMALL, "conditions": ["clean"]}
    results = {name: cell for name, cell in _world().items() if name.startswith("clean.")}
    conclusion = language_model.conclude(settings, results)
    assert len(conclusion.claims) == 3
    assert [picture.name for picture in conclusion.pictures] == ["loss-by-learning-rate"]


def test_notes_on_the_ends_of_the_grid() -> None:
    def rising(method: str, condition: str, seed: int, lr: float) -> float:
        return 3.0 - math.log10(lr)

    notes = " ".join(language_model.conclude(SMALL, _made_up(rising)).notes)
    assert "lies at an end of those tried with nothing, autoscale, clip" in notes
    assert "widths end with the grid" in notes
    notes = " ".join(language_model.conclude(SMALL, _world()).notes)
    assert "at an end" not in notes
    assert "widths end" not in notes


def _without_a_cell(results: dict[str, Any]) -> None:
    del results["clean.clip.seed=1"]


def _without_runs(results: dict[str, Any]) -> None:
    del results["clean.clip.seed=1"]["runs"]


def _with_fewer_rates(results: dict[str, Any]) -> None:
    for cell in results.values():
        cell["runs"].pop()


def _with_a_word(results: dict[str, Any]) -> None:
    results["random.clip.seed=0"]["runs"][0]["test"] = "low"


def _with_another_text(results: dict[str, Any]) -> None:
    results["random.clip.seed=0"]["text"]["sha256"] = "cd" * 32


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_without_a_cell, "expected a result of cell clean.clip.seed=1, got none"),
        (_without_runs, "results of cells are damaged"),
        (_with_fewer_rates, "results of cells are damaged"),
        (_with_a_word, "results of cells are damaged"),
        (_with_another_text, "cells have learnt different texts"),
    ],
)
def test_damaged_results(damage: Callable[[dict[str, Any]], None], says: str) -> None:
    results = _world()
    damage(results)
    with pytest.raises(UserError, match=says):
        language_model.conclude(SMALL, results)


def test_what_a_bad_batch_adds() -> None:
    results = _world()
    for name, cell in results.items():
        place = SMALL["learning_rates"].index(SMALL["curve_lr"])
        losses = np.full(60, 3.0)
        for step in cell["bad_steps"]:
            losses[step] = 99.0  # the bad batch itself is left out
            losses[step + 1 : step + 4] += 0.25 if ".nothing." in name else 0.0
        cell["runs"][place]["losses"] = losses.tolist()
    found = read(SMALL, results)
    rows = around(found, "nothing", "random")
    assert rows.shape == (4, BEFORE + 1 + AFTER)
    assert np.isnan(rows[:, BEFORE]).all()
    assert rows[:, BEFORE + 1 : BEFORE + 4] == pytest.approx(0.25)
    assert rows[:, BEFORE + 4 : BEFORE + 20] == pytest.approx(0.0)
    assert np.nanmax(np.abs(around(found, "clip", "random"))) == 0


def test_widths_of_ranges() -> None:
    rates = [1e-3, 1e-2, 1e-1]
    assert width_below(rates, [3.0, 3.0, 3.0], 3.0) == pytest.approx(4.0)
    assert width_below(rates, [3.0, 3.0, 3.0], 2.9) == 0.0
    assert width_below(rates, [3.0, 2.0, 6.0], 2.5) == pytest.approx(2 * (0.5 + 0.125))
    assert width_below(rates, [2.0, 6.0, 2.0], 3.0) == pytest.approx(2 * (0.25 + 0.25))
    assert width_below([1e-2], [2.0], 3.0) == 0.0
