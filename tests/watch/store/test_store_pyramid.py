"""Bins agree with a plain loop over the records, whatever is missing."""

import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gradwise.watch.store import Downsampled, RunWriter, load
from gradwise.watch.store.pyramid import Bins

from .conftest import Maker

FLOATS = st.floats(-1e4, 1e4, width=32) | st.sampled_from([np.nan, np.inf, -np.inf, 0.0])


def plain(values: npt.NDArray[np.float64]) -> tuple[float, float, float, int]:
    """Min, mean, max and count of one bin's values, by a loop."""
    there = [float(value) for value in values if value == value]
    if not there:
        return np.nan, np.nan, np.nan, 0
    with np.errstate(all="ignore"):
        return min(there), float(np.sum(there) / len(there)), max(there), len(there)


def agrees(
    bins: Downsampled, steps: npt.NDArray[np.int64], values: npt.NDArray[np.float64]
) -> None:
    covered = 0
    assert np.all(bins.first_step[1:] > bins.last_step[:-1])
    for i, (first, last) in enumerate(zip(bins.first_step, bins.last_step, strict=True)):
        inside = (steps >= first) & (steps <= last)
        covered += int(inside.sum())
        for j in range(values.shape[1]):
            low, mean, high, count = plain(values[inside, j])
            assert bins.count[i, j] == count
            np.testing.assert_equal(bins.min[i, j], low)
            np.testing.assert_equal(bins.max[i, j], high)
            np.testing.assert_allclose(bins.mean[i, j], mean, rtol=1e-5, atol=1e-3)
    assert covered == len(steps)


@given(
    values=hnp.arrays(np.float32, (2, 24), elements=FLOATS),
    first=st.sets(st.integers(1, 23)),
    second=st.data(),
)
def test_bins_of_bins_are_bins(
    values: npt.NDArray[np.float32], first: set[int], second: st.DataObject
) -> None:
    """Combining twice is combining once, and both are what a loop finds."""
    fine = np.array([0, *sorted(first)])
    picked = second.draw(st.sets(st.integers(0, len(fine) - 1)))
    coarse = np.array(sorted({0} | picked))
    at_once = Bins.of(values).combine(fine[coarse])
    twice = Bins.of(values).combine(fine).combine(coarse)
    edges = [*fine[coarse].tolist(), 24]
    for row in range(2):
        for i, (low, high) in enumerate(pairwise(edges)):
            expected = plain(values[row, low:high].astype(np.float64))
            for bins in (at_once, twice):
                assert bins.count[row, i] == expected[3]
                np.testing.assert_array_equal([bins.min[row, i]], [expected[0]])  # -0.0 is 0.0
                np.testing.assert_array_equal([bins.max[row, i]], [expected[2]])
                np.testing.assert_allclose(bins.mean[row, i], expected[1], rtol=1e-4, atol=1e-2)


def test_the_mean_stays_between_min_and_max() -> None:
    values = np.full((1, 3), 0.1)
    assert np.add.reduce(values[0]) / 3 > 0.1  # what a plain mean makes of it
    bins = Bins.of(values).combine(np.array([0]))
    assert bins.mean.tolist() == bins.min.tolist() == bins.max.tolist() == [[0.1]]


