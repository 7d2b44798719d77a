"""Writing in time, whatever the training does, and never taking all of the time."""

from pathlib import Path

import numpy as np
import pytest

from gradwise.watch.store import files, load

from .amending import amend
from .conftest import Maker
from .test_store_disk import Disk


class TestFlushIfDue:
    def test_by_the_clock(
        self, tmp_path: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = 100.0
        monkeypatch.setattr("time.monotonic", lambda: now)
        with maker.writer(tmp_path, flush_every=1.0) as writer:
            writer.flush_if_due()
            maker.append(writer, [0])
            now = 100.9
            writer.flush_if_due()
            assert load(tmp_path).last_step is None
            now = 101.0
            writer.flush_if_due()
            maker.check(load(tmp_path), [0])

    def test_the_disk_never_makes_it_fail(
        self, tmp_path: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        disk = Disk()
        monkeypatch.setattr(files, "write_all", disk)
        with maker.writer(tmp_path) as writer:
            disk.full = True
            maker.append(writer, [0])
            writer.flush_if_due()
            assert writer.errors == 2
            disk.full = False
            writer.flush_if_due()
            maker.check(load(tmp_path), [0])
        with pytest.raises(ValueError, match="is closed"):
            writer.flush_if_due()

    @pytest.mark.usefixtures("busy")
    def test_merging_goes_on_while_nothing_comes(
        self, tmp_path: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gradwise.watch.store.flusher._WORK_SHARE", 0.0)
        monkeypatch.setattr("gradwise.watch.store.flusher._WORK_LEAST", 0.0)
        with maker.writer(tmp_path) as writer:
            for start in range(0, 96, 4):
                maker.append(writer, np.arange(start, start + 4))
            before = len(list(tmp_path.rglob("*.parquet")))
            for _ in range(150):
                writer.flush_if_due()
            assert len(list(tmp_path.rglob("*.parquet"))) < before / 2
            assert (tmp_path / "pyramids" / "layers-1").is_dir()
            maker.check(load(tmp_path), np.arange(96))


def test_many_amendments_do_not_take_all_of_the_time(
    tmp_path: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One part a time when the clock says so, then three times as long a rest; all by flush."""
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    from gradwise.watch.store import amend as module

    rewrite, written = module._rewrite, []

    def slow(shelf: object, part: object, changes: dict) -> int:
        nonlocal now
        now += 1.0
        written.append(sorted(changes))
        return rewrite(shelf, part, changes)

    monkeypatch.setattr(module, "_rewrite", slow)
    with maker.writer(tmp_path, flush_every=0.5) as writer:
        for start in range(0, 30, 10):
            maker.append(writer, np.arange(start, start + 10))
            writer.flush()
        amend(writer, {1: 1.0, 12: 1.0, 14: 2.0, 25: 1.0})
        for later, count in ((0.4, 0), (0.2, 1), (2.0, 1), (1.2, 2)):
            now += later
            writer.flush_if_due()
            assert len(written) == count
        assert written == [[1], [12, 14]]
        assert writer.amendments_waiting == 1
        writer.flush()
        assert written == [[1], [12, 14], [25]]
    maker.check(load(tmp_path), np.arange(30))
