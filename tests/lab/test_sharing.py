"""Devices that trials share: what is asked for, what the runner does, what reaches a process."""

import itertools
import json
import os
import sys
import textwrap
from dataclasses import replace

import pytest
import torch
from lab_helpers import make_trial, numbers, tiny

from gradwise.errors import UserError
from gradwise.lab import compare as compare_module
from gradwise.lab import device as device_module
from gradwise.lab import outcome, sharing, worker
from gradwise.lab import trial as trial_module
from gradwise.lab.compare import compare_methods
from gradwise.lab.device import cores, places
from gradwise.lab.job import Job
from gradwise.lab.process import JobProcess
from gradwise.lab.runner import Choosy, run_all
from gradwise.lab.settings import Settings
from gradwise.lab.sharing import Plan, SharedStart, plan
from gradwise.lab.slots import Place, Slots

GIB = 2**30
TWO = [Place("GPU 3", "3"), Place("GPU 5", "5")]


# What is asked for


@pytest.fixture
def on_gpus(monkeypatch):
    """Settings of a machine with that many GPUs, as far as planning looks."""

    def make(count, device="cuda"):
        settings = tiny()
        object.__setattr__(settings, "device", device)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        return settings

    return make


@pytest.mark.parametrize(
    ("gpus", "jobs", "per_device", "at_once", "each"),
    [
        (1, None, None, 1, 1),
        (4, None, None, 4, 1),
        (4, None, 3, 12, 3),
        (1, 5, None, 5, 5),
        (4, 5, None, 5, 2),
        (4, 2, None, 2, 1),
        (2, 3, 2, 3, 2),
    ],
)
def test_how_many_on_gpus(on_gpus, gpus, jobs, per_device, at_once, each):
    planned = plan(on_gpus(gpus), jobs, per_device)
    assert (planned.at_once, planned.slots.per_place) == (at_once, each)
    assert [place.visible for place in planned.slots.places] == [str(n) for n in range(gpus)]
    assert planned.note is None


def test_a_gpu_with_a_number_is_the_only_one_and_its_name_stays_as_it_is(on_gpus):
    planned = plan(on_gpus(4, "cuda:2"), None, 3)
    assert planned.at_once == 3
    assert planned.slots.places == [Place("cuda:2", None)]


@pytest.mark.parametrize(
    ("listed", "count", "expected"),
    [
        ("2,3", 2, ["2", "3"]),
        (" 7 , GPU-ab12 ", 2, ["7", "GPU-ab12"]),
        ("1,-1,0", 1, ["1"]),  # nothing after a number that is none
        ("MIG-1/2/3", 1, ["MIG-1/2/3"]),
    ],
)
def test_the_gpus_that_the_user_chose_are_handed_on_as_they_were(
    monkeypatch, listed, count, expected
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    found = places(torch.device("cuda"), {"CUDA_VISIBLE_DEVICES": listed})
    assert [place.visible for place in found] == expected


def test_more_jobs_than_places_are_refused(on_gpus):
    with pytest.raises(UserError, match=r"jobs <= 4 with per_device=2 on 2 GPUs, got jobs=5"):
        plan(on_gpus(2), 5, 2)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"per_device": 2}, r"expected a CUDA device with per_device=2, got device=cpu.*--jobs"),
        ({"per_device": 0}, r"expected per_device >= 1, got per_device=0"),
        ({"jobs": 0}, r"expected jobs >= 1, got jobs=0"),
    ],
)
def test_what_is_no_good_is_refused_before_anything_is_written(tmp_path, given, told):
    with pytest.raises(UserError, match=told):
        compare_methods(tiny(), ["sgd"], [0], tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("there", "threads", "jobs", "at_once"),
    [
        (8, 1, None, 8),
        (8, 3, None, 2),
        (8, 3, 2, 2),
        (8, 3, 3, 2),
        (8, 1, 99, 8),
        (2, 4, None, 1),
        (2, 4, 3, 1),
    ],
)
def test_trials_never_ask_for_more_cores_than_there_are(monkeypatch, there, threads, jobs, at_once):
    monkeypatch.setattr(sharing, "cores", lambda: there)
    planned = plan(tiny(threads=threads), jobs, None)
    assert planned.at_once == at_once
    assert planned.slots is None
    assert (planned.note is None) == ((jobs or 1) <= at_once and threads <= there)


