"""The documents on watched runs: what is in them, where they go, and what a bad folder gives."""

import errno
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_pages import HOSTILE, Page, check_self_contained, table
from report_synthetic import layer_names, write_run
from report_watched import META, alert, write_watched

from gradwise.errors import UserError
from gradwise.report import write_report
from gradwise.report.write import MOST_RUNS
from gradwise.watch.store import RunWriter


def report(*runs: Path, **options: Any) -> tuple[str, str]:
    html, markdown = write_report(*runs, **options)
    return html.read_text("utf-8"), markdown.read_text("utf-8")


def payload(html: str) -> dict[str, Any]:
    found = json.loads(Page(html).scripts[0])
    assert isinstance(found, dict)
    return found


@pytest.fixture
def run(tmp_path: Path) -> Path:
    alerts = (alert(120, "head.weight"), alert(40, severity="warning", ended=None))
    return write_watched(tmp_path / "run", alerts=alerts, histograms=10)


def test_the_page_on_a_run(run: Path) -> None:
    assert write_report(run) == [run / "report.html", run / "report.md"]
    html, _ = report(run)
    check_self_contained(html)
    assert len(html) < 700_000
    words = " ".join(" ".join(Page(html).text).split())
    for shown in (
        "AdamW · ResNet · autoscale() · 200 steps",
        "1 error and 1 warning. The gravest began at step 120: exploding in head.weight.",
        "The norm of head.weight is 12 times its trend.",
        "People lower the learning rate.",
        "train.py --lr '0.1 x'",
        "step 120 to 125",
    ):
        assert shown in words
    assert words.count("People lower the learning rate.") == 1, "advice is given once"


def test_markdown_has_facts_alerts_and_layers(run: Path) -> None:
    _, markdown = report(run)
    facts = table(markdown, "Facts")
    assert ["optimizer", "AdamW"] in facts
    assert ["recorded", "200 steps, 0 to 199"] in facts
    alerts = table(markdown, "Alerts")
    assert [row[:4] for row in alerts[2:]] == [
        ["40", "warning", "exploding", ""],
        ["120 to 125", "error", "exploding", "`head.weight`"],
    ]
    layers = table(markdown, "Layers worth a look first")
    assert layers[0] == ["layer", "why", "norm", "std", "update ratio"]
    assert layers[2][:2] == ["`head.weight`", "exploding at step 120"]
    assert "train.py --lr '0.1 x'" in markdown


def test_two_runs_side_by_side(run: Path, tmp_path: Path) -> None:
    other = write_watched(tmp_path / "other", steps=90, meta={**META, "optimizer": "SGD"})
    report(run)
    single = (run / "report.html").read_bytes()
    assert write_report(run, other) == [
        run / "report-run-other.html",
        run / "report-run-other.md",
    ]
    assert (run / "report.html").read_bytes() == single
    html, markdown = report(run, other)
    data = payload(html)
    assert [one["name"] for one in data["methods"]] == ["run", "other"]
    assert data["span"] == [0, 200]
    assert ["optimizer", "AdamW", "SGD"] in table(markdown, "Facts")
    assert {len(row) for row in table(markdown, "Alerts")} == {7}
    assert "2 runs side by side, matched by the names of 8 layers." in html


def test_more_runs_than_fit(run: Path, tmp_path: Path) -> None:
    runs = [write_watched(tmp_path / str(at), steps=3) for at in range(MOST_RUNS)]
    html, _ = report(*runs)
    assert len(payload(html)["methods"]) == MOST_RUNS
    with pytest.raises(UserError, match=f"expected at most {MOST_RUNS} runs side by side, got 7"):
        write_report(*runs, run)


