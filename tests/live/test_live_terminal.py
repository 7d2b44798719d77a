"""A real `gradwise watch` in a real terminal: what it leaves behind, however it ends."""

import os
import select
import signal
import struct
import subprocess
import sys
import time

import pytest

from live.live_helpers import alert, note

pty = pytest.importorskip("pty")
termios = pytest.importorskip("termios")
fcntl = pytest.importorskip("fcntl")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal"),
]

# What a screen switches on, and how it is switched off again.
MODES = {
    "alternate screen": (b"\x1b[?1049h", b"\x1b[?1049l"),
    "hidden cursor": (b"\x1b[?25l", b"\x1b[?25h"),
    "mouse": (b"\x1b[?1003h", b"\x1b[?1003l"),
    "bracketed paste": (b"\x1b[?2004h", b"\x1b[?2004l"),
    "no wrapping": (b"\x1b[?7l", b"\x1b[?7h"),
}


class Terminal:
    """A terminal with a process in it, in a session of its own."""

    def __init__(self, command, size=(24, 80), **environment):
        self.leader, self.follower = pty.openpty()
        fcntl.ioctl(self.follower, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        self.before = termios.tcgetattr(self.follower)
        self.output = b""
        names = ("NO_COLOR", "COLUMNS", "LINES", "TERM_PROGRAM")
        inherited = {name: value for name, value in os.environ.items() if name not in names}
        self.process = subprocess.Popen(
            command,
            stdin=self.follower,
            stdout=self.follower,
            stderr=self.follower,
            start_new_session=True,
            env=inherited | {"TERM": "xterm-256color", "COLORTERM": ""} | environment,
        )

    def read(self, seconds):
        if select.select([self.leader], [], [], seconds)[0]:
            self.output += os.read(self.leader, 65536)

    def wait_for(self, text, seconds=60.0):
        end = time.monotonic() + seconds
        while text.encode() not in self.output:
            assert self.process.poll() is None, self.output
            assert time.monotonic() < end, self.output
            self.read(0.1)

    def press(self, keys):
        os.write(self.leader, keys)

    def end(self, seconds=15.0):
        """The exit code, and what was printed after the screen was left."""
        end = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < end, "it does not end"
            self.read(0.05)
        self.read(0.2)
        return self.process.returncode, self.output.rpartition(MODES["alternate screen"][1])[2]

    def left_on(self):
        """The modes that are still switched on."""
        return [
            name
            for name, (on, off) in MODES.items()
            if self.output.rfind(on) > self.output.rfind(off)
        ]

    def is_as_before(self):
        return self.left_on() == [] and termios.tcgetattr(self.follower) == self.before

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for fd in (self.leader, self.follower):
            if fd >= 0:
                os.close(fd)


@pytest.fixture
def terminal():
    opened = []

    def begin(command, **given):
        opened.append(Terminal(command, **given))
        return opened[-1]

    yield begin
    for one in opened:
        one.close()


@pytest.fixture
def view(make, terminal):
    """Starts a view of a run and waits until it shows."""
    made = make().write(range(30))
    note(made.folder, alert("exploding", 12, "head.weight", "error"))

    def begin(*arguments, before="", **given):
        code = f"{before}\nfrom gradwise.cli import main; main()"
        started = terminal(
            [sys.executable, "-c", code, "watch", str(made.folder), *arguments], **given
        )
        started.folder = made.folder
        return started

    return begin


@pytest.mark.parametrize("keys", [b"q", b"\x03", b"/head\x03"])
def test_keys_that_quit(view, keys):
    started = view()
    started.wait_for("exploding")
    assert "alternate screen" in started.left_on()
    started.press(keys)
    code, after = started.end()
    assert code == 0
    assert started.is_as_before()
    assert b"Traceback" not in after


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_signals_that_end_it(view, name):
    started = view()
    started.wait_for("exploding")
    number = getattr(signal, name)
    started.process.send_signal(number)
    code, after = started.end()
    assert code == 128 + number
    assert started.is_as_before()
    assert b"gradwise: interrupted" in after
    assert b"Traceback" not in started.output


def test_a_signal_while_it_starts(view):
    """At any moment from the first line of the command on."""
    for _ in range(2):
        started = view()
        started.wait_for("\x1b[?1049h")
        started.process.send_signal(signal.SIGTERM)
        code, _after = started.end()
        assert code == 143
        assert started.is_as_before()
        assert b"Traceback" not in started.output


@pytest.mark.parametrize("ignored", [True, False])
def test_a_terminal_that_goes_away(view, ignored):
    """Also where nobody gets a signal: what cannot be drawn must not keep a process for ever."""
    before = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)" if ignored else ""
    started = view(before=before)
    started.wait_for("exploding")
    os.close(started.follower)
    os.close(started.leader)
    started.leader = started.follower = -1
    assert started.process.wait(20) == 129


