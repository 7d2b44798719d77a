"""A trial that was killed gives the numbers and the records of one that never was."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from lab_helpers import data_of, make_trial, numbers, recorded, same_tables, tiny

import gradwise.lab.worker
from gradwise.errors import UserError
from gradwise.lab import trial as trial_module
from gradwise.lab.checkpoint import load_checkpoint, save_checkpoint
from gradwise.watch.store import files as store_files

USER_MODEL = """
    import torch
    from torch import nn

    class Net(nn.Module):
        '''Draws from the global generator, and keeps a running statistic.'''

        def __init__(self, width):
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.BatchNorm1d(width))
            self.dropout = nn.Dropout(0.3)
            self.head = nn.Linear(width, 10)

        def forward(self, x):
            return self.head(self.dropout(torch.relu(self.body(x))))

    def dropping():
        return Net(32)

    def wide():
        return Net(3000)
"""


class Killed(BaseException):
    """Stands for the end of a process: nothing but `finally` runs after it."""


@pytest.fixture
def user_model(tmp_path, monkeypatch):
    (tmp_path / "resume_model.py").write_text(textwrap.dedent(USER_MODEL))
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("resume_model", None)


def run_until_done(make, moments):
    """Run a trial again and again; the k-th attempt is killed at its `moments[k]`-th event."""
    for moment in moments:
        left = iter(range(moment))

        def progress(event, left=left):
            if next(left, None) is None:
                raise Killed

        try:
            make(progress).run()
        except Killed:
            continue
    return make(lambda event: None).run()


CASES = {
    "plain": ("sgd", {}),
    "stateful transform": ("autoclip+autoscale", {"augment": "strong"}),
    "adam and warmup": ("adamw+center+zclip", {"warmup_epochs": 1.5, "schedule": "step"}),
    "fp16 that overflows": ("autoscale", {"amp": "fp16"}),
    "global generators": ("znorm", {"model": "resume_model:dropping"}),
    "every third step": ("autoscale", {"record_every": 3}),
    "no record": ("autoscale", {"record_every": 0}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_killed_trial_gives_the_same_numbers(tmp_path, monkeypatch, user_model, case):
    monkeypatch.setattr(trial_module, "REPORT_SECONDS", 0.0)  # an event a step
    method, given = CASES[case]
    settings = tiny(epochs=4, **given)

    def make(folder, progress):
        one = make_trial(folder, settings, method, seed=3, progress=progress)
        if case == "fp16 that overflows" and not (folder / "checkpoint.pt").exists():
            scaler = one.learner._scaler
            scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0**26})
        return one

    whole = make(tmp_path / "whole", lambda event: None).run()
    chance = random.Random(case)
    for attempt in range(3):
        folder = tmp_path / f"killed{attempt}"
        moments = [chance.randrange(1, 14) for _ in range(3)]
        result = run_until_done(lambda progress, at=folder: make(at, progress), moments)
        assert numbers(result) == numbers(whole), moments
        if settings.record_every:
            for expected, found in zip(recorded(tmp_path / "whole"), recorded(folder), strict=True):
                assert same_tables(expected, found), moments


def test_a_diverging_trial_that_is_killed_diverges_at_the_same_step(tmp_path, monkeypatch):
    monkeypatch.setattr(trial_module, "REPORT_SECONDS", 0.0)
    settings = tiny(epochs=6, lr=15.0, schedule="constant")
    whole = make_trial(tmp_path / "whole", settings).run()
    assert whole["status"] == "diverged"
    assert len(whole["history"]["epoch"]) >= 1  # so that there is something to resume
    after = whole["diverged_at_step"]
    make = lambda progress: make_trial(tmp_path / "killed", settings, progress=progress)  # noqa: E731
    assert numbers(run_until_done(make, [after, 1])) == numbers(whole)
    for expected, found in zip(
        recorded(tmp_path / "whole"), recorded(tmp_path / "killed"), strict=True
    ):
        assert same_tables(expected, found)


@pytest.mark.parametrize("at", ["checkpoint.pt", "result.json"])
@pytest.mark.parametrize("moment", ["written", "renamed"])
def test_killed_while_a_file_is_written(tmp_path, monkeypatch, at, moment):
    whole = make_trial(tmp_path / "whole").run()
    real = os.replace
    left = iter([False, True] if at == "checkpoint.pt" else [True])

    def replace(source, target):
        fatal = Path(target).name == at and next(left, False)
        if fatal and moment == "written":
            raise Killed
        real(source, target)
        if fatal:
            raise Killed

    monkeypatch.setattr(store_files.os, "replace", replace)
    with pytest.raises(Killed):
        make_trial(tmp_path / "killed").run()
    monkeypatch.undo()
    assert numbers(make_trial(tmp_path / "killed").run()) == numbers(whole)
    left = {path.name for path in (tmp_path / "killed").iterdir()}
    assert left == {"result.json", "watch"}


# Checkpoints that are no good


def begun(folder, settings=None, method="sgd", seed=0):
    """A trial that was killed after its first epoch; returns its checkpoint."""

    def progress(event):
        if event["event"] == "step" and event["step"] > 4:
            raise Killed

    with pytest.raises(Killed):
        make_trial(folder, settings or tiny(), method, seed, progress=progress).run()
    return folder / "checkpoint.pt"


@pytest.mark.parametrize("size", [0, 1, 100, 3000])
def test_a_torn_checkpoint_costs_time_but_not_the_trial(tmp_path, size):
    whole = make_trial(tmp_path / "whole").run()
    checkpoint = begun(tmp_path / "torn")
    checkpoint.write_bytes(checkpoint.read_bytes()[:size])
    events = []
    result = make_trial(tmp_path / "torn", progress=events.append).run()
    assert numbers(result) == numbers(whole)
    assert same_tables(recorded(tmp_path / "whole")[0], recorded(tmp_path / "torn")[0])
    notes = [event["text"] for event in events if event["event"] == "note"]
    assert notes == ["begins anew, because checkpoint.pt is damaged"]


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"method": "znorm"}, "method"),
        ({"seed": 7}, "seed"),
        ({"settings": tiny(lr=0.2)}, "settings"),
        ({"settings": tiny(limit_test=60)}, "settings"),
    ],
)
def test_a_foreign_checkpoint_is_not_gone_on_from(tmp_path, other, told):
    whole = make_trial(tmp_path / "whole").run()
    begun(tmp_path / "mixed", **other)
    events = []
    result = make_trial(tmp_path / "mixed", progress=events.append).run()
    assert numbers(result) == numbers(whole)
    assert same_tables(recorded(tmp_path / "whole")[0], recorded(tmp_path / "mixed")[0])
    (note,) = [event["text"] for event in events if event["event"] == "note"]
    assert f"its {told} is not this one's" in note


def test_a_checkpoint_that_lacks_something_is_not_gone_on_from(tmp_path):
    whole = make_trial(tmp_path / "whole").run()
    checkpoint = begun(tmp_path / "part")
    values = torch.load(checkpoint, weights_only=True)
    del values["history"], values["format"]
    save_checkpoint(checkpoint, values)
    events = []
    result = make_trial(tmp_path / "part", progress=events.append).run()
    assert numbers(result) == numbers(whole)
    assert any("begins anew" in event.get("text", "") for event in events)


def test_a_checkpoint_is_data_and_never_code(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    path = tmp_path / "checkpoint.pt"
    torch.save({"format": 1, "weights": Hostile()}, path)
    with pytest.raises(UserError, match=r"checkpoint\.pt is damaged"):
        load_checkpoint(path, torch.device("cpu"), {})
    assert not (tmp_path / "executed").exists()


def test_a_checkpoint_of_another_format_is_refused(tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save({"format": 99}, path)
    with pytest.raises(UserError, match="not of format 1"):
        load_checkpoint(path, torch.device("cpu"), {})


def test_a_checkpoint_that_may_not_be_read_is_not_thrown_away(tmp_path):
    (tmp_path / "checkpoint.pt").mkdir()
    with pytest.raises(OSError, match="checkpoint"):
        load_checkpoint(tmp_path / "checkpoint.pt", torch.device("cpu"), {})


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, {"step": 1})

    def full(fd, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store_files, "write_all", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(path, {"step": 2})
    assert load_checkpoint(path, torch.device("cpu"), {})["step"] == 1
    assert [one.name for one in tmp_path.iterdir()] == ["checkpoint.pt"]


# Records that are no good


@pytest.mark.parametrize("damage", ["gone", "torn"])
def test_a_record_that_is_lost_begins_anew_and_says_so(tmp_path, damage):
    whole = make_trial(tmp_path / "whole").run()
    begun(tmp_path / "lost")
    run_file = tmp_path / "lost" / "watch" / "run.json"
    run_file.unlink() if damage == "gone" else run_file.write_text("{")
    events = []
    result = make_trial(tmp_path / "lost", progress=events.append).run()
    assert numbers(result) == numbers(whole)
    assert recorded(tmp_path / "lost")[0]["step"].to_pylist() == list(range(4, 12))
    (note,) = [event["text"] for event in events if event["event"] == "note"]
    assert "its record begins anew at step 4" in note


# Processes


def start(folder, settings, method, seed):
    folder.mkdir(exist_ok=True)
    spec = {
        "settings": settings.to_dict(),
        "method": method,
        "seed": seed,
        "folder": str(folder),
        "dataset": data_of(settings).fingerprint,
    }
    (folder / "trial.json").write_text(json.dumps(spec))
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [
                sys.executable,
                "-P",
                gradwise.lab.worker.__file__,
                str(folder / "trial.json"),
                gradwise.lab.worker.TASK,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )


def finish(process):
    with process:
        events = [json.loads(line) for line in process.stdout]  # its standard input stays open
        assert process.wait(60) == 0
    return events


@pytest.mark.slow
def test_a_process_killed_several_times(tmp_path, user_model):
    """SIGKILL at random moments of the training, and while a checkpoint is being written."""
    settings = tiny(model="resume_model:wide", epochs=60, amp="bf16")
    whole = start(tmp_path / "whole", settings, "autoscale", 5)
    killed = tmp_path / "killed"
    chance = random.Random(0)
    kills = []
    for attempt in range(5):
        process = start(killed, settings, "autoscale", 5)
        assert process.stdout is not None
        process.stdout.readline()  # it trains
        draft = killed / ".checkpoint.pt.tmp"
        end = time.monotonic() + chance.uniform(0.05, 0.6)
        if attempt % 2:  # in the middle of a checkpoint
            deadline = time.monotonic() + 10
            while not draft.exists() and time.monotonic() < deadline:
                pass
        else:
            time.sleep(max(0.0, end - time.monotonic()))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        kills.append((process.returncode, draft.exists()))
    assert [code for code, _ in kills] == [-signal.SIGKILL] * 5
    assert any(half for _, half in kills)
    finish(start(killed, settings, "autoscale", 5))
    finish(whole)
    expected = json.loads((tmp_path / "whole" / "result.json").read_text())
    found = json.loads((killed / "result.json").read_text())
    assert numbers(found) == numbers(expected)
    for left, right in zip(recorded(tmp_path / "whole"), recorded(killed), strict=True):
        assert same_tables(left, right)
    assert not list(killed.glob(".*.tmp"))


@pytest.mark.slow
def test_a_process_waits_for_an_orphan_to_leave_the_folder(tmp_path):
    folder = tmp_path / "trial"
    folder.mkdir()
    import fcntl

    with (folder / ".lock").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        process = start(folder, tiny(epochs=1), "sgd", 0)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(8)
        assert not (folder / "result.json").exists()
    assert finish(process)[-1] == {"event": "done", "status": "finished"}
