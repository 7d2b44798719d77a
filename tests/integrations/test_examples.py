"""The examples run as their first lines say, in processes of their own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from gradwise.watch.store import load

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

pytestmark = pytest.mark.slow


def run(folder, script, *arguments, module=()):
    command = [sys.executable, *module, str(EXAMPLES / script), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def finished(done):
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def torchrun(folder, processes, script, *arguments):
    module = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}")
    return finished(run(folder, script, *arguments, module=module))


def losses(out):
    return [float(line.rsplit(" ", 1)[1]) for line in out.splitlines() if ": loss " in line]


@pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="torch without gloo"
)
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


@pytest.mark.parametrize(
    "options",
    [(), ("optimizer_in_bwd=true", "accumulate=1")],
    ids=["accumulated", "optimizer in backward"],
)
def test_fine_tuning_is_resumed_where_it_was(options, tmp_path):
    script, short = "finetune_lora.py", ("pretrain_steps=20", "text=text.txt", *options)
    (tmp_path / "text.txt").write_text("a rose is a rose is a rose; so it goes. " * 50)
    whole = finished(run(tmp_path, script, "steps=30", "out=whole", *short))
    first = finished(run(tmp_path, script, "steps=10", *short))
    rest = finished(run(tmp_path, script, "steps=30", "resume=true", *short))
    steps = [line for line in whole.splitlines() if line.startswith("step ")]
    assert len(steps) == 3
    assert steps == [line for line in (first + rest).splitlines() if line.startswith("step ")]
    assert "pretrained" not in rest
    assert losses(whole)[-1] < losses(whole)[1]
    assert any("alpha 1.000" not in line for line in steps)
    if not options:
        watched = load(tmp_path / "runs/lora/watch")
        assert watched.last_step == 29
        assert "blocks.0.qkv.down" in watched.layer_names
        assert not any("norm" in name for name in watched.layer_names)  # frozen


def test_a_config_that_cannot_be(tmp_path):
    for arguments, told in (
        (["step=3"], "expected name=value, names text, out, steps"),
        (["steps=x"], "expected steps of type int"),
        (["optimizer_in_bwd=true"], "expected accumulate=1 with optimizer_in_bwd=true"),
    ):
        done = run(tmp_path, "finetune_lora.py", *arguments)
        assert done.returncode == 1
        assert done.stderr.startswith(told)
