"""`benchmarks/gpu.py` runs here at toy size; what it measures, it measures on a GPU alone."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.py"
CALLS = {
    "measure": 1,
    "apply": 2,
    "autoscale step, attached": 3,
    "clip_grad_norm_": 3,
    "watch alone": 1,
    "torch AdamW(fused)": 7,
    "AdamW + autoscale, folded": 8,
}


def run(arguments: list[str], **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **more}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["", "foreach", "triton"])
def test_at_toy_size(backend: str, tmp_path: Path) -> None:
    more = {"GRADWISE_BACKEND": backend}
    names = {"large-bfloat16", "large-float32", "small"}
    arguments = ["--device", "cpu", "--small", "--rounds", "2"]
    if backend == "triton":
        if importlib.util.find_spec("triton") is None:
            pytest.skip("the package triton is not installed")
        more |= {"TRITON_INTERPRET": "1", "TRITON_CACHE_DIR": str(tmp_path)}
        arguments += ["--cases", "small"]
        names = {"small"}
    path = tmp_path / "gpu.json"
    found = run([*arguments, "--json", str(path)], **more)
    assert found.returncode == 0, found.stderr
    assert "nothing here is a measurement" in found.stdout
    result = json.loads(path.read_text())
    assert result["measured"] is False
    assert result["environment"]["backend"] == (backend or result["environment"]["backend"])
    rows = {(row["case"], row["call"]): row for row in result["rows"]}
    assert {case for case, _ in rows} == names
    for case in names:
        for call, passes in CALLS.items():
            row = rows[case, call]
            assert row["passes_of_G"] == passes
            moved = passes * row["G_bytes"] / result["copy_bytes_per_s"]
            assert row["predicted_ms"] == pytest.approx(1e3 * moved)
            assert row["share_of_copy"] == pytest.approx(row["predicted_ms"] / row["median_ms"])
            assert row["kernels"] is row["waits"] is None  # there is no device to ask
        assert rows[case, "autoscale step, attached, in a CUDA graph"]["fails"] is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu() -> None:
    found = run([])
    assert found.returncode == 2
    assert found.stdout == ""
    assert found.stderr == "there is no CUDA device: try --device cpu --small for a run without\n"


def test_an_unknown_case() -> None:
    found = run(["--device", "cpu", "--small", "--cases", "small,other"])
    assert found.returncode == 2
    assert found.stderr.endswith("got other\n")
    assert len(found.stderr.splitlines()) == 1
