"""Amendments and the disk: killed at any moment, full, limping, damaged, refusing."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gradwise.errors import UserError
from gradwise.watch.store import WriteError, files, load

from .amending import NAN, amend, check_pictures, late_values
from .conftest import Maker
from .test_store_crash import Moments, goes_on
from .test_store_disk import Disk

KILLED = """
import sys
import numpy as np
from pathlib import Path
from gradwise.watch.store import housekeeping, merge
sys.path.insert(0, TESTS)
from store.conftest import Maker
merge.FAN_IN, merge.LEFT, housekeeping.CHUNK = 3, 1, 32
folder, begin = Path(sys.argv[1]), int(sys.argv[2])
maker = Maker()
writer = maker.writer(
    folder, resume_from=begin or None, flush_every=1e6, histogram_edges=(0.0, 1.0)
)
def amend(steps):
    writer.amend(steps, {"late": steps * 7 / 4 + 1})
for step in range(begin, 10**9, 4):
    now = np.array([step])
    writer.append_histograms(now, np.tile(step + np.arange(3), (1, 3, 1)))
    maker.append(writer, np.arange(step, step + 4))
    amend(np.arange(step, step + 2))  # in memory
    writer.flush()
    amend(np.arange(step + 2, step + 4))  # on the disk
    if step % 12 == 0 and step > begin + 80:
        amend(np.arange(step - 70, step - 66))  # in the pyramid, the same values again
    writer.flush()
    print(step + 4, flush=True)
