"""`alerts.jsonl`: what is written comes back, and nothing else that lies there does harm."""

import errno
import json
import math
import os
import pickle
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwise.errors import UserError
from gradwise.watch import alerts as module
from gradwise.watch.alerts import ALERTS_FILE, Alert, AlertJournal, GradientAlert, read_alerts

TEXT = st.text(st.characters(categories=("L", "N", "P")) | st.just(" "), max_size=20)
ALERTS = st.lists(
    st.builds(
        Alert,
        rule=st.sampled_from(["exploding", "dead", "non-finite"]),
        step=st.integers(0, 50),
        layer=st.none() | TEXT,
        value=st.floats(allow_nan=False),
        message=TEXT,
        advice=TEXT,
        severity=st.sampled_from(["warning", "error"]),
    ),
    max_size=12,
    unique_by=lambda alert: alert.key,
)


def an_alert(step=3, **other):
    told = {"rule": "dead", "layer": "a", "value": 1.0, "message": "m", "advice": "b"}
    return Alert(**{**told, "step": step, "severity": "warning", **other})


def written(folder, alerts, **ends):
    with AlertJournal(folder) as journal:
        for alert in alerts:
            journal.write(alert)
            if alert.rule in ends:
                journal.end(replace(alert, ended=alert.step + ends[alert.rule]))
    assert journal.errors == 0


@given(alerts=ALERTS, lengths=st.lists(st.none() | st.integers(0, 9), min_size=12, max_size=12))
def test_what_is_written_comes_back(tmp_path_factory, alerts, lengths):
    folder = tmp_path_factory.mktemp("run")
    expected = []
    with AlertJournal(folder) as journal:
        for alert in alerts:
            journal.write(alert)
        for alert, length in zip(alerts, lengths, strict=False):
            ended = replace(alert, ended=None if length is None else alert.step + length)
            journal.end(ended)
            expected.append(ended)
    assert read_alerts(folder) == expected


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_without_a_number_in_json(tmp_path, value):
    written(tmp_path, [an_alert(value=value)])
    for line in (tmp_path / ALERTS_FILE).read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert repr(read_alerts(tmp_path)[0].value) == repr(value)


def test_an_alert_that_is_over_already(tmp_path):
    written(tmp_path, [an_alert(ended=5)])
    assert read_alerts(tmp_path) == [an_alert(ended=5)]


def test_nothing_there(tmp_path):
    assert read_alerts(tmp_path) == read_alerts(tmp_path / "none") == []
    (tmp_path / "file").write_text("")
    assert read_alerts(tmp_path / "file") == []
    AlertJournal(tmp_path, resume_from=3).close()
    assert not (tmp_path / ALERTS_FILE).exists()


def test_what_cannot_be_read_is_one_sentence(tmp_path):
    (tmp_path / ALERTS_FILE).mkdir()
    with pytest.raises(UserError, match=r"alerts\.jsonl cannot be read: Is a directory"):
        read_alerts(tmp_path)


def test_torn_anywhere_the_lines_before_count(tmp_path):
    alerts = [an_alert(step, message="å" * step) for step in range(4)]
    written(tmp_path, alerts, dead=2)
    path = tmp_path / ALERTS_FILE
    whole = path.read_bytes()
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        # A line that lacks only its end is whole.
        lines = sum(end - 1 <= size for end in ends)
        found = read_alerts(tmp_path)
        assert len(found) == (lines + 1) // 2
        assert sum(alert.ended is not None for alert in found) == lines // 2


def test_goes_on_behind_a_torn_line(tmp_path):
    written(tmp_path, [an_alert(1), an_alert(2)])
    path = tmp_path / ALERTS_FILE
    path.write_bytes(path.read_bytes()[:-20])
    written(tmp_path, [an_alert(7)])
    assert [alert.step for alert in read_alerts(tmp_path)] == [1, 7]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
FIELDS = ("event", "rule", "step", "layer", "value", "message", "advice", "severity", "ended")


