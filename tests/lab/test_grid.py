"""A grid of learning rates: what is run, how one is chosen, and what the folder allows later."""

import json
import math
from pathlib import Path

import pytest
import torch
from lab_helpers import data_of, make_trial, numbers, run_inline, tiny

from gradwise.errors import UserError
from gradwise.lab import compare as compare_module
from gradwise.lab.compare import compare_methods
from gradwise.lab.grid import budget, choose, grid_notes
from gradwise.lab.holdout import held_out_rows, hold_out
from gradwise.lab.job import Job, rate_text, trial_folder
from gradwise.lab.settings import VALIDATION, Settings, parse_rates

RATES = (0.1, 1e-5)  # the order of the command line is not that of the summary
# With the larger rate it learns in two epochs, with the smaller one it cannot.
SHARED = {"epochs": 2, "limit_train": 480, "augment": "none"}
GRID = tiny(**SHARED, lr=RATES)


@pytest.fixture(autouse=True)
def _inline(monkeypatch):
    monkeypatch.setattr(compare_module, "run_jobs", run_inline)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def result_of(out, method, rate, seed):
    return json.loads(
        (out / "trials" / method / f"lr-{rate}" / f"seed-{seed}/result.json").read_text()
    )


def mean(values):
    return sum(values) / len(values)


# The settings


@pytest.mark.parametrize(
    ("text", "rates"),
    [("0.1", 0.1), ("1", 1.0), (" 1e-3 ", 1e-3), ("0.1,1", (0.1, 1.0)), ("1, .1", (1.0, 0.1))],
)
def test_rates(text, rates):
    assert parse_rates(text) == rates
    assert Settings(lr=parse_rates(text)).lr == rates


@pytest.mark.parametrize("text", ["", ",", "0.1,", ",0.1", "a", "0.1;1", "0.1,b", "[0.1,1]"])
def test_bad_rates(text):
    with pytest.raises(
        UserError, match=r"expected lr to be a number or a list such as 0\.01,0\.1,1"
    ):
        parse_rates(text)


@pytest.mark.parametrize(
    ("rates", "told"),
    [
        ((0.1, -1.0), "expected a finite lr > 0, got lr=-1.0"),
        ((0.1, math.nan), "got lr=nan"),
        ((math.inf, 0.1), "got lr=inf"),
        ((0.0, 0.1), "got lr=0.0"),
        ((0.1, 1.0, 0.1), "expected every lr once, got lr=0.1 twice"),
        ((0.1,), "one number or a list of 2 to 100, got 1"),
        ((), "one number or a list of 2 to 100, got 0"),
        (tuple(float(i) for i in range(1, 102)), "got 101"),
    ],
)
def test_a_grid_out_of_bounds(rates, told):
    with pytest.raises(UserError) as caught:
        Settings(lr=rates)
    assert told in str(caught.value)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, math.nan])
def test_a_share_out_of_bounds(share):
    with pytest.raises(UserError, match=r"expected 0 < validation < 1, got validation="):
        Settings(validation=share)


def test_settings_with_a_grid_survive_json():
    settings = GRID.resolved()
    assert settings.validation == VALIDATION
    assert settings.grid == (1e-5, 0.1)
    assert Settings.from_dict(json.loads(json.dumps(settings.to_dict()))) == settings
    one = settings.at(0.1)
    assert (one.lr, one.grid, one.validation) == (0.1, (), VALIDATION)
    assert one.learning_rate("adamw") == 0.1
    with pytest.raises(UserError, match="expected a trial to have one lr, got a list of 2"):
        settings.learning_rate("sgd")


