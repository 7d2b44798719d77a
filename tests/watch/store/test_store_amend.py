"""What becomes known late gets into its record, wherever the record is, and into every picture."""

import os
import shutil
import tempfile
import threading
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwise.errors import UserError
from gradwise.watch.store import RunWriter, load
from gradwise.watch.store.files import Draft, stamp_of

from .amending import NAN, amend, check_pictures, late_values
from .conftest import Maker


def test_in_memory(tmp_path: Path, maker: Maker) -> None:
    with maker.writer(tmp_path, flush_every=1e6) as writer:
        for start in (0, 5):
            maker.append(writer, np.arange(start, start + 5))
        writer.amend(np.array([1, 7]), {"late": np.array([1.5, 2.5]), "loss": np.array([NAN, 8])})
        assert writer.amendments_waiting == 0
        writer.flush()
        run = load(tmp_path)
        assert run.steps["late"].to_numpy()[[1, 7]].tolist() == [1.5, 2.5]
        assert np.isnan(run.steps["late"].to_numpy()).sum() == 8
        assert run.steps["loss"].to_numpy()[7] == 8
        assert run.metric("norm")[0].tolist() == list(range(10))
    assert len(run.files("steps")) == 1


def test_on_the_disk(tmp_path: Path, maker: Maker) -> None:
    with maker.writer(tmp_path, flush_every=1e6) as writer:
        for start in (0, 5, 10):
            maker.append(writer, np.arange(start, start + 5))
            writer.flush()
        before = load(tmp_path)
        names = [path.name for path in before.files("steps")]
        maker.append(writer, np.arange(15, 18))
        writer.amend(np.array([2, 14, 16]), {"late": np.array([1.0, 2.0, 3.0])})
        assert writer.amendments_waiting == 2
        assert "late" not in load(tmp_path).steps.column_names
        writer.flush()
        assert writer.amendments_waiting == 0
        amend(writer, {14: 4.0})
        amend(writer, {14: 5.0, 16: NAN})
        amend(writer, {14: -1.0}, "loss")
        writer.flush()
        expected = np.full(18, NAN)
        expected[[2, 14, 16]] = 1.0, 5.0, 3.0
        before.refresh()
        for run in (before, load(tmp_path)):
            np.testing.assert_array_equal(run.steps["late"].to_numpy(), expected)
            assert run.steps["loss"].to_numpy()[14] == -1.0
            assert run.steps["step"].to_pylist() == list(range(18))
            assert run.step_metrics == ("loss", "late")
        assert [path.name for path in load(tmp_path).files("steps")][:3] == names
        maker.append(writer, [18])
    run = load(tmp_path)
    np.testing.assert_array_equal(run.steps["late"].to_numpy(), [*expected, NAN])
    frame = pl.read_parquet(run.files("steps"))
    np.testing.assert_array_equal(frame["late"].to_numpy(), [*expected, NAN])


def test_a_reader_that_has_not_refreshed_sees_whole_records(tmp_path: Path, maker: Maker) -> None:
    with maker.writer(tmp_path) as writer:
        maker.append(writer, np.arange(5))
        run = load(tmp_path)
        maker.check(run, np.arange(5))
        amend(writer, {4: 2.0})
        maker.append(writer, np.arange(5, 6))
        maker.check(run, np.arange(5))
        assert run.damaged == ()