def test_no_reason_for_a_missing_noise_scale_is_lost(tmp_path: Path) -> None:
    why = "Each step had one backward pass."
    with RunWriter(tmp_path / "run", [], layer_metrics=[], meta={"noise": why}) as writer:
        writer.append(np.arange(3), {}, {"loss": np.ones(3)})
    html, markdown = report(tmp_path / "run")
    assert why in html
    assert f"Gradient noise scale: {why}" in markdown


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    hostile = HOSTILE.replace("\n", " ").replace("\u2028", " ")
    names = [f"a{hostile}", "b"]
    bad = alert(3, names[0], rule=hostile, message=hostile, advice=hostile)
    run = write_watched(
        tmp_path / "run", layers=names, alerts=(bad,),
        meta={"optimizer": HOSTILE, "command": [HOSTILE], HOSTILE: HOSTILE, "noise": HOSTILE},
        **{f"user/{hostile}": 1.0},
    )  # fmt: skip
    html, markdown = report(run)
    tags = [tag for tag, _ in Page(html).elements]
    assert "img" not in tags
    assert tags.count("script") == 3
    assert payload(html)["heat"]["layers"] == names
    assert "{{ 7*7 }}" in " ".join(Page(html).text)
    for heading, columns in (("Alerts", 6), ("Layers worth a look first", 5), ("Facts", 2)):
        assert {len(row) for row in table(markdown, heading)} == {columns}
    plain = re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", markdown.split("Command:")[0])
    assert "<img" not in plain
    assert "&lt;img" in plain


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, -1.0, 1e300, 5e-324])
@pytest.mark.parametrize("steps", [0, 1, 2, 40])
def test_any_values_give_a_page(tmp_path: Path, steps: int, value: float) -> None:
    run = tmp_path / "run"
    with RunWriter(run, ["a", "b"], layer_metrics=["norm", "mean", "nonfinite"]) as writer:
        if steps:
            values = np.full((steps, 2), value)
            rows = dict.fromkeys(("grad_norm", "applied_norm", "time", "lr", "loss"), values[:, 0])
            writer.append(
                np.arange(steps), dict.fromkeys(("norm", "mean", "nonfinite"), values), rows
            )
    html, markdown = report(run)
    assert ("Nothing has been recorded" in html) == (steps == 0 or np.isnan(value))
    assert "# run" in markdown


@pytest.mark.parametrize(
    "meta",
    [
        {}, {"optimizer": ["x", {"a": None}], "model": {"b": []}, "versions": 3, "command": 7},
        {"noise": 5, "per": [1], "every": "x", "kind": None, "host": 3, "run": True},
        {"x" * 300: "y" * 5000, "command": [1, 2], "versions": {"torch": [1]}},
    ],
)  # fmt: skip
def test_odd_facts_break_nothing(tmp_path: Path, meta: dict[str, Any]) -> None:
    _, markdown = report(write_watched(tmp_path / "run", meta=meta, steps=3))
    assert len(markdown) < 4000


def test_runs_without_layers_or_without_steps(tmp_path: Path) -> None:
    html, _ = report(write_watched(tmp_path / "a", layers=[], metrics=()))
    assert "Nothing was recorded of single layers." in html
    html, _ = report(write_watched(tmp_path / "a2"), write_watched(tmp_path / "none", steps=0))
    assert "no steps" in html


def test_of_thousands_of_layers_some_are_shown(tmp_path: Path) -> None:
    names = [f"blocks.{at}.weight" for at in range(9000)]
    with RunWriter(tmp_path / "run", names, layer_metrics=["norm", "std", "mean"]) as writer:
        values = np.random.default_rng(0).random((100, 9000))
        writer.append(np.arange(100), dict.fromkeys(("norm", "std", "mean"), values), {})
    html, _ = report(tmp_path / "run")
    assert len(html) < 5_200_000
    shown = payload(html)["heat"]["layers"]
    assert f"The page shows {len(shown):,} of 9,000 layers" in html


def test_what_is_damaged_is_told_and_the_rest_shown(run: Path) -> None:
    next((run / "layers").glob("*.parquet")).write_bytes(b"PAR1 torn")
    (run / "alerts.jsonl").write_bytes(b'\xff\n{"event": "began"')
    html, _ = report(run)
    assert "damaged" in html
    assert payload(html)["global"]
    assert "No alerts in 200 steps." in html


