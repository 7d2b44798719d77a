"""Streaks and calm, against the definition written out for one subject."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gradwise.watch.rules.base import Judgement
from gradwise.watch.rules.hysteresis import Hysteresis


def events_of(changes, first):
    """[(record, subject, "began" or "ended", step, value)] of a list of changes."""
    found = []
    for c in changes:
        for at, since, value in zip(c.began, c.since, c.value, strict=True):
            found.append((first + c.row, int(at), "began", int(since), float(value)))
        for at, over in zip(c.ended, c.over, strict=True):
            found.append((first + c.row, int(at), "ended", int(over), None))
    return found


def by_definition(steps, known, bad, calm, value, score, streak, need):
    """One subject, record by record."""
    events, active, times, run, quiet = [], False, 0, [], []
    for i, step in enumerate(steps):
        if not known[i]:
            continue
        if bad[i]:
            run.append((score[i], -i, step, value[i]))
        else:
            run = []
        quiet = [*quiet, step] if calm[i] and not bad[i] else []
        if not active and len(run) >= streak:
            active, times = True, times + 1
            events.append((i, "began", min(r[2] for r in run), max(run)[3]))
        elif active and len(quiet) >= need * 2 ** min(times - 1, 6):
            active = False
            events.append((i, "ended", quiet[0], None))
    return events


KINDS = st.sampled_from(["bad", "calm", "between", "unknown"])


@st.composite
def judgements(draw):
    subjects, records = draw(st.integers(1, 4)), draw(st.integers(1, 60))
    # Runs of the same kind, so that streaks come about.
    columns = []
    for _ in range(subjects):
        column = []
        while len(column) < records:
            column += [draw(KINDS)] * draw(st.integers(1, 9))
        columns.append(column[:records])
    kinds = np.array(columns).T
    value = draw(hnp.arrays(float, kinds.shape, elements=st.integers(0, 5).map(float)))
    return kinds, value, draw(hnp.arrays(float, kinds.shape, elements=st.integers(0, 3).map(float)))


@given(judgements(), st.integers(1, 4), st.integers(1, 4), st.lists(st.integers(1, 9), min_size=1))
def test_follows_the_definition_however_records_are_cut(judged, streak, calm, sizes):
    kinds, value, score = judged
    steps = 100 + 3 * np.arange(len(kinds))
    # What is bad or calm and was not measured must make no difference.
    known, bad = kinds != "unknown", (kinds == "bad") | (kinds == "unknown")
    quiet = (kinds == "calm") | (kinds == "unknown") | (kinds == "bad")
    hysteresis, found, at = Hysteresis(kinds.shape[1], streak=streak, calm=calm), [], 0
    while at < len(kinds):
        size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
        part = slice(at, at + size)
        judgement = Judgement(known[part], bad[part], quiet[part], value[part], score[part])
        found += events_of(hysteresis.follow(steps[part], judgement), at)
        at += size
    expected = []
    for n in range(kinds.shape[1]):
        columns = (a[:, n] for a in (known, bad & known, quiet, value, score))
        for record, kind, step, seen in by_definition(steps, *columns, streak, calm):
            expected.append((record, n, kind, int(step), None if seen is None else float(seen)))
    key = lambda event: event[:3]  # noqa: E731
    assert sorted(found, key=key) == sorted(expected, key=key)


@given(st.integers(1, 5), st.integers(1, 10), st.integers(0, 2**32 - 1), st.floats(0.05, 0.95))
def test_a_signal_that_flaps_gives_few_events(streak, calm, seed, share):
    records = 4000
    random = np.random.default_rng(seed)
    bad = np.repeat(random.random(records) < share, random.integers(1, 12, records))[:records, None]
    judgement = Judgement(np.ones_like(bad), bad, ~bad, bad.astype(float))
    changes = Hysteresis(1, streak=streak, calm=calm).follow(np.arange(records), judgement)
    began = sum(len(change.began) for change in changes)
    # The i-th time it takes calm * 2^(i-1) calm records to end, up to 64 * calm.
    growing = math.ceil(math.log2(records / calm + 1))
    assert began <= min(growing, 7) + records / (64 * calm)


def test_without_scores_the_highest_value_is_shown():
    bad = np.ones((3, 1), bool)
    value = np.array([[1.0], [9.0], [4.0]])
    [change] = Hysteresis(1, streak=3, calm=1).follow(
        np.arange(3), Judgement(bad, bad, ~bad, value)
    )
    assert change.value.tolist() == change.score.tolist() == [9.0]


def test_taken_over_trouble_ends_like_any_other():
    hysteresis = Hysteresis(3, streak=2, calm=2)
    hysteresis.take_over([0, 2])
    assert hysteresis.active.tolist() == [True, False, True]
    bad = np.array([[False, False, True]] * 3)
    [change] = hysteresis.follow(np.arange(3), Judgement(bad | True, bad, ~bad, bad * 1.0))
    assert (change.row, change.ended.tolist(), change.over.tolist()) == (1, [0], [0])
    assert hysteresis.active.tolist() == [False, False, True]
