"""Dying at any moment: what was flushed is there, whole, once, and the run can go on."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gradwise.watch.store import files, load

from .conftest import LAYERS, Maker


class Moments:
    """Copies of a folder as it was before every change, and in the middle of writes."""

    def __init__(self, folder: Path, copies: Path) -> None:
        self._folder, self._copies = folder, copies
        self.flushed = 0
        self.taken: list[tuple[Path, int]] = []

    def take(self) -> None:
        copy = self._copies / str(len(self.taken))
        shutil.copytree(self._folder, copy)
        self.taken.append((copy, self.flushed))

    @contextmanager
    def watching(self, patch: pytest.MonkeyPatch) -> Iterator[None]:
        """Take a copy at every step the disk makes."""
        write_all, half = files.write_all, set[int]()

        def writing(fd: int, data: bytes | memoryview) -> None:
            view = memoryview(data).cast("B")
            name = os.fstat(fd).st_ino
            write_all(fd, view[: len(view) // 2])
            if name not in half:  # once a file is enough
                half.add(name)
                self.take()
            write_all(fd, view[len(view) // 2 :])

        def before(call: Callable[..., Any]) -> Callable[..., Any]:
            def wrapped(*arguments: Any, **options: Any) -> Any:
                self.take()
                return call(*arguments, **options)

            return wrapped

        with patch.context() as context:
            context.setattr(files, "write_all", writing)
            context.setattr(os, "replace", before(os.replace))
            context.setattr(Path, "unlink", before(Path.unlink))
            yield
        self.take()


def goes_on(maker: Maker, folder: Path, step: int, end: int) -> None:
    """Resume a folder at `step` and check the whole run."""
    kept = load(folder).last_step
    begin = min(step, 0 if kept is None else kept + 1)
    with maker.writer(folder, resume_from=begin) as writer:
        maker.append(writer, np.arange(begin, end))
    maker.check(load(folder), np.arange(end))
    left = [path.name for path in folder.rglob("*") if path.name.startswith(".")]
    assert left == []


@pytest.mark.usefixtures("busy")
def test_every_moment_of_a_run(
    tmp_path: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    (tmp_path / "copies").mkdir()
    writer = maker.writer(folder)
    moments = Moments(folder, tmp_path / "copies")
    with moments.watching(monkeypatch):
        for start in range(0, 96, 4):
            maker.append(writer, np.arange(start, start + 4))
            moments.flushed = start + 4
        writer.close()
    assert len(list((folder / "pyramids" / "layers-1").iterdir())) == 1
    assert len(moments.taken) > 200
    for i, (copy, flushed) in enumerate(moments.taken):
        run = load(copy)
        last = run.last_step
        count = 0 if last is None else last + 1
        assert count in (flushed, flushed + 4)
        assert run.steps["step"].to_pylist() == list(range(count))
        assert run.metric("norm")[0].tolist() == list(range(count))
        if i % 4 == 0:
            maker.check(run, np.arange(count))
        if i % 9 == 0:
            goes_on(maker, copy, step=flushed // 2, end=flushed + 40)


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize("step", [0, 17, 64, 90])
def test_every_moment_of_a_resumption(
    tmp_path: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    folder = tmp_path / "run"
    (tmp_path / "copies").mkdir()
    with maker.writer(folder) as writer:
        for start in range(0, 90, 3):
            maker.append(writer, np.arange(start, start + 3))
    with maker.writer(folder, resume_from=90) as writer:
        maker.append(writer, np.arange(90, 95))
        writer.flush()
        shutil.copytree(folder, tmp_path / "again")
    moments = Moments(tmp_path / "again", tmp_path / "copies")
    with moments.watching(monkeypatch):
        writer = maker.writer(tmp_path / "again", resume_from=step)
    maker.check(load(tmp_path / "again"), np.arange(step))
    writer.close()
    for copy, _ in moments.taken:
        last = load(copy).last_step
        count = 0 if last is None else last + 1
        assert count >= step
        maker.check(load(copy), np.arange(count))
        goes_on(maker, copy, step=step, end=120)


def test_layers_without_their_step_are_not_shown(tmp_path: Path, maker: Maker) -> None:
    with maker.writer(tmp_path) as writer:
        for start in (0, 5):
            maker.append(writer, np.arange(start, start + 5))
        (late,) = tmp_path.glob("steps/000000000005*")
        late.unlink()
        run = load(tmp_path)
        assert run.last_step == 4
        maker.check(run, np.arange(5))
        assert run.layers.num_rows == 15


WRITER = """
import sys
import numpy as np
from pathlib import Path
from gradwise.watch.store import merge
from tests_of_store import Maker

merge.FAN_IN, merge.LEFT = 3, 0
folder, begin = Path(sys.argv[1]), int(sys.argv[2])
maker = Maker()
writer = maker.writer(folder, resume_from=begin or None, flush_every=1e6)
for step in range(begin, 10**9, 2):
    maker.append(writer, np.arange(step, step + 2))
    if step % 8 == 0:
        writer.flush()
        print(step + 2, flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is a thing of POSIX")
def test_kill_nine(tmp_path: Path, maker: Maker) -> None:
    """A real writer, really killed; then resumed from an older checkpoint, and killed again."""
    code = WRITER.replace(
        "from tests_of_store import Maker",
        f"sys.path.insert(0, {str(Path(__file__).parents[1])!r})\nfrom store.conftest import Maker",
    )
    folder, begin = tmp_path / "run", 0
    for lines in (60, 75):
        with subprocess.Popen(
            [sys.executable, "-c", code, str(folder), str(begin)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            told = [int(process.stdout.readline()) for _ in range(lines)]
            process.send_signal(signal.SIGKILL)
            told += [int(line) for line in process.stdout.read().split()]
        run = load(folder)
        assert run.last_step is not None
        assert run.last_step + 1 >= told[-1]
        assert not run.closed
        maker.check(run, np.arange(run.last_step + 1))
        begin = (told[-1] // 16) * 8
    goes_on(maker, folder, step=begin, end=begin + 30)
    assert load(folder).layer_names == LAYERS
