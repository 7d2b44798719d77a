"""Processes that die, that cannot be started with, and that outlive whoever started them."""

import json
import os
import subprocess
import sys
import textwrap
import time

import pytest
from lab_helpers import make_trial, numbers, tiny

import gradwise.lab.process as process_module
from gradwise.lab import worker
from gradwise.lab.compare import compare_methods
from gradwise.lab.job import Job
from gradwise.lab.runner import _ended

# What a user's module may do to the process it is in; a file `calm` makes it behave.
USER = """
    import os, signal, sys, time
    from pathlib import Path
    import torch
    from torch import nn

    SPEC = " ".join(sys.argv[1:2])  # a worker's first argument: its trial's file

    def load():
        import helper_of_mine  # found in the current directory, like this module
        print("loading", end="")
        if SPEC.endswith("trial.json"):
            Path("paths").write_text("\\n".join(sys.path))
        os.write(1, b'{"event": "error", "message": "a lie"}\\n')
        torch.manual_seed(0)
        x, y = torch.randn(96, 8), torch.arange(96) % 4
        return x[:64], y[:64], x[64:], y[64:]

    class Net(nn.Linear):
        def forward(self, x):
            import late_import_of_mine
            if self.training and not Path("calm").exists():
                if "seed-1" in SPEC:
                    os.abort()
                if "seed-2" in SPEC:
                    os.kill(os.getpid(), signal.SIGKILL)
                if "seed-3" in SPEC:
                    raise RuntimeError("no such luck\\nand more")
                if "seed-4" in SPEC:
                    sys.exit(0)
                if "seed-5" in SPEC and os.fork() == 0:
                    time.sleep(600)  # a child that holds on to all that was open
            return super().forward(x)

    def net(num_classes, in_shape):
        print("building")
        assert "trial.json" not in SPEC or sys.stdin.read() == ""
        return Net(in_shape[0], num_classes)
"""


@pytest.fixture
def user_folder(tmp_path, monkeypatch):
    (tmp_path / "user_of_runner.py").write_text(textwrap.dedent(USER))
    (tmp_path / "helper_of_mine.py").write_text("")
    (tmp_path / "late_import_of_mine.py").write_text("")
    # Whoever keeps a file called like a standard module must not break what needs that module.
    for name in ("random", "queue", "json", "types"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('the file of the user')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])  # as the command line does
    yield tmp_path
    for name in ("user_of_runner", "helper_of_mine", "late_import_of_mine"):
        sys.modules.pop(name, None)


def identity(path):
    stat = path.stat()
    return stat.st_ino, stat.st_mtime_ns


def processes_with(text):
    """Ids of processes whose command line holds a text."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/cmdline", "rb") as file:
                    if text.encode() in file.read():
                        found.append(int(entry))
            except OSError:
                continue
    return [pid for pid in found if pid != os.getpid()]


def soon(condition, seconds=60.0):
    """Whether something comes true while one waits: a killed process takes a moment to be gone."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_death_of_one_stops_no_other_and_only_the_dead_are_tried_again(user_folder, capfd):
    from gradwise.lab.settings import Settings

    settings = Settings(
        data="user_of_runner:load",
        model="user_of_runner:net",
        epochs=2,
        batch_size=16,
        augment="none",
        device="cpu",
    )
    out = user_folder / "out"
    seeds = [0, 1, 2, 3, 4, 5]
    events = []

    def again():
        return compare_methods(
            settings,
            ["sgd"],
            seeds,
            out,
            jobs=3,
            listen=lambda job, event: events.append((job.seed, event["event"])),
        )

    began = time.monotonic()
    summary = again()
    assert time.monotonic() - began < 550  # nobody waited for the child of seed 5
    status = dict(zip(seeds, summary["methods"]["sgd"]["status"], strict=True))
    assert status == {
        0: "finished",
        1: "failed",
        2: "failed",
        3: "failed",
        4: "failed",
        5: "finished",
    }
    assert summary["finished"] is False
    reasons = summary["methods"]["sgd"]["failures"]
    assert reasons["1"] == "its process was ended by SIGABRT"
    assert reasons["2"] == "its process was ended by SIGKILL, by hand or for lack of memory"
    assert reasons["3"] == "RuntimeError: no such luck"
    assert reasons["4"] == "its process ended with exit code 0"
    folders = {seed: out / "trials" / "sgd" / f"seed-{seed}" for seed in seeds}
    failure = json.loads((folders[3] / "failure.json").read_text())
    assert failure["reason"] == reasons["3"]
    assert failure["exit_code"] == 1
    assert "Traceback" in failure["log"]
    assert "no such luck" in failure["log"]
    assert "building" in failure["log"]  # what the user's code prints is kept
    assert json.loads((folders[1] / "failure.json").read_text())["exit_code"] == -6
    assert soon(lambda: processes_with(str(out)) == [])  # nor did that child stay
    assert summary["methods"]["sgd"]["test_accuracy"]["values"][1] is None

    paths = (user_folder / "paths").read_text().splitlines()
    assert paths[0] == paths[-1] == str(user_folder)  # first while the user's code is loaded
    assert os.path.dirname(worker.__file__) not in paths  # it holds modules named like others

    kept = {seed: identity(folders[seed] / "result.json") for seed in (0, 5)}
    (user_folder / "calm").touch()
    events.clear()
    summary = again()
    assert summary["finished"] is True
    assert {seed for seed, kind in events if kind == "start"} == {1, 2, 3, 4}
    assert {seed: identity(folders[seed] / "result.json") for seed in (0, 5)} == kept
    assert not list(out.rglob("failure.json"))
    # Processes, their number and their accidents change no number.
    for seed in seeds:
        alone = make_trial(user_folder / f"alone{seed}", settings, "sgd", seed).run()
        assert numbers(json.loads((folders[seed] / "result.json").read_text())) == numbers(alone)


