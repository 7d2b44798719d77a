"""Reading real run folders: written, resumed, replaced, torn."""

import shutil

import numpy as np
import pytest

from gradwise.errors import UserError
from gradwise.live.tail import Tail, Wish
from gradwise.watch.store import load
from live.live_helpers import METRICS, NAMES, alert, norm_of, note


def test_what_is_shown_is_what_was_written(make):
    made = make().write(range(30), loss=0.5)
    run = Tail(made.folder).look(Wish(width=10, curve=6))
    assert run.names == NAMES
    assert run.step == 29
    assert run.layers["norm"] == pytest.approx(norm_of([29], 5)[0])
    assert run.layers["weight_norm"].tolist() == [5.0] * 5  # each from the step of its turn
    assert run.scalars["loss"] == 0.5
    assert run.rate == pytest.approx(10.0)
    assert run.about == ("Net", "SGD")
    assert run.covered == (0, 29)
    assert not run.closed
    # Three steps a bin: means of linear growth, the newest bin has begun only just now.
    assert run.history[1, -2] == pytest.approx(norm_of([25], 5)[0, 1], rel=0.01)
    assert run.curves["grad_norm"].shape == (6,)
    made.close()
    assert Tail(made.folder).look(Wish()).closed


def test_looking_again_reads_what_is_new_and_shows_the_same_as_looking_for_the_first_time(make):
    made = make().write(range(40))
    tail, wish = Tail(made.folder), Wish(window=100, width=12, curve=9)
    for start in range(40, 400, 37):
        made.write(range(start, start + 37))
        again, fresh = tail.look(wish), Tail(made.folder).look(wish)
        assert again.step == fresh.step == start + 36
        np.testing.assert_allclose(again.history, fresh.history, rtol=1e-6)
        assert again.scalars == fresh.scalars
        for name in METRICS:
            np.testing.assert_array_equal(again.layers[name], fresh.layers[name])


def test_a_look_reads_only_the_layers_records_that_are_new(make, monkeypatch):
    made = make().write(range(3000))
    tail = Tail(made.folder)
    tail.look(Wish())
    made.write(range(3000, 3010))
    asked = []
    run = tail.run
    for name in ("metric", "window"):
        plain = getattr(type(run), name)

        def watched(self, *given, plain=plain, **named):
            asked.append((given, named))
            return plain(self, *given, **named)

        monkeypatch.setattr(type(run), name, watched)
    assert tail.look(Wish()).step == 3009
    assert [min([*named.values(), *(g for g in given if isinstance(g, int))]) for given, named
            in asked] == [3000, 3000]  # fmt: skip
    asked.clear()
    tail.look(Wish())
    assert asked == []


@pytest.mark.parametrize("window", [100, 1000, 10_000, None])
def test_windows(make, window):
    made = make().write(range(2500))
    run = Tail(made.folder).look(Wish(window=window, width=10, curve=10))
    first = 0 if window is None else max(2500 - window, 0)
    assert run.covered == (first, 2499)
    known = run.history[0][~np.isnan(run.history[0])]
    assert len(known) >= 5
    assert np.all(np.diff(known) > 0)
    assert known[-1] <= norm_of([2499], 5)[0, 0]


def test_changing_the_metric_and_the_window_at_any_time(make):
    made = make().write(range(2500))
    tail = Tail(made.folder)
    for wish in (
        Wish(window=100),
        Wish(window=1000),
        Wish("std", 1000),
        Wish("std", None),
        Wish("weight_norm", 100, width=30),
        Wish("norm", 10_000, width=1),
    ):
        run, fresh = tail.look(wish), Tail(made.folder).look(wish)
        assert run.metric == (wish.metric or "norm")
        np.testing.assert_array_equal(run.history, fresh.history)


def test_a_run_that_records_every_so_many_steps(make):
    made = make().write(range(0, 5000, 50))
    run = Tail(made.folder).look(Wish(window=100, width=20))
    assert run.covered == (0, 4950)
    assert not np.isnan(run.history[0]).any()


def test_a_run_of_a_comparison_has_fewer_metrics(make):
    made = make(metrics=("mean", "std", "norm", "nonfinite"), meta={"method": "clip", "seed": 1})
    run = Tail(made.write(range(20)).folder).look(Wish())
    assert set(run.layers) == {"mean", "std", "norm", "nonfinite"}
    assert run.about == ("clip", "seed 1")
    with pytest.raises(UserError, match=r"expected a metric of .* \(mean, std.*got 'zeros'"):
        Tail(made.folder).look(Wish("zeros"))


