"""Trackio, read back from its own store."""

import contextlib
import threading
import uuid

import numpy as np
import pytest
import trackio
from trackio.sqlite_storage import SQLiteStorage

from gradwise.errors import UserError
from gradwise.watch.block import Block
from gradwise.watch.sinks import Trackio


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    for module in (trackio.utils, trackio.sqlite_storage):
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path)


@pytest.fixture
def project():
    return f"p-{uuid.uuid4().hex}"


@pytest.fixture
def run(project):
    run = trackio.init(
        project=project, name="mine", embed=False, auto_log_gpu=False, auto_log_cpu=False
    )
    yield run
    with contextlib.suppress(RuntimeError):  # finished by the test
        trackio.finish()


def logs(project, name):
    found = sorted(SQLiteStorage.get_logs(project, name), key=lambda row: row["step"])
    return [{k: v for k, v in row.items() if k != "timestamp"} for row in found]


def test_rows_in_the_run_of_the_script(run, project, play) -> None:
    play(Trackio(layers="head.*", scalars=["grad/norm", "grad/noise_scale", "loss"]))
    trackio.log({"mine": 1.0}, step=7)
    trackio.finish()
    found = logs(project, "mine")
    layer = "grad/layer/head.bias/"
    assert [row["step"] for row in found] == [0, 7, 10, 20, 30, 39]
    assert found[0] == {
        "step": 0,
        "grad/norm": 0,
        "loss": 1000,
        layer + "norm": pytest.approx(0.1),
        layer + "std": pytest.approx(100.1),
    }
    assert found[1] == {"step": 7, "mine": 1.0}
    assert found[3]["grad/norm"] == 20
    assert found[3]["grad/noise_scale"] == 13


def test_a_run_of_its_own_leaves_that_of_the_script_alone(run, project, play) -> None:
    trackio.log({"mine": 1.0})
    play(Trackio(project=project, name="mine-gradients", every=20, layer_metrics=[]))
    trackio.log({"mine": 2.0})
    trackio.finish()
    assert logs(project, "mine") == [{"mine": 1.0, "step": 0}, {"mine": 2.0, "step": 1}]
    found = logs(project, "mine-gradients")
    assert [(row["step"], row["grad/norm"]) for row in found] == [(0, 0), (20, 20), (39, 39)]
    config = SQLiteStorage.get_run_config(project, "mine-gradients")
    assert config["optimizer"] == "SGD"
    senders = [t for t in threading.enumerate() if "_local_batch_sender" in t.name]
    assert senders == []


def test_infinite_values_and_fields_of_trackio(run, project, play) -> None:
    norm = np.array([1.0, np.inf])
    record = Block(("w",), np.arange(2), {}, {"grad_norm": norm, "run": np.full(2, 5.0)})
    play(Trackio(run, every=1), [record])
    trackio.finish()
    assert logs(project, "mine") == [
        {"step": 0, "grad/norm": 1, "user/run": 5},
        {"step": 1, "grad/norm": np.inf, "user/run": 5},
    ]


def test_mistakes(run, project) -> None:
    with pytest.raises(UserError, match="got a run and project='p'"):
        Trackio(run, project="p")
    with pytest.raises(UserError, match="name='n'"):
        Trackio(run, name="n")
    with pytest.raises(UserError, match="expected run to be a Trackio run, got str"):
        Trackio("mine")
    trackio.finish()
    with pytest.raises(UserError, match=r"there is no current Trackio run: call trackio\.init"):
        Trackio()
