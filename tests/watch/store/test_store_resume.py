"""Going on from a checkpoint: no step twice, no foreign layers, pyramids that agree."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwise.errors import UserError
from gradwise.watch.store import RunWriter, load

from .conftest import Maker


@settings(max_examples=12, deadline=None)
@given(
    legs=st.lists(st.tuples(st.integers(0, 160), st.integers(1, 120)), min_size=1, max_size=3),
    block=st.integers(3, 17),
)
def test_any_resumptions_give_every_step_once(legs: list[tuple[int, int]], block: int) -> None:
    maker = Maker()
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr("gradwise.watch.store.merge.FAN_IN", 3)
        patch.setattr("gradwise.watch.store.merge.LEFT", 0)
        patch.setattr("gradwise.watch.store.housekeeping.CHUNK", 32)
        out, end = Path(folder), 0
        for i, (back, length) in enumerate(legs):
            begin = min(back, end)
            with maker.writer(out, resume_from=None if i == 0 else begin) as writer:
                assert writer.last_step == (begin - 1 if begin else None)
                maker.check(load(out), np.arange(begin))
                for start in range(begin, begin + length, block):
                    end = min(start + block, begin + length)
                    maker.append(writer, np.arange(start, end))
            maker.check(load(out), np.arange(end))


def test_the_run_file_remembers(tmp_path: Path, maker: Maker) -> None:
    with maker.writer(tmp_path, meta={"seed": 1, "model": "a"}) as writer:
        maker.append(writer, np.arange(10))
    created = load(tmp_path).created
    with maker.writer(tmp_path, meta={"seed": 2}, resume_from=7, units={"norm": "V"}) as writer:
        assert not load(tmp_path).closed
        maker.append(writer, [9])
    run = load(tmp_path)
    assert run.meta == {"seed": 2, "model": "a"}
    assert run.created == created
    assert run.units["norm"] == "V"
    assert json.loads((tmp_path / "run.json").read_text())["resumed"] == [7]
    assert run.steps["step"].to_pylist() == [0, 1, 2, 3, 4, 5, 6, 9]


def test_metrics_and_scalars_may_change_between_legs(tmp_path: Path) -> None:
    ones = np.ones((1, 1))
    with RunWriter(tmp_path, ["a"], layer_metrics=["norm"]) as writer:
        writer.append(np.array([0]), {"norm": ones}, {"loss": np.ones(1)})
    with RunWriter(tmp_path, ["a"], layer_metrics=["std"], resume_from=1) as writer:
        writer.append(np.array([1]), {"std": ones}, {"lr": np.ones(1)})
    run = load(tmp_path)
    nan = float("nan")
    assert run.layer_metrics == ("norm", "std")
    np.testing.assert_array_equal(run.layer("a")["norm"], [1.0, nan])
    np.testing.assert_array_equal(run.layer("a")["std"], [nan, 1.0])
    np.testing.assert_array_equal(run.steps["loss"], [1.0, nan])
    np.testing.assert_array_equal(run.downsampled("std").count, [[0], [1]])


@pytest.mark.parametrize(
    ("layers", "says"),
    [
        (["a", "b"], "got layers without 'c'"),
        (["a", "b", "c", "d"], "got layers with the new 'd'"),
        (["a", "x", "c"], "got layers without 'b' and with the new 'x'"),
        (["b", "a", "c"], "got layers in another order: 'b' where 'a' was"),
        (["a", "b", "c", *"123456"], "with the new '1', '2', '3' and 3 more"),
    ],
)
def test_other_layers_are_refused(tmp_path: Path, layers: list[str], says: str) -> None:
    with RunWriter(tmp_path, ["a", "b", "c"], layer_metrics=["norm"]) as writer:
        writer.append(np.arange(9), {"norm": np.ones((9, 3))}, {})
    before = sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet"))
    with pytest.raises(UserError, match=says):
        RunWriter(tmp_path, layers, layer_metrics=["norm"], resume_from=0)
    assert before == sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet"))
    with RunWriter(tmp_path, ["a", "b", "c"], layer_metrics=["norm"], resume_from=9):
        assert load(tmp_path).last_step == 8


def test_nothing_to_resume(tmp_path: Path, maker: Maker) -> None:
    with pytest.raises(UserError, match="is not a run folder: there is no such folder"):
        maker.writer(tmp_path / "none", resume_from=3)
    assert not (tmp_path / "none").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"is not a run folder: it has no run\.json"):
        maker.writer(tmp_path / "empty", resume_from=0)
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_run_is_not_begun_over_another(tmp_path: Path, maker: Maker) -> None:
    with maker.writer(tmp_path) as writer:
        maker.append(writer, np.arange(5))
    with pytest.raises(UserError, match="a run of 3 layers with steps up to 4: continue it with"):
        maker.writer(tmp_path)
    maker.check(load(tmp_path), np.arange(5))


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path, maker: Maker) -> None:
    for name in "abcde":
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"new or empty run folder, got .* with a, b, c and 2 more"):
        maker.writer(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == list("abcde")


def test_a_folder_where_a_writer_died_at_once_is_empty(tmp_path: Path, maker: Maker) -> None:
    (tmp_path / "writer.lock").touch()
    (tmp_path / ".run.json.tmp").touch()
    with maker.writer(tmp_path) as writer:
        maker.append(writer, [0])
    maker.check(load(tmp_path), [0])


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize("step", [0, 5, 250, 1024, 1500])
def test_pyramids_forget_what_was_dropped(tmp_path: Path, step: int) -> None:
    """The second leg records other values, and none of the first may shine through."""
    names = ["a", "b"]

    def run(begin: int, value: float, **options: int) -> None:
        with RunWriter(tmp_path, names, layer_metrics=["norm"], flush_every=0, **options) as writer:
            for start in range(begin, 1600, 50):
                norm = np.full((50, 2), value)
                writer.append(np.arange(start, start + 50), {"norm": norm}, {"loss": norm[:, 0]})

    run(0, 1.0)
    assert len(list((tmp_path / "pyramids").iterdir())) == 4
    run(step, 2.0, resume_from=step)
    loaded = load(tmp_path)
    for bins in (loaded.downsampled("norm", 20), loaded.downsampled_steps(20)):
        old, new = bins.last_step < step, bins.first_step >= step
        assert old.sum() + new.sum() >= len(old) - 1
        for stat in (bins.min, bins.mean, bins.max):
            assert np.all(stat[old] == 1.0)
            assert np.all(stat[new] == 2.0)
        total = step + 50 * len(range(step, 1600, 50))
        assert np.all(bins.count.sum(0) == total)


@pytest.mark.parametrize("refresh", [True, False])
def test_dropped_steps_stay_dropped_for_a_reader(
    tmp_path: Path, maker: Maker, refresh: bool
) -> None:
    """A reader that has known the old files is not confused by new ones of the same name."""
    with maker.writer(tmp_path) as writer:
        maker.append(writer, np.arange(8))
        maker.append(writer, np.arange(8, 16))
    run = load(tmp_path)
    maker.check(run, np.arange(16))
    before = sorted(path.name for path in (tmp_path / "layers").iterdir())
    with RunWriter(tmp_path, maker.layers, layer_metrics=maker.metrics, resume_from=8) as writer:
        other = {name: np.full((8, 3), 7.0) for name in maker.metrics}
        writer.append(np.arange(8, 16), other, {"loss": np.full(8, 7.0)})
    assert before == sorted(path.name for path in (tmp_path / "layers").iterdir())
    if refresh:
        run.refresh()
    steps, values = run.metric("norm", first=8)
    assert steps.tolist() == list(range(8, 16))
    assert np.all(values == 7.0)
    assert run.steps["loss"].to_pylist()[8:] == [7.0] * 8
