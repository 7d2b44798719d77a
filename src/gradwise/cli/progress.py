"""Live progress of many jobs, with a time estimate; plain lines where there is no terminal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich.console import Console, ConsoleOptions
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from gradwise.cli.estimate import Estimate, duration
from gradwise.cli.output import Screen
from gradwise.lab.job import Work
from gradwise.lab.runner import Listener

_LINE_SECONDS = 30.0  # between two lines on trials under way, where there is no terminal
_BAR = 20  # columns of a terminal
_NARROW = 64  # terminals with fewer columns get no bars


class _Screen(Screen):
    """A console for lines that come and go.

    It leaves room at the right for the `^C` that a terminal echoes: in a full line it would wrap,
    and the lines to be taken away would not be where they were.
    """

    @property
    def options(self) -> ConsoleOptions:
        options = super().options
        return options.update(width=max(options.max_width - len("^C "), 1))


@contextlib.contextmanager
def follow(jobs: int, noun: str = "trials") -> Iterator[Listener]:
    """Show progress on standard error, and leave nothing behind but lines.

    Args:
        jobs: how many there are in all.
        noun: what they are, in the plural.

    Returns:
        A context with the listener for `compare_methods` or `reproduce`.
    """
    screen = _Screen(err=True)
    estimate = Estimate(jobs)
    # is_terminal is also true where a variable forces colours into a file.
    if screen.is_terminal and screen.file.isatty() and not screen.is_dumb_terminal:
        yield from _bars(screen, estimate, noun)
    else:
        yield _lines(screen, estimate, noun=noun)


def _bars(screen: Console, estimate: Estimate, noun: str) -> Iterator[Listener]:
    cut = Column(no_wrap=True, overflow="ellipsis", ratio=1)
    whole = Column(no_wrap=True, justify="right")
    bar = [BarColumn(_BAR)] if screen.width >= _NARROW else []
    progress = Progress(
        TextColumn("{task.description}", markup=False, table_column=cut),
        *bar,
        TextColumn("{task.fields[detail]}", markup=False, table_column=whole),
        console=screen,
        transient=True,
        expand=True,
        refresh_per_second=4,
    )

    def overall() -> str:
        return f"{estimate.over}/{estimate.trials}, {estimate.remaining()}"

    with progress:
        task = progress.add_task(f"all {noun}", total=estimate.trials, detail=overall())
        rows: dict[Work, TaskID] = {}

        def listen(job: Work, event: dict[str, Any]) -> None:
            told = _told(job, event, estimate, noun)
            estimate.take(job, event)
            kind = event["event"]
            if kind == "start":
                rows[job] = progress.add_task(f"  {job.label}", total=None, detail="starting")
            elif kind == "step":
                step, steps = event["step"], event["steps"]
                detail = f"step {step}/{steps}"
                progress.update(rows[job], completed=step, total=steps, detail=detail)
            elif kind in ("done", "failed"):
                progress.remove_task(rows.pop(job))
            if told is not None:
                screen.print(told)
            progress.update(task, completed=estimate.done, detail=overall())

        yield listen


def _lines(
    screen: Console,
    estimate: Estimate,
    clock: Callable[[], float] = time.monotonic,
    noun: str = "trials",
) -> Listener:
    last_line = clock()

    def say(line: Text) -> None:
        nonlocal last_line
        last_line = clock()
        screen.print(line, soft_wrap=True)

    def listen(job: Work, event: dict[str, Any]) -> None:
        told = _told(job, event, estimate, noun)
        if event["event"] == "start" and not estimate.started and told is None:
            say(Text(f"{estimate.trials} {noun} to run"))  # a sign of life
        estimate.take(job, event)
        ahead = f"[{estimate.over}/{estimate.trials}, {estimate.remaining()}]"
        if told is not None:
            say(told.append(f"  {ahead}", style="dim"))
        elif event["event"] == "step" and clock() - last_line >= _LINE_SECONDS:
            say(Text(f"{job.label}: step {event['step']}/{event['steps']}  {ahead}"))

    return listen


def _told(job: Work, event: dict[str, Any], before: Estimate, noun: str) -> Text | None:
    """The line on an event that deserves one."""
    kind = event["event"]
    if kind == "start" and before.kept and not before.started:
        return Text(f"{before.kept} of {before.trials} {noun} are there from earlier calls")
    if kind == "failed":
        return Text(f"{job.label}: failed, {event['reason']}", style="red")
    if kind == "note":
        return Text(f"{job.label}: {event['text']}", style="yellow")
    if kind != "done":
        return None
    spent = duration(event["wall_time_s"])
    if "test_accuracy" not in event:
        return Text(f"{job.label}: done in {spent}")
    if event["status"] == "diverged":
        return Text(f"{job.label}: diverged at step {event['diverged_at_step']}", style="yellow")
    accuracy = 100 * event["test_accuracy"]
    return Text(f"{job.label}: {accuracy:.2f} % in {spent}")
