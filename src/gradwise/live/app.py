"""The live view as a Textual app."""

from __future__ import annotations

from typing import ClassVar

from textual.app import App
from textual.binding import Binding, BindingType
from textual.message import Message

from gradwise.errors import UserError
from gradwise.live.follow import Follower, Look, Seer
from gradwise.live.screen import RunScreen
from gradwise.live.spark import UNICODE, Signs
from gradwise.live.state import State, sortable

__all__ = ["LiveApp"]


class LiveApp(App[None]):
    """Shows a run while it goes on.

    Args:
        seer: looks at the run.
        state: what is shown at first.
        interval: seconds between looks.
        signs: what to draw with.

    Attributes:
        mistake: why the view ended by itself, where the user can do something about it.
    """

    CSS_PATH = "screen.tcss"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+c", "quit", show=False, priority=True),
        Binding("ctrl+z", "suspend_process", show=False, priority=True),
    ]

    class Looked(Message):
        """The follower has looked.

        Attributes:
            found: what it saw, or the error that ended it.
        """

        def __init__(self, found: Look | Exception) -> None:
            super().__init__()
            self.found = found

    def __init__(
        self,
        seer: Seer,
        state: State | None = None,
        *,
        interval: float = 1.0,
        signs: Signs = UNICODE,
    ) -> None:
        super().__init__(ansi_color=True)
        self.mistake: UserError | None = None
        self.state = state or State()
        self._follower = Follower(seer, self.state.wish, interval, self._tell)
        self._signs = signs
        self._looked = False
        self._run_screen: RunScreen | None = None

    def get_default_screen(self) -> RunScreen:
        """The run."""
        self._run_screen = RunScreen(self.state, self._signs, self._follower.ask)
        return self._run_screen

    def on_ready(self) -> None:
        """Begin to look."""
        self._follower.start()

    def on_unmount(self) -> None:
        """Look no more."""
        self._follower.stop()

    def _tell(self, found: Look | Exception) -> None:
        """Called in the follower's thread."""
        try:
            self.post_message(self.Looked(found))
        except RuntimeError:  # the loop is closed: the view has ended meanwhile
            self._follower.stop()

    def on_live_app_looked(self, message: Looked) -> None:
        """Show what the follower has seen."""
        found = message.found
        if isinstance(found, UserError):
            self._end(found)
            return
        if isinstance(found, Exception):
            raise found
        run = found.snapshot
        if run is not None and not self._looked:
            self._looked = True
            known = sortable(run)
            if self.state.order.column not in known:
                names = ", ".join(name for name in known if name is not None)
                self._end(UserError(f"expected --sort {names}, got {self.state.order.column!r}"))
                return
        if self._run_screen is not None:
            self._run_screen.take(found)

    def _end(self, mistake: UserError) -> None:
        self.mistake = mistake
        self.exit()
