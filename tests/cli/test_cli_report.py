"""`gradwise report` on watched runs: one, two, a mixture, and a disk that is full."""

import errno
import json
import os

import numpy as np
import pytest

from gradwise.watch.store import RunWriter


@pytest.fixture
def runs(here):
    for name in ("a", "b"):
        with RunWriter(here / name, ["w"], layer_metrics=["norm"]) as writer:
            writer.append(np.arange(5), {"norm": np.ones((5, 1))}, {"loss": np.ones(5)})
    return here


def test_one_run(gradwise, runs):
    code, out, err = gradwise("report", "a")
    assert (code, out.splitlines(), err) == (0, ["a/report.html", "a/report.md"], "")
    assert (runs / "a/report.html").stat().st_size > 10_000


def test_two_runs_and_where_the_page_went(gradwise, runs):
    code, out, _ = gradwise("report", "a", "b", "--json")
    assert code == 0
    assert json.loads(out) == {"pages": ["a/report-a-b.html", "a/report-a-b.md"]}
    code, out, _ = gradwise("report", "a", "b", "--out", "page.html")
    assert (code, out.splitlines()) == (0, ["page.html", "page.md"])
    assert (runs / "page.md").exists()


def test_mistakes_are_one_sentence(gradwise, runs):
    (runs / "compare").mkdir()
    (runs / "compare/config.json").write_text("{}")
    for arguments in (
        ("a", "compare"), ("a", "none"), ("a", "a"), (), ("a", "--out", "page"), ("compare",),
    ):  # fmt: skip
        code, out, err = gradwise("report", *arguments)
        assert code == 2
        assert out == ""
        assert err.strip()
        assert arguments == () or len(err.splitlines()) == 1
    assert not list(runs.glob("**/report*"))


def test_a_full_disk_is_no_mistake(gradwise, runs, monkeypatch):
    def full(fd, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        code, out, err = gradwise("report", "a")
    assert (code, out) == (1, "")
    assert "the disk is full" in err
    assert not list((runs / "a").glob(".report*"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_of_somebody_else(gradwise, runs):
    (runs / "a").chmod(0o555)
    code, _out, err = gradwise("report", "a")
    (runs / "a").chmod(0o755)
    assert code == 2
    assert "--out FILE.html puts it elsewhere" in err
