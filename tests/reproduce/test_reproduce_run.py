"""Running recipes: cells, resuming, refusing, and what is written."""

import json
import re

import pytest

from gradwise.errors import UserError
from gradwise.reproduce import plan, reproduce


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def test_the_whole_way(doubling, out):
    events = []
    found = reproduce(
        "doubling", scale="smoke", out=out, jobs=0,
        listen=lambda job, event: events.append((job.label, event["event"])),
    )  # fmt: skip
    assert found["verdict"] == "inconclusive at this scale"  # gains 1 and 1.5: 1.25 +- 3.2
    assert found["cells"]["seed=1"] == {"gain": 1.5, "odd": None}
    assert [label for label, kind in events if kind == "done"] == ["seed=0", "seed=1"]
    kept = json.loads((out / "results.json").read_text())
    assert {**kept, "cells": found["cells"]} == found
    assert kept["settings"]["seeds"] == [0, 1]
    assert "data_dir" not in kept["settings"]
    assert (out / "gains.svg").read_bytes().startswith(b"<?xml")


def test_more_seeds_tell_more(doubling, tmp_path):
    found = reproduce(
        "doubling", scale="small", out=tmp_path / "a", jobs=0, overrides={"factor": 20}
    )
    assert found["verdict"] == "reproduced"
    assert found["settings"]["factor"] == 20.0
    assert found["changed"] == ["factor"]
    less = reproduce(
        "doubling", scale="small", out=tmp_path / "b", jobs=0, overrides={"factor": -20.0}
    )
    assert less["verdict"] == "not reproduced"


def test_what_is_done_is_not_done_again(doubling, out):
    doubling.fail_at = 1
    with pytest.raises(KeyboardInterrupt):
        reproduce("doubling", out=out, jobs=0)
    doubling.fail_at = None
    kept = []
    reproduce(
        "doubling", out=out, jobs=0,
        listen=lambda job, event: kept.append(job.label) if event["event"] == "kept" else None,
    )  # fmt: skip
    assert doubling.ran == [0, 1, 2]
    assert kept == ["seed=0"]
    (out / "cells/seed=2/result.json").write_text('{"torn":')
    reproduce("doubling", out=out, jobs=0)
    assert doubling.ran == [0, 1, 2, 2]


def test_a_folder_belongs_to_one_run(doubling, out, tmp_path):
    reproduce("doubling", out=out, jobs=0)
    before = (out / "results.json").read_bytes()
    with pytest.raises(UserError, match=r"holds scale 'small', not 'smoke'"):
        reproduce("doubling", out=out, jobs=0, scale="smoke")
    with pytest.raises(UserError, match=r"was made with factor=2.0 and this has factor=3.0"):
        reproduce("doubling", out=out, jobs=0, overrides={"factor": 3})
    assert (out / "results.json").read_bytes() == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("all of it")
    with pytest.raises(UserError, match=r"no folder of gradwise reproduce .*'thesis.tex'"):
        reproduce("doubling", out=tmp_path / "mine", jobs=0)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"scale": "tiny"}, "expected scale to be one of smoke, small, full, got 'tiny'"),
        ({"overrides": {"facto": 3}}, "got 'facto', did you mean factor?"),
        ({"overrides": {"factor": "x"}}, "expected factor to be a number like 2.0, got factor='x'"),
        ({"overrides": {"bias": 1}}, "expected bias to be a truth value like False, got bias=1"),
        ({"overrides": {"factor": True}}, "expected factor to be a number"),
        ({"overrides": {"seeds": 1}}, "expected seeds to be a list"),
        ({"scale": "full"}, "reads cifar10: name the folder that holds it with --data-dir"),
        ({"jobs": -1}, "expected jobs >= 0, got jobs=-1"),
        ({"overrides": {"seeds": [0, 0]}}, "a name of its own, got 'seed=0' twice"),
        ({"device": "cuda:99"}, "cuda"),
    ],
)
def test_mistakes(doubling, out, arguments, told):
    with pytest.raises(UserError, match=re.escape(told)):
        reproduce("doubling", **{"out": out, **arguments})
    assert not out.exists()


def test_no_such_recipe():
    with pytest.raises(UserError, match=r"got 'doublin'"):
        plan("doublin")


def test_the_pages_say_it(doubling, out):
    reproduce("doubling", scale="smoke", out=out, jobs=0, overrides={"factor": 3.0})
    html, words = (out / "report.html").read_text(), (out / "report.md").read_text()
    assert "Doubling &lt;doubles&gt;" in html
    assert "<doubles>" not in html
    assert "data:image/svg+xml;base64," in html
    assert "script-src &#39;none&#39;" in html
    assert "<script" not in html
    assert 'width="840"' in html  # 7.2 inches, a page
    for page in (html, words):
        for told in ("inconclusive at this scale", "half of four", "Changed by hand"):
            assert told in page
    assert "![Two rising lines.](gains.svg)" in words
    assert "<https://example.org/a_b>" in words
    assert "--set factor=3.0" in words


def test_the_same_run_draws_the_same_picture(doubling, tmp_path):
    for name in "ab":
        reproduce("doubling", scale="smoke", out=tmp_path / name, jobs=0)
    first, second = ((tmp_path / name / "gains.svg").read_bytes() for name in "ab")
    assert first == second
