import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from report_synthetic import write_run

from gradwise.report.folder import CompareRun, read_run
from gradwise.report.pictures import WIDTH, bars, nice_ticks, strip
from gradwise.report.settings import settings_rows
from gradwise.report.tables import MethodRow, comparisons, method_rows, paint
from gradwise.report.verdict import headline, notes_of, sentences, warnings_of


def rows_of(run: Path) -> tuple[CompareRun, list[MethodRow]]:
    found = read_run(run)
    return found, method_rows(found)


def edited(run: CompareRun, **summary: Any) -> CompareRun:
    return CompareRun(
        run.path, run.config, {**run.summary, **summary}, run.methods, run.seeds, run.baseline,
        run.trials, run.troubles,
    )  # fmt: skip


def test_rows_say_what_the_summary_says(whole_run: Path) -> None:
    run, rows = rows_of(whole_run)
    assert [row.name for row in rows] == list(run.methods)
    base, _, autoscale, znorm, _ = rows
    assert (base.verdict, base.difference, base.p, base.wall_ratio) == (
        "baseline", "–", "–", "1.00 ×",
    )  # fmt: skip
    assert (autoscale.verdict, znorm.verdict) == ("better", "worse")
    mean = run.facts("autoscale")["test_accuracy"]["mean"]
    assert autoscale.accuracy == f"{100 * mean:.2f} %"
    assert autoscale.wall == "10.0 s"
    assert autoscale.wall_ratio == "1.06 ×"
    assert autoscale.memory == f"{430_000_000 / 2**20:.1f} MiB"
    assert autoscale.trials == "3 finished"
    assert autoscale.complete
    assert autoscale.comparison is not None
    assert len(autoscale.comparison.pairs) == 3


def test_an_interval_of_an_accuracy_ends_where_accuracies_end(tmp_path: Path) -> None:
    _, rows = rows_of(write_run(tmp_path / "run", diverged=(("znorm", 1),), watched=False))
    assert rows[3].accuracy_ci == "0.00 to 100.00"
    assert rows[3].trials == "2 finished, 1 diverged"
    assert not rows[3].complete


def test_addresses_that_are_not_of_the_web_are_no_links(whole_run: Path) -> None:
    run = read_run(whole_run)
    for url in ("javascript:alert(1)", "data:text/html,x", "//x.org", "file:///etc", "http://", 3):
        facts = {"sgd": {**run.facts("sgd"), "url": url}}
        assert method_rows(edited(run, methods=facts))[0].url == ""
    assert method_rows(run)[0].url.startswith("https://")


@pytest.mark.parametrize(
    ("verdicts", "words"),
    [
        (["better", "worse"], "center was better than sgd; autoscale was worse."),
        (["worse", "worse"], "center and autoscale were worse than sgd."),
        (
            ["better", "no difference detected"],
            "center was better than sgd; for 1 other no difference was detected.",
        ),
        (
            ["no difference detected"] * 2,
            "No difference from sgd was detected for any of the 2 other methods.",
        ),
        ([], "There is no comparison yet."),
        (["splendid"], "There is no comparison yet."),
    ],
)
def test_headline(whole_run: Path, verdicts: list[str], words: str) -> None:
    run = read_run(whole_run)
    judged = [
        {"method": method, "difference": 0.01, "ci95": None, "p": None, "verdict": verdict}
        for method, verdict in zip(("center", "autoscale"), verdicts, strict=False)
    ]
    changed = edited(run, comparisons=judged)
    assert headline(changed, method_rows(changed)) == words


def test_sentences_carry_the_numbers_and_the_note(whole_run: Path) -> None:
    run, rows = rows_of(whole_run)
    verdict, name, words = sentences(run, rows)[1]
    assert (verdict, name) == ("better", "autoscale")
    assert rows[2].difference in words
    assert rows[2].difference_ci in words
    assert words.endswith("; 3 pairs.")