def test_a_run_without_layers_or_records(make):
    made = make(names=(), metrics=())
    tail = Tail(made.folder)
    assert tail.look(Wish()).step is None
    made.write(range(10))
    run = tail.look(Wish())
    assert (run.step, run.metric, run.history.shape) == (9, None, (0, 0))
    assert run.curves["grad_norm"].shape == (24,)


def test_what_is_logged_late_shows(make):
    made = make().write(range(10))
    tail = Tail(made.folder)
    assert "loss" not in tail.look(Wish()).scalars
    made.writer.amend(np.array([9]), {"loss": np.array([0.25])})
    made.writer.flush()
    assert tail.look(Wish()).scalars["loss"] == 0.25


@pytest.mark.parametrize("before", [True, False])
def test_a_run_that_goes_on_from_a_checkpoint(make, before):
    """Whether a look falls between the cut and the new records, or only after them."""
    made = make()
    made.write(range(50), began=0)
    tail = Tail(made.folder)
    tail.look(Wish(window=100))
    made.close()
    again = make(resume_from=20)
    if before:
        assert tail.look(Wish(window=100)).step == 19
    again.write(range(20, 60), began=7000.0, scale=3.0, loss=1.0)
    run, fresh = tail.look(Wish(window=100)), Tail(made.folder).look(Wish(window=100))
    assert run.step == 59
    np.testing.assert_array_equal(run.history, fresh.history)
    np.testing.assert_array_equal(run.layers["norm"], fresh.layers["norm"])
    assert run.scalars == fresh.scalars


def test_a_run_that_is_being_cut_back(make):
    """Its newest records are gone, and nothing else tells yet that it goes on from before them."""
    made = make()
    for start in (0, 20, 40):
        made.write(range(start, start + 20))
    tail = Tail(made.folder)
    tail.look(Wish(window=100))
    for table in ("layers", "steps"):
        max((made.folder / table).iterdir()).unlink()
    run, fresh = tail.look(Wish(window=100)), Tail(made.folder).look(Wish(window=100))
    assert run.step == 39
    np.testing.assert_array_equal(run.history, fresh.history)
    np.testing.assert_array_equal(run.layers["norm"], fresh.layers["norm"])


def test_a_run_that_is_replaced_by_another(make, tmp_path):
    made = make().write(range(50))
    tail = Tail(made.folder)
    tail.look(Wish())
    made.close()
    shutil.rmtree(made.folder)
    other = make(names=("a", "b")).write(range(80))
    run = tail.look(Wish())
    assert (run.names, run.step) == (("a", "b"), 79)
    assert run.layers["norm"].shape == (2,)
    other.close()


def test_damaged_files_are_told_not_thrown(make):
    made = make().write(range(50))
    made.write(range(50, 60))
    tail = Tail(made.folder)
    assert tail.look(Wish()).damaged == 0
    newest = max((made.folder / "layers").iterdir())
    newest.write_bytes(b"PAR1 and no more")
    run = tail.look(Wish())
    assert run.damaged == 1
    assert run.step == 49


def test_reading_changes_nothing_and_takes_no_lock(make):
    made = make().write(range(50))
    note(made.folder, alert())

    def state():
        return sorted((str(p), p.stat().st_mtime_ns) for p in made.folder.rglob("*"))

    before, tail = state(), Tail(made.folder)
    tail.look(Wish())
    tail.look(Wish(window=None))
    assert state() == before
    made.write(range(50, 60))  # its writer goes on undisturbed
    assert tail.look(Wish()).step == 59


def test_alerts_are_read_again_only_when_there_are_new_ones(make, monkeypatch):
    made = make().write(range(10))
    tail = Tail(made.folder)
    assert tail.look(Wish()).alerts == ()
    note(made.folder, alert(), alert("old", ended=5))
    assert [one.rule for one in tail.look(Wish()).active] == ["dead"]
    monkeypatch.setattr("gradwise.live.tail.read_alerts", lambda folder: 1 / 0)
    assert len(tail.look(Wish()).alerts) == 2


def test_a_look_agrees_with_the_store(make):
    made = make().write(range(300))
    steps, values = load(made.folder).metric("norm")
    run = Tail(made.folder).look(Wish(window=1000, width=300))
    assert len(steps) == 300
    np.testing.assert_allclose(run.history, values.T, rtol=1e-6)
