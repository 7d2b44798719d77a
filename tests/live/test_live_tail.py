"""Following real run folders: written, resumed, replaced, torn, gone."""

import shutil

import numpy as np
import pytest

from gradwise.errors import UserError
from gradwise.live.folder import awaited, runs_inside
from gradwise.live.follow import Follower, Look, Seer
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


# What can be in a folder


def test_a_folder_that_is_not_there_or_empty_is_waited_for(tmp_path):
    assert awaited(tmp_path / "a/b") == "there is no such folder yet"
    (tmp_path / "writer.lock").touch()
    (tmp_path / ".run.json.tmp").touch()
    assert awaited(tmp_path) == "the folder is there, nothing is recorded yet"


def test_a_folder_of_runs_names_them_the_newest_first(make, tmp_path):
    for at in range(10):
        make(f"trials/m/seed-{at}/watch").write(range(2)).close()
    assert len(runs_inside(tmp_path)) == 10
    with pytest.raises(UserError) as told:
        awaited(tmp_path)
    sentence = str(told.value)
    assert sentence.startswith(f"{tmp_path} is not a run folder itself, but 10 runs are in it: ")
    assert sentence.endswith(" and 2 more")
    assert sentence.count("/watch") == 8
    with pytest.raises(UserError, match=r"but there is one in it: .*seed-3/watch$"):
        awaited(tmp_path / "trials/m/seed-3")


def test_a_folder_of_something_else(tmp_path):
    (tmp_path / "photo.png").touch()
    with pytest.raises(UserError, match=r"is not a run folder: it holds 'photo.png' and no run"):
        awaited(tmp_path)
    script = tmp_path / "train.py"
    script.touch()
    with pytest.raises(UserError, match=r"got the file .*; to run and watch a script: gradwise w"):
        awaited(script)


def test_links_in_a_folder_lead_nowhere(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path)
    assert runs_inside(tmp_path) == []


# Waiting, and what can go wrong


class Clock:
    """Both clocks, which stand still."""

    def __init__(self, now):
        self.now = now

    def seer(self, folder):
        return Seer(folder, monotonic=lambda: self.now, clock=lambda: 1000.0 + self.now)


def test_from_waiting_to_the_end(make, tmp_path):
    clock = Clock(50.0)
    seer = clock.seer(tmp_path / "run")

    def state():
        return seer.look(Wish()).state(clock.now)

    assert state() == ("waiting", "waiting: there is no such folder yet")
    made = make()
    assert state() == ("waiting", "waiting: the run has begun, no step is recorded yet")
    made.write(range(10), began=1000.0 + clock.now - 1)
    assert state()[0] == "live"
    clock.now += 4
    assert state() == ("live", "live, 4 s ago")
    clock.now += 8
    assert state() == ("quiet", "no news for 12 s")
    made.write(range(10, 12), began=0)
    assert state() == ("live", "live, 0 s ago")
    made.close()
    clock.now += 7200
    assert state() == ("ended", "ended 2 h ago")


def test_a_run_of_slow_steps_is_not_quiet_between_two_of_them():
    from gradwise.live.model import Snapshot

    slow = Look(Snapshot("a", ("x",), step=3, rate=1 / 60), arrived=0.0)
    assert slow.state(250.0)[0] == "live"
    assert slow.state(301.0) == ("quiet", "no news for 5 min")


def test_the_age_at_first_sight_is_that_of_the_last_record(make):
    made = make().write(range(11), began=0.0)
    clock = Clock(100.0)
    look = clock.seer(made.folder).look(Wish())
    assert look.state(clock.now) == ("quiet", "no news for 18 min")
    ahead = Seer(made.folder, monotonic=lambda: 5.0, clock=lambda: -50.0)  # their clock is ahead
    assert ahead.look(Wish()).arrived == 5.0


def test_a_run_without_times_has_the_pace_that_is_seen_from_here(make):
    made = make(meta={})
    clock = Clock(0.0)
    seer = clock.seer(made.folder)
    for at in range(5):
        made.write(range(at * 20, at * 20 + 20), time=np.nan)
        run = seer.look(Wish()).snapshot
        clock.now += 2.0
    assert run.rate == pytest.approx(10.0)


def test_a_run_that_goes_away_stays_on_the_screen_until_it_comes_back(make):
    made = make().write(range(10))
    seer = Seer(made.folder)
    seer.look(Wish())
    made.close()
    kept = made.folder.rename(made.folder.with_name("moved"))
    look = seer.look(Wish())
    assert look.snapshot.step == 9
    assert look.state(0)[0] == "trouble"
    assert "the run is gone, there is no such folder yet; trying again" in look.trouble
    kept.rename(made.folder)
    assert seer.look(Wish()).trouble == ""


def test_a_run_file_that_is_damaged_later_is_trouble_and_at_first_a_mistake(make):
    made = make().write(range(10))
    seer = Seer(made.folder)
    seer.look(Wish())
    made.close()
    whole = (made.folder / "run.json").read_bytes()
    (made.folder / "run.json").write_bytes(whole[:40])
    assert "run.json is damaged: it is not JSON; trying again" in seer.look(Wish()).trouble
    with pytest.raises(UserError, match="is damaged: it is not JSON"):
        Seer(made.folder).look(Wish())
    (made.folder / "run.json").write_bytes(whole)
    assert seer.look(Wish()).trouble == ""


def test_a_run_of_a_newer_gradwise(make):
    made = make().write(range(10))
    made.close()
    path = made.folder / "run.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 99'))
    with pytest.raises(UserError, match="newer gradwise"):
        Seer(made.folder).look(Wish())


def test_the_follower_looks_again_at_once_when_asked_and_stops(make):
    import queue

    made = make().write(range(10))
    seen = queue.Queue()
    follower = Follower(Seer(made.folder), Wish(), 60.0, seen.put)
    follower.start()
    assert seen.get(timeout=20).snapshot.metric == "norm"
    follower.ask(Wish("std"))
    assert seen.get(timeout=20).snapshot.metric == "std"
    follower.ask(Wish("nonsense"))
    assert "got 'nonsense'; trying again" in seen.get(timeout=20).trouble
    follower.stop()
    follower._thread.join(20)
    assert not follower._thread.is_alive()
    assert seen.empty()


def test_the_follower_hands_on_the_error_that_ends_it(tmp_path):
    import queue

    (tmp_path / "photo.png").touch()
    seen = queue.Queue()
    Follower(Seer(tmp_path), Wish(), 60.0, seen.put).start()
    assert isinstance(seen.get(timeout=20), UserError)


def test_a_look_agrees_with_the_store(make):
    made = make().write(range(300))
    steps, values = load(made.folder).metric("norm")
    run = Tail(made.folder).look(Wish(window=1000, width=300))
    assert len(steps) == 300
    np.testing.assert_allclose(run.history, values.T, rtol=1e-6)