def test_without_a_grid_nothing_is_new(out):
    summary = compare_methods(tiny(epochs=1, lr=0.1), ["sgd"], [0], out)
    config = json.loads((out / "config.json").read_text())
    assert set(config) == {
        "format", "settings", "methods", "seeds", "baseline", "dataset", "command",
    }  # fmt: skip
    assert set(config["settings"]) == {
        "data", "data_dir", "model", "epochs", "batch_size", "optimizer", "lr", "momentum",
        "weight_decay", "schedule", "warmup_epochs", "augment", "limit_train", "limit_test",
        "device", "amp", "threads", "record_every",
    }  # fmt: skip
    assert [path.name for path in (out / "trials").iterdir()] == ["sgd"]
    assert [path.name for path in (out / "trials/sgd").iterdir()] == ["seed-0"]
    result = json.loads((out / "trials/sgd/seed-0/result.json").read_text())
    assert not any("validation" in key for key in (*result, *result["history"]))
    assert "grid" not in summary
    assert "grid" not in summary["methods"]["sgd"]


# The rows held out


def test_the_rows_held_out_are_no_training_rows_and_the_same_in_every_trial(tmp_path):
    full = data_of(GRID)
    settings = GRID.resolved().at(0.1)
    trials = [
        make_trial(tmp_path, settings, method, seed)
        for method, seed in (("sgd", 0), ("clip", 0), ("sgd", 7))
    ]
    held, labels = trials[0].validation
    assert len(held) == len(labels) == held_out_rows(480, VALIDATION) == 48
    for trial in trials[1:]:
        assert torch.equal(trial.validation[0], held)
        assert torch.equal(trial.train_x, trials[0].train_x)
    whole = torch.cat([trials[0].train_x, held]).flatten(1).double()
    again = full.train_x.flatten(1).double()
    assert torch.equal(whole.unique(dim=0), again.unique(dim=0))
    assert len(whole) == len(again)
    # In the order they were in, and each with its label.
    rest, _, _ = hold_out(full, VALIDATION)
    places = [int((full.train_x == row).flatten(1).all(1).nonzero()[0]) for row in rest.train_x]
    assert places == sorted(places)
    assert torch.equal(full.train_y[places], rest.train_y)
    assert not torch.equal(rest.mean, full.mean)  # nothing is known of the rows held out
    assert rest.fingerprint != full.fingerprint
    # Not simply the last rows of a file that may be sorted.
    assert not torch.equal(held, full.train_x[-48:])


