"""All there is on some steps, and the newest records: what a live view asks for once a second."""

from pathlib import Path

import numpy as np
import pytest

from gradwise.errors import UserError
from gradwise.watch.block import Block
from gradwise.watch.store import RunWriter, load

from .conftest import LAYERS, METRICS, Maker, layer_values, scalar_values


def check_block(block: Block, steps: np.ndarray, metrics: tuple[str, ...] = METRICS) -> None:
    """Exactly these steps, with their values."""
    np.testing.assert_array_equal(block.steps, steps)
    assert block.names == LAYERS
    assert tuple(block.layers) == metrics
    for name in metrics:
        expected = layer_values(steps, METRICS.index(name), len(LAYERS))
        np.testing.assert_array_equal(block.layers[name], expected)
        assert block.layers[name].dtype == np.float64
    np.testing.assert_array_equal(block.scalars["loss"], scalar_values(steps))
    assert block.scalars["loss"].shape == steps.shape


@pytest.mark.usefixtures("busy")
@pytest.mark.parametrize("gap", [1, 100])
def test_the_newest(tmp_path: Path, maker: Maker, gap: int) -> None:
    with maker.writer(tmp_path) as writer:
        run = load(tmp_path)
        check_block(run.latest(5), np.arange(0))
        for end in range(7, 200, 7):
            steps = np.arange(end) * gap
            maker.append(writer, steps[-7:])
            run.refresh()
            for records in (1, 3, 60, 500):
                check_block(run.latest(records), steps[-records:])
    assert len(run.files("steps")) > 1
    check_block(load(tmp_path).latest(4), np.arange(192, 196) * gap)


def test_a_window(tmp_path: Path, maker: Maker) -> None:
    with maker.writer(tmp_path) as writer:
        for start in (0, 30, 60):
            maker.append(writer, np.arange(start, start + 30))
        run = load(tmp_path)
        for first, last in ((0, 89), (25, 70), (31, 31), (58, 62)):
            check_block(run.window(first, last), np.arange(first, last + 1))
        check_block(run.window(), np.arange(90))
        check_block(run.window(last=3), np.arange(4))
        check_block(run.window(88), np.arange(88, 90))
        check_block(run.window(88, 1000, metrics=["norm"]), np.arange(88, 90), ("norm",))
        check_block(run.window(90), np.arange(0))
        check_block(run.latest(2, metrics=[]), np.arange(88, 90), ())


@pytest.mark.parametrize("values", [1, 20, 10**6])
def test_few_steps_of_a_large_part_are_read_bit_by_bit(
    tmp_path: Path, maker: Maker, monkeypatch: pytest.MonkeyPatch, values: int
) -> None:
    monkeypatch.setattr("gradwise.watch.store.grid.GROUP_ROWS", 10)
    monkeypatch.setattr("gradwise.watch.store.reading._DECODED_VALUES", values)
    with maker.writer(tmp_path) as writer:
        maker.append(writer, np.arange(20))
    run = load(tmp_path)
    check_block(run.window(3, 11), np.arange(3, 12))
    check_block(run.latest(1), np.arange(19, 20))
    steps, found = run.metric("norm", first=19)
    np.testing.assert_array_equal(found, layer_values(steps, 1, 3))
    maker.check(run, np.arange(20))


def test_without_layers(tmp_path: Path) -> None:
    with RunWriter(tmp_path, [], layer_metrics=[]) as writer:
        writer.append(np.array([5, 9]), {}, {"loss": np.array([1.0, 2.0])})
    block = load(tmp_path).latest(1)
    assert (block.names, block.layers) == ((), {})
    assert block.steps.tolist() == [9]
    assert block.scalars["loss"].tolist() == [2.0]


def test_scalars_that_came_later(tmp_path: Path) -> None:
    with RunWriter(tmp_path, ["a"], layer_metrics=["norm"], flush_every=0) as writer:
        writer.append(np.array([0]), {"norm": np.ones((1, 1))}, {})
        writer.append(np.array([1]), {}, {"accuracy": np.array([0.5])})
        block = load(tmp_path).window()
    np.testing.assert_array_equal(block.scalars["accuracy"], [np.nan, 0.5])
    np.testing.assert_array_equal(block.layers["norm"], [[1.0], [np.nan]])


def test_what_only_one_table_has(tmp_path: Path, maker: Maker) -> None:
    """Damage, and `keep_steps`: the other table's values are shown, NaN stands for the rest."""
    with maker.writer(tmp_path, flush_every=1e6) as writer:
        for start in (0, 5, 10):
            maker.append(writer, np.arange(start, start + 5))
            writer.flush()
        load(tmp_path).files("layers")[0].unlink()
        load(tmp_path).files("steps")[1].unlink()
        run = load(tmp_path)
        block = run.window()
        assert block.steps.tolist() == list(range(15))
        assert np.isnan(block.layers["norm"][:5]).all()
        assert np.isnan(block.scalars["loss"][5:10]).all()
        check_block(run.window(10), np.arange(10, 15))


def test_layers_whose_step_is_not_there_yet_wait(tmp_path: Path, maker: Maker) -> None:
    with maker.writer(tmp_path) as writer:
        for start in (0, 5):
            maker.append(writer, np.arange(start, start + 5))
        load(tmp_path).files("steps")[1].unlink()
        check_block(load(tmp_path).latest(3), np.arange(2, 5))


def test_what_cannot_be_asked(tmp_path: Path, maker: Maker) -> None:
    with maker.writer(tmp_path) as writer:
        maker.append(writer, np.arange(5))
    run = load(tmp_path)
    with pytest.raises(UserError, match="expected records >= 1, got records=0"):
        run.latest(0)
    for call in (run.latest, run.window):
        with pytest.raises(UserError, match=r"among \['mean', 'norm'\], got 'std'"):
            call(metrics=["std"])


def test_what_others_leave_in_the_folder_is_passed_over(tmp_path: Path, maker: Maker) -> None:
    """Alerts and reports live there too."""
    with maker.writer(tmp_path) as writer:
        maker.append(writer, np.arange(5))
        for name in ("alerts.jsonl", "report.html", "report.md", "notes.txt"):
            (tmp_path / name).write_text("{torn")
        (tmp_path / "report_files").mkdir()
        (tmp_path / "layers" / ".DS_Store").touch()
        maker.append(writer, np.arange(5, 7))
        assert (tmp_path / "writer.lock").exists()
        maker.check(load(tmp_path), np.arange(7))
    maker.check(load(tmp_path), np.arange(7))
    with pytest.raises(UserError, match="which holds a run of 3 layers with steps up to 6"):
        maker.writer(tmp_path)
    with maker.writer(tmp_path, resume_from=6) as writer:
        maker.append(writer, np.arange(6, 9))
    maker.check(load(tmp_path), np.arange(9))
    assert (tmp_path / "alerts.jsonl").read_text() == "{torn"
