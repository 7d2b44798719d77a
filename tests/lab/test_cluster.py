"""Trials on a cluster, whichever: what is refused, what is sent again, what ends what."""

import json
import queue
import subprocess
import sys
import threading
import time

import pytest
from cluster_helpers import Threads, gone, trial_processes, without_times
from lab_helpers import tiny

from gradwise.errors import UserError
from gradwise.lab.cluster import on_ray, open_cluster, remote, sweep
from gradwise.lab.cluster.desk import open_desk
from gradwise.lab.cluster.on_slurm import parse_options
from gradwise.lab.cluster.process import ClusterProcess, _read
from gradwise.lab.compare import compare_methods
from gradwise.lab.job import Job
from gradwise.lab.process import trial_spec

SETTINGS = tiny(epochs=2)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


# Specifications


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("", "expected cluster to be ray"),
        ("kubernetes", "got 'kubernetes'"),
        ("rays", "got 'rays'"),
        ("ray:", "got 'ray:'"),
        ("slurm:", "got 'slurm:'"),
        ("ray://", "expected the address of a Ray cluster as HOST:PORT, got 'ray://'"),
        ("ray://auto", "HOST:PORT, got 'ray://auto'"),
        ("ray:host:99999", "HOST:PORT, got 'host:99999'"),
        ("ray://localhost:1", "no Ray cluster answers at 'ray://localhost:1'"),
        ("ray:localhost:1", "no Ray cluster answers at 'localhost:1'"),
        ("slurm:gpu", "got 'gpu'"),
        ("slurm:time=", "got 'time='"),
        ("slurm:time=soon", "got time='soon'"),
        ("slurm:time=0", "got time='0'"),
        ("slurm:partition=a,partition=b", "'partition' twice"),
        ("slurm:nodes=2", "option 'nodes' of sbatch is set by gradwise"),
        ("slurm:cpus-per-task=2", "option 'cpus_per_task' of sbatch is set by gradwise"),
        ("slurm:comment=a\nrm -rf x", "expected options of sbatch"),
    ],
)
def test_what_is_no_cluster(spec, told):
    pytest.importorskip("ray")
    with pytest.raises(UserError) as caught, open_cluster(spec):
        pass
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_options_of_sbatch():
    assert parse_options("") == {}
    assert parse_options("--gpus-per-node=2,time=90,exclude=n[1-3],n5,mem=4G") == {
        "gpus_per_node": "2",
        "time": 90,
        "exclude": "n[1-3],n5",
        "mem": "4G",
    }


