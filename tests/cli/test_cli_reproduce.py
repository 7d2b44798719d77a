"""`gradwise reproduce` on the command line: the list, a run, mistakes, a kill in the middle."""

import json
import sys

import pytest

from gradwise.reproduce import recipes

ARGUMENTS = ("online-learning", "--scale", "smoke", "--set", "seeds=[0,1,2]")


def test_the_list_has_every_recipe(gradwise):
    code, out, _ = gradwise("reproduce", "--list")
    assert code == 0
    code, told, _ = gradwise("reproduce", "--list", "--json")
    listed = {entry["name"]: entry for entry in json.loads(told)}
    assert code == 0
    assert set(listed) == set(recipes())
    for name, entry in listed.items():
        assert name in out
        assert entry["claim"] in " ".join(out.split())
        assert entry["cost"]["small_cpu"] in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "gradwise reproduce --list shows them"),
        (("onlin-learning",), "did you mean online-learning?"),
        (("online-learning", "--list"), "got both: 'online-learning'"),
        (("online-learning", "--scale", "tiny"), "expected scale to be one of smoke, small, full"),
        (("online-learning", "--set", "rounds"), "expected a setting as NAME=VALUE"),
        (("online-learning", "--set", "round=[1,2]"), "did you mean rounds?"),
        (("online-learning", "--set", "rounds=[4,2]"), "expected two or more rising rounds"),
        (("online-learning", "--jobs", "0"), "expected jobs >= 1, got jobs=0"),
        (("online-learning", "--device", "tpu"), "tpu"),
        (("autoscale-accuracy", "--scale", "small"), "with --data-dir"),
    ],
)
def test_mistakes(gradwise, here, arguments, told):
    code, out, err = gradwise("reproduce", *arguments)
    assert (code, out) == (2, "")
    assert told in err
    assert not list(here.iterdir())


def test_a_run_and_its_page(gradwise, here):
    code, out, err = gradwise("reproduce", *ARGUMENTS)
    assert code == 0
    assert "6 parts to run" in err
    folder = here / "runs/reproduce-online-learning-smoke"
    found = json.loads((folder / "results.json").read_text())
    for claim in found["claims"]:
        assert " ".join(claim["text"].split()) in " ".join(out.split())
    assert f"report: {folder.relative_to(here) / 'report.html'}" in out
    assert found["command"].startswith("gradwise reproduce online-learning --scale smoke --set")

    code, out, err = gradwise("reproduce", *ARGUMENTS, "--json")
    assert code == 0
    assert json.loads(out) == found
    assert err == ""  # nothing was left to do

    code, _, err = gradwise("reproduce", *ARGUMENTS[:3])
    assert code == 2
    assert "was made with seeds=[0, 1, 2] and this has seeds=[0, 1]" in err


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
def test_killed_and_gone_on(start, gradwise, here):
    arguments = ("reproduce", *ARGUMENTS, "--set", "rounds=[100,400]")
    killed = start(*arguments, "--out", "o", "--jobs", "1")
    killed.wait_for(lambda: list(here.glob("o/cells/*/result.json")))
    killed.popen.kill()
    killed.popen.wait(60)
    done = {path: path.stat().st_mtime_ns for path in here.glob("o/cells/*/result.json")}
    assert 1 <= len(done) < 6
    code, _, err = gradwise(*arguments, "--out", "o")
    assert code == 0
    assert "parts are there from earlier calls" in err
    assert all(path.stat().st_mtime_ns == when for path, when in done.items())
    gradwise(*arguments, "--out", "whole")
    one, other = (
        json.loads((here / f"{name}/results.json").read_text()) for name in ("o", "whole")
    )
    assert one["claims"] == other["claims"]
    assert one["tables"] == other["tables"]
