import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from report_pages import HOSTILE, Page, check_self_contained, table
from report_synthetic import write_run

from gradwise.errors import UserError
from gradwise.report import write_report


def report(run: Path) -> tuple[str, str]:
    html, markdown = write_report(run)
    assert (html, markdown) == (run / "report.html", run / "report.md")
    return html.read_text("utf-8"), markdown.read_text("utf-8")


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def run(whole_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole_run, tmp_path / "run"))


def test_the_page_is_self_contained(run: Path) -> None:
    check_self_contained(report(run)[0])


def test_the_page_of_the_demo_is_small(tmp_path: Path) -> None:
    html, _ = report(write_run(tmp_path / "run", steps=330, epochs=30, layers=40))
    assert len(html.encode()) < 700_000


def test_the_page_of_a_large_run_stays_small(tmp_path: Path) -> None:
    methods = tuple(f"method-{at}" for at in range(8))
    run = write_run(tmp_path / "run", methods=methods, steps=400, epochs=40, layers=170)
    html, _ = report(run)
    assert len(html.encode()) < 1_000_000


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    name = f"sgd{HOSTILE}"
    run = write_run(tmp_path / "run", methods=(name, "znorm"), seeds=(0, 1), model=HOSTILE)
    summary = json.loads((run / "summary.json").read_text())
    summary["methods"]["znorm"] |= {
        "summary": HOSTILE, "paper": HOSTILE, "url": "javascript:alert(3)", "tag": HOSTILE,
    }  # fmt: skip
    summary["versions"][HOSTILE] = HOSTILE
    summary["comparisons"][0]["note"] = HOSTILE
    edit(run / "summary.json", **summary)
    edit(run / "config.json", command=HOSTILE)
    html, markdown = report(run)
    page = Page(html)
    tags = [tag for tag, _ in page.elements]
    assert "img" not in tags
    assert tags.count("script") == 3, "the data, the library and our own"
    assert not any("javascript:" in (found.get("href") or "") for _, found in page.elements)
    payload = json.loads(page.scripts[0])
    assert payload["methods"][0]["name"] == name
    assert "{{ 7*7 }}" in " ".join(page.text)
    rows = table(markdown, "Results")
    assert {len(row) for row in rows} == {4}
    assert "<img" not in re.sub(r"`+.*?`+", "", markdown.split("## How to reproduce")[0])


def test_markdown_has_the_same_tables(run: Path) -> None:
    _, markdown = report(run)
    results = table(markdown, "Results")
    assert results[0] == ["method", "test accuracy", "95 % interval", "trials"]
    assert [row[0] for row in results[2:]] == [
        "`sgd`", "`center`", "`autoscale`", "`znorm`", "`clip(max_norm=1.0)`",
    ]  # fmt: skip
    compared = table(markdown, "Against `sgd`")
    assert [row[4] for row in compared[2:]][1:3] == ["better", "worse"]
    assert {len(row) for row in compared} == {6}
    assert {len(row) for row in table(markdown, "Time and memory")} == {7}
    assert ["batch size", "128"] in table(markdown, "Settings")
    assert ["torch", "2.13.0"] in table(markdown, "Versions and machine")
    assert len(table(markdown, "The methods")) == 7
    assert "```\ngradwise compare --data digits --model resnet8 --seeds 3\n```" in markdown
    assert "**autoscale was better than sgd; znorm was worse;" in markdown


def test_a_run_without_a_summary_shows_what_there_is(run: Path) -> None:
    (run / "summary.json").unlink()
    shutil.rmtree(run / "trials/znorm-3")
    (run / "trials/center-1/seed-0/result.json").unlink()
    html, markdown = report(run)
    assert "There is no comparison yet." in html
    assert "11 of 15 trials are done" in html
    results = table(markdown, "Results")
    assert results[2][1:] == [results[2][1], "–", "3 finished"]
    assert results[2][1].startswith("9")
    assert results[3][3] == "2 finished, 1 missing"
    assert results[5][1:] == ["–", "–", "3 missing"]


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", watched=False)
    shutil.rmtree(run / "trials")
    (run / "summary.json").unlink()
    html, markdown = report(run)
    assert "0 of 15 trials are done" in html
    assert "No trial recorded its gradients" in html
    assert "No trial has ended yet" in html
    assert "15 trials" in markdown


