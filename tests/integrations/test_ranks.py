"""Two processes that train together: one records, and what it records is of both."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import gradwise as gw
from gradwise.transforms import Autoscale
from integrations.hosted import Spy, column, norm_of, noted, plain_training
from integrations.ranks import STEPS, batches, loss_of, network

for library in ("accelerate", "lightning"):
    pytest.importorskip(library, reason=f"{library} is not installed")
if not torch.distributed.is_available() or sys.platform == "win32":
    pytest.skip("this torch has no gloo to fork", allow_module_level=True)

MPIRUN = Path(sys.executable).with_name("mpirun")
LAUNCHED = pytest.param(
    "launch", marks=pytest.mark.skipif(not MPIRUN.exists(), reason="mpich is not installed")
)
NAMES = ("accelerate", "lightning", "torchrun", LAUNCHED)
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node=2")
LAUNCH = ("accelerate.commands.launch", "--cpu", "--num_processes=2", "--num_machines=1")


def run_script(
    folder: Path, *launcher: str, script: str = "ranks.py", rest: tuple[str, ...] = ()
) -> None:
    command = [*(("-m", *launcher) if launcher else ()), str(Path(__file__).with_name(script))]
    done = subprocess.run(
        [sys.executable, *command, str(folder), *rest],
        env={
            **{k: v for k, v in os.environ.items() if k not in ("WORLD_SIZE", "RANK")},
            "CUDA_VISIBLE_DEVICES": "",
            "PATH": os.pathsep.join((str(MPIRUN.parent), os.environ["PATH"])),
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where each kind of processes has left what it found."""
    forked = tmp_path_factory.mktemp("ranks")
    run_script(forked)
    launched = tmp_path_factory.mktemp("launched")
    run_script(launched, *TORCHRUN)
    by_mpi = tmp_path_factory.mktemp("by_mpi")
    if MPIRUN.exists():  # which is how `accelerate launch` starts several processes on CPUs
        hosts = by_mpi / "hosts"
        hosts.write_text("localhost:2\n")
        run_script(by_mpi, *LAUNCH, f"--mpirun_hostfile={hosts}")
    return {"accelerate": forked, "lightning": forked, "torchrun": launched, "launch": by_mpi}


def host(name: str) -> str:
    return "lightning" if name == "lightning" else "accelerate"


def one_process() -> tuple[Spy, Any, Any]:
    """One process that has the micro-batches of both, and clips and scales as they do.

    Returns:
        The optimizer, the gradients as they were read at each step, and the attachment.
    """
    model = network()
    optimizer = Spy(model.parameters(), 0.5)
    attachment = gw.attach(optimizer, Autoscale())
    ours, theirs = batches(0), batches(1)
    steps = [[*ours[2 * k : 2 * k + 2], *theirs[2 * k : 2 * k + 2]] for k in range(STEPS)]
    read = plain_training(model, optimizer, steps, loss_of, clip=0.5)
    return optimizer, read, attachment


@pytest.fixture(scope="module")
def expected() -> tuple[Spy, Any]:
    return one_process()[:2]


@pytest.mark.parametrize("name", NAMES)
def test_rank_zero_records(folders: dict[str, Path], name: str) -> None:
    folder, name = folders[name], host(name)
    first, second = (torch.load(folder / f"{name}-{rank}.pt") for rank in (0, 1))
    assert first["step"] == STEPS - 1
    assert Path(first["path"]).is_relative_to(folder / name)
    assert second["path"] is None
    runs = list((folder / name).rglob("run.json"))
    assert [path.parent for path in runs] == [Path(first["path"])]
    assert gw.watch.load(first["path"]).closed
    for ours, theirs in zip(first["params"], second["params"], strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", NAMES)
def test_the_values_are_of_all_processes(
    folders: dict[str, Path], name: str, expected: Any
) -> None:
    folder, name = folders[name], host(name)
    spy, read = expected
    found = torch.load(folder / f"{name}-0.pt")
    run = gw.watch.load(found["path"])
    np.testing.assert_allclose(column(run, "grad_norm"), [norm_of(s) for s in read], rtol=1e-4)
    np.testing.assert_allclose(
        column(run, "applied_norm"), [norm_of(s) for s in spy.used], rtol=1e-4
    )
    wanted = [p for group in spy.param_groups for p in group["params"]]
    for ours, theirs in zip(found["params"], wanted, strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-4, atol=1e-6)
    assert column(run, "backwards") == [2] * STEPS
    assert sorted(noted(run, "loss")) == list(range(STEPS))


@pytest.mark.parametrize("name", ["accelerate", "torchrun", LAUNCHED])
def test_the_order_of_events_on_each(folders: dict[str, Path], name: str) -> None:
    for rank in (0, 1):
        found = torch.load(folders[name] / f"accelerate-{rank}.pt")
        assert found["events"] == STEPS * ["backward", "backward", "clip", "read", "update"]