@pytest.fixture
def noisy(tmp_path: Path) -> tuple[Path, npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """600 records at uneven steps with NaN and infinities, three levels of pyramid."""
    random = np.random.default_rng(0)
    steps = np.cumsum(random.integers(1, 30, 600))
    values = random.normal(size=(600, 3)).astype(np.float32)
    values[random.random((600, 3)) < 0.2] = np.nan
    values[300:340, 1] = np.nan
    values[[17, 400], [0, 2]] = np.inf
    with RunWriter(tmp_path, ["a", "b", "c"], layer_metrics=["norm"], flush_every=0) as writer:
        for at in range(0, 600, 10):
            part = slice(at, at + 10)
            writer.append(steps[part], {"norm": values[part]}, {"loss": values[part, 0]})
    return tmp_path, steps, values.astype(np.float64)


@pytest.mark.usefixtures("busy")
class TestDownsampled:
    @pytest.mark.parametrize("points", [1, 2, 7, 36, 100, 599, 600, 5000])
    def test_layers(self, noisy: tuple, points: int) -> None:
        folder, steps, values = noisy
        bins = load(folder).downsampled("norm", points)
        assert bins.names == ("a", "b", "c")
        assert len(bins.first_step) <= points
        assert len(bins.first_step) >= min(points, 600) * 0.5
        agrees(bins, steps, values)

    @pytest.mark.parametrize("points", [1, 30, 600])
    def test_steps(self, noisy: tuple, points: int) -> None:
        folder, steps, values = noisy
        bins = load(folder).downsampled_steps(points)
        assert bins.names == ("loss",)
        assert bins.mean.dtype == np.float64
        agrees(bins, steps, values[:, :1])

    def test_the_pyramid_is_what_is_read(self, noisy: tuple) -> None:
        """With few points no record of the older steps is touched."""
        folder, steps, values = noisy
        level = sorted((folder / "pyramids" / "layers-1").iterdir())
        covered = int(level[-1].name.split("-")[1].split(".")[0])
        bins = load(folder).downsampled("norm", 12)
        agrees(bins, steps, values)
        for part in (folder / "layers").iterdir():
            part.unlink()
        with RunWriter(
            folder, ["a", "b", "c"], layer_metrics=["norm"], resume_from=int(steps[-1]) + 1
        ) as writer:
            writer.append(steps[-1:] + 1, {"norm": np.zeros((1, 3))}, {})
        kept = load(folder).downsampled("norm", 12)
        inside = bins.last_step <= covered
        assert inside.sum() >= 10
        old = steps <= covered
        tail = np.append(steps[old], steps[-1] + 1)
        agrees(kept, tail, np.vstack([values[old], np.zeros(3)]))

    @pytest.mark.parametrize("folder", ["layers-1", "layers-2"])
    def test_without_a_level_the_records_do(self, noisy: tuple, folder: str) -> None:
        root, steps, values = noisy
        if (root / "pyramids" / folder).exists():
            shutil.rmtree(root / "pyramids" / folder)
        agrees(load(root).downsampled("norm", 7), steps, values)

    def test_a_damaged_part_of_a_level_is_filled_from_below(self, noisy: tuple) -> None:
        root, steps, values = noisy
        (part,) = (root / "pyramids" / "layers-1").iterdir()
        part.write_bytes(part.read_bytes()[:-1])
        with pytest.warns(RuntimeWarning, match="left out"):
            run = load(root)
        agrees(run.downsampled("norm", 7), steps, values)

    def test_a_damaged_part_between_others_is_filled_from_below(
        self, tmp_path: Path, maker: Maker
    ) -> None:
        with maker.writer(tmp_path) as writer:
            for start in range(0, 256, 8):
                maker.append(writer, np.arange(start, start + 8))
            level = sorted((tmp_path / "pyramids" / "layers-1").glob("*.parquet"))
            assert len(level) >= 3
            level[1].write_bytes(b"torn")
            with pytest.warns(RuntimeWarning, match="left out"):
                run = load(tmp_path)
            for points in (3, 11):
                maker.check_downsampled(run, np.arange(256), points)

    def test_damaged_records_live_on_in_the_pyramid(self, noisy: tuple) -> None:
        root, steps, values = noisy
        oldest = min((root / "layers").iterdir())
        oldest.write_bytes(oldest.read_bytes()[:-1])
        first = int(oldest.name.split("-")[1].split(".")[0]) + 1
        with pytest.warns(RuntimeWarning, match="left out"):
            run = load(root)
        assert run.metric("norm")[1].shape[0] == np.sum(steps >= first)
        level = max((root / "pyramids" / "layers-1").iterdir())
        covered = int(level.name.split("-")[1].split(".")[0])
        there = (steps <= covered) | (steps >= first)
        agrees(run.downsampled("norm", 30), steps[there], values[there])


@pytest.mark.usefixtures("busy")
def test_three_levels(tmp_path: Path, maker: Maker) -> None:
    maker.layers = ("one", "two")
    with maker.writer(tmp_path, flush_every=1e6) as writer:
        for start in range(0, 9000, 100):
            maker.append(writer, np.arange(start, start + 100))
            if start % 300 == 0:
                writer.flush()
    assert sorted(path.name for path in (tmp_path / "pyramids").glob("layers*")) == [
        "layers-1",
        "layers-2",
        "layers-3",
    ]
    run = load(tmp_path)
    for points in (1, 5, 40, 600):
        maker.check_downsampled(run, np.arange(9000), points)


@pytest.mark.usefixtures("busy")
def test_keep_steps_drops_records_and_keeps_pictures(tmp_path: Path, maker: Maker) -> None:
    with maker.writer(tmp_path, keep_steps=100) as writer:
        for start in range(0, 800, 8):
            maker.append(writer, np.arange(start, start + 8))
        first = int(load(tmp_path).metric("norm")[0][0])
        assert 0 < first <= 700
    run = load(tmp_path)
    steps, _ = run.metric("norm")
    assert steps[-1] == 799
    assert 560 <= steps[0] <= 700
    assert len(steps) >= 100
    assert run.steps.num_rows == 800
    for points in (3, 40, 5000):
        bins = run.downsampled("mean", points)
        assert bins.first_step[0] == 0
        maker.check_downsampled(run, np.arange(800), points)
    with maker.writer(tmp_path, keep_steps=100, resume_from=790) as writer:
        maker.append(writer, np.arange(790, 810))
    maker.check_downsampled(load(tmp_path), np.arange(810), 25)


def test_nothing_is_dropped_before_the_pyramid_has_it(tmp_path: Path, maker: Maker) -> None:
    with maker.writer(tmp_path, keep_steps=0) as writer:
        for start in range(0, 1500, 20):
            maker.append(writer, np.arange(start, start + 20))
            run = load(tmp_path)
            if start in (1000, 1480):
                maker.check_downsampled(run, np.arange(start + 20), 90)
            if start < 1000:
                assert run.metric("norm")[0][0] == 0
        assert 0 < run.metric("norm")[0][0] <= 1024


def test_short_runs_have_no_pyramid(tmp_path: Path, maker: Maker) -> None:
    with maker.writer(tmp_path) as writer:
        maker.append(writer, np.arange(1023))
    assert not (tmp_path / "pyramids").exists()
    maker.check_downsampled(load(tmp_path), np.arange(1023), 100)
