"""`gradwise doctor --run`: a stored run, explained."""

import json
import logging

import numpy as np
import pytest
from cli_helpers import TINY
from rules_streams import block, healthy, stored, troubled, whole

from gradwise.watch.alerts import Alert, AlertJournal


@pytest.fixture
def run(here):
    """A run with an explosion, a dead layer and an overflow."""
    stored(here / "runs/a", troubled())
    return "runs/a"


def test_explains_what_it_finds(gradwise, run):
    code, out, err = gradwise("doctor", "--run", run)
    flat = " ".join(out.split())
    assert code == 0  # warnings are no errors
    assert err == ""
    assert "runs/a: a run, 6 layers, 1,000 records, steps 0 to 999, closed in good order." in flat
    assert "warning exploding, from step 300 to 320: the gradient's norm rose to" in flat
    assert "People lower the learning rate" in flat
    assert "warning non-finite, from step 800 to 801: the gradient was not finite in" in flat
    assert "warning dead, from step 600 to the end: the gradient of 'layer2.weight' was" in flat
    assert "Nothing to report from: vanishing, frozen," in flat
    assert flat.endswith("In all: 3 warnings.")


def test_as_json(gradwise, run):
    code, out, _ = gradwise("doctor", "--run", run, "--json")
    facts = json.loads(out)
    assert code == 0
    assert (facts["worst"], facts["records"], facts["layers"]) == ("warning", 1000, 6)
    assert [(a["rule"], a["step"], a["ended"]) for a in facts["alerts"]] == [
        ("exploding", 300, 320),
        ("dead", 600, None),
        ("non-finite", 800, 801),
    ]
    assert "vanishing" in facts["judged"]
    assert facts["not_judged"] == {}
    assert facts["damaged"] == []
    for alert in facts["alerts"]:
        assert alert["message"]
        assert alert["advice"]


def test_an_error_is_told_by_the_exit_code(gradwise, here):
    stream = troubled()
    stream.layers["nonfinite"][900:, 3] = 1
    stored(here / "a", stream)
    code, out, _ = gradwise("doctor", "--run", "a")
    assert code == 1
    assert "1 error and 4 warnings" in " ".join(out.split())
    assert out.index("error  non-finite") < out.index("warning  exploding")
    assert gradwise("doctor", "--run", "a", "--json")[0] == 1


def test_nothing_to_tell(gradwise, here):
    layers = healthy(300)
    stored(here / "a", block(layers, {"grad_norm": whole(layers["norm"])}))
    code, out, _ = gradwise("doctor", "--run", "a")
    assert code == 0
    assert out.rstrip().endswith("In all: nothing out of the ordinary.")


def test_metrics_that_were_not_recorded(gradwise, here):
    stored(here / "a", block({"norm": healthy(300)["norm"]}))
    _, out, _ = gradwise("doctor", "--run", "a")
    told = "Not judged, since update_ratio was not recorded: large-updates, small-updates."
    assert told in " ".join(out.split())


def test_an_open_run_and_an_empty_one(gradwise, here):
    stored(here / "a", troubled(900), close=False)
    stored(here / "b", block({"norm": np.zeros((0, 2))}, names=("x", "y"), steps=[]))
    assert "still being written, or broken off" in " ".join(
        gradwise("doctor", "--run", "a")[1].split()
    )
    code, out, _ = gradwise("doctor", "--run", "b")
    assert (code, out.split(":")[1].strip()) == (0, "a run of 2 layers, nothing is recorded yet.")


def test_a_damaged_file(gradwise, run, here):
    [part] = sorted((here / run / "layers").glob("*.parquet"))
    part.write_bytes(part.read_bytes()[:-50])
    code, out, err = gradwise("doctor", "--run", run)
    assert code == 0
    assert err == ""
    assert "nothing of it can be read" in out
    assert f"{part.name} is damaged and was left out." in out.replace("\n", "")
    facts = json.loads(gradwise("doctor", "--run", run, "--json")[1])
    assert [path.split("/")[-1] for path in facts["damaged"]] == [part.name]


@pytest.mark.parametrize("make", ["none", "file", "empty", "other", "json"])
def test_no_such_run(gradwise, here, make):
    path = here / "a"
    if make == "file":
        path.write_text("")
    elif make != "none":
        path.mkdir()
        (path / "run.json").write_text("{}") if make == "json" else None
        (path / "notes.txt").write_text("") if make == "other" else None
    code, out, err = gradwise("doctor", "--run", "a")
    assert (code, out) == (2, "")
    assert err.startswith("gradwise: a is not a run folder: ")
    assert err.count("\n") == 1


def test_the_folder_of_a_comparison_is_one_sentence(gradwise, inline, here):
    gradwise("compare", *TINY, "--methods", "sgd,autoscale", "--seeds", "1", "--out", "o")
    code, out, err = gradwise("doctor", "--run", "o")
    assert (code, out) == (2, "")
    one = "o/trials/autoscale/seed-0/watch"
    assert err == (
        f"gradwise: o is the folder of a comparison: name one of its 2 runs, such as {one}\n"
    )
    code, out, _ = gradwise("doctor", "--run", one)
    assert code == 0
    assert "a run of " in out


def test_not_with_data(gradwise, run, here):
    code, _, err = gradwise("doctor", "--run", run, "--data-dir", here)
    assert code == 2
    assert "expected --run or --data-dir, got both" in err


def test_names_that_a_terminal_would_obey(gradwise, here):
    evil = "\x1b[2Jevil"
    layers = healthy(200, layers=2)
    layers["norm"][50:, 1], layers["zeros"][50:, 1] = 0.0, 1.0
    stored(here / "a", block(layers, names=("fine", evil)))
    with AlertJournal(here / "a") as journal:
        journal.write(Alert("my\x1b[1m", 3, evil, 1.0, evil, evil, "warning"))
    for arguments in ([], ["--json"]):
        _, out, _ = gradwise("doctor", "--run", "a", *arguments)
        assert "evil" in out
        assert "\x1b" not in out


def test_many_alerts_of_a_kind(gradwise, here):
    stored(here / "a", block({"norm": healthy(60)["norm"]}))
    with AlertJournal(here / "a") as journal:
        for step in range(30):
            journal.write(Alert("mine", step, None, 1.0, f"number {step}.", "Do so.", "warning"))
    _, out, _ = gradwise("doctor", "--run", "a")
    assert "number 7." in out
    assert "number 8." not in out
    assert "... and 22 more of this kind" in out
    assert out.count("Do so.") == 1
    assert "30 warnings" in out


def test_nothing_is_logged_or_changed(gradwise, run, here, caplog):
    before = {path: path.read_bytes() for path in (here / run).rglob("*") if path.is_file()}
    with caplog.at_level(logging.WARNING):
        gradwise("doctor", "--run", run)
    assert caplog.records == []
    assert {p: p.read_bytes() for p in (here / run).rglob("*") if p.is_file()} == before
