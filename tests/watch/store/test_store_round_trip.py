"""What is appended comes back, whatever the blocks, however it is read."""

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradwise.errors import UserError
from gradwise.watch.store import RunWriter, load

from .conftest import LAYERS, METRICS, Maker, layer_values, scalar_values


@settings(max_examples=25, deadline=None)
@given(
    blocks=st.lists(st.lists(st.integers(1, 5), max_size=9), max_size=8),
    flushes=st.sets(st.integers(0, 7)),
)
def test_any_blocks_come_back(blocks: list[list[int]], flushes: set[int]) -> None:
    maker = Maker()
    with tempfile.TemporaryDirectory() as folder:
        steps = np.cumsum([gap for block in blocks for gap in block], dtype=np.int64)
        at = on_disk = 0
        with maker.writer(Path(folder), flush_every=1e6) as writer:
            for i, block in enumerate(blocks):
                maker.append(writer, steps[at : at + len(block)])
                at += len(block)
                if i in flushes:
                    writer.flush()
                    on_disk = at
                assert writer.steps_waiting == at - on_disk
            maker.check(load(folder), steps[:on_disk])
        maker.check(load(folder), steps)


@pytest.fixture
def folder(tmp_path: Path, maker: Maker) -> Path:
    with maker.writer(tmp_path / "run", meta={"seed": 3}) as writer:
        for start in (0, 4, 9):
            maker.append(writer, np.arange(start, start + 4))
    return tmp_path / "run"


STEPS = np.array([0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12])


def test_what_the_run_says_about_itself(folder: Path) -> None:
    run = load(str(folder))
    assert run.layer_names == LAYERS
    assert run.layer_metrics == METRICS
    assert run.step_metrics == ("loss",)
    assert run.meta == {"seed": 3}
    assert run.units == {"mean": "gradient", "norm": "gradient", "loss": "loss"}
    assert run.closed
    assert run.damaged == ()
    assert repr(run).endswith("3 layers, last_step=12)")


def test_layers_is_a_long_table_in_step_order(folder: Path) -> None:
    table = load(folder).layers
    assert table.column_names == ["step", "layer", *METRICS]
    assert table.schema.field("layer").type == pa.dictionary(pa.int32(), pa.string())
    assert table.schema.field("norm").type == pa.float32()
    np.testing.assert_array_equal(table["step"].to_numpy(), np.repeat(STEPS, 3))
    assert table["layer"].to_pylist() == list(LAYERS) * len(STEPS)
    expected = layer_values(STEPS, 1, 3).reshape(-1)
    np.testing.assert_array_equal(table["norm"].to_numpy(), expected)


def test_pandas_takes_the_tables(folder: Path) -> None:
    run = load(folder)
    layers = run.layers.to_pandas()
    assert isinstance(layers["layer"].dtype, pd.CategoricalDtype)
    head = layers[layers["layer"] == "head.weight"]
    np.testing.assert_array_equal(head["mean"], layer_values(STEPS, 0, 3)[:, 2])
    steps = pd.DataFrame.from_arrow(run.steps)
    np.testing.assert_array_equal(steps["loss"], scalar_values(STEPS))


def test_polars_takes_the_tables(folder: Path) -> None:
    run = load(folder)
    for layers in (pl.from_arrow(run.layers), pl.DataFrame(run.layers)):
        assert isinstance(layers, pl.DataFrame)
        head = layers.filter(pl.col("layer") == "head.weight").sort("step")
        np.testing.assert_array_equal(head["mean"], layer_values(STEPS, 0, 3)[:, 2])
    steps = pl.DataFrame(run.steps)
    np.testing.assert_array_equal(steps["loss"], scalar_values(STEPS))


def test_the_files_are_read_without_gradwise(folder: Path) -> None:
    by_pandas = pd.read_parquet(folder / "layers").sort_values(["step", "layer"])
    assert len(by_pandas) == 36
    by_polars = pl.read_parquet(folder / "steps" / "*.parquet")
    np.testing.assert_array_equal(by_polars["loss"], scalar_values(STEPS))
    run = load(folder)
    scan = pl.scan_parquet(run.files("layers")).filter(pl.col("layer") == "conv1.bias")
    found = scan.sort("step").collect()
    np.testing.assert_array_equal(found["norm"], layer_values(STEPS, 1, 3)[:, 1])