"""


class TestCrashes:
    @pytest.mark.usefixtures("busy")
    def test_every_moment(
        self, tmp_path: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path / "run"
        (tmp_path / "copies").mkdir()
        draw = np.random.default_rng(1)
        writer = maker.writer(folder)
        moments = Moments(folder, tmp_path / "copies")
        amended: dict[int, float] = {}
        flushed: dict[int, dict[int, float]] = {}  # what had been amended by each copy
        with moments.watching(monkeypatch):
            for start in range(0, 96, 8):
                maker.append(writer, np.arange(start, start + 8))
                moments.flushed = start + 8
                before = len(moments.taken)
                flushed[before] = dict(amended)
                steps = np.unique([start + 7, *draw.integers(0, start + 8, 2)])
                new = dict(zip(steps.tolist(), late_values(steps).tolist(), strict=True))
                amend(writer, new)
                writer.flush()
                amended |= new
                flushed[len(moments.taken)] = dict(amended)
            writer.close()
        assert len(moments.taken) > 200
        sure: dict[int, float] = {}
        partly = 0
        for i, (copy, count) in enumerate(moments.taken):
            sure = flushed.get(i, sure)
            run = load(copy)
            table = run.steps
            steps = table["step"].to_numpy()
            assert len(steps) in (count, count + 8)
            assert steps.tolist() == list(range(len(steps)))
            values = (
                table["late"].to_numpy()
                if "late" in table.column_names
                else np.full(len(steps), NAN)
            )
            there = ~np.isnan(values)
            np.testing.assert_array_equal(values[there], late_values(steps)[there])
            assert set(sure) <= set(steps[there].tolist()) <= set(amended)
            partly += set(sure) != set(steps[there].tolist())
            if i % 3 == 0:
                maker.check(run, np.arange(len(steps)))
                check_pictures(run)
            if i % 12 == 0:
                goes_on(maker, copy, step=count // 2, end=count + 40)
                check_pictures(load(copy))
        assert partly > 10

    @pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is a thing of POSIX")
    def test_kill_nine(self, tmp_path: Path) -> None:
        """A real writer that records, amends and takes histograms, killed three times."""
        code = KILLED.replace("TESTS", repr(str(Path(__file__).parents[1])))
        begin, maker = 0, Maker()
        for lines in (20, 45, 25):
            with subprocess.Popen(
                [sys.executable, "-c", code, str(tmp_path / "run"), str(begin)],
                stdout=subprocess.PIPE,
                text=True,
            ) as process:
                assert process.stdout is not None
                told = [int(process.stdout.readline()) for _ in range(lines)]
                process.send_signal(signal.SIGKILL)
                told += [int(line) for line in process.stdout.read().split()]
            run = load(tmp_path / "run")
            assert run.last_step is not None
            count = run.last_step + 1
            assert count >= told[-1]
            maker.check(run, np.arange(count))
            steps, late = np.arange(count), run.steps["late"].to_numpy()
            there = ~np.isnan(late)
            np.testing.assert_array_equal(late[there], late_values(steps)[there])
            assert np.all(there[: told[-1]])  # flushed with all that was amended
            check_pictures(run)
            found, counts = run.histogram(maker.layers[1])
            np.testing.assert_array_equal(found, np.arange(0, count, 4))
            np.testing.assert_array_equal(counts, np.stack([found, found + 1, found + 2], axis=1))
            begin = (told[-1] // 16) * 8


class TestDisk:
    def test_full(self, tmp_path: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
        disk = Disk()
        monkeypatch.setattr(files, "write_all", disk)
        with maker.writer(tmp_path) as writer:
            maker.append(writer, np.arange(10))
            disk.full = True
            amend(writer, {3: 1.0})
            assert writer.errors == 1
            assert writer.amendments_waiting == 1
            with pytest.raises(WriteError, match="cannot write amendments of records") as caught:
                writer.flush()
            assert caught.value.errno == errno.ENOSPC
            assert caught.value.steps_waiting == writer.steps_waiting == 0
            maker.append(writer, np.arange(10, 12))
            amend(writer, {11: 2.0})  # still in memory
            assert writer.amendments_waiting == 1
            maker.check(load(tmp_path), np.arange(10))
            disk.full = False
            writer.flush_if_due()
            assert writer.amendments_waiting == writer.lost_amendments == 0
            assert load(tmp_path).steps["late"].to_numpy()[[3, 11]].tolist() == [1.0, 2.0]
        maker.check(load(tmp_path), np.arange(12))

    @pytest.mark.usefixtures("busy")
    @pytest.mark.parametrize("limp", [2, 7, 31])
    def test_limping(
        self, tmp_path: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch, limp: int
    ) -> None:
        disk = Disk()
        monkeypatch.setattr(files, "write_all", disk)
        monkeypatch.setattr("gradwise.watch.store.flusher._REST_SECONDS", 0.0)
        writer = maker.writer(tmp_path)
        disk.limp = limp
        for start in range(0, 60, 3):
            maker.append(writer, np.arange(start, start + 3))
            amend(writer, {step: step / 2 for step in (start // 2, start + 1)})
            if start % 12 == 0:
                check_pictures(load(tmp_path))
        assert writer.errors > 0
        disk.limp = 0
        writer.close()
        assert writer.lost_amendments == 0
        maker.check(load(tmp_path), np.arange(60))
        late = load(tmp_path).steps["late"].to_numpy()
        wanted = {step for start in range(0, 60, 3) for step in (start // 2, start + 1)}
        np.testing.assert_array_equal(late, [s / 2 if s in wanted else NAN for s in range(60)])

    def test_what_cannot_wait_for_ever(
        self, tmp_path: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gradwise.watch.store.flusher._WAITING_AMENDMENTS", 5)
        disk = Disk()
        monkeypatch.setattr(files, "write_all", disk)
        with maker.writer(tmp_path) as writer:
            maker.append(writer, np.arange(20))
            disk.full = True
            for step in range(20):
                amend(writer, {step: float(step)})
            assert writer.amendments_waiting == 5
            assert writer.lost_amendments == 15
            disk.full = False
        late = load(tmp_path).steps["late"].to_numpy()
        np.testing.assert_array_equal(late, [NAN] * 15 + [15.0, 16, 17, 18, 19])

    def test_closing_on_a_full_disk(
        self, tmp_path: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        disk = Disk()
        monkeypatch.setattr(files, "write_all", disk)
        writer = maker.writer(tmp_path, flush_every=1e6)
        maker.append(writer, np.arange(5))
        writer.flush()
        amend(writer, {1: 1.0, 2: 2.0})
        disk.full = True
        with pytest.raises(WriteError, match="amendments"):
            writer.close()
        assert writer.lost_amendments == 2
        maker.check(load(tmp_path), np.arange(5))

    def test_of_records_that_were_lost(
        self, tmp_path: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nobody's mistake, so it is counted; a step that never was still is one."""
        monkeypatch.setattr("gradwise.watch.store.flusher._WAITING_BYTES", 1000)
        disk = Disk()
        monkeypatch.setattr(files, "write_all", disk)
        with maker.writer(tmp_path) as writer:
            disk.full = True
            for start in range(0, 100, 5):
                maker.append(writer, np.arange(start, start + 5))
            assert writer.lost_steps > 50
            amend(writer, {3: 1.0, 99: 2.0})
            assert writer.lost_amendments == 1
            with pytest.raises(UserError, match="got 100"):
                amend(writer, {100: 1.0})
            disk.full = False
        assert load(tmp_path).steps["late"].to_numpy()[-1] == 2.0

    def test_of_records_in_a_damaged_part(self, tmp_path: Path, maker: Maker) -> None:
        with maker.writer(tmp_path, flush_every=1e6) as writer:
            for start in (0, 5):
                maker.append(writer, np.arange(start, start + 5))
                writer.flush()
            first, _ = load(tmp_path).files("steps")
            first.write_bytes(first.read_bytes()[:-9])
            amend(writer, {2: 1.0, 7: 2.0})
            writer.flush()
            assert writer.lost_amendments == 1
            amend(writer, {3: 1.0})
            assert writer.lost_amendments == 2
        run = load(tmp_path)
        assert run.steps["step"].to_pylist() == list(range(5, 10))
        assert run.steps["late"].to_pylist()[2] == 2.0
        assert list((tmp_path / "steps").glob("_*.damaged"))

    def test_a_pyramid_that_cannot_be_dropped_holds_the_records_back(
        self, tmp_path: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch, busy: None
    ) -> None:
        """Otherwise its bins would go on showing what the records no longer say."""
        with maker.writer(tmp_path) as writer:
            maker.append(writer, np.arange(64))
            unlink = Path.unlink

            def refuse(path: Path, **options: bool) -> None:
                if "pyramids" in str(path) and path.suffix == ".parquet":
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
                unlink(path, **options)

            with monkeypatch.context() as patch:
                patch.setattr(Path, "unlink", refuse)
                for step in (40, 10):
                    amend(writer, {step: 1.0})
                assert writer.errors > 0
                assert writer.amendments_waiting == 2
                check_pictures(load(tmp_path))
                assert "late" not in load(tmp_path).step_metrics
            writer.flush()
            assert writer.amendments_waiting == 0
            check_pictures(load(tmp_path))
        assert load(tmp_path).steps["late"].to_numpy()[[10, 40]].tolist() == [1.0, 1.0]