def test_jobs_beyond_the_cores_are_told_once(tmp_path, monkeypatch):
    monkeypatch.setattr(sharing, "cores", lambda: 2)
    asked = []

    def none_run(jobs, settings, dataset, at_once, listen):
        asked.append(at_once)
        return {}

    monkeypatch.setattr(compare_module, "run_jobs", none_run)
    notes = []
    compare_methods(
        tiny(),
        ["sgd"],
        [0, 1, 2],
        tmp_path,
        jobs=3,
        listen=lambda job, event: notes.append(event["text"]) if "text" in event else None,
    )
    assert asked == [2]
    assert notes == ["jobs=3 is more than the 2 cores here have room for: 2 at a time"]


@pytest.fixture
def control_groups(tmp_path, monkeypatch):
    """Stands for the files in which the system says what a container may use."""

    def make(line, files):
        (tmp_path / "cgroup").write_text(line + "\n")
        for name, content in files.items():
            path = tmp_path / "fs" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        monkeypatch.setattr(device_module, "_PROC", tmp_path / "cgroup")
        monkeypatch.setattr(device_module, "_CGROUPS", tmp_path / "fs")
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)

    return make


@pytest.mark.parametrize(
    ("line", "files", "expected"),
    [
        ("0::/", {}, 64),
        ("0::/", {"cpu.max": "max 100000\n"}, 64),
        ("0::/", {"cpu.max": "250000 100000\n"}, 2),
        ("0::/", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/a/b", {"a/cpu.max": "300000 100000\n", "a/b/cpu.max": "max 100000\n"}, 3),
        ("0::/../host", {"cpu.max": "400000 100000\n"}, 4),
        ("4:cpu,cpuacct:/x", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
        (
            "4:cpu,cpuacct:/x",
            {"cpu/x/cpu.cfs_quota_us": "500000\n", "cpu/x/cpu.cfs_period_us": "100000\n"},
            5,
        ),
        ("3:memory:/\nnonsense", {"cpu.max": "100000 100000\n"}, 64),
        ("0::/", {"cpu.max": "nonsense"}, 64),
    ],
)
def test_the_quota_of_a_container_counts_as_cores(control_groups, line, files, expected):
    control_groups(line, files)
    assert cores() == expected


# What the runner does


class Fake(JobProcess):
    """A process that tells and ends when the test says so."""

    def __init__(self, job, events, environment):
        self.job, self.error, self.environment = job, None, environment
        self._events = events

    def tells(self, **event):
        self._events.put((self, event))

    def ends(self, result=None, error=None):
        if result:
            (self.job.folder / "result.json").write_text(json.dumps(result))
        self.error = error
        self._events.put((self, None))

    def kill(self):
        pass

    def wait(self):
        pass

    def failure(self):
        return {"reason": self.error["message"], "exit_code": 1, "log": ""}


SHORT = {"event": "error", "message": "OutOfMemoryError: no", "out_of_memory": True}


def finished(job):
    return {
        "method": job.method,
        "seed": job.seed,
        "status": "finished",
        "test_accuracy": 0.5,
        "skipped": 0,
        "init_checksum": "",
        "batches_checksum": "",
    }


def run_script(tmp_path, count, slots, script):
    """Run trials whose processes do what a script says at each start; what happened."""
    happened = []
    attempts = itertools.count()

    def listen(job, event):
        if event["event"] != "step":
            happened.append((job.seed, event["event"]))

    def start(job, events, environment):
        job.folder.mkdir(parents=True, exist_ok=True)
        process = Fake(job, events, environment)
        happened.append((job.seed, environment["CUDA_VISIBLE_DEVICES"]))
        script(next(attempts), process)
        return process

    jobs = [Job("sgd", seed, tmp_path / str(seed)) for seed in range(count)]
    shared = SharedStart(slots, start, listen)
    assert isinstance(shared, Choosy)
    failed = run_all(jobs, shared, count, listen)
    return happened, {job.seed: reason for job, reason in failed.items()}


def memory(held, free):
    return {"event": "epoch", "memory": {"held": held * GIB, "free": free * GIB}}


def test_who_runs_out_beside_another_is_tried_again_alone(tmp_path):
    running = []

    def script(attempt, process):
        running.append(process)
        if attempt == 0:
            process.tells(**memory(1, 9))  # now there is room for another
        elif attempt == 1:
            process.ends(error=SHORT)
            running[0].ends(finished(running[0].job))
        elif attempt == 2:
            process.ends(finished(process.job))

    happened, failed = run_script(tmp_path, 2, Slots(TWO[:1], 2), script)
    assert failed == {}
    assert happened == [
        (0, "3"),
        (0, "start"),
        (0, "epoch"),
        (1, "3"),
        (1, "start"),
        (1, "note"),
        (0, "done"),
        (1, "3"),  # from its checkpoint: it is the same trial, and does not begin anew
        (1, "done"),
    ]
    assert not list(tmp_path.rglob("failure.json"))


def test_who_runs_out_alone_has_failed_and_others_go_on(tmp_path):
    def script(attempt, process):
        if process.job.seed == 0:
            process.ends(error=SHORT)
        else:
            process.ends(finished(process.job))

    happened, failed = run_script(tmp_path, 3, Slots(TWO[:1], 2), script)
    assert failed == {0: "OutOfMemoryError: no"}
    assert [one for one in happened if one[1] in ("failed", "done")] == [
        (0, "failed"),
        (1, "done"),
        (2, "done"),
    ]


def test_waiting_for_memory_is_told_once(tmp_path):
    running = []

    def script(attempt, process):
        running.append(process)
        if attempt == 0:
            process.tells(**memory(4, 3))  # not enough for another
            process.tells(**memory(4, 2))
            process.ends(finished(process.job))
        elif attempt == 1:
            process.tells(**memory(4, 3))
            process.ends(finished(process.job))
        else:
            process.ends(finished(process.job))

    happened, failed = run_script(tmp_path, 3, Slots(TWO[:1], 2), script)
    assert failed == {}
    assert happened.count((1, "note")) == 1
    assert sum(kind == "note" for _, kind in happened) == 1
    assert [seed for seed, kind in happened if kind == "done"] == [0, 1, 2]


def test_each_trial_is_told_its_device(tmp_path):
    def script(attempt, process):
        if attempt == 1:
            for one in (*running, process):
                one.ends(finished(one.job))
        elif attempt > 1:
            process.ends(finished(process.job))
        running.append(process)

    running = []
    happened, _ = run_script(tmp_path, 3, Slots(TWO, 1), script)
    assert happened[0] == (0, "3")
    assert (1, "5") in happened
    assert (2, "3") in happened


@pytest.mark.parametrize(
    ("error", "short"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), True),
        (RuntimeError("CUDA error: out of memory\nCompile with"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), True),
        (RuntimeError("shapes do not match"), False),
        (MemoryError(), False),  # the host's: another device would not help
    ],
)
def test_a_process_says_whether_its_device_was_too_small(tmp_path, monkeypatch, error, short):
    def fail(spec, emit):
        raise error

    monkeypatch.setattr(worker, "run", fail)
    monkeypatch.setattr(worker, "_prepare", lambda: None)
    events = []
    assert worker.main([str(tmp_path), worker.TASK], events.append) == 1
    assert events[0].get("out_of_memory", False) is short