def test_metric_takes_a_range_of_steps(folder: Path) -> None:
    run = load(folder)
    steps, values = run.metric("norm", first=3, last=9)
    assert steps.tolist() == [3, 4, 5, 6, 7, 9]
    np.testing.assert_array_equal(values, layer_values(steps, 1, 3))
    assert run.metric("norm", first=13)[1].shape == (0, 3)
    assert run.metric("norm", last=-1)[1].shape == (0, 3)


def test_one_layer_with_some_metrics(folder: Path) -> None:
    table = load(folder).layer("conv1.bias", ["norm"])
    assert table.column_names == ["step", "norm"]


def test_new_scalars_may_come_and_old_ones_stay_away(tmp_path: Path) -> None:
    with RunWriter(tmp_path, ["a"], layer_metrics=["norm"], flush_every=0) as writer:
        norm = {"norm": np.ones((1, 1))}
        writer.append(np.array([0]), norm, {"loss": np.array([1.0])})
        writer.append(np.array([1]), {}, {"acc/top1": np.array([2], np.int16)})
        writer.append(np.array([2]), norm, {})
    run = load(tmp_path)
    assert run.step_metrics == ("loss", "acc/top1")
    nan = float("nan")
    np.testing.assert_array_equal(run.steps["loss"], [1.0, nan, nan])
    np.testing.assert_array_equal(run.steps["acc/top1"], [nan, 2.0, nan])
    np.testing.assert_array_equal(run.metric("norm")[1], [[1.0], [nan], [1.0]])


def test_values_that_are_not_finite_stay_what_they_are(tmp_path: Path) -> None:
    values = np.array([[np.inf, -np.inf], [np.nan, 1e300], [0.0, 1.5]])
    with RunWriter(tmp_path, ["a", "b"], layer_metrics=["norm"]) as writer:
        writer.append(np.arange(3), {"norm": values}, {"loss": values[:, 1]})
    run = load(tmp_path)
    expected = [[np.inf, -np.inf], [np.nan, np.inf], [0.0, 1.5]]
    np.testing.assert_array_equal(run.metric("norm")[1], expected)
    np.testing.assert_array_equal(run.steps["loss"], [-np.inf, 1e300, 1.5])


def test_the_caller_may_use_its_arrays_again(tmp_path: Path) -> None:
    ring = np.zeros((2, 1), np.float32)
    loss = np.zeros(2)
    with RunWriter(tmp_path, ["a"], layer_metrics=["norm"], flush_every=1e6) as writer:
        for start in (0, 2):
            ring[:], loss[:] = start, start
            writer.append(np.arange(start, start + 2), {"norm": ring}, {"loss": loss})
    run = load(tmp_path)
    assert run.metric("norm")[1].ravel().tolist() == [0.0, 0.0, 2.0, 2.0]
    assert run.steps["loss"].to_pylist() == [0.0, 0.0, 2.0, 2.0]


@pytest.mark.parametrize("layers", [[], ["a"]])
def test_a_run_without_layer_metrics(tmp_path: Path, layers: list[str]) -> None:
    with RunWriter(tmp_path, layers, layer_metrics=[]) as writer:
        writer.append(np.array([5, 9]), {}, {"loss": np.array([1.0, 2.0])})
    run = load(tmp_path)
    assert run.last_step == 9
    assert run.steps.to_pydict() == {"step": [5, 9], "loss": [1.0, 2.0]}
    assert run.layers.num_rows == 0
    assert run.files("layers") == []
    assert run.downsampled_steps(1).max.tolist() == [[2.0]]


def test_an_empty_run(tmp_path: Path, maker: Maker) -> None:
    with maker.writer(tmp_path / "run") as writer:
        maker.append(writer, [])
        assert writer.last_step is None
        early = load(tmp_path / "run")
        assert not early.closed
    for run in (early, load(tmp_path / "run")):
        assert run.last_step is None
        assert run.layers.num_rows == run.steps.num_rows == 0
        assert run.layer("head.weight").column_names == ["step", *METRICS]
        assert run.downsampled("norm").min.shape == (0, 3)
        assert run.downsampled_steps().min.shape == (0, 1)


def test_names_may_hold_anything_but_each_other(tmp_path: Path) -> None:
    names = ["", "módulo.λ", "a/b\\c", 'quote"<script>', "x" * 300]
    with RunWriter(tmp_path, names, layer_metrics=["norm"]) as writer:
        writer.append(np.arange(2), {"norm": np.arange(10.0).reshape(2, 5)}, {})
    run = load(tmp_path)
    assert run.layer_names == tuple(names)
    assert run.layers["layer"].to_pylist() == names * 2
    assert run.layer("módulo.λ")["norm"].to_pylist() == [1.0, 6.0]


