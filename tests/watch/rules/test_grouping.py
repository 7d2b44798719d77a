"""Layers in trouble together are told of together."""

import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from rules_streams import block, found

from gradwise.watch.rules import Judgement, Rule, Words


@dataclass(kw_only=True)
class Marked(Rule):
    """Bad where `mark` is 1, calm where it is 0; the whole by a scalar of that name."""

    name: ClassVar[str] = "marked"
    gather: ClassVar[int] = 5

    calm: int = 3
    and_whole: bool = False

    def begin(self, names):
        return (None, *names) if self.and_whole else names

    def judge(self, view):
        mark = view.layer("mark")
        if self.and_whole:
            mark = np.concatenate((view.scalar("mark")[:, None], mark), 1)
        return Judgement(~np.isnan(mark), mark > 0, mark == 0, mark)

    def explain(self, found):
        return Words(f"{found.where} at {found.known}, worst {found.worst.value:g}", "advice")


def marks(steps, layers, *spans, scalar=None):
    """A stream where layers [from, to) are marked in steps [from, to)."""
    mark = np.zeros((steps, layers))
    for first, last, low, high in spans:
        mark[first:last, low:high] = 1 + np.arange(low, high) / 1000
    whole = np.zeros(steps) if scalar is None else scalar
    return block({"mark": mark}, {"mark": whole}, names=[f"l{i}" for i in range(layers)])


def told(stream, sizes=(64,), **options):
    return [
        (alert.layer, alert.step, alert.ended, alert.message)
        for alert in found(stream, [Marked(**options)], sizes)
    ]


def test_up_to_three_have_their_own():
    assert told(marks(40, 10, (10, 20, 2, 5))) == [
        ("l4", 10, 20, "'l4' at 15, worst 1.004"),
        ("l3", 10, 20, "'l3' at 15, worst 1.003"),
        ("l2", 10, 20, "'l2' at 15, worst 1.002"),
    ]


def test_more_have_one_for_all_and_it_ends_with_the_last():
    stream = marks(60, 500, (10, 20, 0, 312), (20, 33, 100, 101))
    message = "312 of 500 layers (first of all 'l311', 'l310', 'l309') at 15, worst 1.311"
    assert told(stream) == [(None, 10, 33, message)]


def test_layers_that_join_within_a_few_records_are_told_of_together():
    stream = marks(60, 9, (10, 30, 0, 2), (12, 30, 2, 4), (15, 30, 4, 5))
    assert [(layer, step) for layer, step, *_ in told(stream)] == [(None, 10)]
    assert "5 of 9" in told(stream)[0][3]
    later = marks(60, 9, (10, 30, 0, 2), (12, 30, 2, 4), (16, 30, 4, 5))
    assert [(layer, step) for layer, step, *_ in told(later)] == [(None, 10), ("l4", 16)]


def test_over_before_it_was_told():
    assert told(marks(40, 3, (10, 11, 0, 1))) == [("l0", 10, 11, "'l0' at 15, worst 1")]
    assert told(marks(12, 3, (10, 12, 0, 1))) == [("l0", 10, None, "'l0' at 11, worst 1")]


@pytest.mark.parametrize("every", [1, 7])
def test_one_after_the_other_gives_few(every):
    layers = 400
    spans = [(10 + every * i, 10 + every * layers + 100, i, i + 1) for i in range(layers)]
    alerts = told(marks(every * layers + 200, layers, *spans))
    assert len(alerts) <= 8 + np.log2(layers)
    counted = [int(found[1]) if (found := re.match(r"(\d+) of", a[3])) else 1 for a in alerts]
    assert sum(counted) > layers / 2  # all but those of the last doubling were told of
    assert all(alert[2] is not None for alert in alerts)


def test_those_that_recover_while_they_wait_are_forgotten():
    # Eight alerts last; the others come one by one, and go before there are as many.
    lasting = [(10 + 20 * i, 1000, i, i + 1) for i in range(8)]
    passing = [(200 + 20 * i, 210 + 20 * i, 8 + i, 9 + i) for i in range(30)]
    alerts = told(marks(1100, 50, *lasting, *passing))
    assert [alert[0] for alert in alerts] == [f"l{i}" for i in range(8)]


def test_the_whole_speaks_for_the_layers():
    scalar = np.zeros(60)
    scalar[12:30] = 7.0
    stream = marks(60, 9, (10, 20, 0, 2), (15, 25, 5, 6), scalar=scalar)
    [only] = told(stream, and_whole=True)
    # Told at once, with what was gathered until then; what comes later belongs to it.
    assert only == (None, 10, 30, "'l1' and 'l0' at 12, worst 7")


def test_alerts_on_several_layers_that_go_back_to_the_same_step_differ():
    stream = marks(300, 20, (10, 200, 0, 4))
    # Layers 4 to 8 are measured every tenth record, so that it takes them longer.
    mark = stream.layers["mark"]
    mark[:, 4:8] = np.nan
    mark[10::10, 4:8] = 1.0
    alerts = found(stream, [Marked(streak=2)])
    assert [(alert.layer, alert.step) for alert in alerts] == [(None, 10), (None, 25)]
    assert len({alert.key for alert in alerts}) == 2


def test_a_layer_that_comes_back_within_a_group_says_nothing_new():
    stream = marks(80, 9, (10, 60, 0, 3), (10, 20, 3, 6), (30, 40, 3, 6))
    assert [alert[:3] for alert in told(stream)] == [(None, 10, 60)]