@pytest.mark.parametrize(("spec", "module"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_client_that_is_not_installed(monkeypatch, spec, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"pip install 'gradwise\[{spec}\]'"), open_cluster(spec):
        pass


def test_a_machine_without_slurm(monkeypatch, tmp_path):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="needs a machine with sbatch"), open_cluster("slurm"):
        pass


def test_nothing_of_a_cluster_is_loaded_without_one():
    told = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys, gradwise.cli.app, gradwise.lab.compare;"
            "print([name for name in ('ray', 'submitit') if name in sys.modules])",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout == "[]\n"


def test_signals_stay_those_of_this_program():
    import signal

    def mine(number, frame):
        raise AssertionError

    before = signal.signal(signal.SIGTERM, mine)
    try:
        with on_ray._own_signals():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


# Before anything is sent


@pytest.mark.parametrize(
    ("settings", "more", "told"),
    [
        (SETTINGS, {"jobs": 0}, "got jobs=0"),
        (SETTINGS, {"per_device": 2}, "got per_device=2"),
        (tiny(device="cuda:1"), {}, "which chooses the GPU, got device='cuda:1'"),
        (tiny(device="mps"), {}, "device 'mps' cannot be used here"),
    ],
)
def test_mistakes_leave_nothing_behind(out, settings, more, told):
    with pytest.raises(UserError) as caught:
        compare_methods(settings, ["sgd"], [0], out, cluster=Threads(), **more)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not out.exists()


@pytest.mark.parametrize("name", ["gradwise", "torch"])
def test_a_worker_of_another_version(out, monkeypatch, name):
    order = {**remote.versions(), name: "0.0.1"}
    real = remote.versions
    answers = iter([order])  # the sender asks first
    monkeypatch.setattr(remote, "versions", lambda: next(answers, None) or real())
    with pytest.raises(UserError, match=f"has {name} .* and this machine 0.0.1: install the same"):
        compare_methods(SETTINGS, ["sgd"], [0], out, cluster=Threads())
    assert not out.exists()


def test_builds_of_torch_are_one_version():
    assert "+" not in remote.versions()["torch"]


def test_a_folder_that_workers_do_not_see(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_SEE_SECONDS", 0.0)
    ticket = tmp_path / "out" / ".cluster" / "id" / "0.jsonl"
    order = {
        "ticket": str(ticket),
        "token": "abc",
        "settings": SETTINGS.to_dict(),
        "versions": remote.versions(),
    }
    told = remote.probe(order)["refused"]
    assert f"does not see --out {tmp_path / 'out'}: choose a folder on storage that all" in told
    ticket.parent.mkdir(parents=True)
    ticket.write_text("that of another machine")  # the same path, another disk
    assert remote.probe(order)["refused"] == told
    ticket.write_text("abc")
    assert remote.probe(order)["settings"]["amp"] == "off"


def test_no_worker_is_free(out, monkeypatch):
    cluster = Threads()
    cluster.patience_s = 0.5
    monkeypatch.setattr(remote, "probe", lambda order: time.sleep(3) or {})
    with pytest.raises(UserError, match=r"had no worker free within 0.5 s"):
        compare_methods(SETTINGS, ["sgd"], [0], out, cluster=cluster)
    assert cluster.sent[0].cancelled
    assert not out.exists()


def test_a_worker_decides_what_auto_stands_for(out):
    cluster = Threads()
    plan, settings = sweep.plan_there(cluster, tiny(device="auto", threads=3), out, None, None)
    assert (plan.at_once, settings.device, settings.amp) == (2, "cpu", "off")
    assert cluster.asked == [(3, 0)]
    assert sweep.plan_there(cluster, SETTINGS, out, 7, None)[0].at_once == 7
    # This machine's GPU, or the lack of it, does not come into it: the worker here has none.
    import torch

    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"worker .*: device 'cuda' cannot be used here"):
            sweep.plan_there(Threads(gpus=True), tiny(device="auto"), out, None, None)


# Trials


@pytest.mark.slow
def test_the_summary_is_that_of_a_local_run_whatever_is_lost(out, tmp_path):
    events = []
    cluster = Threads(lose=lambda attempt: attempt < 2)
    there = compare_methods(
        SETTINGS,
        ["sgd"],
        [0, 1],
        out,
        cluster=cluster,
        listen=lambda job, event: events.append((job.seed, event)),
    )
    here = compare_methods(SETTINGS, ["sgd"], [0, 1], tmp_path / "here", jobs=1)
    assert without_times(there) == without_times(here)
    for seed in (0, 1):
        kinds = [event["event"] for of, event in events if of == seed]
        assert [kind for kind in kinds if kind != "step"] == [
            "start",
            "note",
            "note",
            "epoch",
            "epoch",
            "done",
        ]
    notes = {event["text"] for _, event in events if event["event"] == "note"}
    assert notes == {"begins again on another worker, because lightning struck"}
    assert not (out / ".cluster").exists()


def test_a_trial_that_is_lost_again_and_again_is_given_up(out):
    cluster = Threads(lose=lambda attempt: True)
    events = []
    summary = compare_methods(
        SETTINGS,
        ["sgd"],
        [0],
        out,
        cluster=cluster,
        listen=lambda job, event: events.append(event["event"]),
    )
    assert events == ["start", *["note"] * sweep.RETRIES, "failed"]
    reason = "its worker was lost, because lightning struck"
    assert summary["methods"]["sgd"]["failures"] == {"0": reason}
    failure = json.loads((out / "trials/sgd/seed-0/failure.json").read_text())
    assert failure["reason"] == reason
    assert len({one.order["ticket"] for one in cluster.sent}) == len(cluster.sent)


def test_a_trial_that_comes_further_each_time_is_not_given_up(out):
    with open_desk(out) as desk:
        sender = sweep._Sender(Threads(lose=lambda attempt: True), SETTINGS, "x", desk)
        job = Job("sgd", 0, out / "trial")
        for _ in range(3 * sweep.RETRIES):
            events = queue.Queue()
            process = sender(job, events)
            assert events.get(timeout=30) == (process, None)
            sender.heard(job, {"event": "epoch"})
            assert sender.again(process) is not None


@pytest.mark.slow
def test_a_trial_whose_own_code_fails_is_not_sent_again(tmp_path, monkeypatch):
    (tmp_path / "model_of_cluster_user.py").write_text(
        "import sys\n"
        "from torch import nn\n"
        "def net(num_classes, in_shape):\n"
        "    if 'trial.json' in ' '.join(sys.argv):\n"
        "        raise KeyError('of mine')\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    cluster, events = Threads(), []
    summary = compare_methods(
        tiny(model="model_of_cluster_user:net"),
        ["sgd"],
        [0],
        tmp_path / "out",
        cluster=cluster,
        listen=lambda job, event: events.append(event["event"]),
    )
    sys.modules.pop("model_of_cluster_user")
    assert "of mine" in summary["methods"]["sgd"]["failures"]["0"]
    assert events == ["start", "failed"]
    assert len(cluster.sent) == 2  # the look and the trial


def test_a_full_disk_there_ends_the_comparison(out, monkeypatch):
    error = {"event": "error", "message": "No space left on device", "errno": 28}
    failure = {"reason": "No space left on device", "exit_code": 1, "log": ""}
    monkeypatch.setattr(
        sweep.remote,
        "run",
        lambda order: {"failure": failure, "error": error},
    )
    with pytest.raises(OSError, match="No space left"):
        compare_methods(SETTINGS, ["sgd"], [0], out, cluster=Threads())


def test_what_is_still_being_written_is_read_later(tmp_path):
    ticket = tmp_path / "0.jsonl"
    ticket.write_bytes(b'{"event": "step"}\n{"eve')
    place, events = _read(ticket, 0)
    assert events == [{"event": "step"}]
    with ticket.open("ab") as file:
        file.write(b'nt": "epoch"}\n')
    assert _read(ticket, place)[1] == [{"event": "epoch"}]
    assert _read(tmp_path / "none", 5) == (5, [])


# What ends a trial on a worker


@pytest.fixture
def long_order(out):
    """An order for a trial that does not end by itself in the time of a test."""
    settings = tiny(epochs=100_000).resolved()
    job = Job("sgd", 0, out / "trial")
    job.folder.mkdir(parents=True)
    from lab_helpers import data_of

    with open_desk(out) as desk:
        ticket = desk.ticket()
        ticket.touch()
        yield {
            "ticket": str(ticket),
            "sign": str(desk.sign),
            "lease_s": 60.0,
            "task": "gradwise.lab.worker",
            "threads": 1,
            "cwd": str(out),
            "versions": remote.versions(),
            "folder": str(job.folder),
            "label": job.label,
            "spec": ["trial.json", trial_spec(job, settings, data_of(settings).fingerprint)],
        }


def started(order, told, out):
    """Run an order in a thread until its trial trains; the thread and the trial's process."""
    thread = threading.Thread(target=lambda: told.append(remote.run(order)), daemon=True)
    thread.start()
    end = time.monotonic() + 120
    while not (out / "trial" / "checkpoint.pt").exists():
        assert thread.is_alive(), told
        assert time.monotonic() < end
        time.sleep(0.05)
    ((pid, _),) = trial_processes(out / "trial")
    return thread, pid


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("what", ["ticket", "sign", "leave"])
def test_a_trial_that_nobody_wants_any_more_ends(out, long_order, monkeypatch, what):
    told, leave = [], threading.Event()
    monkeypatch.setattr(remote, "_leave", leave)
    if what == "sign":
        stopped = out / "sign"  # of a sender that died
        stopped.write_text("1")
        long_order |= {"sign": str(stopped), "lease_s": 20.0}
    thread, pid = started(long_order, told, out)
    if what == "ticket":
        (out / ".cluster").rename(out / "taken")  # as a later call takes all of an earlier one
    elif what == "leave":
        leave.set()
    thread.join(60)
    assert gone(pid, 10)
    reason = {
        "ticket": "it was taken away from its worker",
        "sign": "whoever sent it gave no sign of life for 20 s",
        "leave": "the cluster wanted its machine back",
    }[what]
    assert told == [{"lost": reason}]
    if what == "ticket":
        (out / "taken").rename(out / ".cluster")


def test_a_kill_reaches_a_job_that_waits_for_a_worker(out):
    class Waiting:
        cancelled = False

        def over(self):
            return self.cancelled

        def outcome(self):
            raise AssertionError

        def cancel(self):
            self.cancelled = True

    out.mkdir()
    task, events = Waiting(), queue.Queue()
    process = ClusterProcess(Job("sgd", 0, out / "t"), out / "0.jsonl", lambda: task, events)
    assert (out / "0.jsonl").exists()
    process.kill()
    process.wait()
    assert task.cancelled
    assert events.get(timeout=10) == (process, None)
    assert not (out / "0.jsonl").exists()
