"""A stored run once more: the same records, the same alerts, in bounded memory."""

import json
import tracemalloc
import warnings
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
from rules_streams import block, found, names, stored, troubled

from gradwise.errors import UserError
from gradwise.watch import rules
from gradwise.watch.alerts import Alert, AlertJournal
from gradwise.watch.replay import blocks_of, replay
from gradwise.watch.store import RunWriter, load


def joined(blocks):
    blocks = list(blocks)
    layers = {n: np.concatenate([b.layers[n] for b in blocks]) for n in blocks[0].layers}
    scalars = {n: np.concatenate([b.scalars[n] for b in blocks]) for n in blocks[0].scalars}
    return np.concatenate([b.steps for b in blocks]), layers, scalars


@pytest.mark.parametrize("every", [1, 7])
@pytest.mark.parametrize(
    ("records", "values"), [(256, 2**25), (10, 2**25), (256, 5000), (100, 300)]
)
def test_blocks_are_the_run(tmp_path, records, values, every):
    stream = troubled(900)
    run = stored(tmp_path / "run", stream, every=every)
    blocks = list(blocks_of(run, records=records, values=values))
    steps, layers, scalars = joined(blocks)
    assert np.array_equal(steps, stream.steps * every)
    assert max(len(part) for part in blocks) <= records
    for name, values_of in stream.layers.items():
        assert np.array_equal(layers[name], values_of.astype(np.float32), equal_nan=True)
    for name, values_of in stream.scalars.items():
        assert np.array_equal(scalars[name], values_of, equal_nan=True)


def test_only_the_metrics_that_are_wanted(tmp_path):
    run = stored(tmp_path / "run", troubled(900))
    assert {name for part in blocks_of(run, metrics=["norm"]) for name in part.layers} == {"norm"}
    with pytest.raises(UserError, match="expected a layer metric among"):
        next(blocks_of(run, metrics=["none"]))


@pytest.mark.parametrize("argument", ["records", "values"])
def test_numbers_below_one(tmp_path, argument):
    run = stored(tmp_path / "run", troubled(900))
    with pytest.raises(UserError, match=f"expected {argument} >= 1, got {argument}=0"):
        next(blocks_of(run, **{argument: 0}))


def test_a_sparse_run_is_read_in_few_stretches(tmp_path, monkeypatch):
    """A run with a record every thousand steps is not read a thousand times as often."""
    run = stored(tmp_path / "run", troubled(900), every=1000)
    asked = []
    window = run.window
    monkeypatch.setattr(
        run, "window", lambda *a, **k: asked.append(a) or window(*a, **k), raising=True
    )
    width = len(run.layer_names) * len(run.layer_metrics) + len(run.step_metrics)
    records = sum(len(part) for part in blocks_of(run, values=100 * width))
    assert records == 900
    assert len(asked) < 20


def test_memory_is_bounded(tmp_path):
    layers = {"norm": np.exp(0.1 * np.random.default_rng(0).standard_normal((6000, 50)))}
    run = stored(tmp_path / "run", block(layers))
    values = 20_000
    run.window(0, 10)  # the footers of the files stay
    tracemalloc.start()
    for _part in blocks_of(run, values=values):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # A stretch, once as it is read and once in order; the whole would be 2.4 MB.
    assert peak < 6 * values * 8


def test_the_same_alerts_as_live(tmp_path):
    stream = troubled()
    live = sorted(found(stream), key=lambda alert: alert.step)
    assert {"exploding", "dead", "non-finite"} <= set(names(live))
    told = replay(stored(tmp_path / "run", stream))
    key = lambda a: (a.rule, a.step, a.layer, a.ended, a.message)  # noqa: E731
    assert [key(alert) for alert in told.alerts] == [key(alert) for alert in live]
    assert (told.records, told.first_step, told.last_step) == (1000, 0, 999)
    assert told.worst == "warning"


def test_a_run_of_compare_lacks_some_metrics(tmp_path):
    stream = troubled()
    few = {name: stream.layers[name] for name in ("mean", "norm", "nonfinite")}
    told = replay(stored(tmp_path / "run", replace(stream, layers=few)))
    assert told.not_judged == dict.fromkeys(("large-updates", "small-updates"), "update_ratio")
    assert {"exploding", "dead"} <= set(told.judged)
    assert {"exploding", "dead", "non-finite"} <= set(names(told.alerts))


def test_a_run_without_layers(tmp_path):
    told = replay(stored(tmp_path / "run", block({}, {"loss": np.ones(50)}, names=())))
    assert (told.alerts, told.worst, told.records) == ((), None, 50)
    assert "norm or grad_norm" in told.not_judged["exploding"]


def test_nothing_recorded_yet(tmp_path):
    RunWriter(tmp_path / "run", ["a"], layer_metrics=["norm"]).close()
    told = replay(load(tmp_path / "run"))
    assert (told.alerts, told.records, told.first_step, told.last_step) == ((), 0, None, None)


@dataclass(kw_only=True)
class Named(rules.Dead):
    name: ClassVar[str] = "my-dead"


def test_rules_of_ones_own_neither_log_nor_raise(tmp_path, caplog):
    run = stored(tmp_path / "run", troubled())
    told = replay(run, [Named(action="raise"), rules.Exploding()])
    assert set(names(told.alerts)) == {"my-dead", "exploding"}
    assert caplog.records == []


def test_what_only_the_live_run_could_know(tmp_path):
    run = stored(tmp_path / "run", troubled())
    with AlertJournal(tmp_path / "run") as journal:
        for rule in ("no-step", "dead", "my-own"):
            journal.write(Alert(rule, 5, None, 1.0, "m", "a", "error"))
    told = replay(run)
    at_5 = [alert.rule for alert in told.alerts if alert.step == 5]
    assert sorted(at_5) == ["my-own", "no-step"]  # "dead" was judged anew
    assert told.worst == "error"


def test_a_damaged_part_is_left_out(tmp_path):
    run = stored(tmp_path / "run", troubled(), close=False)
    parts = run.files("layers")
    assert len(parts) > 1
    parts[-1].write_bytes(parts[-1].read_bytes()[:100])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        run = load(tmp_path / "run")
        told = replay(run)
    assert run.damaged == (parts[-1],)
    assert "dead" in names(told.alerts)
    assert 600 < told.records < 1000


def test_progress_is_told(tmp_path):
    steps = []
    replay(stored(tmp_path / "run", troubled()), progress=steps.append)
    assert steps == sorted(steps)
    assert steps[-1] == 999


def test_what_is_found_can_be_written_as_json(tmp_path):
    told = replay(stored(tmp_path / "run", troubled()))
    json.dumps([alert.__dict__ for alert in told.alerts], allow_nan=False)