def test_hostile_comparisons_are_passed_over(whole_run: Path) -> None:
    run = read_run(whole_run)
    listed = [None, 3, {}, {"method": "nobody"}, {"method": "sgd"}, {"method": ["center"]}]
    assert comparisons(edited(run, comparisons=listed)) == {}
    assert comparisons(edited(run, comparisons="x")) == {}
    odd = {"method": "center", "difference": "big", "ci95": [2, 1], "p": None, "verdict": []}
    found = comparisons(edited(run, comparisons=[odd]))["center"]
    assert (found.difference, found.ci95, found.verdict, found.note) == (None, None, "", "")


def test_warnings_name_what_happened(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "run", diverged=(("znorm", 1),), missing=(("center", 2),), watched=False
    )
    found = read_run(run)
    unequal = {"init_checksum_equal": False, "batches_checksum_equal": False, "differences": ["x"]}
    warned = warnings_of(edited(found, fairness=unequal), ["a file is broken"])
    assert "same weights" in warned[0]
    assert "same batches" in warned[1]
    assert warned[2] == "The trials differ: x."
    assert warned[3].startswith("This run is not complete: 14 of 15 trials are done.")
    assert warned[4].startswith("znorm with seed 1 diverged at step 20: ")
    assert warned[4].endswith("It counts in the statistics, with a test accuracy of 10.00 %.")
    assert warned[5:] == ["A file is broken."]


def test_nothing_to_warn_of(whole_run: Path) -> None:
    assert warnings_of(read_run(whole_run)) == []


def test_colours_are_told_apart_by_dashes_once_they_run_out(tmp_path: Path) -> None:
    methods = tuple(f"m{at}" for at in range(17))
    run = read_run(write_run(tmp_path / "run", methods=methods, seeds=(0,), watched=False))
    assert paint(run)[0] == (0, 0)
    assert paint(run)[7:9] == [(7, 0), (1, 1)]
    assert len(set(paint(run))) == 17


def test_settings_end_with_seeds_and_baseline(whole_run: Path) -> None:
    rows = dict(settings_rows(read_run(whole_run)))
    assert rows["batch size"] == "128"
    assert rows["augment"] == "yes"
    assert list(rows)[-2:] == ["seeds", "baseline"]
    assert rows["seeds"] == "0, 1, 2"


def test_strip_places_every_mark_inside(whole_run: Path) -> None:
    _, rows = rows_of(whole_run)
    placed = strip(rows)
    assert placed is not None
    assert set(placed.marks) == {row.name for row in rows if not row.baseline}
    for mark in placed.marks.values():
        assert mark.low is not None
        assert mark.high is not None
        assert mark.at is not None
        assert 0 <= mark.low <= mark.at <= mark.high <= WIDTH
        assert len(mark.seeds) == 3
        assert mark.cut == ()
    better, worse = placed.marks["autoscale"], placed.marks["znorm"]
    assert worse.at is not None
    assert better.at is not None
    assert worse.at < placed.zero < better.at
    assert [label for _, label in placed.ticks if label == "0"]


def test_a_diverged_trial_does_not_set_the_scale(tmp_path: Path) -> None:
    _, rows = rows_of(write_run(tmp_path / "run", diverged=(("znorm", 1),), watched=False))
    placed = strip(rows)
    assert placed is not None
    mark = placed.marks["znorm"]
    assert mark.cut == ("left", "right")
    assert mark.at is None
    assert len(mark.seeds) < 3
    other = placed.marks["autoscale"]
    assert other.low is not None
    assert other.high is not None
    assert other.high - other.low > WIDTH / 15


def test_no_strip_without_comparisons(whole_run: Path) -> None:
    assert strip(method_rows(edited(read_run(whole_run), comparisons=[]))) is None


def test_a_strip_of_no_difference_at_all(whole_run: Path) -> None:
    run = read_run(whole_run)
    same = {"method": "center", "difference": 0.0, "ci95": [0.0, 0.0], "p": 1.0, "verdict": ""}
    facts = {name: {**run.facts(name), "test_accuracy": {}} for name in run.methods}
    placed = strip(method_rows(edited(run, comparisons=[same], methods=facts)))
    assert placed is not None
    assert placed.marks["center"].at == placed.zero


