"""Sampled histograms in a table of their own."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest

from gradwise.errors import UserError
from gradwise.watch.store import RunWriter, files, load

from .test_store_crash import Moments
from .test_store_disk import Disk

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


def check(folder: Path, end: int) -> None:
    """Histograms of every tenth step below `end`, each once, and a record of every step."""
    run = load(folder)
    assert run.metric("norm")[0].tolist() == list(range(end))
    for i, layer in enumerate(LAYERS):
        steps, counts = run.histogram(layer)
        np.testing.assert_array_equal(steps, np.arange(0, end, 10))
        np.testing.assert_array_equal(counts, counts_of(steps)[:, i])


@pytest.mark.usefixtures("busy")
def test_every_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed at any moment, merges included; then continued from an older checkpoint."""
    folder = tmp_path / "run"
    (tmp_path / "copies").mkdir()
    writer = writer_of(folder, flush_every=1e6)
    moments = Moments(folder, tmp_path / "copies")
    with moments.watching(monkeypatch):
        for start in range(0, 120, 15):
            record(writer, start, start + 15)
            writer.flush()
            moments.flushed = start + 15
        writer.close()
    assert len(list((folder / "histograms").iterdir())) == 1
    assert len(moments.taken) > 100
    for i, (copy, flushed) in enumerate(moments.taken):
        last = load(copy).last_step
        end = 0 if last is None else last + 1
        assert end in (flushed, flushed + 15)
        check(copy, end)
        if i % 10 == 0:
            begin = min(end, flushed // 2)
            with writer_of(copy, resume_from=begin) as again:
                record(again, begin, flushed + 30)
            check(copy, flushed + 30)
            left = [path.name for path in copy.rglob("*") if path.name.startswith(".")]
            assert left == []


def test_a_full_disk_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk()
    monkeypatch.setattr(files, "write_all", disk)
    with writer_of(tmp_path) as writer:
        record(writer, 0, 25)
        for limp in (2, 3, 5):
            disk.limp = limp
            end = load(tmp_path).last_step or 0
            record(writer, (writer.last_step or 0) + 1, (writer.last_step or 0) + 21)
            assert (load(tmp_path).last_step or 0) >= end
        assert writer.errors > 0
        disk.limp = 0
    check(tmp_path, 85)


def test_they_are_small_and_few(tmp_path: Path) -> None:
    """Counts as a net has them: most of the 40 bins hold little, and change little."""
    layers, bins, samples = 200, 40, 300
    edges = tuple(10.0 ** np.linspace(-12, 4, bins - 1))
    draw = np.random.default_rng(0)
    chance = np.exp(-(((np.arange(bins) - draw.integers(12, 28, (layers, 1))) / 4.0) ** 2))
    chance /= chance.sum(1, keepdims=True)
    with RunWriter(
        tmp_path, [f"layer {i}" for i in range(layers)], layer_metrics=[], histogram_edges=edges
    ) as writer:
        for step in range(samples):
            counts = draw.multinomial(20_000, chance)[None]
            writer.append_histograms(np.array([step * 100]), counts)
            writer.append(np.array([step * 100]), {}, {})
            if step % 10 == 0:
                writer.flush()
            last = counts
    found = load(tmp_path).histogram("layer 7")
    np.testing.assert_array_equal(found[1][-1], last[0, 7])
    assert len(found[0]) == samples
    parts = list((tmp_path / "histograms").iterdir())
    assert len(parts) == 1
    assert parts[0].stat().st_size < 1.5 * layers * bins * samples  # bytes, for int64 counts