def test_a_larger_share_is_held_out(out):
    settings = tiny(**SHARED, lr=RATES, validation=0.25)
    summary = compare_methods(settings, ["sgd"], [0], out)
    assert summary["grid"]["validation_rows"] == 120
    assert result_of(out, "sgd", 0.1, 0)["steps"] == 2 * (360 // 32)
    assert summary["config"]["settings"]["validation"] == 0.25
    with pytest.raises(UserError, match=r"validation was 0\.25 and is now 0\.1"):
        compare_methods(GRID, ["sgd"], [0], out)


@pytest.mark.parametrize("rate", [None, 0.1])
def test_a_share_without_a_choice_is_refused(out, rate):
    with pytest.raises(UserError, match=rf"with validation=0\.2, got lr={rate}"):
        compare_methods(tiny(validation=0.2, lr=rate), ["sgd"], [0], out)
    assert not out.exists()


def test_too_few_rows_are_told_before_anything_runs(out):
    with pytest.raises(UserError, match="at least 2 training rows besides the 1 held out"):
        compare_methods(tiny(limit_train=2, batch_size=2, lr=RATES), ["sgd"], [0], out)
    assert not out.exists()


def test_a_trial_says_how_well_it_does_on_them(tmp_path):
    trial = make_trial(tmp_path / "one", GRID.resolved().at(0.1))
    result = trial.run()
    history = result["history"]
    assert len(history["validation_loss"]) == len(history["test_loss"]) == 2
    assert result["validation_accuracy"] == history["validation_accuracy"][-1]
    trial.learner.model.eval()
    with torch.no_grad():
        outputs = trial.learner.model(trial.augment.prepare_eval(trial.validation[0]))
    right = (outputs.argmax(1) == trial.validation[1]).double().mean()
    assert result["validation_accuracy"] == pytest.approx(float(right))
    loss = torch.nn.functional.cross_entropy(outputs, trial.validation[1])
    assert result["validation_loss"] == pytest.approx(float(loss), rel=1e-4)


# The choice


def test_every_method_runs_every_rate_and_the_best_is_chosen_by_validation(out):
    summary = compare_methods(GRID, ["sgd", "adamw"], [0, 1], out)
    assert json.loads(json.dumps(summary)) == json.loads((out / "summary.json").read_text())
    assert sorted(path.relative_to(out / "trials").as_posix() for path in out.rglob("seed-*")) == [
        f"{method}/lr-{rate}/seed-{seed}"
        for method in ("adamw", "sgd")
        for rate in ("0.1", "1e-05")
        for seed in (0, 1)
    ]
    assert summary["grid"] == {
        "learning_rates": [1e-5, 0.1],
        "seeds": 2,
        "trials_per_method": 4,
        "budget": "2 learning rates x 2 seeds each",
        "chosen_by": "mean validation accuracy",
        "validation_rows": 48,
        "final": True,
    }
    for name, method in summary["methods"].items():
        by_rate = {}
        for entry, rate in zip(method["grid"], ("1e-05", "0.1"), strict=True):
            results = [result_of(out, name, rate, seed) for seed in (0, 1)]
            for key in ("validation_accuracy", "test_accuracy"):
                values = [result[key] for result in results]
                assert entry[key]["values"] == values
                assert entry[key]["mean"] == pytest.approx(mean(values))
            assert entry["status"] == ["finished"] * 2
            assert [(out / folder).is_dir() for folder in entry["folder"]] == [True] * 2
            by_rate[entry["learning_rate"]] = entry
        best = max(by_rate, key=lambda rate: by_rate[rate]["validation_accuracy"]["mean"])
        assert method["learning_rate"] == best
        assert method["test_accuracy"] == by_rate[best]["test_accuracy"]
        assert method["folder"] == by_rate[best]["folder"]
    assert summary["methods"]["sgd"]["learning_rate"] == 0.1  # the other one learns nothing
    (comparison,) = summary["comparisons"]
    means = [summary["methods"][name]["test_accuracy"]["mean"] for name in ("adamw", "sgd")]
    assert comparison["difference"] == pytest.approx(means[0] - means[1])
    assert summary["fairness"]["differences"] == []
    assert any("2 learning rates x 2 seeds each (1e-05, 0.1)" in n for n in summary["notes"])
    assert not any("none was tuned" in note for note in summary["notes"])


def test_the_test_set_takes_no_part_in_the_choice(out):
    before = compare_methods(GRID, ["sgd"], [0, 1], out)["methods"]["sgd"]
    assert before["learning_rate"] == 0.1

    def change(rate, **values):
        for seed in (0, 1):
            path = out / f"trials/sgd/lr-{rate}/seed-{seed}/result.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    change("1e-05", test_accuracy=1.0)
    after = compare_methods(GRID, ["sgd"], [0, 1], out)["methods"]["sgd"]
    assert after["learning_rate"] == 0.1
    assert after["test_accuracy"] == before["test_accuracy"]
    change("1e-05", validation_accuracy=1.0)
    after = compare_methods(GRID, ["sgd"], [0, 1], out)["methods"]["sgd"]
    assert after["learning_rate"] == 1e-5
    assert after["test_accuracy"]["values"] == [1.0, 1.0]


def found(**rates):
    """Results of one method by rate: pairs of accuracy and loss, one a seed."""
    results = {}
    for name, pairs in rates.items():
        rate = float(name[1:])
        for seed, pair in enumerate(pairs):
            job = Job("sgd", seed, trial_folder(Path("sgd"), seed, rate), rate)
            results[job] = pair and {"validation_accuracy": pair[0], "validation_loss": pair[1]}
    return results


@pytest.mark.parametrize(
    ("results", "best"),
    [
        ({"r1": [(0.5, 1.0)], "r2": [(0.6, 9.0)]}, 2.0),
        ({"r1": [(0.9, 1.0), (0.1, 1.0)], "r2": [(0.6, 1.0), (0.5, 1.0)]}, 2.0),  # the mean counts
        ({"r1": [(0.5, 1.0)], "r2": [(0.5, 0.9)]}, 2.0),  # of equals the smaller loss
        ({"r1": [(0.5, 1.0)], "r2": [(0.5, 1.0)]}, 1.0),  # and then the smaller rate
        (
            {"r1": [(0.1, 2.3)], "r2": [(0.1, None)]},
            1.0,
        ),  # one that diverged is the worst of equals
        ({"r1": [(0.1, None)], "r2": [(0.1, None)]}, 1.0),
        ({"r1": [None], "r2": [(0.1, 2.0)]}, 2.0),
        ({"r1": [None], "r2": [None]}, None),
    ],
)
def test_the_best_of_a_grid(results, best):
    assert choose((1.0, 2.0), found(**results)) == best


def test_what_is_said_of_the_choice():
    notes = grid_notes((0.1, 1.0, 10.0), 1, 1, {"a": 0.1, "b": 1.0, "c": 10.0, "d": None}, 0)
    assert "3 learning rates x 1 seed each (0.1, 1, 10)" in notes[0]
    assert "on 1 validation row taken" in notes[0]
    assert notes[1:] == [
        "The smallest learning rate of the grid, 0.1, was the best for a: a better one may lie "
        "beyond it.",
        "The largest learning rate of the grid, 10, was the best for c: a better one may lie "
        "beyond it.",
    ]
    assert grid_notes((0.1, 1.0), 2, 9, {}, 3)[1:] == [
        "3 trials of the grid have no result, so the choice is not final."
    ]
    assert budget((0.1, 1.0), 5) == "2 learning rates x 5 seeds each"


def test_one_that_diverges_is_not_chosen_and_not_dropped(out):
    settings = tiny(epochs=2, lr=(0.05, 1e6), weight_decay=0.0)
    summary = compare_methods(settings, ["sgd"], [0, 1], out)
    sgd = summary["methods"]["sgd"]
    assert sgd["learning_rate"] == 0.05
    assert sgd["status"] == ["finished"] * 2
    entry = sgd["grid"][1]
    assert entry["status"] == ["diverged"] * 2
    assert entry["validation_accuracy"]["values"] == [0.1, 0.1]
    assert summary["finished"]
    assert "NaN" not in (out / "summary.json").read_text()


def test_folders_of_rates_differ_where_rates_do(tmp_path):
    rates = [0.1, 0.10000000000000002, 1.0, 10.0, 1e-5, 1e-10, 123456789.0]
    names = {trial_folder(tmp_path, 0, rate).parent.name for rate in rates}
    assert len(names) == len(rates)
    assert {f"lr-{rate_text(rate)}" for rate in rates} == names
    assert [float(rate_text(rate)) for rate in rates] == rates
    assert trial_folder(tmp_path, 3, None) == tmp_path / "seed-3"


# The folder


def test_a_trial_of_a_grid_is_that_trial_alone(out, tmp_path):
    compare_methods(GRID, ["znorm"], [3], out)
    alone = make_trial(tmp_path / "alone", GRID.resolved().at(0.1), "znorm", 3).run()
    assert numbers(result_of(out, "znorm", 0.1, 3)) == numbers(alone)


def test_methods_seeds_and_rates_are_added_and_nothing_is_run_twice(out):
    compare_methods(GRID, ["sgd"], [0], out)
    before = {path: path.read_bytes() for path in out.rglob("result.json")}
    events = []
    more = tiny(**SHARED, lr=(1e-5, 0.01, 0.1))
    summary = compare_methods(
        more, ["clip", "sgd"], [0, 1], out, listen=lambda job, e: events.append((job.label, e))
    )
    assert {path: path.read_bytes() for path in before} == before
    assert {label for label, event in events if event["event"] == "kept"} == {
        "sgd lr 0.1 seed 0",
        "sgd lr 1e-05 seed 0",
    }
    started = [label for label, event in events if event["event"] == "start"]
    assert len(started) == len(set(started)) == 2 * 3 * 2 - 2
    assert summary["finished"]
    assert [entry["learning_rate"] for entry in summary["methods"]["sgd"]["grid"]] == [
        1e-5, 0.01, 0.1,
    ]  # fmt: skip
    assert compare_methods(tiny(**SHARED, lr=(0.1, 0.01, 1e-5)), ["clip", "sgd"], [1, 0], out)


@pytest.mark.parametrize(
    ("rates", "told"),
    [
        ((0.1, 1.0), "holds more than that: lr 1e-05; name these too"),
        (0.1, "lr was [0.1, 1e-05] and is now 0.1"),
        (None, "lr was [0.1, 1e-05] and is now None"),
    ],
)
def test_to_leave_a_rate_out_is_refused(out, rates, told):
    compare_methods(GRID, ["sgd"], [0], out)
    with pytest.raises(UserError) as caught:
        compare_methods(tiny(**SHARED, lr=rates), ["sgd"], [0], out)
    assert told in str(caught.value)


def test_a_plain_folder_does_not_become_a_grid(out):
    compare_methods(tiny(**SHARED, lr=0.1), ["sgd"], [0], out)
    with pytest.raises(UserError, match=r"lr was 0\.1 and is now \[0\.1, 1e-05\]"):
        compare_methods(GRID, ["sgd"], [0], out)


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 0.2},
        {"validation_accuracy": None},
        {"validation_accuracy": 1.2},
        {"validation_loss": "x"},
        {"seed": 1},
    ],
)
def test_a_result_of_another_rate_is_none(out, change):
    compare_methods(GRID, ["sgd"], [0], out)
    job = Job("sgd", 0, out / "trials/sgd/lr-0.1/seed-0", 0.1)
    good = job.result()
    assert good is not None
    (job.folder / "result.json").write_text(json.dumps({**good, **change}))
    assert job.result() is None
    compare_methods(GRID, ["sgd"], [0], out)
    assert numbers(job.result()) == numbers(good)


