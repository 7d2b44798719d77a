"""The compiled kernels: made once, replaced by torch's calls where they cannot be made."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import gradwise as gw
from gradwise import backends
from gradwise.affine import Affine
from gradwise.backends import compiler, launch, native
from gradwise.backends.launch import PIECE
from gradwise.cli.app import cli
from gradwise.layout import layout_of

needs_compiler = pytest.mark.skipif(not native.available(), reason="no C compiler here")


@pytest.fixture
def _fresh() -> None:
    """Ask for the kernels anew, before and after."""
    for cached in (compiler.kernels, launch._function):
        cached.cache_clear()
    yield
    for cached in (compiler.kernels, launch._function):
        cached.cache_clear()


@pytest.mark.usefixtures("_fresh")
@pytest.mark.parametrize("cc", ["no-such-compiler", "false"])
def test_without_a_compiler_torch_measures(
    cc: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CC", cc)
    monkeypatch.setenv("GRADWISE_CACHE", str(tmp_path))
    assert backends.choose(torch.device("cpu")) == "cpu"
    assert isinstance(backends.missing("native"), str)
    assert gw.measure([torch.tensor([3.0, 4.0])]).total_norm.item() == 5.0
    with pytest.raises(gw.UserError, match=r"^backend 'native' cannot run: "):
        gw.measure([torch.ones(2)], backend="native")
    assert list(tmp_path.rglob("*.so")) == []  # nothing half made stays behind


@needs_compiler
@pytest.mark.usefixtures("_fresh")
def test_a_folder_that_others_can_write_is_not_trusted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("GRADWISE_CACHE", str(tmp_path))
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels").chmod(0o777)
    assert "can be written by others" in str(backends.missing("native"))


@needs_compiler
def test_processes_that_start_together_agree(tmp_path: Path) -> None:
    code = "import torch, gradwise as gw; print(gw.measure([torch.ones(4)]).total_norm.item())"
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={"GRADWISE_CACHE": str(tmp_path), "PATH": "/usr/bin:/bin:/usr/local/bin"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    assert [run.communicate(timeout=120)[0].strip() for run in runs] == ["2.0"] * 3
    assert len(list((tmp_path / "kernels").iterdir())) == 1


@needs_compiler
def test_tensors_of_another_size_are_refused_before_they_are_read() -> None:
    layout = layout_of([torch.ones(8)])
    with pytest.raises(ValueError, match="not those of the layout"):
        native.measure([torch.ones(4)], layout, True)


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2])
def test_threads_do_not_change_the_numbers(threads: int) -> None:
    before = torch.get_num_threads()
    grads = [torch.randn(700, 800).relu(), torch.randn(5), torch.randn(900, 900), torch.zeros(3, 3)]
    try:
        torch.set_num_threads(threads)
        moments = gw.measure(grads, backend="native")
    finally:
        torch.set_num_threads(before)
    plain = gw.measure(grads, backend="reference")
    assert moments.zeros.tolist() == plain.zeros.tolist()
    for name in ("mean", "m2", "min", "max"):
        torch.testing.assert_close(
            getattr(moments, name), getattr(plain, name), rtol=1e-12, atol=1e-14
        )


@needs_compiler
@pytest.mark.parametrize("rows", [1, 3])
def test_what_is_cut_in_pieces_is_whole(rows: int) -> None:
    length = 2 * PIECE + 17
    grad = torch.randn(rows, length) + 3
    grad[0, 5], grad[-1, -1] = -99.0, 99.0
    layout = layout_of([grad], per="row" if rows > 1 else "tensor")
    moments = gw.measure([grad], per="row" if rows > 1 else "tensor", backend="native")
    wide = grad.double().reshape(layout.segments, -1)
    torch.testing.assert_close(moments.mean, wide.mean(1), rtol=1e-13, atol=0)
    torch.testing.assert_close(moments.std, wide.std(1, correction=0), rtol=1e-12, atol=0)
    assert torch.equal(moments.min, wide.amin(1))
    assert torch.equal(moments.max, wide.amax(1))
    expected = ((wide - moments.mean[:, None]) / moments.std[:, None]).reshape(grad.shape)
    backends.apply([grad], Affine(1 / moments.std, moments.mean), layout)
    torch.testing.assert_close(grad.double(), expected, rtol=1e-5, atol=1e-6)


@needs_compiler
@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no list of loaded libraries")
def test_threads_are_those_of_torch() -> None:
    # A second pool would wait until the threads of the first stop spinning. In a process of its
    # own, because other packages bring pools of theirs.
    code = (
        "import torch, gradwise as gw; from gradwise.backends import native;"
        "gw.measure([torch.ones(4)], backend='native');"
        "names = {line.split()[-1] for line in open('/proc/self/maps') if 'gomp' in line};"
        "print(len(names), native.threaded())"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.split() in (["1", "True"], ["0", "False"])


@needs_compiler
@pytest.mark.usefixtures("_fresh")
def test_a_compiler_without_openmp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GRADWISE_CACHE", str(tmp_path))
    monkeypatch.setattr(compiler, "THREADS", ("-fno-such-thing-as-openmp",))
    assert gw.measure([torch.tensor([3.0, 4.0])], backend="native").total_norm.item() == 5.0
    assert not native.threaded()
    told = CliRunner().invoke(cli, ["doctor", "--json"])
    notes = {row["backend"]: row["note"] for row in json.loads(told.output)["backends"]}
    assert notes["native"] == "on one thread: compiler or torch come without OpenMP"


@needs_compiler
def test_memory_formats_are_read_and_written_where_they_lie() -> None:
    last = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    grads = [last, torch.randn(6, 4).t(), torch.randn(8, 8)[:, ::2]]
    expected = [(g - g.mean()) for g in grads]
    addresses = [g.data_ptr() for g in grads]
    layout = layout_of(grads)
    affine, _ = gw.transforms.Center()(gw.measure(grads), {})
    backends.apply(grads, affine, layout)
    assert [g.data_ptr() for g in grads] == addresses
    for grad, value in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, value)
