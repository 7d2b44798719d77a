"""Trials under torch.compile, with the compiler itself: same numbers again, nothing compiled twice.

Models are tiny, because the compiler takes seconds for each pass over any model.
"""

import json
import os
import queue
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from compile_facts import small
from lab_helpers import data_of, make_trial, numbers, recorded, same_tables, tiny

from gradwise.errors import UserError
from gradwise.lab import compare as compare_module
from gradwise.lab import compiled as compiled_module
from gradwise.lab import trial as trial_module
from gradwise.lab.compare import compare_methods
from gradwise.lab.compiled import Compiled, filled
from gradwise.lab.job import Job
from gradwise.lab.process import trial_process
from gradwise.lab.settings import Settings

# What importing the compiler, and running it on this version of Python, may bring up.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")

USER_MODEL = """
    import torch
    from torch import nn

    class Net(nn.Module):
        '''All that tells one pass from another: statistics of batches, masks, modes.'''

        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8))
            self.dropout = nn.Dropout(0.3)
            self.head = nn.Linear(8, 10)

        def forward(self, x):
            return self.head(self.dropout(torch.relu(self.body(x))))

    def dropping():
        return Net()
"""


@pytest.fixture(autouse=True)
def compiler(tmp_path, monkeypatch):
    """A compiler that has compiled nothing, and a model for it."""
    (tmp_path / "compile_model.py").write_text(textwrap.dedent(USER_MODEL))
    monkeypatch.chdir(tmp_path)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    sys.modules.pop("compile_model", None)


