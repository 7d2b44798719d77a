"""Who runs where, by fakes: places, memory, a second attempt alone, and nobody stuck for ever."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwise.lab.slots import Place, Slots

GIB = 2**30


def gpus(count):
    return [Place(f"GPU {number}", str(number)) for number in range(count)]


def start(slots, *waiting):
    """Start whoever may; the trial and its place's variable, or None."""
    offer = slots.offer(waiting)
    if offer is None:
        return None
    job, place = offer
    assert slots.begin(job, place) == place
    return job, place.visible


def test_trials_are_spread_before_they_share():
    slots = Slots(gpus(3), per_place=2)
    assert [start(slots, job) for job in "abc"] == [("a", "0"), ("b", "1"), ("c", "2")]
    assert start(slots, "d") is None  # nobody has told yet
    for job in "abc":
        slots.heard(job, 1 * GIB, 9 * GIB)
    assert [start(slots, job) for job in "def"] == [("d", "0"), ("e", "1"), ("f", "2")]
    for job in "def":
        slots.heard(job, 1 * GIB, 8 * GIB)
    assert start(slots, "g") is None  # K of them everywhere
    assert slots.short is None  # and not for lack of memory
    assert not slots.end("e")
    assert start(slots, "g") == ("g", "1")


@pytest.mark.parametrize("per_place", [1, 3])
def test_as_many_as_k_on_each(per_place):
    slots = Slots(gpus(2), per_place)
    running = []
    for job in range(20):
        if start(slots, job) is not None:
            running.append(job)
            slots.heard(job, GIB, 100 * GIB)
    assert len(running) == 2 * per_place


def test_the_first_trial_on_a_device_runs_alone_until_it_has_told():
    slots = Slots(gpus(2), per_place=4)
    assert start(slots, "a") == ("a", "0")
    slots.heard("a", GIB, 50 * GIB)
    assert start(slots, "b") == ("b", "1")
    # Known from the other device what a trial needs, and unknown what is free on this one.
    assert start(slots, "c") == ("c", "0")
    assert start(slots, "d") == ("d", "0")  # though it is fuller
    slots.heard("b", GIB, 50 * GIB)
    assert start(slots, "e") == ("e", "1")


def test_what_is_free_has_to_do_for_those_that_still_grow():
    slots = Slots(gpus(1), per_place=4)
    start(slots, "a")
    slots.heard("a", 4 * GIB, 9 * GIB)
    assert start(slots, "b") == ("b", "0")  # 9 >= 4
    # The reading is from before b: of the 9, b may take 4, and 5 are enough for c.
    assert start(slots, "c") == ("c", "0")
    # Now b and c may take 8: the 1 that would be left is not.
    assert start(slots, "d") is None
    assert slots.short == (gpus(1)[0], 1 * GIB, 4 * GIB)
    # b is smaller than a, but may be about to grow; c has not told.
    slots.heard("b", 1 * GIB, 8 * GIB)
    assert start(slots, "d") is None
    slots.heard("c", 1 * GIB, 7 * GIB)
    assert start(slots, "d") is None  # 7 - 3 - 3 < 4
    slots.end("c")
    slots.heard("a", 4 * GIB, 8 * GIB)
    assert start(slots, "d") == ("d", "0")  # 8 - 3 >= 4


def test_one_that_waits_for_memory_goes_where_there_is_some():
    slots = Slots(gpus(2), per_place=2)
    start(slots, "a")
    start(slots, "b")
    slots.heard("a", 4 * GIB, 1 * GIB)  # somebody else is there, too
    slots.heard("b", 4 * GIB, 6 * GIB)
    assert start(slots, "c") == ("c", "1")
    slots.heard("c", 4 * GIB, 2 * GIB)
    assert start(slots, "d") is None
    assert slots.short is not None
    slots.end("a")
    assert start(slots, "d") == ("d", "0")  # an empty device never refuses


def test_the_hungriest_trial_so_far_counts_also_after_its_end():
    slots = Slots(gpus(1), per_place=2)
    start(slots, "a")
    slots.heard("a", 8 * GIB, 2 * GIB)
    slots.end("a")
    start(slots, "b")
    slots.heard("b", 1 * GIB, 9 * GIB)
    assert start(slots, "c") is None  # b may grow by 7
    slots.heard("b", 1 * GIB, 15 * GIB)
    assert start(slots, "c") == ("c", "0")


