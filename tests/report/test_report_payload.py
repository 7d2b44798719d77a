import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_synthetic import layer_names, write_run

from gradwise.report.curves import band, lines_of
from gradwise.report.dynamics import StepGrid, Track, read_dynamics
from gradwise.report.folder import Trial, read_run
from gradwise.report.payload import POINTS, build_payload, heat_points
from gradwise.watch.store import Downsampled, RunWriter


def bins(first: list[int], last: list[int], mean: list[float], count: list[int]) -> Downsampled:
    column = np.array(mean)[:, None]
    return Downsampled(
        ("x",), np.array(first), np.array(last), column, column, column, np.array(count)[:, None]
    )


def payload_of(run: Path) -> dict[str, Any]:
    found = read_run(run)
    return build_payload(found, read_dynamics(found))


def chart(payload: dict[str, Any], key: str) -> dict[str, Any]:
    return next(one for one in payload["training"] + payload["global"] if one["key"] == key)


def test_band_over_seeds() -> None:
    found = band(np.array([[1.0, np.nan, np.nan], [4.0, 2.0, np.inf], [1.0, 6.0, np.nan]]))
    np.testing.assert_array_equal(found.mean, [2, 4, np.nan])
    np.testing.assert_array_equal(found.low, [1, 2, np.nan])
    np.testing.assert_array_equal(found.high, [4, 6, np.nan])
    assert found.seeds == 3


def test_a_trial_that_did_not_finish_is_in_no_mean() -> None:
    curves = [
        (Trial("a", 0, "finished"), np.array([1.0, 3.0])),
        (Trial("a", 1, "diverged"), np.array([100.0, np.nan])),
        (Trial("a", 2, "finished"), np.array([3.0, 5.0])),
    ]
    mean, single = lines_of(2, curves)
    assert mean.payload() == {"method": 2, "mean": [2, 4], "low": [1, 3], "high": [3, 5]}
    assert single.payload() == {
        "method": 2, "mean": [100, None], "seed": 1, "status": "diverged",
    }  # fmt: skip


def test_bins_are_weighted_by_what_is_in_them() -> None:
    grid = StepGrid(0, 9, 5)
    found = grid.resample(
        bins([0, 1, 4, 8], [0, 3, 4, 9], [1.0, 2.0, np.inf, np.nan], [1, 3, 1, 0])
    )
    np.testing.assert_array_equal(found, [[7 / 4, np.nan]])
    assert grid.middles == [2, 7]
    assert StepGrid(0, 10, 5).columns == 3
    assert StepGrid(0, 10, 5).middles[-1] == 10


@pytest.mark.parametrize(("steps", "every"), [(1, 1), (7, 1), (330, 1), (330, 10), (5003, 1)])
def test_a_grid_has_no_holes_and_not_too_many_points(steps: int, every: int) -> None:
    at = np.arange(0, steps, every)
    one = Downsampled(
        ("x",), at, at, *(np.ones((len(at), 1)) for _ in range(3)), np.ones((len(at), 1), np.int64)
    )
    track = Track(0, Trial("a", 0, "finished"), (), one, None)
    grid = StepGrid.over([track], POINTS)
    assert grid is not None
    assert 1 <= grid.columns <= POINTS
    assert len(grid.middles) == grid.columns
    assert np.isfinite(grid.resample(one)).all()


def test_an_empty_record_has_no_grid() -> None:
    none = np.empty(0, np.int64)
    empty = Downsampled(
        (), none, none, *(np.empty((0, 0)) for _ in range(3)), np.empty((0, 0), int)
    )
    assert StepGrid.over([Track(0, Trial("a", 0, "missing"), (), empty, None)], 9) is None


def test_curves_are_means_over_seeds(whole_run: Path) -> None:
    payload = payload_of(whole_run)
    drawn = chart(payload, "test_accuracy")
    histories = [
        json.loads(path.read_text())["history"]["test_accuracy"]
        for path in sorted(whole_run.glob("trials/autoscale-2/seed-*/result.json"))
    ]
    expected = 100 * np.array(histories)
    line = next(one for one in drawn["lines"] if one["method"] == 2)
    np.testing.assert_allclose(line["mean"], expected.mean(0), rtol=5e-4)
    np.testing.assert_allclose(line["low"], expected.min(0), rtol=5e-4)
    np.testing.assert_allclose(line["high"], expected.max(0), rtol=5e-4)
    assert drawn["x"] == [10, 20, 30, 40, 50, 60]
    assert payload["epoch"] == 10
    assert [one["name"] for one in payload["methods"]][:2] == ["sgd", "center"]
    assert [one["color"] for one in payload["methods"]] == [0, 1, 2, 3, 4]