def test_an_interrupted_grid_goes_on_to_the_same_numbers(out, tmp_path):
    whole = compare_methods(GRID, ["sgd", "clip"], [0, 1], tmp_path / "whole")

    def interrupt(job, event):
        if job.label == "clip lr 0.1 seed 0" and event["event"] == "epoch":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare_methods(GRID, ["sgd", "clip"], [0, 1], out, listen=interrupt)
    partly = json.loads((out / "summary.json").read_text())
    assert partly["finished"] is False
    assert partly["grid"]["final"] is False
    assert partly["methods"]["sgd"]["learning_rate"] == 0.1  # from what there is
    assert partly["methods"]["sgd"]["status"] == ["finished", "missing"]
    assert partly["methods"]["clip"]["learning_rate"] == 1e-5
    assert any("5 trials of the grid have no result" in note for note in partly["notes"])
    after = compare_methods(GRID, ["sgd", "clip"], [0, 1], out)
    for name in ("sgd", "clip"):
        for one, other in zip(
            after["methods"][name]["grid"], whole["methods"][name]["grid"], strict=True
        ):
            assert one == other
        for rate in ("0.1", "1e-05"):
            for seed in (0, 1):
                pair = [result_of(base, name, rate, seed) for base in (out, tmp_path / "whole")]
                assert numbers(pair[0]) == numbers(pair[1])


def test_a_failed_trial_of_a_rate_is_named(out, monkeypatch):
    def half(jobs, settings, dataset, at_once, listen):
        run_inline(jobs[1:], settings, dataset, at_once, listen)
        listen(jobs[0], {"event": "failed", "reason": "out of memory"})
        return {jobs[0]: "out of memory"}

    monkeypatch.setattr(compare_module, "run_jobs", half)
    summary = compare_methods(GRID, ["sgd"], [0, 1], out)
    entry = summary["methods"]["sgd"]["grid"][0]
    assert entry["status"] == ["failed", "finished"]
    assert entry["failures"] == {"0": "out of memory"}
    assert entry["validation_accuracy"]["values"][0] is None
    assert summary["finished"] is False
    assert summary["methods"]["sgd"]["learning_rate"] == 0.1