def test_who_ran_out_of_memory_beside_another_goes_again_alone():
    slots = Slots(gpus(1), per_place=3)
    start(slots, "a")
    slots.heard("a", GIB, 9 * GIB)
    start(slots, "b")
    assert slots.end("b", out_of_memory=True)
    assert start(slots, "b", "c") is None  # a is there, and c has to stand back
    slots.heard("a", GIB, 9 * GIB)
    assert start(slots, "b", "c") is None
    assert not slots.end("a")
    assert start(slots, "c", "b") == ("b", "0")
    slots.heard("b", 2 * GIB, 50 * GIB)
    assert start(slots, "c") is None  # nobody joins it
    assert not slots.end("b", out_of_memory=True)  # alone and still too big: that is that
    assert start(slots, "c") == ("c", "0")
    slots.heard("c", 2 * GIB, 50 * GIB)
    assert start(slots, "d") == ("d", "0")  # and sharing goes on


def test_only_one_device_is_kept_for_who_goes_alone():
    slots = Slots(gpus(2), per_place=2)
    for job in "abcd":
        start(slots, job)
        slots.heard(job, GIB, 20 * GIB)
    assert {job: run.at for job, run in slots._runs.items()} == {"a": 0, "b": 1, "c": 0, "d": 1}
    assert slots.end("c", out_of_memory=True)
    slots.end("d")
    assert start(slots, "c", "e") == ("e", "1")
    slots.heard("e", GIB, 20 * GIB)
    slots.end("b")
    assert start(slots, "c", "f") == ("f", "1")
    slots.end("a")
    assert start(slots, "c", "g") == ("c", "0")


def test_who_was_alone_all_the_time_has_no_other_attempt():
    slots = Slots(gpus(2), per_place=2)
    start(slots, "a")
    start(slots, "b")
    assert not slots.end("a", out_of_memory=True)
    assert not slots.end("nobody", out_of_memory=True)


def test_who_was_alone_when_it_ran_out_but_not_before_has_another_attempt():
    """Two run out together: the end of one is seen before that of the other."""
    slots = Slots(gpus(1), per_place=2)
    start(slots, "a")
    slots.heard("a", GIB, 9 * GIB)
    start(slots, "b")
    assert slots.end("b", out_of_memory=True)
    assert slots.end("a", out_of_memory=True)
    assert start(slots, "a", "b") == ("a", "0")
    assert start(slots, "b") is None
    assert not slots.end("a")
    assert start(slots, "b") == ("b", "0")


def test_what_a_trial_tells_after_its_end_is_no_matter():
    slots = Slots(gpus(1), per_place=2)
    start(slots, "a")
    slots.end("a")
    slots.heard("a", 10**15, 0)
    start(slots, "b")
    slots.heard("b", 1, 10)
    assert start(slots, "c") == ("c", "0")


@given(
    devices=st.integers(1, 3),
    per_place=st.integers(1, 4),
    needs=st.lists(st.integers(1, 10), min_size=1, max_size=12),
    total=st.integers(10, 25),
    data=st.data(),
)
def test_all_trials_come_to_their_end_whatever_happens(devices, per_place, needs, total, data):
    """Trials of any size, on devices of any size, that tell, end and run out in any order."""
    slots = Slots(gpus(devices), per_place)
    waiting, running, ended, attempts = list(range(len(needs))), {}, [], {}
    while waiting or running:
        while (offer := slots.offer(waiting)) is not None:
            job, place = offer
            slots.begin(job, place)
            waiting.remove(job)
            running[job] = place
            attempts[job] = attempts.get(job, 0) + 1
        assert running  # else nothing would ever happen again
        for place in slots.places:
            assert sum(at == place for at in running.values()) <= per_place
        job = data.draw(st.sampled_from(sorted(running)))
        there = [one for one, at in running.items() if at == running[job]]
        used = sum(needs[one] for one in there)
        if used > total:
            running.pop(job)
            if slots.end(job, out_of_memory=True):
                waiting.insert(0, job)
            else:
                ended.append(job)
        elif data.draw(st.booleans()):
            slots.heard(job, needs[job], total - used)
        else:
            running.pop(job)
            assert not slots.end(job)
            ended.append(job)
    assert sorted(ended) == list(range(len(needs)))
    assert max(attempts.values()) <= 2
