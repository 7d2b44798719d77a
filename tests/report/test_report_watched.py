"""What the page on watched runs is made of: bins, budgets, curves, layers, alerts and facts."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_synthetic import layer_names, unpack
from report_watched import METRICS, alert, write_watched

from gradwise.report.watched import read_records
from gradwise.report.watched.alerts import MOST_ALERTS, alerts_sentence, shown_alerts
from gradwise.report.watched.bins import REACH, begins, reduced
from gradwise.report.watched.charts import charts_payload, rate
from gradwise.report.watched.facts import command_of, fact_rows, machine_rows, state_of
from gradwise.report.watched.histograms import histograms_payload
from gradwise.report.watched.layers import layers_payload, read_layers
from gradwise.report.watched.notable import layer_numbers, notable
from gradwise.report.watched.plan import BUDGET, LADDER, chosen_layers, plan
from gradwise.report.watched.record import labels, slug
from gradwise.watch.store import RunWriter, load


def charts(*folders: Path) -> dict[str, Any]:
    return charts_payload(read_records(folders))


def chart(payload: dict[str, Any], key: str) -> dict[str, Any]:
    return next(one for one in payload["global"] if one["key"] == key)


def curve(payload: dict[str, Any], line: dict[str, Any]) -> np.ndarray:
    """Mean, minimum and maximum [3, bins] of a line."""
    return np.stack(np.split(unpack(payload["series"][line["method"]]["values"])[line["at"]], 3))


@given(
    st.integers(1, 3000),
    st.integers(10, 400),
    st.lists(st.tuples(st.integers(0, 3500), st.integers(0, 200)), max_size=6),
)
def test_bins_are_few_begin_at_zero_and_are_narrow_at_places(
    count: int, points: int, places: list[tuple[int, int]]
) -> None:
    steps = np.arange(count) * 3
    found = begins(steps, points, [(first, first + length) for first, length in places])
    assert found[0] == 0
    assert found == sorted(set(found))
    assert len(found) <= points
    if count <= points:
        assert len(found) == count
    elif places and points // 2 >= 5 * REACH:
        at = int(np.searchsorted(steps, places[0][0]))
        around = [one for one in range(at - REACH, at + REACH) if 0 <= one < count]
        assert set(around) <= set(found)


def test_bins_keep_the_extremes_and_weigh_the_means() -> None:
    values = np.array([[1.0, np.nan], [5.0, np.nan], [np.inf, 2.0], [np.nan, 4.0]])
    found = reduced(("a", "b"), np.array([0, 2, 4, 6]), values, [0, 2])
    np.testing.assert_array_equal(found.mean, [[3, np.nan], [np.inf, 3]])
    np.testing.assert_array_equal(found.min, [[1, np.nan], [np.inf, 2]])
    np.testing.assert_array_equal(found.max, [[5, np.nan], [np.inf, 4]])
    np.testing.assert_array_equal(found.count, [[2, 0], [1, 2]])
    assert found.first_step.tolist() == [0, 4]
    assert found.last_step.tolist() == [2, 6]


@pytest.mark.parametrize(
    ("runs", "layers", "points"),
    [
        ([(1500, 9)], 12, 600), ([(100_000, 9)], 500, 384), ([(100_000, 9)] * 2, 500, 192),
        ([(100_000, 9)], 1800, 96), ([(50, 9)], 1000, 600),
    ],
)  # fmt: skip
def test_pictures_are_as_fine_as_there_is_room(
    runs: list[tuple[int, int]], layers: int, points: int
) -> None:
    found, room = plan(runs, layers)
    assert found.points == points
    assert room == layers
    assert sum(metrics * found.cost(records) for records, metrics in runs) * layers <= BUDGET


def test_too_many_layers_for_one_page() -> None:
    names = [str(at) for at in range(50_000)]
    found, room = plan([(10**6, 10)], len(names))
    assert found == LADDER[-1]
    kept = chosen_layers(names, room, ["49999", "7", "7", "not there"])
    assert len(kept) == room < 2000
    assert {"7", "49999"} <= set(kept)
    assert kept == sorted(kept, key=int)
    assert np.diff([int(name) for name in kept]).max() < 100


def test_names_tell_runs_apart(tmp_path: Path) -> None:
    assert labels([tmp_path / "x" / "run", tmp_path / "y" / "run"]) == ["x/run", "y/run"]
    folders = [tmp_path / "a b" / "r", tmp_path / "ü" / "r"]
    for folder in folders:
        write_watched(folder, steps=1, layers=["w"])
    assert slug(read_records(folders)) == "a-b-r-ü-r"


def test_curves_are_those_of_the_run(tmp_path: Path) -> None:
    run = write_watched(tmp_path / "run", steps=150)
    payload = charts(run)
    assert [one["key"] for one in payload["global"]] == [
        "loss", "grad_norm", "grad_std", "grad_max_abs", "grad_mean", "alpha", "lr",
        "noise_scale", "rate", "val/accuracy",
    ]  # fmt: skip
    steps = load(run).steps.to_pydict()
    before, after = chart(payload, "grad_norm")["lines"]
    assert (before["label"], after["label"]) == ("before", "after")
    np.testing.assert_allclose(curve(payload, before)[0], steps["grad_norm"], rtol=1e-4)
    np.testing.assert_allclose(curve(payload, after)[0], steps["applied_norm"], rtol=1e-4)
    (line,) = chart(payload, "rate")["lines"]
    np.testing.assert_allclose(curve(payload, line)[0], 20, rtol=1e-3)
    assert chart(payload, "grad_norm")["log"]
    assert not chart(payload, "lr")["log"]


def test_long_runs_have_bins_and_single_steps_at_alerts(tmp_path: Path) -> None:
    at = 4321
    run = write_watched(tmp_path / "run", steps=6000, alerts=(alert(at),))
    (record,) = read_records([run])
    assert len(record.steps.first_step) <= 1500
    own = np.flatnonzero(
        (record.steps.first_step >= at - REACH) & (record.steps.first_step < at + REACH)
    )
    assert (record.steps.first_step[own] == record.steps.last_step[own]).all()
    payload = charts_payload([record])
    mean, low, high = curve(payload, chart(payload, "loss")["lines"][0])
    assert (low <= mean * 1.001).all()
    assert (mean <= high * 1.001).all()
    whole = load(run).steps.to_pydict()["loss"]
    assert high.max() == pytest.approx(max(whole), rel=1e-4)


def test_runs_that_are_very_long_are_read_from_their_pyramids(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_watched(tmp_path / "run", steps=6000)
    monkeypatch.setattr("gradwise.report.watched.record._RAW_STEPS", 100)
    monkeypatch.setattr("gradwise.watch.store.Run.steps", None)
    (record,) = read_records([run])
    assert 1000 < len(record.steps.first_step) <= 1500


def test_gradients_that_nothing_changed_have_one_line(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run", [], layer_metrics=[]) as writer:
        norm = np.linspace(1, 2, 9)
        writer.append(np.arange(9), {}, {"grad_norm": norm, "applied_norm": norm, "alpha": norm**0})
    payload = charts(tmp_path / "run")
    assert [one["key"] for one in payload["global"]] == ["grad_norm"]
    assert [line["label"] for line in payload["global"][0]["lines"]] == [""]


def test_groups_share_a_chart_and_constants_have_none(tmp_path: Path) -> None:
    run = write_watched(tmp_path / "run", **{"lr/1": 0.3, "skipped": 0.0, "backwards": 4.0})
    payload = charts(run)
    lines = chart(payload, "lr")["lines"]
    assert [line["label"] for line in lines] == ["group 0", "group 1"]
    assert len({line["dash"] for line in lines}) == 2
    assert not {"skipped", "backwards"} & {one["key"] for one in payload["global"]}


def test_more_scalars_than_charts(tmp_path: Path) -> None:
    run = write_watched(tmp_path / "run", steps=5, **{f"user/{at}": 1.0 for at in range(60)})
    payload = charts(run)
    assert payload["left_out"] == 62 - 40
    assert {"loss", "user/0"} <= {one["key"] for one in payload["global"]}


def test_the_speed_has_no_value_where_the_clock_went_back(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "run", [], layer_metrics=[]) as writer:
        clock = np.array([10.0, 11.0, np.nan, 5.0, 6.0])
        writer.append(np.arange(5), {}, {"time": clock})
    (record,) = read_records([tmp_path / "run"])
    found = rate(record)
    assert found is not None
    np.testing.assert_array_equal(found, [1, np.nan, np.nan, 1, 1])


def test_layers_are_those_of_the_run(tmp_path: Path) -> None:
    run = write_watched(tmp_path / "run", steps=150)
    payload = layers_payload(read_layers(read_records([run])))
    assert payload is not None
    assert payload["layers"] == layer_names(8)
    # That no value is other than finite is no news.
    assert {one["key"] for one in payload["metrics"]} == set(METRICS) - {"nonfinite"}
    one = payload["runs"][0]["matrices"]["norm"]
    bins = payload["bins"][one["bins"]]
    assert bins["first"] == bins["last"] == list(range(150))
    matrix = unpack(one["values"])
    _, norm = load(run).metric("norm")
    np.testing.assert_allclose(matrix[:, :150], norm.T, rtol=1e-4)
    np.testing.assert_array_equal(matrix[:, :150], matrix[:, 150:300])
    weights = unpack(payload["runs"][0]["matrices"]["weight_norm"]["values"])
    assert np.isnan(weights[0, 1])  # measured in turns
    assert weights[0, 0] == pytest.approx(3)


def test_layers_that_alerts_name_have_finer_curves(tmp_path: Path) -> None:
    name = "stem.conv.weight"
    run = write_watched(
        tmp_path / "run", steps=5000, alerts=(alert(3000, name), alert(10, "not of this model"))
    )
    layers = read_layers(read_records([run]))
    assert list(layers.close[0]) == [name]
    payload = layers_payload(layers)
    assert payload is not None
    (close,) = payload["close"]
    assert payload["layers"][close["layer"]] == name
    bins = payload["bins"][close["bins"]]
    assert len(bins["first"]) > 1000
    assert set(range(3000 - REACH, 3005 + REACH)) <= set(bins["first"])


def test_two_runs_are_matched_by_the_names_of_their_layers(tmp_path: Path) -> None:
    one = write_watched(tmp_path / "a", layers=["x", "y"], steps=20)
    other = write_watched(tmp_path / "b", layers=["y", "z"], steps=10, metrics=("norm", "zeros"))
    payload = layers_payload(read_layers(read_records([one, other])))
    assert payload is not None
    assert payload["layers"] == ["x", "y", "z"]
    assert set(payload["runs"][1]["matrices"]) == {"norm", "zeros"}
    matrix = unpack(payload["runs"][1]["matrices"]["norm"]["values"])
    assert np.isnan(matrix[0]).all()
    np.testing.assert_allclose(matrix[1, :10], load(other).metric("norm")[1][:, 0], rtol=1e-4)


def test_numbers_of_the_table(tmp_path: Path) -> None:
    run = write_watched(tmp_path / "run", steps=50)
    layers = read_layers(read_records([run]))
    (numbers,) = layer_numbers(layers)
    at = [metric.key for metric in layers.metrics].index("norm")
    _, norm = load(run).metric("norm")
    np.testing.assert_allclose(numbers["latest"][at], norm[-1], rtol=1e-6)
    np.testing.assert_allclose(numbers["mean"][at], norm.mean(0, dtype=float), rtol=1e-6)
    np.testing.assert_allclose(numbers["largest"][at], norm.max(0), rtol=1e-6)
    ratio = [metric.key for metric in layers.metrics].index("update_ratio")
    assert np.isfinite(numbers["latest"][ratio]).all()  # the last that was measured


def test_notable_layers_and_their_reasons(tmp_path: Path) -> None:
    names = [f"layer.{at}" for at in range(20)]
    norm = np.ones((100, 20))
    norm[:, 3] = 100.0
    norm[:, 5] = np.linspace(1, 50, 100)
    norm[:, 6] = np.linspace(50, 1, 100)
    norm[50:, 7] = 0
    norm[:, 8] = 0
    with RunWriter(tmp_path / "run", names, layer_metrics=["norm"]) as writer:
        writer.append(np.arange(100), {"norm": norm}, {})
    records = read_records([tmp_path / "run"])
    found = {one.layer: one.reasons for one in notable(records, read_layers(records))}
    assert set(found) == {names[at] for at in (3, 5, 6, 7, 8)}
    assert found["layer.3"] == ["85\u00a0% of the squared norm of all gradients"]
    assert found["layer.7"] == ["no gradient any more"]
    assert found["layer.8"] == ["no gradient at all"]
    assert found["layer.5"][0].startswith("norm grew ")
    assert any(words.startswith("norm fell ") for words in found["layer.6"])


def test_alerts_come_first_among_the_notable(tmp_path: Path) -> None:
    last = layer_names(8)[-1]
    run = write_watched(
        tmp_path / "run",
        alerts=(alert(5, last), alert(30, last), alert(60, last), alert(7, rule="no_step")),
    )
    records = read_records([run])
    found = notable(records, read_layers(records))
    assert found[0].layer == last
    assert found[0].reasons[0] == "exploding at steps 5, 30 and 1 more"
    assert found[0].values["norm"] != "–"


def test_alerts_of_all_runs_in_order(tmp_path: Path) -> None:
    one = write_watched(tmp_path / "a", alerts=(alert(50), alert(7, severity="warning")))
    other = write_watched(tmp_path / "b", alerts=(alert(20, "stem.conv.weight"),))
    records = read_records([one, other])
    shown, left = shown_alerts(records)
    assert [(found.run, found.alert.step, found.again) for found in shown] == [
        ("a", 7, False), ("b", 20, True), ("a", 50, True),
    ]  # fmt: skip
    assert left == 0
    payload = shown[1].payload(["stem.conv.weight"])
    assert (payload["layer"], payload["whole"], payload["method"]) == (0, False, 1)
    assert shown[0].payload([])["whole"]
    assert alerts_sentence(records[0]) == (
        "1 error and 1 warning. The gravest began at step 50: exploding."
    )


def test_of_very_many_alerts_the_gravest_are_kept(tmp_path: Path) -> None:
    many = [alert(at, severity="warning") for at in range(MOST_ALERTS + 10)]
    run = write_watched(tmp_path / "run", alerts=(*many, alert(900)))
    shown, left = shown_alerts(read_records([run]))
    assert len(shown) == MOST_ALERTS
    assert left == 11
    assert shown[-1].alert.step == 900


def test_facts(tmp_path: Path) -> None:
    run = write_watched(
        tmp_path / "run", steps=200, every=5, skipped=3.0, backwards=4.0,
        meta={"optimizer": "SGD", "transform": "chain()", "per": "module", "every": 5,
              "note": {"a": [1, None]}, "command": ["a b", "c"], "versions": {"torch": "2"},
              "host": "h", "noise": "n"},
    )  # fmt: skip
    (record,) = read_records([run])
    facts = {name: values[0] for name, values in fact_rows([record])}
    assert facts["optimizer"] == "SGD"
    assert facts["recorded"] == "996 steps, 0 to 995, every 5"
    assert facts["layers"] == "8 (modules)"
    assert facts["took"] == "10.0 s"
    assert facts["speed"] == "100 steps/s"
    assert facts["end"] == "closed in good order"
    assert facts["left alone"] == "3 steps with gradients that were not finite"
    assert facts["backward passes"] == "4 a step at the end"
    assert facts["note"] == "a: 1, –"
    assert "transform" not in facts
    assert command_of(record) == "'a b' c"
    assert dict(machine_rows([record])) == {"host": ["h"], "torch": ["2"]}


def test_what_became_of_a_run(tmp_path: Path) -> None:
    run = write_watched(tmp_path / "open", close=False)
    (record,) = read_records([run])
    assert state_of(record) == "being written"
    assert state_of(record, now=time.time() + 3600) == "not closed"
    for table in (run, run / "steps", run / "layers"):
        os.utime(table, (1, 1))
    assert state_of(record) == "not closed"
    assert state_of(*read_records([write_watched(tmp_path / "closed")])) == "closed"
    assert state_of(*read_records([write_watched(tmp_path / "none", steps=0)])) == "empty"


def test_a_resumed_run_says_so(tmp_path: Path) -> None:
    run = write_watched(tmp_path / "run", steps=20, layers=["w"])
    with RunWriter(run, ["w"], layer_metrics=METRICS, resume_from=12) as writer:
        writer.append(np.arange(12, 15), {}, {"loss": np.ones(3)})
    (record,) = read_records([run])
    assert dict(fact_rows([record]))["resumed at"] == ["step 12"]
    assert record.steps.last_step[-1] == 14


def test_histograms_are_trimmed_and_in_shares(tmp_path: Path) -> None:
    run = write_watched(tmp_path / "run", steps=100, histograms=5)
    (found,) = histograms_payload(read_records([run]), layer_names(8))
    assert found["bins"] == [[0.1, 1.0], [-0.1, 0.1], [-1.0, -0.1]]
    assert found["first"] == list(range(0, 100, 5))
    assert found["end"] == 100
    assert set(found["shares"]) == set(range(8))
    matrix = unpack(found["shares"][0])
    np.testing.assert_allclose(matrix, np.repeat([[5 / 18], [10 / 18], [3 / 18]], 20, axis=1))


def test_histograms_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradwise.report.watched.histograms.BUDGET", 1500)
    last = layer_names(8)[-1]
    run = write_watched(tmp_path / "run", steps=100, histograms=1, alerts=(alert(9, last),))
    (found,) = histograms_payload(read_records([run]), layer_names(8))
    assert found["missing"] == 8 - len(found["shares"]) > 0
    assert 7 in found["shares"]
    assert len(found["first"]) == 20