@settings(max_examples=25, deadline=None)
@given(
    blocks=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    data=st.data(),
)
def test_any_amendments_at_any_time(blocks: list[int], data: st.DataObject) -> None:
    """Records, files and pyramids agree with a plain dict, whatever is amended when."""
    maker, expected = Maker(), dict[int, float]()
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr("gradwise.watch.store.merge.FAN_IN", 3)
        patch.setattr("gradwise.watch.store.merge.LEFT", data.draw(st.integers(0, 1)))
        patch.setattr("gradwise.watch.store.housekeeping.CHUNK", 32)
        # Jobs that are left unfinished between two writes.
        patch.setattr(
            "gradwise.watch.store.flusher._WORK_SHARE", data.draw(st.sampled_from([0, 1]))
        )
        end, gap = 0, data.draw(st.integers(1, 3))
        with maker.writer(Path(folder), flush_every=data.draw(st.sampled_from([0.0, 1e6]))) as w:
            for block in blocks:
                maker.append(w, np.arange(end, end + block) * gap)
                end += block
                chosen = data.draw(st.sets(st.integers(0, end - 1), max_size=4))
                new = {at * gap: data.draw(st.floats(-9, 9, width=16)) for at in sorted(chosen)}
                amend(w, new)
                expected |= new
                if data.draw(st.booleans()):
                    w.flush()
                    check_pictures(load(folder))
        run = load(folder)
        maker.check(run, np.arange(end) * gap)
        if expected:
            wanted = [expected.get(at * gap, NAN) for at in range(end)]
            np.testing.assert_array_equal(run.steps["late"].to_numpy(), wanted)
        check_pictures(run)


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize("step", [3, 400, 1000, 1599])
def test_pyramids_are_built_anew_from_there_on(tmp_path: Path, maker: Maker, step: int) -> None:
    with maker.writer(tmp_path) as writer:
        for start in range(0, 1600, 50):
            maker.append(writer, np.arange(start, start + 50))
        for _ in range(40):
            writer.flush()
        untouched = {
            path.name: path.stat().st_mtime_ns
            for path in (tmp_path / "pyramids" / "steps-1").iterdir()
            if int(path.name[13:25]) < step
        }
        assert len(load(tmp_path)._folder._tables.levels["steps"]) == 2
        amend(writer, {step: 1e6}, "loss")
        writer.flush()
        check_pictures(load(tmp_path), "loss")
        for name, time in untouched.items():
            assert (tmp_path / "pyramids" / "steps-1" / name).stat().st_mtime_ns == time
        for _ in range(60):
            writer.flush()
        run = load(tmp_path)
        check_pictures(run, "loss")
        assert [path.parent.name for path in tmp_path.glob("pyramids/steps-*/*")].count("steps-2")
        level = run._folder._tables.levels["steps"][0]
        assert sum(reader.steps for reader in level) in (99, 100)  # all but a stride begun anew
        # Only the steps: the layers' pyramid has nothing to do with it.
        maker.check_downsampled(run, np.arange(1600))


@pytest.mark.parametrize(
    ("steps", "scalars", "says"),
    [
        ([3], {"late": [1.0]}, "expected steps that have been recorded, got 3"),
        ([9], {"late": [1.0]}, "expected steps that have been recorded, got 9"),
        ([2, 8], {"late": [1.0, 1.0]}, "expected steps that have been recorded, got 8"),
        ([0, 4], {"late": [1.0]}, r"'late' of shape \[2\], got \[1\]"),
        ([4, 0], {"late": [1.0, 1.0]}, "ascend strictly"),
        ([-1], {"late": [1.0]}, "each >= 0, got -1"),
        ([0], {"step": [1.0]}, "expected scalars other than .* got 'step'"),
        ([0], {"late": ["x"]}, "real numbers in 'late'"),
    ],
)
@pytest.mark.parametrize("flushed", [True, False])
def test_what_does_not_fit_changes_nothing(
    tmp_path: Path, steps: list, scalars: dict, says: str, flushed: bool
) -> None:
    with RunWriter(tmp_path, [], layer_metrics=[], flush_every=1e6) as writer:
        writer.append(np.array([0, 2, 4]), {}, {"loss": np.ones(3)})
        if flushed:
            writer.flush()
        with pytest.raises(UserError, match=says):
            writer.amend(np.array(steps), {n: np.array(v) for n, v in scalars.items()})
        assert writer.amendments_waiting == writer.lost_amendments == 0
    assert load(tmp_path).steps.to_pydict() == {"step": [0, 2, 4], "loss": [1.0] * 3}


def test_nothing_at_all(tmp_path: Path, maker: Maker) -> None:
    with maker.writer(tmp_path) as writer:
        maker.append(writer, np.arange(3))
        before = [path.stat().st_mtime_ns for path in load(tmp_path).files("steps")]
        writer.amend(np.array([], int), {})
        writer.amend(np.array([1]), {})
        amend(writer, {1: NAN})
        writer.flush()
        assert before == [path.stat().st_mtime_ns for path in load(tmp_path).files("steps")]
        maker.append(writer, np.arange(3, 4))
    assert load(tmp_path).step_metrics == ("loss", "late")  # announced, as by `append`
    with pytest.raises(ValueError, match="is closed"):
        amend(writer, {1: 2.0})


