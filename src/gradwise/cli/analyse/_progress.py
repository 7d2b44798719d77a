"""Progress of one analysis on standard error: a bar, or now and then a line."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from gradwise.cli.estimate import duration
from gradwise.cli.output import Screen

__all__ = ["Tell", "following"]

Tell = Callable[[int, int], None]
_LINE_SECONDS = 30.0


@contextlib.contextmanager
def following(noun: str) -> Iterator[Tell]:
    """Show how far an analysis is, and leave nothing behind.

    Args:
        noun: what is counted, in the plural.

    Returns:
        A context with a function of (done, total); a total of 0 is an unknown one.
    """
    screen = Screen(err=True)
    if screen.is_terminal and screen.file.isatty() and not screen.is_dumb_terminal:
        yield from _bar(screen, noun)
    else:
        yield _lines(screen, noun)


def _bar(screen: Screen, noun: str) -> Iterator[Tell]:
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(20),
        TextColumn("{task.fields[detail]}", markup=False),
        TimeRemainingColumn(),
        console=screen,
        transient=True,
        refresh_per_second=4,
    )
    with progress:
        task = progress.add_task(noun, total=None, detail="")

        def tell(done: int, total: int) -> None:
            detail = f"{done}/{total}" if total else str(done)
            progress.update(task, completed=done, total=total or None, detail=detail)

        yield tell


def _lines(screen: Screen, noun: str, clock: Callable[[], float] = time.monotonic) -> Tell:
    began = last = clock()

    def tell(done: int, total: int) -> None:
        nonlocal last
        now = clock()
        if now - last < _LINE_SECONDS:
            return
        last = now
        line = f"{done} {noun}"
        if total and done:
            left = (now - began) / done * max(total - done, 0)
            line = f"{done} of {total} {noun}, about {duration(left)} left"
        screen.print(line, soft_wrap=True)

    return tell