def test_alerts_that_cannot_be_read(run: Path) -> None:
    (run / "alerts.jsonl").unlink()
    (run / "alerts.jsonl").mkdir()
    assert "The alerts are left out" in report(run)[0]


def test_a_run_that_broke_off_or_is_being_written(tmp_path: Path) -> None:
    run = write_watched(tmp_path / "run", close=False)
    assert "The run is still being written" in report(run)[0]
    for path in run.glob("report*"):
        path.unlink()
    for folder in (run, run / "steps", run / "layers"):
        os.utime(folder, (1, 1))
    html, _ = report(run)
    assert "The run was not closed" in html


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "run.json is damaged: it is not JSON"),
        ('{"format": "other"}', "is not a run folder"),
        ('{"format": "gradwise-run", "version": 99}', "was written by a newer gradwise"),
    ],
)
def test_a_broken_run_file_gets_one_sentence(run: Path, content: str, words: str) -> None:
    report(run)
    before = (run / "report.html").read_bytes()
    (run / "run.json").write_text(content)
    with pytest.raises(UserError, match=re.escape(words)):
        write_report(run)
    assert (run / "report.html").read_bytes() == before


def test_what_does_not_go_together(run: Path, tmp_path: Path) -> None:
    comparison = write_run(tmp_path / "compare", watched=False)
    for runs in ((run, comparison), (comparison, run), (comparison, comparison)):
        with pytest.raises(UserError, match=r"but .*compare is a comparison, which has a page of"):
            write_report(*runs)
    with pytest.raises(UserError, match="got the same folder twice"):
        write_report(run, tmp_path / "compare" / ".." / "run")
    with pytest.raises(UserError, match="of a run or of a comparison, got none"):
        write_report()


def test_a_trial_of_a_comparison_is_a_run(tmp_path: Path) -> None:
    comparison = write_run(tmp_path / "compare", methods=("sgd", "znorm"), seeds=(0,))
    trials = [comparison / "trials" / name / "seed-0" / "watch" for name in ("sgd-0", "znorm-1")]
    html, _ = report(*trials)
    assert [one["name"] for one in payload(html)["methods"]] == [
        "sgd-0/seed-0/watch",
        "znorm-1/seed-0/watch",
    ]
    assert payload(html)["heat"]["layers"] == layer_names(8)


def test_another_place(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "pages" / "one.html"
    with pytest.raises(UserError, match=r"pages.*cannot be written: No such file"):
        write_report(run, out=out)
    out.parent.mkdir()
    assert write_report(run, out=out) == [out, out.with_suffix(".md")]
    assert write_report(run, out=out) == [out, out.with_suffix(".md")], "our own is replaced"
    assert not (run / "report.html").exists()


@pytest.mark.parametrize("name", ["notes.html", "notes.md"])
def test_what_is_no_report_is_not_overwritten(run: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=f"{name} is there already and is no report of gradwise"):
        write_report(run, out=tmp_path / "notes.html")
    assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["page.htm", "page", "."])
def test_a_page_has_the_name_of_a_page(run: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"expected out to be a file whose name ends in \.html"):
        write_report(run, out=tmp_path / name)


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, OSError), (errno.EIO, OSError), (errno.EROFS, UserError)],
)
def test_a_disk_that_refuses(
    run: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    before = report(run)

    def refuse(fd: int, data: bytes) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "write", refuse)
    with pytest.raises(kind, match=os.strerror(number)) as caught:
        write_report(run)
    assert isinstance(caught.value, UserError) == (kind is UserError)
    monkeypatch.undo()
    assert (run / "report.html").read_text("utf-8") == before[0]
    assert not list(run.glob(".report*"))


def test_writing_again_changes_nothing(run: Path) -> None:
    assert report(run) == report(run)