@pytest.mark.slow
def test_data_that_changes_from_call_to_call_is_told(tmp_path, monkeypatch):
    (tmp_path / "random_data_of_user.py").write_text(
        "import torch\n"
        "def load():\n"
        "    torch.seed()\n"
        "    y = torch.arange(64) % 4\n"
        "    return torch.randn(64, 8), y, torch.randn(64, 8), y\n"
    )
    monkeypatch.chdir(tmp_path)
    settings = tiny(
        data="random_data_of_user:load", limit_train=None, limit_test=None, augment="none"
    )
    summary = compare_methods(settings, ["sgd"], [0], tmp_path / "out")
    sys.modules.pop("random_data_of_user")
    assert summary["methods"]["sgd"]["status"] == ["failed"]
    assert (
        "gave other rows than when the comparison began"
        in (summary["methods"]["sgd"]["failures"]["0"])
    )


# The process of a trial, in parts


def test_a_full_disk_in_a_trial_ends_the_job(tmp_path):
    dead = object.__new__(process_module.JobProcess)
    dead.job = Job("sgd", 0, tmp_path)
    dead.error = {"event": "error", "message": "No space left on device: x", "errno": 28}
    with pytest.raises(OSError, match="No space left"):
        _ended(dead)
    assert not (tmp_path / "failure.json").exists()


def test_a_failure_keeps_the_end_of_this_attempts_log(tmp_path):
    class Done:
        pid = 1

        def wait(self):
            return 1

    process = object.__new__(process_module.JobProcess)
    process.job, process.error, process._process = Job("sgd", 0, tmp_path), None, Done()
    process.log = tmp_path / "log.txt"
    earlier = b"of an earlier attempt\n"
    process.log.write_bytes(earlier + b"x" * 50_000 + b"\xff the end")
    process._log_begins = len(earlier)
    failure = process.failure()
    assert failure["reason"] == "its process ended with exit code 1"
    assert failure["log"].endswith("the end")
    assert len(failure["log"]) == process_module.LOG_TAIL
    process.log.write_bytes(earlier + b"short")
    assert process.failure()["log"] == "short"


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (
            OSError(28, "No space left on device", "/a/b"),
            1,
            {"message": "No space left on device: /a/b", "errno": 28},
        ),
        (RuntimeError("first\nsecond"), 1, {"message": "RuntimeError: first"}),
        (RuntimeError(), 1, {"message": "RuntimeError: no message"}),
        (MemoryError(), 1, {"message": "MemoryError: no message"}),
    ],
)
def test_what_a_process_tells_of_its_failure(monkeypatch, error, code, told, tmp_path):
    def fail(spec, emit):
        raise error

    monkeypatch.setattr(worker, "run", fail)
    monkeypatch.setattr(worker, "_prepare", lambda: None)
    events = []
    assert worker.main([str(tmp_path), worker.TASK], events.append) == code
    assert events == [{"event": "error", **told}]


def test_a_specification_that_is_no_good(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "_prepare", lambda: None)
    events = []
    assert worker.main([str(tmp_path / "none.json"), worker.TASK], events.append) == 2
    assert "none.json cannot be read" in events[0]["message"]


CHILD = """
    import sys, time
    sys.path.insert(0, {house!r})
    from gradwise.lab.lifeline import Lifeline
    line = Lifeline()
    print("to the log")
    line.emit({{"event": "ready", "stdin": sys.stdin.read()}})
    for _ in range(600):
        time.sleep(0.1)
        {more}
"""


def child(more=""):
    house = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(worker.__file__))))
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD.format(house=house, more=more))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


@pytest.mark.slow
def test_a_process_ends_when_the_one_that_started_it_does():
    with child() as process:
        assert json.loads(process.stdout.readline()) == {"event": "ready", "stdin": ""}
        time.sleep(0.5)
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(5) == -9
        assert process.stderr.read() == b"to the log\n"


@pytest.mark.slow
def test_a_process_ends_when_nobody_listens():
    with child('line.emit({"event": "step"})') as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(10) == -9