def test_a_terminal_that_takes_no_more(view):
    """Somebody has pressed Ctrl-S, or the network hangs: SIGTERM ends it all the same."""
    started = view("--interval", "0.1")
    started.wait_for("exploding")
    termios.tcflow(started.follower, termios.TCOOFF)
    for _ in range(40):  # each draws the page, into a buffer that nobody empties
        started.press(b"?")
        time.sleep(0.05)
    started.process.send_signal(signal.SIGTERM)
    time.sleep(5.0)
    termios.tcflow(started.follower, termios.TCOON)
    assert started.end()[0] == 143


def test_a_bug_leaves_a_clean_terminal_and_a_traceback(view):
    bug = "import gradwise.live.screen as s\ns.RunScreen.action_reverse = lambda self: 1 / 0"
    started = view(before=bug)
    started.wait_for("exploding")
    started.press(b"r")
    code, after = started.end()
    assert code == 1
    assert started.is_as_before()
    assert b"ZeroDivisionError" in after


def test_a_bug_in_the_thread_that_looks(view):
    bug = "import gradwise.live.tail as t\nt.Tail.look = lambda self, wish: 1 / 0"
    started = view(before=bug)
    code, after = started.end(60)
    assert code == 1
    assert started.is_as_before()
    assert b"ZeroDivisionError" in after


def test_a_disk_that_hangs_holds_up_neither_the_keys_nor_the_end(view):
    started = view("--interval", "0.1")
    started.wait_for("exploding")
    (started.folder / "alerts.jsonl").unlink()
    os.mkfifo(started.folder / "alerts.jsonl")  # whoever opens it for reading waits for ever
    time.sleep(1.0)
    started.press(b"?")
    started.wait_for("Euclidean")
    started.press(b"qq")
    assert started.end()[0] == 0
    assert started.is_as_before()


def test_a_mistake_is_one_sentence_on_a_clean_terminal(terminal, tmp_path):
    (tmp_path / "photo.png").touch()
    started = terminal([sys.executable, "-m", "gradwise", "watch", str(tmp_path)])
    code, after = started.end(60)
    assert code == 2
    assert started.is_as_before()
    assert f"gradwise: {tmp_path} is not a run folder: it holds 'photo.png'" in after.decode()
    assert b"Traceback" not in started.output


def test_without_colour_there_are_no_colours(view):
    started = view(NO_COLOR="1")
    started.wait_for("exploding")
    started.press(b"q")
    started.end()
    codes = [
        int(number)
        for part in started.output.split(b"\x1b[")[1:]
        if (text := part.split(b"m")[0]) and set(text) <= set(b"0123456789;")
        for number in text.split(b";")
        if number
    ]
    assert codes
    assert not [code for code in codes if 30 <= code <= 38 or 40 <= code <= 48 or code >= 90]


@pytest.mark.parametrize("term", ["dumb", ""])
def test_a_terminal_that_can_do_nothing_gets_plain_text(view, term):
    started = view(TERM=term)
    assert started.end(60)[0] == 0
    assert b"\x1b" not in started.output
    assert b"head.weight" in started.output
    assert b"The sentence on exploding." in started.output


def test_output_into_a_file_is_plain_text(view, tmp_path):
    code = "import sys; sys.argv[1:1] = ['watch']; from gradwise.cli import main; main()"
    started = view("--once")
    assert started.end(60)[0] == 0
    with (tmp_path / "out").open("wb") as out:
        ended = subprocess.run(
            [sys.executable, "-c", code, str(started.folder)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.PIPE,
        )
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert "head.weight" in (tmp_path / "out").read_text()
