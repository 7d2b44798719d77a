"""`gradwise watch -- python train.py`: an unchanged script, run for real."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

import gradwise as gw

TRAIN = """
import sys, torch
model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Linear(6, 3))
wrapped = torch.nn.ModuleDict({"module": model})
optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
for i in range(12):
    optimizer.zero_grad()
    model(torch.randn(8, 4)).square().mean().backward()
    optimizer.step()
"""


def write(folder, body, name="train.py"):
    path = folder / name
    path.write_text(textwrap.dedent(body))
    return path


def start(folder, script, *options, arguments=(), env=None, python=(sys.executable,)):
    command = [sys.executable, "-m", "gradwise", "watch", *options, "--", *python, str(script)]
    return subprocess.Popen(
        [*command, *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process, code=0):
    out, err = process.communicate(timeout=120)
    assert process.returncode == code, err
    return out, err


def test_a_script_is_watched_and_told_where(tmp_path):
    script = write(tmp_path, TRAIN)
    out, err = finish(start(tmp_path, script, "--out", "runs/a"))
    assert out == ""
    assert f"gradwise: watching AdamW of Sequential in {tmp_path / 'runs' / 'a'}" in err
    run = gw.watch.load(tmp_path / "runs" / "a")
    assert run.layer_names == ("0.weight", "0.bias", "1.weight", "1.bias")
    assert run.last_step == 11
    assert run.closed
    assert run.meta["command"][0].endswith("train.py")


def test_every_optimizer_has_a_folder_and_options_reach_the_watch(tmp_path):
    body = TRAIN + "other = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)\n"
    body += "other.param_groups[0]['params'][0].grad = torch.ones(2)\nother.step()\n"
    script = write(tmp_path, body)
    options = ["--out", "a", "--every", "4", "--per", "module"]
    _, err = finish(start(tmp_path, script, *options))
    assert err.count("gradwise: watching") == 2
    assert "Warning" not in err
    first = gw.watch.load(tmp_path / "a")
    assert first.layer_names == ("0", "1")
    assert first.steps["step"].to_pylist() == [0, 4, 8]
    assert gw.watch.load(tmp_path / "a-2").meta["optimizer"] == "SGD"


def test_without_out_the_folder_is_named_after_the_script(tmp_path):
    finish(start(tmp_path, write(tmp_path, TRAIN)))
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("train-")
    assert gw.watch.load(folder).last_step == 11


def test_the_script_s_exit_code_arguments_and_output_are_its_own(tmp_path):
    body = TRAIN + "print('words', sys.argv[1:])\nsys.exit(7)\n"
    process = start(tmp_path, write(tmp_path, body), "--out", "a", arguments=["--out", "x", "a b"])
    out, _ = finish(process, code=7)
    assert out == "words ['--out', 'x', 'a b']\n"
    assert gw.watch.load(tmp_path / "a").last_step == 11


def test_a_script_that_fails_keeps_its_traceback_and_its_record(tmp_path):
    _, err = finish(
        start(tmp_path, write(tmp_path, TRAIN + "raise KeyError('mine')\n"), "--out", "a"), code=1
    )
    assert "KeyError: 'mine'" in err
    assert gw.watch.load(tmp_path / "a").last_step == 11


def test_a_script_that_watches_itself_is_left_alone(tmp_path):
    body = TRAIN.replace(
        "for i in", "import gradwise\ngradwise.watch(optimizer, model, 'own')\nfor i in"
    )
    finish(start(tmp_path, write(tmp_path, body), "--out", "a"))
    assert gw.watch.load(tmp_path / "own").last_step == 11
    assert not (tmp_path / "a").exists()


def test_a_program_without_torch_runs_as_ever(tmp_path):
    script = write(
        tmp_path, "import sys\nprint('torch' in sys.modules, 'gradwise' in sys.modules)\n"
    )
    out, err = finish(start(tmp_path, script, "--out", "a"))
    assert out == "False False\n"
    assert "nothing was recorded" in err


def test_a_python_without_gradwise_is_told_and_trains(tmp_path):
    hide = "import sys\nsys.modules['gradwise'] = None\n"
    out, err = finish(start(tmp_path, write(tmp_path, hide + TRAIN + "print(i)\n"), "--out", "a"))
    assert out == "11\n"
    assert err.count("gradwise: nothing is watched, because") == 1


def test_somebody_s_own_sitecustomize_is_run_too(tmp_path):
    (tmp_path / "site").mkdir()
    write(tmp_path / "site", "import builtins\nbuiltins.mine = 5\n", "sitecustomize.py")
    script = write(tmp_path, TRAIN + "print(mine)\n")
    env = {"PYTHONPATH": str(tmp_path / "site")}
    out, _ = finish(start(tmp_path, script, "--out", "a", env=env))
    assert out == "5\n"
    assert gw.watch.load(tmp_path / "a").last_step == 11


def test_what_the_script_starts_is_watched_too(tmp_path):
    write(tmp_path, TRAIN)
    outer = write(
        tmp_path,
        "import subprocess, sys\nsubprocess.run([sys.executable, 'train.py'])\n",
        "outer.py",
    )
    finish(start(tmp_path, outer, "--out", "a"))
    assert gw.watch.load(tmp_path / "a").last_step == 11


def test_a_program_that_is_not_there(tmp_path):
    process = start(tmp_path, "x.py", python=["no-such-program"])
    _, err = finish(process, code=2)
    assert err == "gradwise: cannot run no-such-program x.py: No such file or directory\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 5)])
def test_signals_reach_the_script_which_may_save_what_it_wants(tmp_path, number, code):
    body = """
    import signal, sys, time
    def save(*_):
        open("saved", "w").close()
        sys.exit(5)
    signal.signal(signal.SIGTERM, save)
    signal.signal(signal.SIGINT, save)
    open("ready", "w").close()
    time.sleep(60)
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "gradwise", "watch", "--out", "a", "--", sys.executable,
         str(write(tmp_path, body))],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    if number == signal.SIGINT:  # Ctrl-C goes to all that share the terminal
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == code
    assert (tmp_path / "saved").exists()
