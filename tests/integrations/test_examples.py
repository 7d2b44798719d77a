"""The examples run as their first lines say, on real processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from gradwise.watch.store import load

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not dist.is_available() or not dist.is_gloo_available(), reason="torch without gloo"
    ),
]


def torchrun(folder, processes, script, *arguments):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={processes}", str(EXAMPLES / script), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def losses(out):
    return [float(line.rsplit(" ", 1)[1]) for line in out.splitlines() if ": loss " in line]


def test_pretraining_goes_on_with_another_number_of_processes(tmp_path):
    script = "pretrain_fsdp2.py"
    first = losses(torchrun(tmp_path, 4, script, "--steps", 20, "--tensor-parallel", 2))
    second = losses(torchrun(tmp_path, 2, script, "--steps", 40, "--resume"))
    assert len(first) == len(second) == 2
    assert min(second) < first[0]
    run = load(tmp_path / "runs/pretrain/watch")
    assert run.last_step == 39
    assert "blocks.0.query.weight" in run.layer_names
    assert not (tmp_path / "runs/pretrain/watch-2").exists()
