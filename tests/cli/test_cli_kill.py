"""`gradwise compare` that is killed, interrupted, or meets a full disk, and then goes on."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_helpers import TINY
from lab_helpers import make_trial, numbers, recorded, same_tables, tiny

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]

EPOCHS = 50


def results(out):
    """Results by trial, with what changes when a file is written anew."""
    found = {}
    for path in out.rglob("result.json"):
        stat = path.stat()
        found[path] = (stat.st_ino, stat.st_mtime_ns)
    return found


def soon(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def test_killed_interrupted_and_gone_on(start, here):
    arguments = [
        "compare",
        *TINY,
        "--epochs",
        EPOCHS,
        "--methods",
        "sgd,autoscale",
        "--seeds",
        "0,3",
        "--jobs",
        "2",
        "--out",
        "o",
    ]
    out = here / "o"

    # SIGKILL of the one process that the user knows of: its trials end by themselves.
    killed = start(*arguments)
    killed.wait_for(lambda: list(out.rglob("checkpoint.pt")))
    assert killed.workers()
    killed.popen.kill()
    assert soon(lambda: not killed.workers())

    # Once more, as early as can be: torch takes longer to load than its end may take.
    early = start(*arguments)
    early.wait_for(early.workers)
    early.popen.kill()
    assert soon(lambda: not early.workers(), 1)
    before = results(out)

    # Ctrl-C goes to all processes of the terminal's group.
    struck = start(*arguments)
    struck.wait_for(lambda: len(results(out)) >= 1 and struck.workers())
    began = time.monotonic()
    os.killpg(struck.popen.pid, signal.SIGINT)
    code, _, err = struck.end(10)
    assert code == 130
    assert time.monotonic() - began < 5
    assert err.rstrip().splitlines()[-1] == (
        "gradwise: interrupted; the same command goes on from here"
    )
    assert soon(lambda: not struck.workers(), 1)
    assert before.items() <= results(out).items()
    before = results(out)
    assert 1 <= len(before) < 4

    code, _, err = start(*arguments).end()
    assert code == 0
    assert before.items() <= results(out).items()  # what was finished was not run again
    summary = json.loads((out / "summary.json").read_text())
    assert summary["finished"]
    assert summary["methods"]["sgd"]["status"] == ["finished"] * 2
    settings = tiny(epochs=EPOCHS, threads=1)
    for method in ("sgd", "autoscale"):
        for seed in (0, 3):
            folder = out / "trials" / method / f"seed-{seed}"
            whole = make_trial(here / "whole" / f"{method}{seed}", settings, method, seed).run()
            assert numbers(json.loads((folder / "result.json").read_text())) == numbers(whole)
            for left, right in zip(
                recorded(here / "whole" / f"{method}{seed}"), recorded(folder), strict=True
            ):
                assert same_tables(left, right)
    assert not list(out.rglob("*.tmp"))


def test_two_at_once_on_one_folder_and_sigterm(start):
    arguments = [
        "compare",
        *TINY,
        "--epochs",
        "4000",
        "--methods",
        "sgd",
        "--seeds",
        "1",
        "--out",
        "o",
    ]
    first = start(*arguments)
    first.wait_for(first.workers)
    code, _, err = start(*arguments).end()
    assert code == 2
    assert err == "gradwise: --out o is being written by another gradwise compare\n"
    assert first.popen.poll() is None
    first.popen.terminate()  # as a job scheduler does
    code, _, err = first.end(10)
    assert code == 143
    assert "interrupted" in err
    assert soon(lambda: not first.workers(), 1)


@pytest.fixture
def small_disk(here):
    """A file system of 2 MB."""
    place = here / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "none", place], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("only root can make a small file system to fill")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_disk_that_is_really_full(start, here, small_disk):
    def call(seeds):
        return start(
            "compare",
            *TINY,
            "--epochs",
            "4",
            "--methods",
            "sgd",
            "--seeds",
            seeds,
            "--jobs",
            "1",
            "--out",
            "disk/o",
        ).end()

    assert call("1")[0] == 0
    before = {
        p: p.read_bytes() for p in small_disk.rglob("*") if "trials" in p.parts and p.is_file()
    }
    ballast = small_disk / "ballast"
    free = os.statvfs(small_disk)
    ballast.write_bytes(b"x" * (free.f_bavail * free.f_frsize - 100_000))  # less than a checkpoint
    code, _, err = call("2")
    assert code == 1
    told = [line for line in err.splitlines() if "disk is full" in line]
    assert len(told) == 1
    assert told[0].startswith("gradwise: the disk is full; what was written before is whole")
    assert {p: p.read_bytes() for p in before} == before
    assert list(small_disk.rglob("result.json")) == [small_disk / "o/trials/sgd/seed-0/result.json"]
    ballast.unlink()
    code, _out, err = call("2")
    assert code == 0, err
    assert len(list(small_disk.rglob("result.json"))) == 2
    assert {p: p.read_bytes() for p in before} == before


def test_a_limit_on_the_size_of_files(start, here):
    import resource

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    arguments = ["compare", *TINY, "--methods", "sgd", "--seeds", "1", "--out", "o"]
    code, _, err = start(*arguments, preexec_fn=limit).end()
    assert code == 1
    assert "sgd seed 0: failed, File too large" in err
    failure = json.loads((here / "o/trials/sgd/seed-0/failure.json").read_text())
    assert failure["reason"].startswith("File too large")
    assert start(*arguments).end()[0] == 0
    assert not (here / "o/trials/sgd/seed-0/failure.json").exists()


def test_the_packages_of_the_command_are_those_of_its_trials(start, here):
    # A folder of the user's that is called as ours is not taken for it.
    (here / "gradwise").mkdir()
    (here / "gradwise" / "__init__.py").write_text("raise ImportError('the user's')")
    import gradwise

    house = str(Path(gradwise.__file__).parents[1])
    command = [
        sys.executable,
        "-P",
        "-m",
        "gradwise",
        "compare",
        *TINY,
        "--methods",
        "sgd",
        "--seeds",
        "1",
        "--out",
        "o",
    ]
    ended = subprocess.run(
        command, cwd=here, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": house}
    )
    assert ended.returncode == 0, ended.stderr
