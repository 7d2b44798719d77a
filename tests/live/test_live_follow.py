"""Following a folder: waiting for a run, telling how it is doing, surviving what goes wrong."""

import numpy as np
import pytest

from gradwise.errors import UserError
from gradwise.live.folder import awaited, runs_inside
from gradwise.live.follow import Follower, Look, Seer
from gradwise.live.tail import Wish

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


def test_a_file_that_is_damaged_is_no_sign_of_life(make):
    made = make().write(range(10))
    made.write(range(10, 20), began=0.0)
    clock = Clock(50.0)
    seer = clock.seer(made.folder)
    assert seer.look(Wish()).snapshot.step == 19
    max((made.folder / "layers").iterdir()).write_bytes(b"PAR1")
    clock.now += 100
    look = seer.look(Wish())
    assert (look.snapshot.step, look.snapshot.damaged) == (9, 1)
    assert look.state(clock.now)[0] == "quiet"


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