def test_after_resuming(tmp_path: Path, maker: Maker) -> None:
    with maker.writer(tmp_path) as writer:
        maker.append(writer, np.arange(10))
        amend(writer, {4: 1.0, 8: 2.0})
    with maker.writer(tmp_path, resume_from=6) as writer:
        amend(writer, {5: 3.0})
        with pytest.raises(UserError, match="got 8"):
            amend(writer, {8: 3.0})
        maker.append(writer, np.arange(6, 10))
    run = load(tmp_path)
    late = run.steps["late"].to_numpy()
    np.testing.assert_array_equal(late, [NAN] * 4 + [1.0, 3.0] + [NAN] * 4)
    maker.check(run, np.arange(10))


def test_a_replaced_part_never_passes_for_the_old_one(tmp_path: Path) -> None:
    """A file system may stamp two files of one length with the same time."""
    path = tmp_path / "part"
    path.write_bytes(b"old")
    stamp = stamp_of(path.stat())
    with Draft(path) as draft:
        draft.write(b"new")
        os.utime(draft.path, ns=(stamp[0], stamp[0]))
        draft.commit(unlike=stamp)
    assert path.read_bytes() == b"new"
    assert stamp_of(path.stat())[0] - stamp[0] == 2_000_000_000
    with Draft(path) as draft:
        draft.write(b"newer")
        draft.commit(unlike=stamp)
    assert abs(stamp_of(path.stat())[0] - stamp[0]) < 1_500_000_000


def test_a_part_replaced_while_it_is_read_is_no_damage(
    tmp_path: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between looking and opening: what is known of the old file misleads in the new one."""
    import pyarrow.parquet as pq

    with maker.writer(tmp_path) as writer:
        maker.append(writer, np.arange(5000))
        run = load(tmp_path)
        maker.check(run, np.arange(5000))  # the footer is known now
        opening, replaced = pq.ParquetFile, []

        def replace_first(path: str, **options: object) -> pq.ParquetFile:
            if not replaced and "steps" in path:
                replaced.append(path)
                writer.amend(np.arange(5000), {"a": np.random.default_rng(0).random(5000)})
            return opening(path, **options)

        monkeypatch.setattr(pq, "ParquetFile", replace_first)
        maker.check(run, np.arange(5000))
        assert replaced
        assert run.damaged == ()


@pytest.mark.usefixtures("busy")
def test_a_reader_beside_a_writer_that_amends(tmp_path: Path, maker: Maker) -> None:
    done, failures, seen = threading.Event(), [], []
    with maker.writer(tmp_path) as writer:
        maker.append(writer, np.arange(2))

        def read() -> None:
            try:
                run = load(tmp_path)
                known: dict[int, float] = {}
                while not done.is_set() or not seen:
                    run.refresh()
                    end = (run.last_step or 0) + 1
                    maker.check(run, np.arange(end))
                    table = run.steps
                    values = table["late"].to_numpy() if "late" in table.column_names else []
                    for step, value in known.items():  # nothing amended is ever taken back
                        assert values[step] == value
                    known = {s: float(v) for s, v in enumerate(values) if not np.isnan(v)}
                    assert all(late_values(s) == v for s, v in known.items())
                    assert run.damaged == ()
                    seen.append(len(known))
            except BaseException as error:  # told to the main thread below
                failures.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        draw = np.random.default_rng(0)
        for start in range(2, 500, 2):
            maker.append(writer, np.arange(start, start + 2))
            for step in {start - 1, int(draw.integers(0, start))}:
                amend(writer, {step: float(late_values(step))})
            if failures:
                break
        done.set()
        reader.join()
    assert failures == []
    assert max(seen) > 0
    check_pictures(load(tmp_path))


def test_copying_a_run_while_it_is_amended_is_as_good_as_a_crash(
    tmp_path: Path, maker: Maker
) -> None:
    """Touched by somebody, or copied: other times of writing, the same run."""
    with maker.writer(tmp_path / "run", flush_every=1e6) as writer:
        for start in (0, 5):
            maker.append(writer, np.arange(start, start + 5))
            writer.flush()
        for path in (tmp_path / "run").rglob("*.parquet"):
            os.utime(path, ns=(10**18, 10**18))
        amend(writer, {2: 1.0})
        writer.flush()
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
    for run in (load(tmp_path / "run"), load(tmp_path / "copy")):
        maker.check(run, np.arange(10))
        assert run.steps["late"].to_pylist()[2] == 1.0