def test_bars_are_as_long_as_what_they_show(whole_run: Path) -> None:
    _, rows = rows_of(whole_run)
    found = bars(rows, "wall")
    assert found[-1].share == 100
    assert found[0].share == pytest.approx(100 * 9.4 / 10.6, abs=0.01)
    with pytest.raises(ValueError, match="expected cost"):
        bars(rows, "price")


@pytest.mark.parametrize(("low", "high"), [(-3e-5, 8e-5), (-145.3, 87.3), (0, 1), (-0.011, 0.01)])
def test_ticks_are_few_and_inside(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert 2 <= len(ticks) <= 6
    assert low <= ticks[0] < ticks[-1] <= high + 1e-12


def test_a_summary_that_knows_fewer_seeds_is_told(whole_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole_run, tmp_path / "run"))
    config = json.loads((run / "config.json").read_text())
    # Seeds may be added in front of others: what the summary lists goes by seed, not by place.
    (run / "config.json").write_text(json.dumps({**config, "seeds": [3, 0, 1, 2]}))
    first = json.loads((run / "trials/sgd-0/seed-0/result.json").read_text())
    new = run / "trials/sgd-0/seed-3/result.json"
    new.parent.mkdir()
    new.write_text(json.dumps({**first, "seed": 3}))
    summary = json.loads((run / "summary.json").read_text())
    summary["methods"]["sgd"]["status"] = ["diverged", "finished", "finished"]
    (run / "summary.json").write_text(json.dumps(summary))
    found = read_run(run)
    assert [trial.status for trial in found.trials["sgd"]] == [
        "finished", "diverged", "finished", "finished",
    ]  # fmt: skip
    assert found.trials["center"][0].status == "missing"
    assert not found.finished
    warned = warnings_of(found)
    assert warned[0].startswith("This run is not complete: 16 of 20 trials are done.")
    assert warned[1].startswith("1 trial ended after the summary was written")


def test_a_running_trial_is_known_by_its_record(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", methods=("sgd", "znorm"), seeds=(0,))
    (run / "summary.json").unlink()
    (run / "trials/znorm-1/seed-0/result.json").unlink()
    record = run / "trials/znorm-1/seed-0/watch/run.json"
    content = json.loads(record.read_text())
    record.write_text(json.dumps({**content, "meta": {"method": "znorm", "seed": 0}}))
    trial = read_run(run).trials["znorm"][0]
    assert (trial.status, trial.watch) == ("missing", record.parent)
    record.write_text("[]")
    assert read_run(run).trials["znorm"][0].watch is None


def test_failures_notes_and_skipped_steps_are_passed_on(whole_run: Path) -> None:
    run = read_run(whole_run)
    facts = {name: run.facts(name) for name in run.methods}
    facts["center"] = {**facts["center"], "skipped": 2, "learning_rate": 0.1}
    facts["znorm"] = {
        **facts["znorm"], "status": ["finished", "failed", "finished"], "failures": {"1": "broken"},
    }  # fmt: skip
    summary = {**run.summary, "methods": facts, "notes": ["One.", 2, "Three."]}
    changed = edited(run, **summary)
    assert notes_of(changed) == ["One.", "Three."]
    assert warnings_of(changed) == ["center left 2 steps alone because a gradient was not finite."]
    settings = dict(settings_rows(edited(run, **summary)))
    assert settings["lr"] == "0.1"
    unset = CompareRun(
        run.path, {**run.config, "settings": {"lr": None}}, summary, run.methods, run.seeds,
        run.baseline, run.trials,
    )  # fmt: skip
    assert dict(settings_rows(unset))["lr"] == "0.1 (the usual of the optimizer)"


def test_a_failure_has_its_reason(whole_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(whole_run, tmp_path / "run"))
    (run / "trials/znorm-3/seed-1/result.json").unlink()
    summary = json.loads((run / "summary.json").read_text())
    summary["methods"]["znorm"] |= {
        "status": ["finished", "failed", "finished"], "failures": {"1": "its process was killed."},
    }  # fmt: skip
    (run / "summary.json").write_text(json.dumps(summary))
    assert warnings_of(read_run(run))[0].startswith(
        "znorm with seed 1 failed: its process was killed. It has no result"
    )