@given(
    st.dictionaries(st.sampled_from(FIELDS), JSON),
    st.sampled_from(["began", "ended"]),
    st.binary(max_size=30),
)
def test_wrong_types_and_foreign_lines_never_raise(tmp_path_factory, fields, event, noise):
    folder = tmp_path_factory.mktemp("run")
    good = [an_alert(1), an_alert(2)]
    written(folder, good[:1])
    path = folder / ALERTS_FILE
    line = json.loads(path.read_text()) | {"event": event, "step": 1, "ended": 4} | fields
    with path.open("ab") as file:
        file.write(json.dumps(line).encode() + b"\n" + noise.replace(b"\n", b" ") + b"\n")
    written(folder, good[1:])
    found = read_alerts(folder)
    assert [alert.step for alert in found][:1] == [1]
    assert found[-1] == good[1]
    for alert in found:
        assert isinstance(alert.step, int)
        assert isinstance(alert.value, float)
        assert isinstance(alert.message + alert.rule + alert.advice, str)
        assert alert.ended is None or alert.ended >= alert.step


@pytest.mark.parametrize(
    "line",
    [
        b"[1, 2]",
        b"null",
        b'{"event": "began"}',
        b"[" * 100_000,
        b'{"event": "began", "rule": "x", "step": ' + b"9" * 5000 + b"}",
        b'{"event": "ended", "rule": "dead", "step": 3, "layer": "a", "ended": 2}',
        b'{"event": "ended", "rule": "dead", "step": 3, "layer": "b", "ended": 9}',
        b'{"event": "ended", "rule": "dead", "step": 3, "layer": "a", "ended": true}',
        b'{"event": "began", "rule": "x", "step": 1, "layer": null, "value": true,'
        b' "message": "m", "advice": "a", "severity": "error"}',
        b'{"event": "began", "rule": "x", "step": 1, "layer": null, "value": 1e999,'
        b' "message": "m", "advice": "a", "severity": "fatal"}',
        b'{"event": "began", "rule": "x", "step": 1, "layer": null, "value": 1' + b"0" * 400 + b","
        b' "message": "m", "advice": "a", "severity": "error"}',
        b'{"event": "began", "rule": "x", "step": -1, "layer": null, "value": 1,'
        b' "message": "m", "advice": "a", "severity": "error"}',
        b"x" * 200_000,
        b"\xff\xfe\x00",
    ],
)
def test_lines_that_are_none_of_ours(tmp_path, line):
    written(tmp_path, [an_alert(3)])
    with (tmp_path / ALERTS_FILE).open("ab") as file:
        file.write(line + b"\n")
    written(tmp_path, [an_alert(4)])
    assert read_alerts(tmp_path) == [an_alert(3), an_alert(4)]


def test_a_terminal_is_not_told_what_to_do(tmp_path):
    evil = "\x1b[2J\x9b\u202e\ud800\na"
    alert = an_alert(rule=evil, layer=evil, message=evil, advice=evil)
    with AlertJournal(tmp_path) as journal:
        journal.write(alert)
        journal.end(replace(alert, ended=9))
    [found] = read_alerts(tmp_path)
    for text in (found.rule, found.layer, found.message, found.advice):
        assert text.isprintable()
        assert text.endswith("a")
    assert found.ended == 9  # found by its real name


@given(
    ALERTS, st.lists(st.none() | st.integers(0, 30), min_size=12, max_size=12), st.integers(0, 60)
)
def test_resuming_forgets_what_happened_later(tmp_path_factory, alerts, lengths, step):
    folder = tmp_path_factory.mktemp("run")
    ends = [replace(a, ended=None if n is None else a.step + n) for a, n in zip(alerts, lengths)]  # noqa: B905
    with AlertJournal(folder) as journal:
        for alert in ends:
            journal.write(alert)
    with AlertJournal(folder, resume_from=step) as journal:
        again = an_alert(step, rule="new")
        journal.write(again)
    kept = [alert for alert in ends if alert.step < step]
    expected = [a if a.ended is None or a.ended < step else replace(a, ended=None) for a in kept]
    assert read_alerts(folder) == [*expected, again]
    assert list(journal.lasting) == [alert for alert in expected if alert.ended is None]


