"""Running the live view in a terminal, and leaving the terminal as it was, however it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, ModuleType

from gradwise.live.app import LiveApp
from gradwise.live.follow import Seer
from gradwise.live.spark import signs_for
from gradwise.live.state import State

termios: ModuleType | None
try:
    import termios
except ImportError:  # Windows
    termios = None

__all__ = ["show"]

_ENDING = ("SIGTERM", "SIGHUP", "SIGINT")
_HANGUP = getattr(signal, "SIGHUP", signal.SIGTERM)
_LEAVE_SECONDS = 3.0  # for an orderly end; then the process ends all the same
_CHECK_SECONDS = 1.0  # between two looks at whether there still is a terminal
# The other screen, the cursor, line wrapping, and no reports of the mouse, focus or pastes.
_AS_BEFORE = b"\x1b[?1049l\x1b[?25h\x1b[?7h\x1b[?1000l\x1b[?1003l\x1b[?1006l\x1b[?1004l\x1b[?2004l"


def show(folder: Path, state: State, interval: float) -> int:
    """Show a run until somebody has seen enough.

    Signals that end a process end the view first, and are then raised again for whoever is to
    answer to them.

    Args:
        folder: the run folder; waited for where there is none yet.
        state: what is shown at first.
        interval: seconds between looks at the folder.

    Returns:
        0; 1 where the view itself failed, with a traceback on standard error; 128 and the number
        of the signal where one is ignored that stands for a terminal which has gone.

    Raises:
        UserError: where nothing can be shown, see `Seer.look`.
    """
    encoding = getattr(sys.__stderr__, "encoding", None)  # where Textual draws
    signs = signs_for(encoding, os.environ.get("TERM"))
    app = LiveApp(Seer(folder), state, interval=interval, signs=signs)

    async def run(ending: _Ending) -> None:
        ending.loop = asyncio.get_running_loop()
        await app.run_async()

    with _heeded(_Ending(app)) as ending:
        asyncio.run(run(ending))
    if ending.number is not None:
        signal.raise_signal(ending.number)
        return 128 + ending.number  # it is one that is ignored
    if app.mistake is not None:
        raise app.mistake
    return app.return_code or 0


class _Ending:
    """Ends a view on behalf of a signal, or of a terminal that has gone.

    The view should take its leave by itself. Where it cannot, because it waits for a terminal
    that takes no more, the process ends with the terminal as good as can be.

    Args:
        app: the view.

    Attributes:
        loop: the one the view runs in.
        number: the signal that ended it; None as long as none has.
    """

    def __init__(self, app: LiveApp) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.number: int | None = None
        self._app = app
        self._over = threading.Event()
        self._fd = sys.__stderr__.fileno() if sys.__stderr__ is not None else 2
        self._attributes = None
        if termios is not None:
            with contextlib.suppress(termios.error):
                self._attributes = termios.tcgetattr(self._fd)

    def end(self, number: int, frame: FrameType | None = None) -> None:
        """End the view: a handler of signals."""
        if self.number is not None:
            return
        self.number = number
        threading.Thread(target=self._insist, args=(number,), daemon=True).start()
        if self.loop is not None:
            # Not by the loop's own handlers: those would have to wait for the loop.
            with contextlib.suppress(RuntimeError):  # it is closed
                self.loop.call_soon_threadsafe(self._app.exit)

    def watch_terminal(self) -> None:
        """End where the terminal goes without a signal, as when that is ignored."""
        while not self._over.wait(_CHECK_SECONDS):
            if not os.isatty(self._fd):
                self.end(_HANGUP)
                return

    def is_over(self) -> None:
        """The view has taken its leave."""
        self._over.set()

    def _insist(self, number: int) -> None:
        if self._over.wait(_LEAVE_SECONDS):
            return
        if termios is not None and self._attributes is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._fd, termios.TCSANOW, self._attributes)
        with contextlib.suppress(OSError):
            os.set_blocking(self._fd, False)
            os.write(self._fd, _AS_BEFORE)
        os._exit(128 + number)


@contextlib.contextmanager
def _heeded(ending: _Ending) -> Iterator[_Ending]:
    """Let signals end the view; one that is ignored, as under `nohup`, stays so."""
    before = {}
    for name in _ENDING:
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, ending.end)
    threading.Thread(target=ending.watch_terminal, daemon=True).start()
    try:
        yield ending
    finally:
        ending.is_over()
        for number, handler in before.items():
            signal.signal(number, handler)