class Killed(BaseException):
    """Stands for the end of a process."""


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    """What `compile_facts.py` found out."""
    folder = tmp_path_factory.mktemp("facts")
    (folder / "compile_model.py").write_text(textwrap.dedent(USER_MODEL))
    script = Path(__file__).with_name("compile_facts.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, str(script), str(folder)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_everything_is_compiled_before_the_first_step_and_nothing_afterwards(facts):
    once = facts["once"]
    assert once["compiled"]
    assert once["untouched"]  # a rehearsal, no more
    # One graph to train and one to evaluate, and the same after two epochs of both.
    assert once["before"] == once["after"] == {"graphs": 2, "breaks": 0}
    # 102 of 128 rows in batches of 32, 150 test rows and 26 held out in batches of 64.
    assert once["ran"] == (["loss"] * 3 + ["outputs"] * (3 + 1)) * 2
    assert once["status"] == "finished"
    assert once["evaluated"] == pytest.approx(once["expected"], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sgd", "implicitsgd"])
def test_compiled_and_not_agree_but_for_rounding(facts, method):
    compiled, eager = facts[method]
    assert compiled["compiled"] is True
    assert "compiled" not in eager
    assert compiled["init_checksum"] == eager["init_checksum"]
    assert compiled["batches_checksum"] == eager["batches_checksum"]
    losses = [result["history"]["train_loss"] for result in (compiled, eager)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert compiled["test_loss"] == pytest.approx(eager["test_loss"], rel=1e-3)


@pytest.mark.slow
def test_a_killed_process_gives_the_numbers_of_a_whole_one(tmp_path):
    """With real processes, each of which generates its code for itself."""
    settings = small(epochs=40, record_every=1)
    fingerprint = data_of(settings).fingerprint

    def run(name, until=None):
        job, events = Job("autoscale", 3, tmp_path / name), queue.Queue()
        anew = {"TORCHINDUCTOR_FX_GRAPH_CACHE": "0", "TORCHINDUCTOR_AUTOGRAD_CACHE": "0"}
        process = trial_process(job, settings, fingerprint, events, anew)
        while (event := events.get(timeout=300)[1]) is not None:
            if event["event"] == "epoch" and event["epoch"] == until:
                process.kill()
        process.wait()
        return job.result(), process.error

    whole, error = run("whole")
    assert error is None
    assert whole["compiled"] is True
    assert run("killed", until=5) == (None, None)
    assert (tmp_path / "killed" / "checkpoint.pt").exists()
    result, error = run("killed")
    assert error is None
    assert "begins anew" not in (tmp_path / "killed" / "log.txt").read_text()
    assert numbers(result) == numbers(whole)
    for expected, found in zip(
        recorded(tmp_path / "whole"), recorded(tmp_path / "killed"), strict=True
    ):
        assert same_tables(expected, found)


@pytest.mark.slow
def test_a_killed_trial_gives_the_numbers_of_a_whole_one(tmp_path, monkeypatch):
    monkeypatch.setattr(trial_module, "REPORT_SECONDS", 0.0)
    settings = small(amp="bf16", augment="strong")
    whole = make_trial(tmp_path / "whole", settings, "autoscale", seed=3).run()
    assert whole["compiled"] is True
    assert whole["status"] == "finished"

    def until(step):
        def progress(event):
            if event["event"] == "step" and event["step"] == step:
                raise Killed

        return progress

    torch._dynamo.reset()  # as in a process of its own
    for step in (6, 10):
        with pytest.raises(Killed):
            make_trial(
                tmp_path / "killed", settings, "autoscale", seed=3, progress=until(step)
            ).run()
    result = make_trial(tmp_path / "killed", settings, "autoscale", seed=3).run()
    assert numbers(result) == numbers(whole)


# Where there is nothing to compile with


def broken(self, loss, outputs, device, threads, *, graphs):
    def fail(*args):
        with torch.no_grad():
            for _ in range(3):
                loss(*args)  # it may get as far as that
        raise RuntimeError("no compiler\nfound anywhere")

    self._loss = self._outputs = fail


def test_without_a_compiler_a_trial_runs_as_it_would_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(Compiled, "__init__", broken)
    events = []
    found = make_trial(tmp_path / "fallen", small(), progress=events.append).run()
    expected = make_trial(tmp_path / "eager", small(compile=False)).run()
    notes = [event for event in events if event["event"] == "note"]
    text = "runs without torch.compile, because no compiler"
    assert notes == [{"event": "note", "text": text, "once": True}]
    assert found.pop("compiled") is False
    assert numbers(found) == numbers(expected)


def test_an_optimizer_that_differentiates_by_itself_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(Compiled, "__init__", broken)
    events = []
    result = make_trial(
        tmp_path, small(model="mlp", epochs=1), "ring", progress=events.append
    ).run()
    assert result["compiled"] is False
    (note,) = [event["text"] for event in events if event["event"] == "note"]
    assert note.endswith("because its optimizer differentiates the loss itself")


def test_a_device_that_is_full_is_no_reason_to_go_on_without(tmp_path, monkeypatch):
    def full(self, *args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Compiled, "rehearse", full)
    with pytest.raises(torch.OutOfMemoryError):
        make_trial(tmp_path, small()).run()


def test_a_trial_does_not_go_on_compiled_from_one_that_was_not(tmp_path, monkeypatch):
    def stop(event):
        if event["event"] == "step" and event["step"] > 4:
            raise Killed

    with monkeypatch.context() as without:
        without.setattr(Compiled, "__init__", broken)
        with pytest.raises(Killed):
            make_trial(tmp_path, small(), progress=stop).run()
    monkeypatch.setattr(Compiled, "rehearse", lambda *args: None)
    monkeypatch.setattr(torch, "compile", lambda function, **given: function)
    events = []
    result = make_trial(tmp_path, small(), progress=events.append).run()
    assert result["compiled"] is True
    (note,) = [event["text"] for event in events if event["event"] == "note"]
    assert "its compiled is not this one's" in note


def test_what_all_trials_would_say_is_told_once(tmp_path, monkeypatch):
    def run(jobs, settings, dataset, at_once, listen):
        for job in jobs:
            listen(job, {"event": "note", "text": "no compiler", "once": True})
            listen(job, {"event": "note", "text": "its own"})
        return {}

    monkeypatch.setattr(compare_module, "run_jobs", run)
    told = []
    compare_methods(
        tiny(),
        ["sgd"],
        [0, 1, 2],
        tmp_path / "out",
        listen=lambda job, event: told.append(event["text"]),
    )
    assert told == ["no compiler", "its own", "its own", "its own"]


# Settings and options


def test_settings_of_before_load_and_say_nothing_new():
    plain = tiny()
    assert "compile" not in plain.to_dict()
    assert Settings.from_dict(plain.to_dict()) == plain
    assert small().to_dict()["compile"] is True
    assert Settings.from_dict(small().to_dict()).compile is True


def test_a_folder_is_compiled_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(compare_module, "run_jobs", lambda *args: {})
    compare_methods(tiny(), ["sgd"], [0], tmp_path / "out")
    with pytest.raises(UserError, match="compile was None and is now True"):
        compare_methods(small(model="mlp", limit_test=64), ["sgd"], [0], tmp_path / "out")
    assert "compile" not in json.loads((tmp_path / "out/config.json").read_text())["settings"]


@pytest.mark.parametrize(
    ("device", "graphs", "expected"),
    [("cuda", True, True), ("cuda", False, False), ("cpu", True, False)],
)
def test_what_the_compiler_is_told(device, graphs, expected):
    options = compiled_module._options(torch.device(device), 3, graphs=graphs)
    assert options["triton.cudagraphs"] is expected
    assert options["cpp.threads"] == 3
    assert options["deterministic"] is True  # no kernels chosen by a stopwatch
    assert not any("autotune" in name for name in options)


def test_options_that_an_older_torch_does_not_know_are_left_out(monkeypatch):
    from torch import _inductor

    monkeypatch.setattr(_inductor, "list_options", lambda: ["cpp.threads", "triton.cudagraphs"])
    options = compiled_module._options(torch.device("cpu"), 1, graphs=True)
    assert set(options) == {"cpp.threads", "triton.cudagraphs"}


def test_a_batch_that_is_full_stays_as_it_is():
    rows = torch.arange(6).view(3, 2)
    assert filled(rows, 3) is rows
    assert filled(rows[:2], 5)[:, 0].tolist() == [0, 2, 0, 2, 0]