def test_resuming_keeps_lines_of_other_kinds(tmp_path):
    path = tmp_path / ALERTS_FILE
    written(tmp_path, [an_alert(1)])
    with path.open("ab") as file:
        file.write(b'{"event": "of a later version"}\n')
    written(tmp_path, [an_alert(9)])
    AlertJournal(tmp_path, resume_from=5).close()
    assert b"of a later version" in path.read_bytes()
    assert [alert.step for alert in read_alerts(tmp_path)] == [1]
    assert [entry.name for entry in tmp_path.iterdir()] == [ALERTS_FILE]


class FullDisk:
    """Takes so many bytes and no more."""

    def __init__(self, monkeypatch, room):
        self.room, self.write = room, os.write
        monkeypatch.setattr(module, "write_all", self)

    def __call__(self, fd, data):
        fits = bytes(data)[: self.room]
        self.write(fd, fits)
        self.room -= len(fits)
        if len(fits) < len(data):
            raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("room", [0, 1, 100, 230])
def test_a_full_disk_loses_nothing_once_there_is_space(tmp_path, monkeypatch, room):
    disk = FullDisk(monkeypatch, room)
    journal = AlertJournal(tmp_path)
    alerts = [an_alert(step) for step in range(5)]
    for alert in alerts[:4]:
        journal.write(alert)
    assert journal.errors > 0
    errors = journal.errors
    disk.room = 10**6
    journal.write(alerts[4])
    assert journal.errors == errors
    assert read_alerts(tmp_path) == alerts


def test_closing_tries_once_more(tmp_path, monkeypatch):
    disk = FullDisk(monkeypatch, 10)
    journal = AlertJournal(tmp_path)
    journal.write(an_alert())
    assert read_alerts(tmp_path) == []
    disk.room = 10**6
    journal.close()
    assert read_alerts(tmp_path) == [an_alert()]


def test_memory_is_bounded_while_the_disk_refuses(tmp_path):
    journal = AlertJournal(tmp_path / "gone")
    for step in range(1500):
        journal.write(an_alert(step))
    assert journal.errors == 1500
    (tmp_path / "gone").mkdir()
    journal.close()
    assert [alert.step for alert in read_alerts(tmp_path / "gone")] == [*range(500, 1500)]


def test_a_resumption_that_the_disk_refuses_raises_nothing(tmp_path, monkeypatch):
    written(tmp_path, [an_alert(1), an_alert(9)])

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "replace_file", refuse)
    journal = AlertJournal(tmp_path, resume_from=5)
    assert journal.errors == 1
    assert [alert.step for alert in journal.lasting] == [1]
    assert [alert.step for alert in read_alerts(tmp_path)] == [1, 9]


WRITER = """
import sys
from gradwise.watch.alerts import Alert, AlertJournal
journal = AlertJournal(sys.argv[1])
for step in range(10**6):
    journal.write(Alert("dead", step, "a", 1.0, "m" * (step % 3000), "b", "warning", step + 1))
    print(step, flush=True)
"""


def test_killed_while_it_writes(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for _ in range(20):
            last = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        last = max([last, *map(int, process.stdout.read().split())])
    found = read_alerts(tmp_path)
    assert [alert.step for alert in found][: last + 1] == [*range(last + 1)]
    assert all(alert.ended == alert.step + 1 for alert in found[: last + 1])
    written(tmp_path, [an_alert(10**7)])
    assert read_alerts(tmp_path)[-1] == an_alert(10**7)


def test_the_exception_carries_the_alert_through_a_pickle():
    error = GradientAlert(an_alert())
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.alert) == (str(error), an_alert())
    assert str(error) == "step 3, dead: m b"
