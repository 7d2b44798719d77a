"""Trials on a real Ray instance of two workers, one of which is killed in the middle of a trial."""

import builtins
import json
import os
import signal
import subprocess
import sys

import pytest
from cli_helpers import TINY
from cluster_helpers import Assassin, without_times
from lab_helpers import tiny

from gradwise.errors import UserError
from gradwise.lab.cluster import open_cluster, remote, sweep
from gradwise.lab.compare import compare_methods

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

METHODS, SEEDS = ["sgd", "clip"], [0, 1]
# Of a few seconds a trial, so that there is a middle to kill it in.
SETTINGS = tiny(epochs=40, batch_size=16, limit_train=512)


@pytest.fixture(scope="module")
def address():
    """A Ray instance of this process with two workers; where to reach it."""
    ray = pytest.importorskip("ray")
    own_print = builtins.print  # Ray may put another one in its place, for all tests after these
    before = {name: os.environ.get(name) for name in ("RAY_USAGE_STATS_ENABLED", "RAY_ADDRESS")}
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.pop("RAY_ADDRESS", None)
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=100_000_000,
    )
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()
    builtins.print = own_print
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


def test_a_killed_worker_costs_nothing_but_time(address, tmp_path):
    victim = Assassin("sgd seed 0", lambda pid: os.kill(pid, signal.SIGKILL))
    with open_cluster("ray") as cluster:
        assert cluster.room(threads=1, gpus=0) == 2
        assert cluster.room(threads=8, gpus=0) == 1
        assert not cluster.has_gpus()
        there = compare_methods(
            SETTINGS, METHODS, SEEDS, tmp_path / "there", cluster=cluster, listen=victim
        )
    victim.check_that_it_went_on(tmp_path / "there" / "trials" / "sgd" / "seed-0")
    assert "its worker died" in next(
        event["text"] for event in victim.of_the_victim() if event["event"] == "note"
    )
    here = compare_methods(SETTINGS, METHODS, SEEDS, tmp_path / "here", jobs=2)
    assert there["finished"]
    assert without_times(there) == without_times(here)
    read = json.loads((tmp_path / "there" / "summary.json").read_text())
    assert without_times(read) == without_times(json.loads(json.dumps(here)))
    assert not (tmp_path / "there" / ".cluster").exists()


def test_from_the_command_line(address, tmp_path):
    command = [sys.executable, "-m", "gradwise", "compare", *TINY, "--methods", "sgd,clip"]
    told = subprocess.run(
        [*command, "--seeds", "1", "--out", "o", "--json", "--cluster", f"ray:{address}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert told.returncode == 0, told.stderr
    summary = json.loads(told.stdout)  # nothing of Ray's is in it
    assert summary["finished"]
    lines = told.stderr.splitlines()
    assert len(lines) == 3, told.stderr
    assert lines[0] == "2 trials to run"
    assert lines[2].endswith("[2/2, done]")
    assert (tmp_path / "o" / "report.html").exists()


def test_a_worker_that_is_not_fit_is_told_before_anything_runs(address, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "versions", lambda: {"gradwise": "0.0.1"})
    with open_cluster("ray") as cluster:
        with pytest.raises(UserError, match=r"has gradwise .* and this machine 0\.0\.1"):
            compare_methods(SETTINGS, METHODS, SEEDS, tmp_path / "out", cluster=cluster)
        with pytest.raises(UserError, match=r"a Ray worker cannot run trials: .*no_such_module"):
            cluster.send(_not_there(), {}, 1, 0).outcome()
    assert not (tmp_path / "out").exists()


def test_whoever_asks_for_more_than_there_is_gets_an_answer(address, tmp_path):
    with open_cluster("ray") as cluster:
        cluster.patience_s = 2.0
        with pytest.raises(UserError, match="had no worker free within 2 s"):
            sweep.plan_there(cluster, tiny(threads=64), tmp_path / "out", None, None)


def _not_there():
    """A duty that the worker cannot import."""

    def duty(order):
        import no_such_module

        return no_such_module.told

    return duty
