"""Where a watch records, what it goes on from, and what it never loses."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from watch_helpers import learn, network, steps_of

import gradwise as gw
from gradwise.watch import WatchWarning
from gradwise.watch.store import files as store_files


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def recorded(folder, steps=3, **network_options):
    model, optimizer = network(**network_options)
    with gw.watch(optimizer, model, folder) as watch:
        learn(model, optimizer, steps, watch)
    return model, optimizer, watch


# Going on


def test_an_optimizer_s_checkpoint_goes_on_in_the_same_folder(tmp_path):
    model, optimizer = network()
    with gw.watch(optimizer, model, tmp_path / "a") as watch:
        learn(model, optimizer, 5, watch)
        torch.save((model.state_dict(), optimizer.state_dict()), tmp_path / "checkpoint.pt")
        learn(model, optimizer, 4, watch)  # lost in the crash that follows
    model, optimizer = network()
    watch = gw.watch(optimizer, model, tmp_path / "a")  # before loading, as scripts do
    weights, state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    model.load_state_dict(weights)
    optimizer.load_state_dict(state)
    with watch:
        learn(model, optimizer, 2, watch)
        assert watch.path == tmp_path / "a"
        assert watch.step == 6
    assert steps_of(tmp_path / "a")["step"] == [0, 1, 2, 3, 4, 5, 6]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "checkpoint.pt"]


def test_loading_before_watching_goes_on_too(tmp_path):
    model, optimizer = network()
    with gw.watch(optimizer, model, tmp_path / "a") as watch:
        learn(model, optimizer, 3, watch)
        state = optimizer.state_dict()
    model, optimizer = network()
    optimizer.load_state_dict(state)
    with gw.watch(optimizer, model, tmp_path / "a") as watch:
        learn(model, optimizer, 2, watch)
    assert steps_of(tmp_path / "a")["step"] == [0, 1, 2, 3, 4]


def test_a_checkpoint_without_a_folder_counts_on_in_a_new_one(tmp_path):
    model, optimizer = network()
    with gw.watch(optimizer, model, tmp_path / "a") as watch:
        learn(model, optimizer, 3, watch)
        state = optimizer.state_dict()
    model, optimizer = network()
    optimizer.load_state_dict(state)
    with gw.watch(optimizer, model, tmp_path / "fine-tuned") as watch:
        learn(model, optimizer, 2, watch)
    assert steps_of(tmp_path / "fine-tuned")["step"] == [3, 4]
    assert steps_of(tmp_path / "a")["step"] == [0, 1, 2]


def test_the_step_may_be_named_by_hand(tmp_path):
    recorded(tmp_path / "a", 6)
    model, optimizer = network()
    with gw.watch(optimizer, model, tmp_path / "a", resume_from=4) as watch:
        learn(model, optimizer, 1, watch)
    assert steps_of(tmp_path / "a")["step"] == [0, 1, 2, 3, 4]


def test_a_checkpoint_loaded_in_the_midst_of_a_run_loses_nothing(tmp_path):
    model, optimizer = network()
    with gw.watch(optimizer, model, tmp_path / "a") as watch:
        learn(model, optimizer, 2, watch)
        best = optimizer.state_dict()
        learn(model, optimizer, 2, watch)
        optimizer.load_state_dict(best)
        learn(model, optimizer, 1, watch)
    assert steps_of(tmp_path / "a")["step"] == [0, 1, 2, 3, 4]


def test_a_run_that_took_a_sibling_goes_on_there(tmp_path):
    recorded(tmp_path / "a")
    model, optimizer = network()
    with gw.watch(optimizer, model, tmp_path / "a") as watch:
        with pytest.warns(WatchWarning):
            learn(model, optimizer, 2, watch)
        state = optimizer.state_dict()
    model, optimizer = network()
    optimizer.load_state_dict(state)
    with gw.watch(optimizer, model, tmp_path / "a") as watch:
        learn(model, optimizer, 2, watch)
    assert watch.path == tmp_path / "a-2"
    assert steps_of(tmp_path / "a-2")["step"] == [0, 1, 2, 3]


# What is in the way stays as it is


def test_another_run_in_the_folder(tmp_path):
    recorded(tmp_path / "a")
    before = content(tmp_path / "a")
    model, optimizer = network()
    with (
        pytest.warns(WatchWarning, match=r"recording to .*a-2, because .*a holds something else"),
        gw.watch(optimizer, model, tmp_path / "a") as watch,
    ):
        learn(model, optimizer, 2, watch)
    assert watch.path == tmp_path / "a-2"
    assert content(tmp_path / "a") == before
    assert steps_of(tmp_path / "a-2")["step"] == [0, 1]


def test_somebody_s_files_in_the_folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("mine")
    model, optimizer = network()
    with gw.watch(optimizer, model, tmp_path / "a"), pytest.warns(WatchWarning, match="a-2"):
        learn(model, optimizer, 1)
    assert content(tmp_path / "a") == {"notes.txt": b"mine"}


def test_two_watches_on_one_folder(tmp_path):
    (one, its), (two, others) = network(), network()
    with gw.watch(its, one, tmp_path / "a") as first:
        learn(one, its, 2, first)
        with gw.watch(others, two, tmp_path / "a") as second:
            with pytest.warns(WatchWarning, match="a-2"):
                learn(two, others, 3, second)
            learn(one, its, 2, first)
    assert steps_of(tmp_path / "a")["step"] == [0, 1, 2, 3]
    assert steps_of(tmp_path / "a-2")["step"] == [0, 1, 2]


def test_names_that_changed_since_the_checkpoint(tmp_path):
    model, optimizer = network()
    with gw.watch(optimizer, model, tmp_path / "a") as watch:
        learn(model, optimizer, 2, watch)
        state = optimizer.state_dict()
    before = content(tmp_path / "a")
    model, _ = network()
    renamed = torch.nn.ModuleDict({"body": model})
    optimizer = torch.optim.SGD(renamed.parameters(), lr=0.1)
    optimizer.load_state_dict(state)
    with (
        pytest.warns(WatchWarning, match=r"a-2, because expected the layers of the run in .*'0"),
        gw.watch(optimizer, renamed, tmp_path / "a") as watch,
    ):
        learn(model, optimizer, 2, watch)
    assert content(tmp_path / "a") == before
    assert steps_of(tmp_path / "a-2")["step"] == [2, 3]


def test_a_run_of_a_newer_version(tmp_path):
    model, optimizer, _ = recorded(tmp_path / "a")
    file = tmp_path / "a" / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"version": 99}))
    before = content(tmp_path / "a")
    with (
        pytest.warns(WatchWarning, match="a-2, because .*newer"),
        gw.watch(optimizer, model, tmp_path / "a", resume_from=3) as watch,
    ):
        learn(model, optimizer, 2, watch)
    assert content(tmp_path / "a") == before
    assert steps_of(tmp_path / "a-2")["step"] == [3, 4]


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    model, optimizer = network()
    with gw.watch(optimizer, model, tmp_path / "file" / "a") as watch:
        with pytest.warns(WatchWarning, match="nothing is recorded, because .*file"):
            learn(model, optimizer, 3, watch)
        assert watch.path is None
        assert watch.step == 2
    assert (tmp_path / "file").read_text() == "mine"


def test_parameters_that_join_have_rows_where_the_model_was_given(tmp_path):
    model, _ = network()
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1)
    with gw.watch(optimizer, model, tmp_path / "a") as watch:
        learn(model, optimizer, 2, watch)
        optimizer.add_param_group({"params": model[0].parameters()})
        learn(model, optimizer, 2, watch)
    norms = gw.watch.load(tmp_path / "a").layer("0.weight")["norm"].to_pylist()
    assert [norm > 0 for norm in norms] == [False, False, True, True]


def test_parameters_that_join_and_nobody_knows(tmp_path):
    model, _ = network()
    optimizer = torch.optim.SGD(model[2].named_parameters(), lr=0.1)
    extra = torch.nn.Parameter(torch.ones(3))
    with gw.watch(optimizer, None, tmp_path / "a") as watch:
        learn(model, optimizer, 2, watch)
        optimizer.add_param_group({"params": [("extra", extra)]})
        extra.grad = torch.full((3,), 100.0)
        with pytest.warns(WatchWarning, match=r"'extra' joined at step 2"):
            optimizer.step()
        extra.grad = torch.full((3,), 100.0)
        optimizer.step()
    steps = steps_of(tmp_path / "a")
    assert steps["step"] == [0, 1, 2, 3]
    assert [norm > 100 for norm in steps["grad_norm"]] == [False, False, True, True]
    assert gw.watch.load(tmp_path / "a").layer_names == ("weight", "bias")


# The disk and the end of the process


def test_a_disk_that_fills_up_and_recovers(tmp_path, monkeypatch):
    model, optimizer = network()
    with gw.watch(optimizer, model, tmp_path / "a") as watch:
        learn(model, optimizer, 3, watch)
        watch.flush()

        def full(fd, data):
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(store_files, "write_all", full)
            learn(model, optimizer, 3, watch)
            deadline = time.monotonic() + 20
            while not watch.errors and time.monotonic() < deadline:
                time.sleep(0.05)
            assert watch.errors > 0
        learn(model, optimizer, 3, watch)
    assert steps_of(tmp_path / "a")["step"] == list(range(9))


SCRIPT = textwrap.dedent("""
    import sys, time, torch, gradwise as gw
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = gw.watch(optimizer, model, sys.argv[1])
    steps, pause = int(sys.argv[2]), float(sys.argv[3])
    for i in range(steps):
        optimizer.zero_grad()
        model(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
        watch.log(at=i)
        if i == 0:
            print("begun", flush=True)
        time.sleep(pause)
    {end}
""")


def run_script(tmp_path, steps, pause, end=""):
    path = tmp_path / "train.py"
    path.write_text(SCRIPT.format(end=end))
    command = [sys.executable, str(path), str(tmp_path / "a"), str(steps), str(pause)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


@pytest.mark.parametrize("end", ["", "raise KeyError", "sys.exit(3)"])
def test_a_script_that_just_ends_loses_nothing(tmp_path, end):
    process = run_script(tmp_path, 5, 0.0, end)
    process.communicate(timeout=60)
    assert (process.returncode == 0) == (end == "")
    assert steps_of(tmp_path / "a")["at"] == [0, 1, 2, 3, 4]
    assert gw.watch.load(tmp_path / "a").closed


@pytest.mark.parametrize("pause", [0.01, 2.5])
def test_sigkill_costs_the_last_second_at_most(tmp_path, pause):
    process = run_script(tmp_path, 10_000, pause)
    assert process.stdout.readline() == "begun\n"
    time.sleep(3.0 if pause < 1 else 4.0)
    killed = time.time()
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    steps = steps_of(tmp_path / "a")
    assert steps["step"] == list(range(len(steps["step"])))
    assert steps["at"] == steps["step"]
    # One second, and one more for a machine that is busy with other tests.
    missing = (killed - steps["time"][-1]) // pause if pause > 1 else killed - steps["time"][-1]
    assert missing < 2.0
    assert not gw.watch.load(tmp_path / "a").closed


def test_a_forked_child_leaves_the_run_alone(tmp_path):
    model, optimizer = network()
    with gw.watch(optimizer, model, tmp_path / "a") as watch:
        learn(model, optimizer, 2, watch)
        child = os.fork()
        if child == 0:
            try:
                learn(model, optimizer, 3, watch)
                watch.flush()
                watch.close()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        learn(model, optimizer, 1, watch)
    assert steps_of(tmp_path / "a")["step"] == [0, 1, 2]


def test_a_full_disk_hides_no_error_of_the_caller(tmp_path, monkeypatch):
    def full(fd, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    model, optimizer = network()

    def fail():
        with gw.watch(optimizer, model, tmp_path / "a") as watch:
            learn(model, optimizer, 1, watch)
            monkeypatch.setattr(store_files, "write_all", full)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
