"""Trials on Slurm, by way of submitit: the real one where there is one, a small one everywhere."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_helpers import TINY, Process
from cluster_helpers import Assassin, gone, trial_processes, without_times
from lab_helpers import tiny

import gradwise.lab.cluster.on_slurm as on_slurm
from gradwise.errors import UserError
from gradwise.lab.cluster import open_cluster, sweep
from gradwise.lab.cluster.base import Lost
from gradwise.lab.compare import compare_methods

pytest.importorskip("submitit")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

PROGRAMS = ("sbatch", "srun", "squeue", "scancel")
# Of a few seconds a trial, so that there is a middle to kill it in.
SETTINGS = tiny(epochs=40, batch_size=16, limit_train=512)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """The small Slurm; its folder."""
    programs, folder = tmp_path / "bin", tmp_path / "slurm"
    programs.mkdir()
    folder.mkdir()
    source = Path(__file__).with_name("fake_slurm.py").resolve()
    for name in PROGRAMS:
        program = programs / name
        program.write_text(
            f"#!{sys.executable}\nimport runpy, sys\n"
            f"sys.argv[1:1] = [{name!r}]\nrunpy.run_path({str(source)!r}, run_name='__main__')\n"
        )
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    return folder


@pytest.fixture(params=["small", "real"])
def slurm(request):
    if request.param == "small":
        return request.getfixturevalue("fake")
    if shutil.which("sinfo") is None or subprocess.run(["sinfo"], capture_output=True).returncode:
        pytest.skip("no Slurm answers on this machine")
    return None


@pytest.mark.parametrize("how", ["the worker dies", "the job is cancelled"])
def test_a_lost_job_costs_nothing_but_time(slurm, tmp_path, how):
    def kill(holder):
        if how == "the worker dies":
            os.kill(holder, signal.SIGKILL)
            return
        # The job that the holder is of: this test's own.
        environment = Path(f"/proc/{holder}/environ").read_bytes().split(b"\0")
        (number,) = (
            entry.partition(b"=")[2].decode()
            for entry in environment
            if entry.startswith(b"SLURM_JOB_ID=")
        )
        subprocess.run(["scancel", number], check=True)

    victim = Assassin("sgd seed 0", kill)
    out = tmp_path / "there"
    with open_cluster("slurm:time=10,comment=a test's") as cluster:
        there = compare_methods(
            SETTINGS, ["sgd", "clip"], [0], out, cluster=cluster, jobs=2, listen=victim
        )
    victim.check_that_it_went_on(out / "trials" / "sgd" / "seed-0")
    here = compare_methods(SETTINGS, ["sgd", "clip"], [0], tmp_path / "here", jobs=2)
    assert there["finished"]
    assert without_times(there) == without_times(here)
    assert not (out / ".cluster").exists()


def test_what_is_asked_of_sbatch(fake, tmp_path):
    settings = tiny(threads=3, device="cpu")
    with open_cluster("slurm:partition=gpu,time=7,gres=gpu:a100:1,licenses=x") as cluster:
        assert cluster.has_gpus()
        assert sweep.plan_there(cluster, settings, tmp_path / "o", None, None)[0].at_once == 32
    asked = (fake / "1.sh").read_text().splitlines()
    for option in (
        "partition=gpu",
        "time=7",
        "gres=gpu:a100:1",
        "licenses=x",
        "cpus-per-task=3",
        "no-requeue",
        "job-name=gradwise",
    ):
        assert f"#SBATCH --{option}" in asked
    assert not [line for line in asked if "gpus-per-node" in line]
    (step,) = (line for line in asked if line.startswith("srun "))
    assert " --cpus-per-task=3 " in step
    with open_cluster("slurm") as cluster:
        assert not cluster.has_gpus()
        with pytest.raises(UserError, match="device 'cuda' cannot be used here"):
            sweep.plan_there(cluster, tiny(device="cuda"), tmp_path / "o", None, None)
    asked = (fake / "2.sh").read_text().splitlines()
    assert "#SBATCH --gpus-per-node=1" in asked
    assert f"#SBATCH --time={on_slurm.MINUTES}" in asked


def test_an_option_that_sbatch_refuses(fake, tmp_path):
    with (
        open_cluster("slurm:bogus=1") as cluster,
        pytest.raises(UserError, match=r"Slurm takes no trials: .*unrecognized option '--bogus'"),
    ):
        compare_methods(SETTINGS, ["sgd"], [0], tmp_path / "out", cluster=cluster)
    assert not (tmp_path / "out").exists()


def test_a_slurm_that_does_not_answer(fake, monkeypatch):
    (fake / "down").touch()
    with pytest.raises(UserError, match=r"Slurm does not answer: .*Unable to contact"):
        open_cluster("slurm").__enter__()
    (fake / "down").unlink()
    monkeypatch.setattr(on_slurm, "_ASK_SECONDS", 0.0)
    (fake / "7.sh").touch()
    with open_cluster("slurm") as cluster:
        assert cluster._queue.state("7") == "RUNNING"
        (fake / "down").touch()  # later it may be away for a while
        assert cluster._queue.state("7") == "RUNNING"
        (fake / "down").unlink()
        (fake / "7.state").write_text("NODE_FAIL")
        assert cluster._queue.state("7") == "NODE_FAIL"
        assert cluster._queue.state("8") is None


def test_a_job_that_ended_without_a_word(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(on_slurm, "_ASK_SECONDS", 0.0)

    def die(order):
        import os
        import sys

        print("no more", file=sys.stderr, flush=True)
        os.kill(os.getpid(), 9)

    with open_cluster("slurm") as cluster:
        (tmp_path / "desk").mkdir()
        task = cluster.send(die, {"end": str(tmp_path / "desk" / "0.end")}, 1, 0)
        end = time.monotonic() + 120
        while not task.over():
            assert time.monotonic() < end
            time.sleep(0.1)
        with pytest.raises(Lost, match=r"^its Slurm job 1 ended as FAILED \(.*\)$"):
            task.outcome()


def test_ctrl_c_cancels_and_the_same_command_goes_on(fake, tmp_path):
    arguments = ["compare", *TINY, "--epochs", "100000", "--methods", "sgd", "--seeds", "1"]
    process = Process(tmp_path, *arguments, "--out", "o", "--cluster", "slurm")
    trial = tmp_path / "o" / "trials" / "sgd" / "seed-0"
    process.wait_for((trial / "checkpoint.pt").exists, 120)
    ((pid, _),) = trial_processes(trial)
    os.kill(process.popen.pid, signal.SIGINT)
    code, _, err = process.end(90)
    assert code == 130
    assert "interrupted; the same command goes on from here" in err
    assert gone(pid)
    assert not (tmp_path / "o" / ".cluster").exists()
    assert (fake / "2.state").exists() or (fake / "2.cancelled").exists()


def test_a_later_call_ends_what_runs_for_one_that_died(fake, tmp_path):
    arguments = ["compare", *TINY, "--epochs", "100000", "--methods", "sgd", "--seeds", "1"]
    command = [*arguments, "--out", "o", "--cluster", "slurm"]
    first = Process(tmp_path, *command)
    trial = tmp_path / "o" / "trials" / "sgd" / "seed-0"
    first.wait_for((trial / "checkpoint.pt").exists, 120)
    ((orphan, _),) = trial_processes(trial)
    first.popen.kill()
    first.popen.communicate()
    assert trial_processes(trial)  # its trial does not know yet
    second = Process(tmp_path, *command)
    try:
        second.wait_for(lambda: gone(orphan, 0.1), 120)
        second.wait_for(lambda: {pid for pid, _ in trial_processes(trial)} - {orphan} != set(), 120)
    finally:
        os.kill(second.popen.pid, signal.SIGTERM)
        assert second.end(90)[0] == 143
    assert trial_processes(trial) == []
