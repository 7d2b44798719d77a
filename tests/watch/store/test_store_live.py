"""Reading beside a writer, and keeping a second writer out."""

import json
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest

from gradwise.errors import UserError
from gradwise.watch.store import RunWriter, load

from .conftest import Maker


@pytest.mark.usefixtures("busy")
def test_a_reader_beside_a_writer_sees_whole_runs_only(tmp_path: Path, maker: Maker) -> None:
    """Merges take files away under the reader all the time; it never notices."""
    done, failures = threading.Event(), []
    with maker.writer(tmp_path) as writer:
        maker.append(writer, np.arange(2))

        def read() -> None:
            try:
                run, seen = load(tmp_path), 0
                while not done.is_set() or not seen:
                    maker.check(run, np.arange(seen := (run.last_step or 0) + 1))
                    kept = run.last_step
                    assert run.layers.num_rows == 3 * seen
                    assert run.last_step == kept
                    run.refresh()
                    assert (run.last_step or 0) >= seen - 1
            except BaseException as error:  # told to the main thread below
                failures.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        for start in range(2, 700, 2):
            maker.append(writer, np.arange(start, start + 2))
            if failures:
                break
        done.set()
        reader.join()
    assert failures == []
    maker.check(load(tmp_path), np.arange(700))


def test_a_loaded_run_stays_as_it_was_until_refreshed(tmp_path: Path, maker: Maker) -> None:
    with maker.writer(tmp_path) as writer:
        maker.append(writer, np.arange(5))
        run = load(tmp_path)
        maker.append(writer, np.arange(5, 9))
    assert len(list((tmp_path / "layers").iterdir())) == 1  # what it had listed is gone
    maker.check(run, np.arange(5))
    assert not run.closed
    run.refresh()
    maker.check(run, np.arange(9))
    assert run.closed


@pytest.mark.usefixtures("busy")
def test_a_reader_forgets_files_that_are_gone(tmp_path: Path, maker: Maker) -> None:
    """It may look on for days."""
    with maker.writer(tmp_path) as writer:
        run = load(tmp_path)
        for start in range(0, 300, 2):
            maker.append(writer, np.arange(start, start + 2))
            run.refresh()
    run.refresh()
    there = len(list(tmp_path.rglob("*.parquet")))
    assert len(run._folder._whole) == len(run._folder._readers) == there < 20


