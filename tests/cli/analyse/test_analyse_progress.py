"""Progress of an analysis: a bar that goes away, or a line every half a minute."""

import contextlib
import io

from gradwise.cli.analyse import _progress
from gradwise.cli.output import Screen


class Terminal(io.StringIO):
    def isatty(self):
        return True


def screen_on(file):
    screen = Screen(err=True)
    screen.file = file
    return screen


def test_lines_come_every_half_minute():
    now = 0.0
    out = io.StringIO()
    tell = _progress._lines(screen_on(out), "passes", clock=lambda: now)
    tell(1, 8)
    assert out.getvalue() == ""
    now = 31.0
    tell(2, 8)
    assert out.getvalue() == "2 of 8 passes, about 1 min 33 s left\n"
    now = 45.0
    tell(3, 8)
    now = 62.0
    tell(4, 0)  # nobody knows of how many
    assert out.getvalue().splitlines()[1:] == ["4 passes"]


def test_a_bar_says_how_far_it_is_and_leaves_nothing(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    monkeypatch.setattr(_progress, "Screen", lambda err: screen_on(out))
    monkeypatch.setattr("rich.console.Console.is_terminal", property(lambda self: True))
    with _progress.following("passes") as tell:
        tell(3, 8)
        tell(4, 8)
    shown = out.getvalue()
    assert "passes" in shown
    assert "4/8" in shown
    assert shown.endswith("\x1b[2K")  # the line is erased


def test_a_bar_goes_away_when_the_analysis_fails(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    monkeypatch.setattr(_progress, "Screen", lambda err: screen_on(out))
    monkeypatch.setattr("rich.console.Console.is_terminal", property(lambda self: True))
    with contextlib.suppress(ValueError), _progress.following("passes") as tell:
        tell(3, 0)
        raise ValueError
    assert out.getvalue().endswith("\x1b[2K")
