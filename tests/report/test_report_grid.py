"""The page on a comparison with a grid of learning rates."""

import json

import pytest

from gradwise.errors import UserError
from gradwise.lab import compare as compare_module
from gradwise.lab.compare import compare_methods
from gradwise.report import write_report
from gradwise.report.folder import read_run
from gradwise.report.grid import grid_rows
from gradwise.report.settings import settings_rows
from gradwise.report.tables import method_rows
from gradwise.report.verdict import warnings_of

RATES = (0.1, 1e-5, 1e6)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A real one; with the largest rate everything diverges."""
    from lab_helpers import run_inline, tiny

    monkeypatch.setattr(compare_module, "run_jobs", run_inline)
    settings = tiny(epochs=2, limit_train=480, augment="none", lr=RATES, weight_decay=0.0)
    compare_methods(settings, ["sgd", "clip"], [0, 1], tmp_path / "run")
    return tmp_path / "run"


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_the_page_is_about_the_chosen_rates_and_shows_the_others(run):
    found = read_run(run)
    assert found.rates == (1e-5, 0.1, 1e6)
    assert found.finished
    for method in ("sgd", "clip"):
        assert [trial.rate for trial in found.trials[method]] == [0.1, 0.1]
        folders = [trial.folder for trial in found.trials[method]]
        assert [folder.parent.name for folder in folders] == ["lr-0.1"] * 2
        assert all(trial.result["learning_rate"] == 0.1 for trial in found.trials[method])
    assert sorted((trial.method, trial.rate, trial.seed) for trial in found.others) == [
        (method, rate, seed)
        for method in ("clip", "sgd")
        for rate in (1e-5, 1e6)
        for seed in (0, 1)
    ]
    assert all(trial.summed for trial in found.others)
    assert [row.rate for row in method_rows(found)] == ["0.1", "0.1"]
    assert dict(settings_rows(found))["lr"] == "0.1, 1e-05, 1000000.0"
    assert warnings_of(found) == []  # diverging with a rate that was only tried is no trouble


def test_the_table_of_the_grid(run):
    facts = json.loads((run / "summary.json").read_text())["methods"]
    rows = grid_rows(read_run(run))
    assert [row.name for row in rows] == ["sgd", "clip"]
    for row in rows:
        for cell, entry in zip(row.cells, facts[row.name]["grid"], strict=True):
            mean = 100 * entry["validation_accuracy"]["mean"]
            assert cell.validation == f"{mean:.2f} %".replace(" ", cell.validation[-2])
            assert cell.chosen == (entry["learning_rate"] == 0.1)
        assert row.cells[0].odd == row.cells[1].odd == ""
    assert rows[0].cells[2].odd == "2 diverged"


def test_both_documents_say_it(run):
    html, markdown = (path.read_text() for path in write_report(run))
    for text in (html, markdown):
        assert "3 learning rates" in text
        assert "3 learning rates x 2 seeds each (1e-05, 0.1, 1000000)" in text
        assert "lr 0.1, 2 finished" in text
        assert "2 diverged" in text
    assert 'id="rates"' in html
    assert html.count("✓<span") == 2
    section = markdown.split("## Learning rates\n")[1].split("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("|")]
    assert table[0] == "| method | 1e-05 | 0.1 | 1000000 |"
    assert table[1] == "| --- | ---: | ---: | ---: |"
    assert [line.count("**") for line in table[2:]] == [2, 2]


def test_without_a_grid_there_is_no_such_section(whole_run, tmp_path):
    assert grid_rows(read_run(whole_run)) == []
    html, markdown = (path.read_text() for path in write_report(whole_run, out=tmp_path / "a.html"))
    assert "Learning rates" not in html
    assert "Learning rates" not in markdown
    assert 'id="rates"' not in html


def test_what_is_missing_or_failed_with_another_rate_is_told(run):
    for path in (run / "trials/sgd/lr-1e-05").rglob("result.json"):
        path.unlink()

    def change(summary):
        entry = summary["methods"]["sgd"]["grid"][0]
        entry["status"] = ["failed", "missing"]
        entry["failures"] = {"0": "no memory"}

    edit(run / "summary.json", change)
    found = read_run(run)
    assert not found.finished
    warnings = warnings_of(found)
    assert any("11 of 12 trials are done" in warning for warning in warnings)
    assert any(
        warning.startswith("sgd with learning rate 1e-05 and seed 0 failed: no memory.")
        for warning in warnings
    )
    assert grid_rows(found)[0].cells[0].odd == "1 failed, 1 missing"
    write_report(run)


def test_a_chosen_trial_that_diverged_is_told_with_its_rate(run):
    def change(summary):
        summary["methods"]["sgd"]["learning_rate"] = 1e6
        summary["methods"]["sgd"]["status"] = ["diverged"] * 2

    edit(run / "summary.json", change)
    warnings = warnings_of(read_run(run))
    assert any(w.startswith("sgd with learning rate 1000000 and seed 1 diverged") for w in warnings)


def test_without_a_summary_there_is_a_page_on_what_there_is(run):
    (run / "summary.json").unlink()
    found = read_run(run)
    assert found.trials["sgd"][0].rate == 1e-5  # nothing says which one was chosen
    assert found.trials["sgd"][0].status == "finished"
    write_report(run)


@pytest.mark.parametrize("listed", [["a"], [None, 0.1], [0.1, 0.1], [-1.0], [], [{}]])
def test_a_damaged_list_of_rates(run, listed):
    edit(run / "config.json", lambda config: config["settings"].update(lr=listed))
    with pytest.raises(UserError, match=r"config\.json is damaged: expected lr to be a number"):
        read_run(run)


@pytest.mark.parametrize("grid", [None, 3, [], [1, None], [{"learning_rate": "x"}], {"a": 1}])
def test_a_damaged_grid_in_the_summary(run, grid):
    def change(summary):
        summary["methods"]["sgd"]["grid"] = grid
        summary["methods"]["sgd"]["learning_rate"] = "0.1"

    edit(run / "summary.json", change)
    assert [cell.validation for cell in grid_rows(read_run(run))[0].cells] == ["–"] * 3
    write_report(run)