def test_a_trial_tells_its_memory_from_its_first_evaluation_on(tmp_path, monkeypatch):
    monkeypatch.setattr(trial_module, "REPORT_SECONDS", 0.0)
    told = {"held": 1, "free": 2}
    monkeypatch.setattr(outcome, "device_memory", lambda device: told)
    events = []
    make_trial(tmp_path, progress=events.append).run()
    first = next(at for at, event in enumerate(events) if event["event"] == "epoch")
    assert first > 4
    assert not any("memory" in event for event in events[:first])
    assert all(event["memory"] == told for event in events[first:])


def test_on_a_cpu_there_is_no_memory_to_tell():
    assert outcome.device_memory(torch.device("cpu")) is None


# What reaches a process

USER = """
    import json, os, sys, threading
    from pathlib import Path
    import torch

    def load():
        torch.manual_seed(0)
        x, y = torch.randn(96, 8), torch.arange(96) % 4
        return x[:64], y[:64], x[64:], y[64:]

    def net(num_classes, in_shape):
        spec = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()
        if spec.name == "trial.json":
            import pyarrow
            from threadpoolctl import threadpool_info
            (spec.parent / "seen.json").write_text(json.dumps({
                "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
                "torch": torch.get_num_threads(),
                "arrow": pyarrow.cpu_count(),
                "pools": [pool["num_threads"] for pool in threadpool_info()],
                "compilers": os.environ["TORCHINDUCTOR_COMPILE_THREADS"],
            }))
        return torch.nn.Linear(in_shape[0], num_classes)
"""


