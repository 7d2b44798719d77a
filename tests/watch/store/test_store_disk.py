"""A disk that refuses: told, counted, survived; nothing that was there is harmed."""

import errno
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gradwise.errors import UserError
from gradwise.watch.store import WriteError, files, load

from .conftest import Maker

FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Disk:
    """Refuses writes while it is full; every `limp`-th one otherwise."""

    def __init__(self) -> None:
        self.full = False
        self.limp = 0
        self.calls = 0
        self._write_all: Callable[[int, bytes | memoryview], None] = files.write_all

    def __call__(self, fd: int, data: bytes | memoryview) -> None:
        self.calls += 1
        if self.full or (self.limp and self.calls % self.limp == 0):
            self._write_all(fd, memoryview(data)[: len(data) // 2])
            raise FULL
        self._write_all(fd, data)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(files, "write_all", disk)
    return disk


def drafts(folder: Path) -> list[Path]:
    return list(folder.rglob(".*.tmp"))


def test_a_full_disk_is_told_by_flush_and_counted_by_append(
    tmp_path: Path, maker: Maker, disk: Disk
) -> None:
    with maker.writer(tmp_path) as writer:
        maker.append(writer, np.arange(5))
        disk.full = True
        maker.append(writer, np.arange(5, 8))
        assert writer.errors == 1
        assert isinstance(writer.last_error, OSError)
        with pytest.raises(WriteError, match="cannot write records") as caught:
            writer.flush()
        assert caught.value.errno == errno.ENOSPC
        assert caught.value.steps_waiting == writer.steps_waiting == 3
        assert caught.value.filename == str(tmp_path)
        assert writer.errors == 2
        assert drafts(tmp_path) == []
        maker.check(load(tmp_path), np.arange(5))
        disk.full = False
        maker.append(writer, np.arange(8, 9))
        assert writer.steps_waiting == 0
        maker.check(load(tmp_path), np.arange(9))
    assert writer.lost_steps == 0
    maker.check(load(tmp_path), np.arange(9))


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize("limp", [2, 5, 11, 17, 40])
def test_a_limping_disk_loses_and_doubles_nothing(
    tmp_path: Path, maker: Maker, disk: Disk, limp: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may fail between the two tables, in merges and in pyramids."""
    monkeypatch.setattr("gradwise.watch.store.flusher._REST_SECONDS", 0.0)
    writer = maker.writer(tmp_path)
    disk.limp = limp
    for start in range(0, 99, 3):
        maker.append(writer, np.arange(start, start + 3))
        run = load(tmp_path)
        maker.check(run, np.arange(0 if run.last_step is None else run.last_step + 1))
    assert writer.errors > 0
    disk.limp = 0
    writer.close()
    maker.check(load(tmp_path), np.arange(99))
    assert drafts(tmp_path) == []
    assert len(list((tmp_path / "layers").iterdir())) == 1


def test_what_cannot_wait_for_ever_is_counted(
    tmp_path: Path, maker: Maker, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradwise.watch.store.flusher._WAITING_BYTES", 4000)
    with maker.writer(tmp_path) as writer:
        maker.append(writer, np.arange(10))
        disk.full = True
        for start in range(10, 300, 10):
            maker.append(writer, np.arange(start, start + 10))
        assert writer.steps_waiting <= 110
        assert writer.lost_steps == 290 - writer.steps_waiting
        disk.full = False
    steps = load(tmp_path).steps["step"].to_numpy()
    kept = np.concatenate([np.arange(10), np.arange(10 + writer.lost_steps, 300)])
    np.testing.assert_array_equal(steps, kept)
    np.testing.assert_array_equal(load(tmp_path).metric("norm")[0], kept)


def test_closing_on_a_full_disk_tells_and_lets_go(tmp_path: Path, maker: Maker, disk: Disk) -> None:
    writer = maker.writer(tmp_path, flush_every=1e6)
    maker.append(writer, np.arange(5))
    writer.flush()
    maker.append(writer, np.arange(5, 8))
    disk.full = True
    with pytest.raises(WriteError):
        writer.close()
    writer.close()
    assert writer.lost_steps == 3
    run = load(tmp_path)
    assert not run.closed
    maker.check(run, np.arange(5))
    disk.full = False
    with maker.writer(tmp_path, resume_from=5) as again:
        maker.append(again, np.arange(5, 8))
    maker.check(load(tmp_path), np.arange(8))


def test_the_error_of_the_body_is_the_one_to_see(tmp_path: Path, maker: Maker, disk: Disk) -> None:
    def write(error: Exception | None, **options: int) -> None:
        with maker.writer(tmp_path, flush_every=1e6, **options) as writer:
            maker.append(writer, [0])
            disk.full = True
            if error is not None:
                raise error

    with pytest.raises(ZeroDivisionError):
        write(ZeroDivisionError())
    disk.full = False
    with pytest.raises(WriteError):
        write(None, resume_from=0)


@pytest.mark.usefixtures("busy")
def test_a_merge_that_fails_rests_and_costs_nothing(
    tmp_path: Path, maker: Maker, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    with maker.writer(tmp_path) as writer:
        for start in (0, 3):
            maker.append(writer, np.arange(start, start + 3))
        from gradwise.watch.store import housekeeping

        def refuse(*arguments: object, **options: object) -> None:
            raise FULL

        with monkeypatch.context() as patch:
            patch.setattr(housekeeping, "merge", refuse)
            for start in (6, 9, 12):
                maker.append(writer, np.arange(start, start + 3))
            assert writer.errors == 1
            now = 11.0
            maker.append(writer, np.arange(15, 18))
            assert writer.errors == 2
        assert writer.steps_waiting == 0
        maker.check(load(tmp_path), np.arange(18))
    maker.check(load(tmp_path), np.arange(18))


def test_a_folder_deleted_under_the_writer(tmp_path: Path, maker: Maker) -> None:
    writer = maker.writer(tmp_path / "run")
    maker.append(writer, [0])
    shutil.rmtree(tmp_path / "run")
    maker.append(writer, [1])
    assert writer.errors == 1
    with pytest.raises(WriteError, match="the run folder is gone"):
        writer.close()
    assert not (tmp_path / "run").exists()


def test_folders_that_cannot_be(tmp_path: Path, maker: Maker, disk: Disk) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file cannot be a run folder: Not a directory"):
        maker.writer(tmp_path / "file")
    with pytest.raises(UserError, match="Not a directory"):
        maker.writer(tmp_path / "file" / "run")
    disk.full = True
    with pytest.raises(UserError, match=r"cannot write to the run folder .*: No space left"):
        maker.writer(tmp_path / "run")
    disk.full = False
    with maker.writer(tmp_path / "run"):
        pass
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write all")
def test_a_folder_without_permission(tmp_path: Path, maker: Maker) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError, match=r"cannot write to the run folder .*Permission denied"):
            maker.writer(tmp_path / "run")
    finally:
        tmp_path.chmod(0o700)


LIMITED = """
import resource, sys
import numpy as np
sys.path.insert(0, {tests!r})
from pathlib import Path
from store.conftest import Maker
from gradwise.watch.store import WriteError, load

maker, out = Maker(), Path(sys.argv[1])
writer = maker.writer(out, flush_every=1e6)
maker.append(writer, np.arange(8))
writer.flush()
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
maker.append(writer, np.arange(8, 4000))
try:
    writer.flush()
except WriteError as error:
    print(error.errno, error.steps_waiting, writer.errors)
maker.check(load(out), np.arange(8))
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
writer.close()
maker.check(load(out), np.arange(4000))
print("whole")
"""


def test_a_real_limit_of_the_system(tmp_path: Path) -> None:
    code = LIMITED.format(tests=str(Path(__file__).parents[1]))
    told = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert told.split() == [str(errno.EFBIG), "3992", "1", "whole"]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
