"""Files that are cut off, overwritten or left over: the rest is read, nothing is made up."""

import os
import shutil
import warnings
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwise.errors import UserError
from gradwise.watch.store import Run, load

from .conftest import METRICS, Maker, layer_values, scalar_values


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with parts of several tiers and a pyramid, as a writer leaves it that dies."""
    folder = tmp_path_factory.mktemp("torn") / "run"
    maker = Maker()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gradwise.watch.store.merge.FAN_IN", 3)
        patch.setattr("gradwise.watch.store.merge.LEFT", 0)
        patch.setattr("gradwise.watch.store.housekeeping.CHUNK", 32)
        with maker.writer(folder) as writer:
            for start in range(0, 104, 4):
                maker.append(writer, np.arange(start, start + 4))
            for _ in range(30):
                writer.flush()
            kept = folder.with_name("kept")
            shutil.copytree(folder, kept)
    assert {path.name[26:28] for path in kept.glob("layers/*")} >= {"t0", "t1", "t2"}
    return kept


def copy_of(original: Path, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(original, folder)
    return folder


def parts_of(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.parquet"))


def quietly(folder: Path) -> Run:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return load(folder)


def check_rows(run: Run) -> set[int]:
    """Whatever is shown is true, in order, and once; returns the steps of the steps table."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for i, name in enumerate(METRICS):
            steps, values = run.metric(name)
            assert np.all(np.diff(steps) > 0)
            np.testing.assert_array_equal(values, layer_values(steps, i, 3))
        table = run.steps
        steps = table["step"].to_numpy()
        assert np.all(np.diff(steps) > 0)
        np.testing.assert_array_equal(table["loss"].to_numpy(), scalar_values(steps))
        bins = run.downsampled("mean", 13)
        for first, last, low in zip(bins.first_step, bins.last_step, bins.min, strict=True):
            whole = layer_values(np.arange(first, last + 1), 0, 3)
            assert np.all(low >= whole.min(0))
    return set(steps.tolist())


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_file_cut_off_anywhere(
    original: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = copy_of(original, tmp_path_factory.getbasetemp() / "cut")
    part = data.draw(st.sampled_from(parts_of(folder)))
    content = part.read_bytes()
    part.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    with pytest.warns(RuntimeWarning, match=f"{part.name} is damaged and was left out"):
        run = load(folder)
    assert run.damaged == (part,)
    first, last = (int(number) for number in part.name.split(".")[0].split("-"))
    shown = check_rows(run)
    gone = set(range(first, last + 1))
    table = part.parent.name
    assert shown == (set(range(104)) - gone if table == "steps" else set(range(104)))
    found = set(run.metric("norm")[0].tolist())
    assert found == (set(range(104)) - gone if table == "layers" else set(range(104)))
    torn_end = last == 103 and table in ("steps", "layers")
    assert run.last_step == (first - 1 if torn_end else 103)


def overwrite(part: Path, data: st.DataObject, *, footer: bool) -> None:
    """Change some bytes of the pages, or of the footer that says where they are."""
    content = bytearray(part.read_bytes())
    split = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    low, high = (split, len(content) - 1) if footer else (4, split - 1)
    for at in data.draw(st.sets(st.integers(low, high), min_size=1, max_size=3)):
        content[at] ^= data.draw(st.integers(1, 255))
    part.write_bytes(content)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_overwritten_values_are_found_out(
    original: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = copy_of(original, tmp_path_factory.getbasetemp() / "flip")
    overwrite(data.draw(st.sampled_from(parts_of(folder))), data, footer=False)
    check_rows(load(folder))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_overwritten_footer_can_be_survived(
    original: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Footers carry no checksum, but whatever they say, the others are read."""
    folder = copy_of(original, tmp_path_factory.getbasetemp() / "flip")
    overwrite(data.draw(st.sampled_from(parts_of(folder / "steps"))), data, footer=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        run = load(folder)
        assert run.steps.num_rows >= 60
        assert run.downsampled_steps(20).min.shape[1] >= 1
        assert run.layers.num_rows >= 180


def test_a_torn_merge_gives_way_to_what_it_was_made_of(tmp_path: Path, maker: Maker) -> None:
    with maker.writer(tmp_path) as writer:
        for start in (0, 5, 10):
            maker.append(writer, np.arange(start, start + 5))
        for table in ("layers", "steps"):
            merged = tmp_path / table / "000000000000-000000000014.t1.parquet"
            merged.write_bytes(b"PAR1 torn")
        with pytest.warns(RuntimeWarning, match="damaged"):
            run = load(tmp_path)
        assert len(run.damaged) == 2
        maker.check(run, np.arange(15))


def test_both_the_merge_and_what_it_was_made_of(original: Path, tmp_path: Path) -> None:
    """As after dying between the two: every step once, and the next writer tidies up."""
    folder, maker = copy_of(original, tmp_path / "run"), Maker()
    with maker.writer(folder, resume_from=104):
        pass
    for table in ("layers", "steps"):
        for part in (original / table).glob("*.parquet"):
            shutil.copy(part, folder / table / part.name)
    assert len(parts_of(folder)) > 10
    maker.check(load(folder), np.arange(104))
    with maker.writer(folder, resume_from=104):
        pass
    assert len(list((folder / "layers").iterdir())) == 1
    maker.check(load(folder), np.arange(104))


def test_left_over_drafts_are_passed_over_and_cleared(original: Path, tmp_path: Path) -> None:
    folder, maker = copy_of(original, tmp_path / "run"), Maker()
    drafts = [
        folder / ".run.json.tmp",
        folder / "layers" / ".000000000104-000000000110.t0.parquet.tmp",
        folder / "pyramids" / "steps-1" / ".000000000096-000000000110.t0.parquet.tmp",
    ]
    for draft in drafts:
        draft.write_bytes(b"half")
    maker.check(load(folder), np.arange(104))
    with maker.writer(folder, resume_from=104):
        pass
    assert not any(draft.exists() for draft in drafts)
    maker.check(load(folder), np.arange(104))


def test_resuming_puts_what_is_damaged_aside(original: Path, tmp_path: Path) -> None:
    folder, maker = copy_of(original, tmp_path / "run"), Maker()
    part = parts_of(folder / "layers")[0]
    content = part.read_bytes()
    part.write_bytes(content[:-5])
    with maker.writer(folder, resume_from=104) as writer:
        maker.append(writer, np.arange(104, 110))
    aside = part.with_name(f"_{part.name}.damaged")
    assert aside.read_bytes() == content[:-5]
    run = load(folder)
    assert run.damaged == ()
    assert run.last_step == 109
    assert check_rows(run) == set(range(110))
    first = int(part.name.split(".")[0].split("-")[1]) + 1
    assert run.metric("norm")[0].tolist() == list(range(first, 110))


@pytest.mark.usefixtures("busy")
def test_a_part_that_rots_under_a_writer(tmp_path: Path, maker: Maker) -> None:
    with maker.writer(tmp_path) as writer:
        for start in (0, 4):
            maker.append(writer, np.arange(start, start + 4))
        part = parts_of(tmp_path / "layers")[0]
        norm = pq.ParquetFile(part).metadata.row_group(0).column(3)
        assert norm.path_in_schema == "norm"
        content = bytearray(part.read_bytes())
        content[norm.data_page_offset + norm.total_compressed_size - 1] ^= 0xFF
        part.write_bytes(content)
        for start in range(8, 60, 4):
            maker.append(writer, np.arange(start, start + 4))
        assert writer.errors == 0
    assert [path.name for path in (tmp_path / "layers").glob("_*")] == [f"_{part.name}.damaged"]
    assert load(tmp_path).metric("norm")[0].tolist() == list(range(4, 60))


def test_strange_names_are_nobodys_parts(tmp_path: Path, maker: Maker) -> None:
    with maker.writer(tmp_path) as writer:
        maker.append(writer, np.arange(4))
        for name in (
            "notes.parquet",
            "000000000009-000000000003.t0.parquet",
            "000000000004-٠٠٠٠٠٠٠٠٠٠٠٩.t0.parquet",
            "9999999999999999999-9999999999999999999.t0.parquet",
        ):
            (tmp_path / "layers" / name).write_bytes(b"PAR1 what is this PAR1")
        run = load(tmp_path)
        assert run.damaged == ()
        maker.check(run, np.arange(4))


def test_a_part_of_another_run_is_not_believed(tmp_path: Path, maker: Maker) -> None:
    with maker.writer(tmp_path / "a") as writer:
        maker.append(writer, np.arange(4))
    maker.layers = ("one",)
    with maker.writer(tmp_path / "b") as writer:
        maker.append(writer, np.arange(4, 6))
    (foreign,) = parts_of(tmp_path / "b" / "layers")
    shutil.copy(foreign, tmp_path / "a" / "layers" / foreign.name)
    shutil.copy(parts_of(tmp_path / "b" / "steps")[0], tmp_path / "a" / "steps" / foreign.name)
    run = load(tmp_path / "a")
    with pytest.warns(RuntimeWarning, match="left out"):
        assert run.metric("norm")[0].tolist() == [0, 1, 2, 3]
    assert run.last_step == 3


@pytest.mark.parametrize("name", ["000000000000-000000000009", "000000000001-000000000003"])
def test_a_name_that_lies_is_not_believed(tmp_path: Path, maker: Maker, name: str) -> None:
    with maker.writer(tmp_path) as writer:
        maker.append(writer, np.arange(4))
    (part,) = parts_of(tmp_path / "steps")
    part.rename(part.with_name(f"{name}.t0.parquet"))
    with pytest.warns(RuntimeWarning, match="left out"):
        assert load(tmp_path).steps.num_rows == 0


@pytest.mark.usefixtures("busy")
def test_a_part_that_the_system_refuses_is_not_put_aside(
    tmp_path: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a share that hiccups nothing is believed to be broken: the merge is tried again."""

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("gradwise.watch.store.flusher._REST_SECONDS", 0.0)
    with maker.writer(tmp_path) as writer:
        with monkeypatch.context() as patch:
            patch.setattr(pq, "ParquetFile", refuse)
            for start in range(0, 40, 4):
                maker.append(writer, np.arange(start, start + 4))
            assert writer.errors > 0
            assert writer.steps_waiting == 0
        assert list(tmp_path.rglob("*.damaged")) == []
    maker.check(load(tmp_path), np.arange(40))


def test_too_many_open_files_is_not_damage(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(24, "Too many open files")

    run = load(original)
    with monkeypatch.context() as patch:
        patch.setattr(pq, "ParquetFile", refuse)
        with pytest.raises(UserError, match="Too many open files"):
            _ = run.steps
    assert run.damaged == ()
    Maker().check(run, np.arange(104))


@pytest.mark.usefixtures("busy")
def test_a_writer_whose_parts_are_touched_or_deleted(tmp_path: Path, maker: Maker) -> None:
    """Touching harms nothing; what is deleted is gone, and the rest is merged without it."""
    with maker.writer(tmp_path) as writer:
        for start in (0, 4):
            maker.append(writer, np.arange(start, start + 4))
        touched, deleted = parts_of(tmp_path / "layers")
        os.utime(touched, ns=(10**18, 10**18))
        deleted.unlink()
        for start in range(8, 60, 4):
            maker.append(writer, np.arange(start, start + 4))
        assert writer.errors == 0
    assert [path.suffix for path in (tmp_path / "layers").iterdir()] == [".parquet"]
    steps = load(tmp_path).metric("norm")[0].tolist()
    assert steps == [*range(4), *range(8, 60)]