SETTINGS = Settings(
    data="user_of_sharing:load",
    model="user_of_sharing:net",
    epochs=1,
    batch_size=16,
    augment="none",
    device="cpu",
)


@pytest.fixture
def user_folder(tmp_path, monkeypatch):
    (tmp_path / "user_of_sharing.py").write_text(textwrap.dedent(USER))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    yield tmp_path
    sys.modules.pop("user_of_sharing", None)


@pytest.mark.slow
def test_the_device_reaches_the_process_and_changes_nothing_else(user_folder, monkeypatch):
    # GPUs that are none: trials ignore the variable, so that it can be looked at without any.
    monkeypatch.setattr(
        compare_module, "plan", lambda settings, jobs, per_device: Plan(2, Slots(TWO, 1))
    )
    out = user_folder / "out"
    summary = compare_methods(SETTINGS, ["sgd"], [0, 1], out, per_device=1)
    assert summary["finished"]
    folders = [out / "trials" / "sgd" / f"seed-{seed}" for seed in (0, 1)]
    seen = [json.loads((folder / "seen.json").read_text()) for folder in folders]
    assert [one["visible"] for one in seen] == ["3", "5"]
    for seed, folder in enumerate(folders):
        spec = json.loads((folder / "trial.json").read_text())
        assert spec["settings"]["device"] == "cpu"
        alone = make_trial(user_folder / f"alone{seed}", SETTINGS, "sgd", seed).run()
        assert numbers(json.loads((folder / "result.json").read_text())) == numbers(alone)
    config = json.loads((out / "config.json").read_text())
    assert config["settings"]["device"] == "cpu"


@pytest.mark.slow
def test_no_library_of_a_trial_starts_more_threads_than_it_has(user_folder, monkeypatch):
    pytest.importorskip("threadpoolctl")
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "7")  # what the user's shell says is not for trials
    compare_methods(replace(SETTINGS, threads=2), ["sgd"], [0], user_folder / "out")
    seen = json.loads((user_folder / "out/trials/sgd/seed-0/seen.json").read_text())
    assert (seen["torch"], seen["arrow"], seen["compilers"]) == (2, 2, "2")
    assert seen["pools"]
    assert max(seen["pools"]) <= 2