def test_reading_changes_nothing(tmp_path: Path, maker: Maker) -> None:
    with maker.writer(tmp_path) as writer:
        maker.append(writer, np.arange(5))
    before = sorted((str(path), path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    maker.check(load(tmp_path), np.arange(5))
    assert before == sorted((str(path), path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))


def test_flushing_by_the_clock(
    tmp_path: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for a second is written by the next append, and no sooner."""
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    with maker.writer(tmp_path, flush_every=1.0) as writer:
        maker.append(writer, [0])
        now = 100.9
        maker.append(writer, [1])
        assert load(tmp_path).last_step is None
        now = 101.0
        maker.append(writer, [2])
        maker.check(load(tmp_path), np.arange(3))
        maker.append(writer, [3])
        now = 101.99
        maker.append(writer, [4])
        maker.check(load(tmp_path), np.arange(3))


def test_much_at_once_is_written_at_once(
    tmp_path: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gradwise.watch.store.flusher._FLUSH_BYTES", 5000)
    with maker.writer(tmp_path, flush_every=1e6) as writer:
        maker.append(writer, np.arange(90))
        assert load(tmp_path).last_step is None
        maker.append(writer, np.arange(90, 180))
        maker.check(load(tmp_path), np.arange(180))


def test_a_flush_is_synced_before_it_shows(tmp_path: Path, maker: Maker, syncs: list[str]) -> None:
    with maker.writer(tmp_path, flush_every=1e6) as writer:
        maker.append(writer, [0])
        writer.flush()  # makes the folders
        maker.append(writer, [1])
        syncs.clear()
        writer.flush()
        # The layers first: a step counts from the moment its row in `steps` is there.
        assert syncs == [
            *("sync file", "rename layers", "sync folder"),
            *("sync file", "rename steps", "sync folder"),
        ]
        syncs.clear()
        writer.flush()
        assert syncs == []


def test_a_second_writer_is_turned_away(tmp_path: Path, maker: Maker) -> None:
    with maker.writer(tmp_path) as writer:
        maker.append(writer, [0])
        writer.flush()
        for resume_from in (None, 0, 1):
            says = r"written by another writer \(process \d+ on .*\): close that one first, or name"
            with pytest.raises(UserError, match=says):
                maker.writer(tmp_path, resume_from=resume_from)
        maker.append(writer, [1])
    maker.check(load(tmp_path), [0, 1])
    with maker.writer(tmp_path, resume_from=2):
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="locks are a thing of POSIX here")
def test_the_lock_holds_between_processes_and_dies_with_its_holder(
    tmp_path: Path, maker: Maker
) -> None:
    code = (
        "import sys; from gradwise.watch.store import RunWriter\n"
        "writer = RunWriter(sys.argv[1], ['a'], layer_metrics=['norm'])\n"
        "print('ready', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        maker.layers, maker.metrics = ("a",), ("norm",)
        says = f"being written by another writer .process {process.pid} on "
        with pytest.raises(UserError, match=says):
            maker.writer(tmp_path, resume_from=0)
        process.kill()
        process.wait()
        with RunWriter(tmp_path, ["a"], layer_metrics=["norm"], resume_from=0) as writer:
            assert writer.last_step is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_neither_writes_nor_keeps_the_lock(tmp_path: Path, maker: Maker) -> None:
    """Data loaders fork; a worker that outlives its parent must not keep the folder."""
    hold, release = os.pipe()
    waiting, ready = os.pipe()
    writer = maker.writer(tmp_path, flush_every=1e6)
    maker.append(writer, [0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking beside Arrow's threads
        child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(release)
            try:
                maker.append(writer, [1])
            except ValueError:
                writer.close()
                code = 0
            os.write(ready, b"x")
            os.read(hold, 1)
        finally:
            os._exit(code)
    os.close(hold)
    assert os.read(waiting, 1) == b"x"
    writer.close()
    with maker.writer(tmp_path, resume_from=1):  # the child is still there
        maker.check(load(tmp_path), [0])
    for end in (release, waiting, ready):
        os.close(end)
    assert os.waitpid(child, 0)[1] == 0
    maker.check(load(tmp_path), [0])


def edit(folder: Path, **changes: object) -> None:
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_newer_format_is_left_alone(tmp_path: Path, maker: Maker) -> None:
    with maker.writer(tmp_path) as writer:
        maker.append(writer, np.arange(5))
    edit(tmp_path, version=2)
    (tmp_path / "writer.lock").unlink()
    before = sorted((str(path), path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    says = r"written by a newer gradwise: expected format version <= 1, got 2; update"
    with pytest.raises(UserError, match=says):
        load(tmp_path)
    for resume_from in (None, 3):
        with pytest.raises(UserError, match=says):
            maker.writer(tmp_path, resume_from=resume_from)
        (tmp_path / "writer.lock").unlink(missing_ok=True)
    assert [time for _, time in before] == [
        time
        for _, time in sorted((str(path), path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    ]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", r"run\.json is damaged: it is not JSON"),
        (b"\xff\xfe", r"run\.json is damaged: it is not JSON"),
        (b"[" * 100_000, r"run\.json is damaged: it is not JSON"),
        (b"[]", r"its run\.json is of another kind"),
        (b'{"format": "other"}', r"its run\.json is of another kind"),
        (b'{"format": "gradwise-run"}', "expected a version >= 1, got None"),
        (b'{"format": "gradwise-run", "version": true}', "expected a version >= 1, got True"),
        (b'{"format": "gradwise-run", "version": 1}', "expected a list of text in 'layers'"),
    ],
)
def test_a_run_file_that_is_none(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(UserError, match=says):
        load(tmp_path)
    with pytest.raises(UserError, match=says):
        RunWriter(tmp_path, ["a"], layer_metrics=["norm"], resume_from=0)
    assert (tmp_path / "run.json").read_bytes() == content


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"layers": ["a", 1]}, "expected a list of text in 'layers'"),
        ({"layers": ["a", "a"]}, "expected different names in layers, got 'a' twice"),
        ({"layer_metrics": ["step"]}, "expected layer_metrics other than"),
        ({"units": {"norm": 3}}, "expected text for each of 'units'"),
        ({"meta": []}, "expected an object in 'meta'"),
        ({"resumed": ["x"]}, "damaged: invalid literal"),
    ],
)
def test_a_run_file_with_nonsense(tmp_path: Path, maker: Maker, changes: dict, says: str) -> None:
    with maker.writer(tmp_path):
        pass
    edit(tmp_path, **changes)
    with pytest.raises(UserError, match=says):
        load(tmp_path)


def test_no_run_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder: there is no such folder"):
        load(tmp_path / "none")
    with pytest.raises(UserError, match=r"is not a run folder: it has no run\.json"):
        load(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is not a run folder"):
        load(tmp_path / "file")


def test_a_run_that_is_deleted_while_read(tmp_path: Path, maker: Maker) -> None:
    import shutil

    with maker.writer(tmp_path / "run") as writer:
        maker.append(writer, np.arange(5))
    run = load(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    assert run.layers.num_rows == 0
    assert run.last_step is None
    with pytest.raises(UserError, match="no such folder"):
        run.refresh()
