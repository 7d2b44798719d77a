"""A sink may do what it likes: the training never waits, and nobody else notices."""

import os
import subprocess
import sys
import threading
import time

import pytest
from beartype.roar import BeartypeCallHintViolation

from gradwise.errors import UserError
from gradwise.watch.sinks import Sink, SinkFeed
from gradwise.watch.sinks import feed as feeds


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(feeds, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(feeds, "LONGEST_PAUSE", 0.05)


class Hanging(Sink):
    """Hangs in write until it is let go."""

    def __init__(self, **wishes):
        super().__init__(**wishes)
        self.go, self.steps, self.closed = threading.Event(), [], False
        self.begun = threading.Event()

    def write(self, step, values, time):
        self.begun.set()
        self.go.wait(300)
        self.steps.append(step)

    def close(self):
        self.closed = True


class Failing(Sink):
    """Fails as often as it is told, or for certain steps."""

    def __init__(self, times=0, bad=(), opening=0, **wishes):
        super().__init__(**wishes)
        self.times, self.bad, self.opening, self.steps = times, bad, opening, []

    def open(self, names, meta):
        if self.opening:
            self.opening -= 1
            raise ConnectionError("refused\nsecond line")

    def write(self, step, values, time):
        if self.times or step in self.bad:
            self.times = max(0, self.times - 1)
            raise OSError("no space left")
        self.steps.append(step)


def test_opened_once_with_names_and_meta_and_closed_once(collector, play) -> None:
    sink = collector()
    feed = play(sink)
    feed.close()
    feed.stop()
    assert sink.events == ["open body.weight,head.bias {'optimizer': 'SGD'}", "close"]
    assert feed.sent == 5


def test_without_rows_nothing_is_opened(collector) -> None:
    sink = collector()
    SinkFeed(sink).close()
    assert sink.events == []


def test_begin_opens_before_the_first_block(collector, until) -> None:
    sink = collector()
    feed = SinkFeed(sink)
    feed.begin(("w",))
    until(lambda: sink.events == ["open w {}"])
    feed.close()
    assert sink.events == ["open w {}", "close"]


def test_errors_are_said_once_then_counted_and_rows_come_again(blocks, until, said) -> None:
    sink = Failing(times=2, opening=3)
    feed = SinkFeed(sink)
    for block in blocks():
        feed.take(block)
    until(lambda: feed.sent == 4)
    feed.close()
    assert sink.steps == [0, 10, 20, 30, 39]
    assert feed.errors == 5
    assert feed.lost == 0
    assert len(said()) == 1
    assert "ConnectionError: refused)" in said()[0]
    assert "training goes on" in said()[0]


def test_a_row_that_always_fails_does_not_hold_up_the_others(blocks, until) -> None:
    sink = Failing(bad=(10,))
    feed = SinkFeed(sink)
    for block in blocks():
        feed.take(block)
    until(lambda: feed.sent == 3)
    feed.close()
    assert sink.steps == [0, 20, 30, 39]
    assert (feed.errors, feed.lost) == (feeds.TRIES, 1)


def test_pauses_grow_and_the_end_does_not_wait_for_them(blocks, until, monkeypatch) -> None:
    monkeypatch.setattr(feeds, "FIRST_PAUSE", 100.0)
    sink = Failing(times=1)
    feed = SinkFeed(sink, patience=20)
    for block in blocks():
        feed.take(block)
    until(lambda: feed.errors)
    begin = time.monotonic()
    feed.close()
    assert time.monotonic() - begin < 10
    assert sink.steps == [0, 10, 20, 30, 39]
    assert (feed.errors, feed.lost) == (1, 0)


def test_at_the_end_a_sink_that_fails_for_good_is_given_up(blocks) -> None:
    sink = Failing(times=10**6)
    feed = SinkFeed(sink, patience=20)
    for block in blocks(4000):
        feed.take(block)
    feed.close()
    assert sink.steps == []
    assert feed.lost + feed.sent == 401
    assert feed.errors < 401


def test_a_hanging_sink_blocks_nobody_and_keeps_little(blocks, until, collector, said):
    sink, healthy = Hanging(every=1), collector(every=1)
    feed = SinkFeed(sink, capacity=20, patience=0.1)
    other = SinkFeed(healthy, patience=100)
    records = blocks(2000)
    feed.take(records[0])
    other.take(records[0])
    assert sink.begun.wait(100)  # it hangs in the first row
    begin = time.monotonic()
    for block in records[1:]:
        feed.take(block)
        other.take(block)
    feed.stop()
    other.close()
    feed.close()
    assert time.monotonic() - begin < 100
    assert [step for step, _, _ in healthy.rows] == list(range(2000))
    assert len(feed._rows) == 0
    assert feed.lost == 1999  # all but the one that hangs
    assert len(said()) == 2
    assert "dropped" in said()[0]
    assert "20 rows were not sent" in said()[1]
    sink.go.set()  # wakes up too late: what it had is taken, it is closed, no more is sent
    until(lambda: sink.closed)
    assert sink.steps == [0]
    feed.take(records[0])
    assert sink.steps == [0]


def test_the_oldest_rows_make_way(blocks, until) -> None:
    sink = Hanging(every=1)
    feed = SinkFeed(sink, capacity=10, patience=20)
    (block,) = blocks(100, size=100)
    feed.take(block)
    sink.go.set()
    feed.close()
    assert sink.steps[-10:] == list(range(90, 100))
    assert feed.lost + len(sink.steps) == 100
    assert feed.lost >= 89


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_sink_that_ends_its_thread_gets_another(blocks, until, collector) -> None:
    class Exiting(collector):
        def write(self, step, values, time):
            if step == 0:
                raise SystemExit
            super().write(step, values, time)

    sink = Exiting()
    feed = SinkFeed(sink, patience=20)
    first, *others = blocks()
    feed.take(first)
    until(lambda: not feed._thread.is_alive() or sink.rows)
    for block in others:
        feed.take(block)
    feed.close()
    assert [step for step, _, _ in sink.rows] == [10, 20, 30, 39]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_leaves_the_sink_alone(blocks, collector) -> None:
    sink = collector()
    feed = SinkFeed(sink, patience=20)
    first, *others = blocks()
    feed.take(first)
    child = os.fork()
    if child == 0:
        try:
            for block in others:
                feed.take(block)
            feed.begin(("other",))
            feed.stop()
            feed.close()
            os._exit(0 if len(feed._rows) <= 2 and not feed._closing else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    for block in others:
        feed.take(block)
    feed.close()
    assert [step for step, _, _ in sink.rows] == [0, 10, 20, 30, 39]


def test_a_program_ends_though_a_sink_hangs() -> None:
    program = """
import atexit, time, numpy as np
from gradwise.watch.block import Block
from gradwise.watch.sinks import Sink, SinkFeed
class Hanging(Sink):
    def write(self, step, values, time_):
        time.sleep(1000)
feed = SinkFeed(Hanging(), patience=0.2)
atexit.register(feed.close)
feed.take(Block(("w",), np.arange(50), {}, {"grad_norm": np.ones(50)}))
"""
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0
    assert time.monotonic() - begin < 50
    assert "does not finish within 0.2 s" in done.stderr
    assert "Traceback" not in done.stderr


def test_layers_that_nobody_is_called_like(blocks, play, collector, said) -> None:
    play(collector(layers="heads.*"))
    assert said() == [
        "Collector(every=10) no layer is called like ('heads.*',); one is 'body.weight'; "
        "training goes on"
    ]


def test_what_is_no_sink() -> None:
    with pytest.raises((UserError, BeartypeCallHintViolation), match="Sink"):
        SinkFeed("tensorboard")
    with pytest.raises(UserError, match="capacity=0"):
        SinkFeed(Failing(), capacity=0)


def test_importing_the_sinks_imports_no_tool() -> None:
    program = (
        "import sys, gradwise.watch.sinks;"
        "print([m for m in ('tensorboard', 'wandb', 'mlflow', 'trackio') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
