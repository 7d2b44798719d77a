"""Progress on a terminal and without one, and estimates that mean something."""

import io
import os
import re
import select
import signal
import sys
import time

import pytest
from cli_helpers import TINY
from rich.console import Console

from gradwise.cli import progress
from gradwise.cli.estimate import Estimate, duration
from gradwise.lab.job import Job

HIDE, SHOW = b"\x1b[?25l", b"\x1b[?25h"


class Clock:
    """A clock that is set by hand."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def job(tmp_path, number=0):
    return Job("sgd", number, tmp_path)


def step(at, steps=10):
    return {"event": "step", "step": at, "steps": steps}


def done(**more):
    result = {"status": "finished", "test_accuracy": 0.5, "wall_time_s": 2.0}
    return {"event": "done", **result, **more}


def test_two_at_a_time_take_half_the_time(tmp_path, clock):
    estimate = Estimate(6, clock)
    for number in (0, 1):
        estimate.take(job(tmp_path, number), {"event": "start"})
        estimate.take(job(tmp_path, number), step(0))
    clock.now = 30.0
    for number in (0, 1):
        estimate.take(job(tmp_path, number), step(5))
    # 30 s for the rest of these, and four more of 60 s, two at a time.
    assert estimate.remaining() == "about 2 min 30 s left"
    assert estimate.done == 1.0


def test_what_earlier_calls_did_is_no_pace(tmp_path, clock):
    estimate = Estimate(3, clock)
    estimate.take(job(tmp_path, 0), {"event": "kept"})
    estimate.take(job(tmp_path, 1), {"event": "start"})
    estimate.take(job(tmp_path, 1), step(8))  # resumed
    assert estimate.remaining() == "estimating the time"
    clock.now = 10.0
    estimate.take(job(tmp_path, 1), step(9))
    assert estimate.remaining() == "about 1 min 50 s left"
    assert estimate.over == 1


def test_the_last_trial_decides_not_the_average(tmp_path, clock):
    estimate = Estimate(2, clock)
    for number, _share in ((0, 9), (1, 1)):
        estimate.take(job(tmp_path, number), {"event": "start"})
        estimate.take(job(tmp_path, number), step(0))
    clock.now = 10.0
    estimate.take(job(tmp_path, 0), step(9))
    estimate.take(job(tmp_path, 1), step(1))
    assert estimate.remaining() == "about 18 s left"


def test_failures_count_as_over_and_not_as_pace(tmp_path, clock):
    estimate = Estimate(2, clock)
    estimate.take(job(tmp_path, 0), {"event": "start"})
    clock.now = 3.0
    estimate.take(job(tmp_path, 0), {"event": "failed", "reason": "x"})
    assert estimate.over == 1
    assert estimate.remaining() == "estimating the time"
    estimate.take(job(tmp_path, 1), {"event": "start"})
    estimate.take(job(tmp_path, 1), done())
    assert estimate.remaining() == "done"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (3599.6, "1 h 00 min"),
        (90061, "25 h 01 min"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


# Without a terminal


@pytest.fixture
def lines(clock):
    file = io.StringIO()
    screen = Console(file=file, width=200, highlight=False, markup=False)
    estimate = Estimate(2, clock)
    return progress._lines(screen, estimate, clock), file


def test_lines_come_with_an_estimate_and_not_too_often(tmp_path, clock, lines):
    listen, file = lines
    listen(job(tmp_path), {"event": "start"})
    listen(job(tmp_path), step(0))
    clock.now = 29.0
    listen(job(tmp_path), step(2))
    assert file.getvalue() == "2 trials to run\n"
    file.truncate(0)
    file.seek(0)
    clock.now = 40.0
    listen(job(tmp_path), step(4))
    listen(job(tmp_path), step(5))
    assert file.getvalue() == "sgd seed 0: step 4/10  [0/2, about 2 min 40 s left]\n"
    clock.now = 80.0
    listen(job(tmp_path), done())
    assert file.getvalue().splitlines()[1:] == [
        "sgd seed 0: 50.00 % in 2 s  [1/2, about 1 min 20 s left]"
    ]
    listen(job(tmp_path, 1), {"event": "start"})
    listen(job(tmp_path, 1), {"event": "note", "text": "begins anew"})
    listen(job(tmp_path, 1), done(status="diverged", diverged_at_step=7))
    assert file.getvalue().splitlines()[2].startswith("sgd seed 1: begins anew  [1/2")
    assert file.getvalue().splitlines()[3] == "sgd seed 1: diverged at step 7  [2/2, done]"


def test_what_was_there_is_told_once(tmp_path, lines):
    listen, file = lines
    listen(job(tmp_path, 0), {"event": "kept"})
    listen(job(tmp_path, 1), {"event": "start"})
    assert file.getvalue().startswith("1 of 2 trials are there from earlier calls")
    assert len(file.getvalue().splitlines()) == 1


def test_colours_that_are_forced_into_a_file_bring_no_live_display(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress.follow(1) as listen:
        listen(job(tmp_path), {"event": "start"})
        listen(job(tmp_path), done())
    assert "\x1b[?25l" not in capsys.readouterr().err


# On a terminal


class Terminal:
    """A `gradwise` process on a terminal of its own."""

    def __init__(self, columns, rows, folder, arguments):
        import fcntl
        import pty
        import struct
        import termios

        self.output = b""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            # Not execv: readline, which pytest loads, puts a width into the process's environment,
            # and workers of pytest-xdist find it in theirs.
            environment = {**os.environ, "TERM": "xterm-256color"}
            for width in ("COLUMNS", "LINES"):
                environment.pop(width, None)
            command = [sys.executable, "-m", "gradwise", *arguments]
            os.execve(sys.executable, command, environment)
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def read(self, until=None, seconds=90.0):
        """Read up to a text, or to the end."""
        end = time.monotonic() + seconds
        while until is None or until not in self.output:
            assert time.monotonic() < end, self.output[-500:]
            if select.select([self.fd], [], [], 0.1)[0]:
                try:
                    data = os.read(self.fd, 65536)
                except OSError:  # how Linux says that nobody is at the other end
                    data = b""
                if not data:
                    assert until is None, self.output[-500:]
                    return

                self.output += data

    def type(self, text):
        os.write(self.fd, text)

    def end(self):
        _, status = os.waitpid(self.pid, 0)
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)


@pytest.fixture
def terminal(here):
    opened = []

    def open_one(columns, rows, *arguments):
        opened.append(Terminal(columns, rows, here, arguments))
        return opened[-1]

    yield open_one
    for one in opened:
        try:
            os.kill(one.pid, signal.SIGKILL)
            os.waitpid(one.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def screen_of(output, columns):
    """The lines that a terminal shows after some output; knows what the display uses."""
    rows, row, column = [""], 0, 0
    for part in re.findall(rb"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", output):
        text = part.decode()
        if text == "\r":
            column = 0
        elif text == "\n":
            row += 1
            rows.extend([""] * (row + 1 - len(rows)))
        elif text.startswith("\x1b["):
            count = int(re.sub(r"\D", "", text) or 1)
            if text.endswith("A"):
                row = max(row - count, 0)
            elif text.endswith("K"):
                rows[row] = "" if count == 2 else rows[row][:column]
            continue
        else:
            for character in text:
                if column == columns:
                    row, column = row + 1, 0
                    rows.extend([""] * (row + 1 - len(rows)))
                rows[row] = rows[row].ljust(column)[:column] + character + rows[row][column + 1 :]
                column += 1
    return [line.rstrip() for line in rows]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("columns", [80, 50])
def test_ctrl_c_on_a_terminal(terminal, here, columns):
    one = terminal(
        columns,
        20,
        "compare",
        *TINY,
        "--epochs",
        "4000",
        "--methods",
        "sgd,clip(max_norm=0.5)",
        "--seeds",
        "2",
        "--jobs",
        "2",
        "--out",
        "o",
    )
    one.read(until=b" left")
    assert HIDE in one.output
    shown = screen_of(one.output, columns)
    assert any(line.startswith("all trials") for line in shown)
    assert max(map(len, shown)) <= columns
    began = time.monotonic()
    one.type(b"\x03")
    one.read()
    assert one.end() == 130
    assert time.monotonic() - began < 10
    assert one.output.rindex(SHOW) > one.output.rindex(HIDE)
    left = "".join(line for line in screen_of(one.output, columns) if line.strip("^C"))
    assert left == "gradwise: interrupted; the same command goes on from here"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_whole_comparison_on_a_terminal(terminal, here):
    one = terminal(
        80, 24, "compare", *TINY, "--methods", "sgd,center", "--seeds", "1", "--out", "o"
    )
    one.read()
    assert one.end() == 0
    assert one.output.rindex(SHOW) > one.output.rindex(HIDE)
    shown = screen_of(one.output, 80)
    assert any(line.startswith("sgd seed 0: ") for line in shown)
    assert any(line.startswith("center") and "no difference" in line for line in shown)
    assert not any(line.startswith("all trials") for line in shown)  # the display is gone
    assert "report: o/report.html" in shown