ONE = np.array([3])
NORM = {"norm": np.zeros((1, 2))}


@pytest.mark.parametrize(
    ("steps", "layers", "scalars", "says"),
    [
        (np.array([[3]]), NORM, {}, r"expected steps of shape \[K\] .* got \[1, 1\]"),
        (np.array([3.0]), NORM, {}, "whole-number type, got .* float64"),
        (np.array([2]), NORM, {}, "after step 2, got 2"),
        (np.array([4, 4]), {}, {}, "ascend strictly.* got 4"),
        (np.array([4, 3]), {}, {}, "ascend strictly.* got 3"),
        (ONE, {"std": np.zeros((1, 2))}, {}, r"among \['norm'\], got 'std'"),
        (ONE, {"norm": np.zeros((2, 1))}, {}, r"'norm' of shape \[1, 2\], got \[2, 1\]"),
        (ONE, {"norm": np.zeros((1, 2), complex)}, {}, "real numbers in 'norm', got complex128"),
        (ONE, NORM, {"loss": np.zeros((1, 1))}, r"'loss' of shape \[1\], got \[1, 1\]"),
        (ONE, NORM, {"loss": np.array(["x"])}, "real numbers in 'loss', got <U1"),
        (ONE, NORM, {"step": np.zeros(1)}, "expected scalars other than .* got 'step'"),
        (ONE, NORM, {"": np.zeros(1)}, "expected scalars other than .* got ''"),
    ],
)
def test_what_does_not_fit_is_refused_whole(
    tmp_path: Path, steps: np.ndarray, layers: dict, scalars: dict, says: str
) -> None:
    with RunWriter(tmp_path, ["a", "b"], layer_metrics=["norm"]) as writer:
        writer.append(np.array([2]), NORM, {})
        with pytest.raises(UserError, match=says):
            writer.append(steps, layers, scalars)
        writer.append(ONE, NORM, {})
    assert load(tmp_path).steps["step"].to_pylist() == [2, 3]


def test_steps_begin_at_zero(tmp_path: Path) -> None:
    with (
        RunWriter(tmp_path, [], layer_metrics=[]) as writer,
        pytest.raises(UserError, match="each >= 0, got -1"),
    ):
        writer.append(np.array([-1]), {}, {})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"layers": ["a", "a"]}, "different names in layers, got 'a' twice"),
        ({"layers": ["\ud800"]}, "Unicode text in layers"),
        ({"layer_metrics": ["layer"]}, "expected layer_metrics other than .* got 'layer'"),
        ({"step_metrics": ["x", "x"]}, "different names in step_metrics, got 'x' twice"),
        ({"meta": {"x": {1, 2}}}, "plain JSON values in meta"),
        ({"meta": {"x": float("nan")}}, "plain JSON values in meta"),
        ({"resume_from": -1}, "expected resume_from >= 0, got resume_from=-1"),
        ({"keep_steps": -5}, "expected keep_steps >= 0, got keep_steps=-5"),
        ({"flush_every": float("inf")}, "finite flush_every >= 0, got flush_every=inf"),
    ],
)
def test_arguments_out_of_bounds_leave_no_folder(tmp_path: Path, options: dict, says: str) -> None:
    arguments = {"layers": ["a"], "layer_metrics": ["norm"]} | options
    with pytest.raises(UserError, match=says):
        RunWriter(tmp_path / "run", **arguments)
    assert not (tmp_path / "run").exists()


def test_reading_what_is_not_there(folder: Path) -> None:
    run = load(folder)
    for call, says in (
        (lambda: run.layer("nope"), "one of the run's 3 layers, got 'nope'"),
        (lambda: run.layer("head.weight", ["std"]), r"among \['mean', 'norm'\], got 'std'"),
        (lambda: run.metric("std"), r"among \['mean', 'norm'\], got 'std'"),
        (lambda: run.downsampled("std"), r"among \['mean', 'norm'\], got 'std'"),
        (lambda: run.downsampled("norm", 0), "expected points >= 1, got points=0"),
        (lambda: run.downsampled_steps(-1), "expected points >= 1, got points=-1"),
        (lambda: run.files("pyramids"), r"expected table 'layers', 'steps' or .* got 'pyramids'"),
    ):
        with pytest.raises(UserError, match=says):
            call()


def test_a_closed_writer_takes_nothing(tmp_path: Path, maker: Maker) -> None:
    writer = maker.writer(tmp_path)
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match="is closed"):
        maker.append(writer, [0])
    with pytest.raises(ValueError, match="is closed"):
        writer.flush()
