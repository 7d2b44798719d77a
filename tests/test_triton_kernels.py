"""The Triton kernels: interpreted, compiled for GPUs that are not here, and refused.

The interpreter has to be asked for before triton is imported, so what it runs (`tests/interpreted`)
has processes of its own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import gradwise as gw
from gradwise import backends
from gradwise.backends.gpu import launching, measuring

HERE = Path(__file__).parent
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="the package triton is not installed"
)


def run(arguments: list[str], folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment.pop(backends.ENVIRONMENT_VARIABLE, None)
    environment |= {"TRITON_CACHE_DIR": str(folder), "OMP_NUM_THREADS": "1", **more}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=HERE.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("part", ["measuring", "mapping", "steps", "updates", "failures"])
def test_in_the_interpreter(part: str, tmp_path: Path) -> None:
    # The interpreter computes with NumPy, which warns of infinities.
    pytest_ = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore::RuntimeWarning"]
    found = run([*pytest_, f"tests/interpreted/check_{part}.py"], tmp_path, TRITON_INTERPRET="1")
    assert found.returncode == 0, found.stdout + found.stderr
    assert " passed" in found.stdout


COMPILE = """
import sys
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from gradwise.backends.gpu import kernels, update_kernels

TYPES = dict(
    addresses="*i64", tensor="*i32", start="*i64", length="*i32", segment="*i32", begin="*i32",
    partial="*fp64", counted="*i64", out="*fp64", out_counts="*i64", scale="*fp64", shift="*fp32",
    options="*fp64", constants="*fp32", rate="*fp32", mapped="*i32",
    first="i32", chunks="i32", segments="i32", tensors="i32",
)

def ptx(kernel, warps, **constants):
    signature = {n: "constexpr" if n in constants else TYPES[n] for n in kernel.arg_names}
    source = ASTSource(kernel, signature, constexprs=constants)
    options = {"num_warps": warps, "enable_fp_fusion": False}
    made = triton.compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32), options=options)
    assert made.metadata.shared <= 48 * 1024, made.metadata.shared
    return made.asm["ptx"]

for kind in (tl.float32, tl.bfloat16, tl.float16):
    for aligned in (True, False):
        made = [
            ptx(kernels.measure_chunks, 8, KIND=kind, BLOCK=8192, EXTREMES=aligned,
                ALIGNED=aligned),
            ptx(kernels.map_chunks, 8, KIND=kind, BLOCK=8192, SCALES=2, SHIFTS=1, ALIGNED=aligned),
            ptx(update_kernels.update_chunks, 8, KIND=kind, STATE=kind, METHOD=1, STATES=2,
                BLOCK=2048, SCALES=2, SHIFTS=0, MAXIMIZE=False, NESTEROV=False, FAR=False,
                ALIGNED=aligned),
            ptx(update_kernels.update_chunks, 8, KIND=kind, STATE=tl.float32, METHOD=0, STATES=1,
                BLOCK=2048, SCALES=1, SHIFTS=2, MAXIMIZE=True, NESTEROV=True, FAR=False,
                ALIGNED=aligned),
        ]
        wide = [("ld.global.v4.b32" in p, "st.global.v4.b32" in p) for p in made]
        print(kind, aligned, wide)
        assert wide == ([(True, False)] + [(True, True)] * 3 if aligned else [(False, False)] * 4)
        assert not any("atom." in p or "red.global" in p for p in made)
ptx(kernels.measure_chunks, 4, KIND=tl.float32, BLOCK=1024, EXTREMES=False, ALIGNED=True)
ptx(kernels.combine_chunks, 4, TILE=1024, EXTREMES=True)
ptx(kernels.combine_chunks, 1, TILE=16, EXTREMES=False)
for method in (0, 1):
    for there in (True, False):
        ptx(update_kernels.prepare_updates, 4, METHOD=method, RATE_GIVEN=there, THERE=there,
            TILE=128)
print("all compiled")
"""


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("target", ["80", "90"])
def test_compiled_for_a_gpu_with_the_widest_loads(target: str, tmp_path: Path) -> None:
    # No GPU is needed to compile for one. Addresses on 16 bytes are read and written by 16 bytes.
    found = run(["-c", COMPILE, target], tmp_path, PYTHONPATH=str(HERE.parent / "src"))
    if found.returncode and "ptxas" in found.stderr:
        pytest.skip("this triton came without the assembler")
    assert found.returncode == 0, found.stdout + found.stderr
    assert "all compiled" in found.stdout


def test_forced_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(launching, "_installed", lambda: True)
    grads = [torch.ones(3)]
    sentence = r"^backend 'triton' cannot run: there is no CUDA device$"
    with pytest.raises(gw.UserError, match=sentence):
        gw.measure(grads, backend="triton")
    monkeypatch.setenv("GRADWISE_BACKEND", "triton")
    with pytest.raises(gw.UserError, match=sentence):
        gw.measure(grads)
    optimizer = gw.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=0.1)
    optimizer.param_groups[0]["params"][0].grad = grads[0]
    with pytest.raises(gw.UserError, match=sentence):
        optimizer.step()


def test_forced_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "_installed", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert backends.missing("triton") == "the package triton is not installed"
    assert not measuring.proven(torch.device("cuda"))
    assert backends.choose(torch.device("cuda")) == "foreach"
    with pytest.raises(gw.UserError, match=r"^backend 'triton' cannot run: the package triton is"):
        backends.choose(torch.device("cuda"), "triton")


def test_forced_on_a_cpu_beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(launching, "_installed", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(gw.UserError, match=r"cannot run: Triton's kernels are for CUDA devices"):
        backends.choose(torch.device("cpu"), "triton")
    assert backends.choose(torch.device("cpu")) in ("native", "cpu")
    # For a whole run, a GPU's tensors are meant.
    monkeypatch.setenv("GRADWISE_BACKEND", "triton")
    assert backends.choose(torch.device("cpu")) in ("native", "cpu")
    assert backends.choose(torch.device("cuda")) == "triton"


def test_what_failed_is_told_and_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "_broken", ["the Triton kernel 'x' failed: Error: y"])
    assert backends.missing("triton") == "the Triton kernel 'x' failed: Error: y"
    assert backends.choose(torch.device("cuda")) == "foreach"
    assert backends.choose(torch.device("cuda"), "triton") == "foreach"


@pytest.mark.slow
def test_doctor_shows_it(tmp_path: Path) -> None:
    for forced in ("", "triton"):
        found = run(["-m", "gradwise", "doctor", "--json"], tmp_path, GRADWISE_BACKEND=forced)
        facts = json.loads(found.stdout)
        (row,) = (row for row in facts["backends"] if row["backend"] == "triton")
        if torch.cuda.is_available():
            assert row["used on"] == ["cuda"]
        else:
            assert row["used on"] == []
            assert row["note"] in ("there is no CUDA device", "the package triton is not installed")
            told = [f"cpu: backend 'triton' cannot run: {row['note']}"] if forced else []
            assert facts["problems"] == told
            assert found.returncode == len(told)


def test_importing_gradwise_imports_no_triton() -> None:
    code = "import sys, gradwise; print('triton' in sys.modules)"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    before = subprocess.run(
        [sys.executable, "-c", code.replace("gradwise", "torch")],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert found.stdout == before.stdout  # torch may import it itself
