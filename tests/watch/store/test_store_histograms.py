"""Sampled histograms in a table of their own."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

from gradwise.errors import UserError
from gradwise.watch.store import RunWriter, load

LAYERS = ["a", "b", "c"]
EDGES = (1e-6, 1e-3, 1.0)


def counts_of(steps: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """[K, 3, 4], one of them too large for a float32."""
    return (
        steps[:, None, None] * 100
        + np.arange(12).reshape(3, 4)
        + 2**33 * (steps == 20)[:, None, None]
    )


def writer_of(folder: Path, **options: object) -> RunWriter:
    settings = {"layer_metrics": ["norm"], "histogram_edges": EDGES, "flush_every": 0.0}
    return RunWriter(folder, LAYERS, **(settings | options))


def record(writer: RunWriter, begin: int, end: int) -> None:
    for step in range(begin, end):
        now = np.array([step])
        if step % 10 == 0:
            writer.append_histograms(now, counts_of(now))
        writer.append(now, {"norm": np.ones((1, 3))}, {})


def test_they_come_back(tmp_path: Path) -> None:
    with writer_of(tmp_path) as writer:
        record(writer, 0, 35)
        run = load(tmp_path)
        assert run.last_step == 34
        steps, counts = run.histogram("b")
        np.testing.assert_array_equal(steps, [0, 10, 20, 30])
        np.testing.assert_array_equal(counts, counts_of(steps)[:, 1])
    run = load(tmp_path)
    assert run.histogram_edges == EDGES
    table = run.histograms
    assert table.column_names == ["step", "layer", "bin_0", "bin_1", "bin_2", "bin_3"]
    assert table["layer"].to_pylist() == LAYERS * 4
    np.testing.assert_array_equal(table["bin_2"].to_numpy(), counts_of(steps)[:, :, 2].ravel())
    frame = pl.read_parquet(run.files("histograms"))
    assert frame.height == 12
    assert frame["bin_3"].dtype == pl.Int64


def test_they_wait_for_the_record_of_their_step(tmp_path: Path) -> None:
    with writer_of(tmp_path) as writer:
        record(writer, 0, 5)
        late = np.array([7])
        writer.append_histograms(late, counts_of(late))
        assert load(tmp_path).histogram("a")[0].tolist() == [0]
        assert load(tmp_path).last_step == 4
        writer.append(np.array([8]), {}, {})
        assert load(tmp_path).histogram("a")[0].tolist() == [0, 7]


def test_a_resumption_drops_them_too(tmp_path: Path) -> None:
    with writer_of(tmp_path) as writer:
        record(writer, 0, 45)
    with writer_of(tmp_path, resume_from=20, histogram_edges=()) as writer:
        record(writer, 20, 32)
    run = load(tmp_path)
    assert run.histogram_edges == EDGES
    assert run.histogram("c")[0].tolist() == [0, 10, 20, 30]
    with pytest.raises(UserError, match=r"expected the histogram_edges of the run in .* got"):
        writer_of(tmp_path, resume_from=20, histogram_edges=(1.0,))


def test_a_run_without(tmp_path: Path) -> None:
    with writer_of(tmp_path, histogram_edges=()) as writer:
        writer.append(np.array([0]), {}, {})
        with pytest.raises(UserError, match="a run with layers and histogram_edges"):
            writer.append_histograms(np.array([0]), np.zeros((1, 3, 4), int))
    run = load(tmp_path)
    assert run.histograms.to_pydict() == {"step": [], "layer": []}
    assert [part.shape for part in run.histogram("a")] == [(0,), (0, 0)]
    with pytest.raises(UserError, match="one of the run's 3 layers, got 'z'"):
        run.histogram("z")


@pytest.mark.parametrize(
    ("steps", "counts", "says"),
    [
        ([5], np.zeros((1, 3, 3), int), r"'counts' of shape \[1, 3, 4\], got \[1, 3, 3\]"),
        ([5], np.zeros((1, 3, 4)), "whole numbers in 'counts', got float64"),
        ([4], np.zeros((1, 3, 4), int), "after step 4, got 4"),
    ],
)
def test_what_does_not_fit(tmp_path: Path, steps: list, counts: np.ndarray, says: str) -> None:
    with writer_of(tmp_path) as writer:
        now = np.array([4])
        writer.append_histograms(now, counts_of(now))
        with pytest.raises(UserError, match=says):
            writer.append_histograms(np.array(steps), counts)
        writer.append_histograms(np.array([], int), np.zeros((0, 3, 4), int))
        writer.append(now, {}, {})
    assert load(tmp_path).histogram("a")[0].tolist() == [4]


@pytest.mark.parametrize(
    ("edges", "says"),
    [
        ((1.0, 1.0), "ascend strictly, got 1 before 1"),
        ((0.0, float("inf")), "expected finite histogram_edges"),
    ],
)
def test_edges_must_ascend(tmp_path: Path, edges: tuple, says: str) -> None:
    with pytest.raises(UserError, match=says):
        writer_of(tmp_path / "run", histogram_edges=edges)
    assert not (tmp_path / "run").exists()