def test_a_broken_result_is_told_and_the_rest_shown(run: Path) -> None:
    broken = run / "trials/center-1/seed-0/result.json"
    broken.write_text("{")
    (run / "trials/center-1/seed-1/result.json").write_text('{"seed": "x"}')
    html, _ = report(run)
    assert f"{broken} is damaged" in html
    assert "does not say which method and seed" in html
    assert "3 finished" in html


@pytest.mark.parametrize(
    "result",
    [
        {"history": 3},
        {
            "history": {
                "step": [1, 2],
                "test_accuracy": "x",
                "test_loss": [None],
                "train_loss": [{}],
            }
        },
        {
            "history": {"step": None},
            "status": ["finished"],
            "test_accuracy": {},
            "wall_time_s": "1",
        },
    ],
)
def test_odd_values_in_a_result_break_nothing(run: Path, result: dict[str, Any]) -> None:
    edit(run / "trials/center-1/seed-0/result.json", **result)
    edit(run / "summary.json", methods={"center": 3}, comparisons={}, versions=[], fairness=1)
    report(run)


def test_a_failed_trial(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    summary["methods"]["center"]["status"] = ["finished", "failed", "finished"]
    edit(run / "summary.json", **summary)
    (run / "trials/center-1/seed-1/result.json").unlink()
    html, markdown = report(run)
    assert "center with seed 1 failed" in html
    assert table(markdown, "Results")[3][3] == "2 finished, 1 failed"


def test_folders_outside_the_run_are_not_read(run: Path, tmp_path: Path) -> None:
    shutil.move(run / "trials/center-1/seed-0", tmp_path / "outside")
    (tmp_path / "outside/watch/run.json").write_text("{")
    summary = json.loads((run / "summary.json").read_text())
    for folder in ("../outside", str(tmp_path / "outside"), "a\0b", 7):
        summary["methods"]["center"]["folder"][0] = folder
        edit(run / "summary.json", **summary)
        html, _ = report(run)
        assert "cannot be read" not in html


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", None, "is the folder of neither a run nor a comparison"),
        ("config.json", "{", "config.json is damaged"),
        ("config.json", '{"format": 2}', "written by a newer gradwise"),
        ("config.json", '{"methods": []}', "expected methods to be a list of names"),
        ("config.json", '{"methods": ["a"], "seeds": [-1]}', "expected seeds to be a list"),
        ("config.json", '{"methods": ["a", "a"], "seeds": [1]}', "appears twice"),
        ("config.json", '{"methods": ["a"], "seeds": [1]}', "expected baseline to be one of"),
        ("summary.json", "[]", "summary.json is damaged: expected a JSON object"),
        ("summary.json", '{"format": 3}', "it has format 3, this version reads up to 1"),
    ],
)
def test_a_broken_run_gets_one_sentence(
    run: Path, name: str, content: str | None, words: str
) -> None:
    report(run)
    before = (run / "report.html").read_bytes()
    if content is None:
        (run / name).unlink()
    else:
        (run / name).write_text(content)
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        write_report(run)
    assert "\n" not in str(caught.value)
    assert (run / "report.html").read_bytes() == before


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_no_folder(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "file":
        path.write_text("")
    with pytest.raises(UserError, match=r"of a run or of a comparison, but .* (does|is) not"):
        write_report(path)


def test_a_full_disk_leaves_the_old_report(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report(run)
    before = (run / "report.html").read_bytes()

    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):  # not the user's mistake
        write_report(run)
    monkeypatch.undo()
    assert (run / "report.html").read_bytes() == before
    assert not list(run.glob(".*"))


def test_writing_again_changes_nothing(run: Path) -> None:
    assert report(run) == report(run)