def test_step_metrics_are_those_of_the_store(whole_run: Path) -> None:
    payload = payload_of(whole_run)
    dynamics = read_dynamics(read_run(whole_run))
    own = [track for track in dynamics.tracks if track.method == 0]
    at = own[0].steps.names.index("grad_norm")
    expected = np.mean([track.steps.mean[:, at] for track in own], axis=0)
    line = next(one for one in chart(payload, "grad_norm")["lines"] if one["method"] == 0)
    np.testing.assert_allclose(line["mean"], expected, rtol=5e-4)
    assert chart(payload, "grad_norm")["scale"] == chart(payload, "applied_norm")["scale"]


def test_a_method_without_one_factor_has_no_alpha(whole_run: Path) -> None:
    drawn = chart(payload_of(whole_run), "alpha")
    assert {line["method"] for line in drawn["lines"]} == {0, 1, 2, 4}
    assert drawn["note"] == "No curve for znorm: there is no single factor that all layers share."


def test_every_trial_has_its_heatmap(whole_run: Path) -> None:
    heat = payload_of(whole_run)["heat"]
    assert heat["layers"] == layer_names(8)
    assert heat["grid"] == {"first": 0, "last": 59, "width": 1, "columns": 60}
    assert heat["seeds"] == [0, 1, 2]
    assert {(one["method"], one["seed"]) for one in heat["matrices"]} == {
        (method, seed) for method in range(5) for seed in range(3)
    }
    assert all(one["whole"] for one in heat["matrices"])
    assert {one["std"]["rows"] for one in heat["matrices"]} == {8}


def test_heatmaps_fit_whatever_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert heat_points(40, 15) == POINTS
    assert heat_points(10_000, 100) == 1
    run = write_run(tmp_path / "run", methods=("sgd", "znorm"), diverged=(("znorm", 1),), layers=5)
    monkeypatch.setattr("gradwise.report.payload.HEAT_BYTES", 1400)
    heat = payload_of(run)["heat"]
    # 5 layers x 6 trials leave 17 points, too few to show seeds: one mean a method, of 52 points.
    assert [(one["method"], one["seed"]) for one in heat["matrices"]] == [(0, None), (1, None)]
    assert heat["seeds"] == []
    assert heat["grid"]["columns"] == 30
    assert sum(len(one["std"]["codes"]) for one in heat["matrices"]) <= 1400


def test_a_trial_with_other_layers_is_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", methods=("sgd", "znorm"), seeds=(0,), watched=False)
    for name, layers in (("sgd-0", ["a", "b"]), ("znorm-1", ["a", "c"])):
        with RunWriter(
            run / "trials" / name / "seed-0" / "watch", layers, layer_metrics=["std"]
        ) as w:
            w.append(np.arange(3), {"std": np.ones((3, 2))}, {})
    dynamics = read_dynamics(read_run(run))
    assert [track.trial.method for track in dynamics.tracks] == ["sgd"]
    assert dynamics.troubles == ["the gradients of znorm, seed 0 are left out: it has other layers"]


def test_a_watch_folder_that_is_no_run_is_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", methods=("sgd", "znorm"), seeds=(0,), watched=False)
    (run / "trials/sgd-0/seed-0/watch").mkdir()
    dynamics = read_dynamics(read_run(run))
    assert len(dynamics.troubles) == 1
    assert dynamics.troubles[0].startswith("the gradients of sgd, seed 0 cannot be read: ")


def test_a_damaged_part_is_told_and_the_rest_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", methods=("sgd", "znorm"), seeds=(0,))
    part = next((run / "trials/sgd-0/seed-0/watch").glob("steps/*.parquet"))
    part.write_bytes(b"PAR1 torn")
    dynamics = read_dynamics(read_run(run))
    assert any("sgd, seed 0" in trouble for trouble in dynamics.troubles)
    assert any(len(track.steps.first_step) for track in dynamics.tracks)


def test_no_record_no_heatmap(tmp_path: Path) -> None:
    payload = payload_of(write_run(tmp_path / "run", watched=False))
    assert payload["heat"] is None
    assert payload["global"] == []
    assert [one["key"] for one in payload["training"]] == [
        "test_accuracy", "test_loss", "train_loss",
    ]  # fmt: skip


def test_many_epochs_are_thinned(tmp_path: Path) -> None:
    run = write_run(
        tmp_path / "run",
        methods=("sgd", "znorm"),
        seeds=(0,),
        steps=5000,
        epochs=1000,
        watched=False,
    )
    x = chart(payload_of(run), "test_accuracy")["x"]
    assert len(x) == 400
    assert x[0] == 5
    assert x[-1] == 5000
