"""Live progress of a comparison, with a time estimate; plain lines where there is no terminal."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from gradwise.cli.output import console
from gradwise.lab.runner import Job, Listener


class _Overall:
    """How much of the whole is done, in trials, and when it will be."""

    def __init__(self, trials: int) -> None:
        self.trials = trials
        self.kept = 0
        self.ended = 0
        self._running: dict[Job, float] = {}  # share of each trial that is done
        self._began = time.monotonic()

    def take(self, job: Job, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "kept":
            self.kept += 1
        elif kind == "start":
            self._running[job] = 0.0
        elif kind == "step":
            self._running[job] = event["step"] / max(event["steps"], 1)
        elif kind in ("done", "failed"):
            self._running.pop(job, None)
            self.ended += 1

    @property
    def done(self) -> float:
        return self.kept + self.ended + sum(self._running.values())

    def remaining(self) -> str:
        """Time left at the pace so far, counting only what ran in this call."""
        ran = self.done - self.kept
        if ran < 0.02:
            return "estimating"
        seconds = (time.monotonic() - self._began) / ran * (self.trials - self.done)
        minutes, seconds = divmod(round(seconds), 60)
        return f"about {minutes} min {seconds:02d} s left" if minutes else f"about {seconds} s left"


@contextlib.contextmanager
def follow(trials: int) -> Iterator[Listener]:
    """Show progress on standard error; yields the listener for `compare_methods`."""
    screen = console(err=True)
    overall = _Overall(trials)
    if screen.is_terminal:
        yield from _bars(screen, overall)
    else:
        yield _lines(screen, overall)


def _bars(screen: Console, overall: _Overall) -> Iterator[Listener]:
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
        TimeElapsedColumn(),
        console=screen,
        transient=True,
    )
    with progress:
        whole = progress.add_task("all trials", total=overall.trials, detail="estimating")
        rows: dict[Job, TaskID] = {}

        def listen(job: Job, event: dict[str, Any]) -> None:
            overall.take(job, event)
            kind = event["event"]
            if kind == "start":
                rows[job] = progress.add_task(f"  {job.label}", total=None, detail="starting")
            elif kind == "step":
                progress.update(
                    rows[job],
                    completed=event["step"],
                    total=event["steps"],
                    detail=f"step {event['step']}/{event['steps']}",
                )
            elif kind in ("done", "failed"):
                progress.remove_task(rows.pop(job))
                screen.print(_told(job, event))
            ended = overall.kept + overall.ended
            detail = f"{ended}/{overall.trials} trials, {overall.remaining()}"
            progress.update(whole, completed=overall.done, detail=detail)

        yield listen


def _lines(screen: Console, overall: _Overall) -> Listener:
    def listen(job: Job, event: dict[str, Any]) -> None:
        overall.take(job, event)
        if event["event"] in ("done", "failed"):
            ended = overall.kept + overall.ended
            line = _told(job, event)
            line.append(f"  [{ended}/{overall.trials}, {overall.remaining()}]", style="dim")
            screen.print(line, soft_wrap=True)

    return listen


def _told(job: Job, event: dict[str, Any]) -> Text:
    if event["event"] == "failed":
        return Text(f"{job.label}: failed, {event['reason']}", style="red")
    if event["status"] == "diverged":
        return Text(f"{job.label}: diverged at step {event['diverged_at_step']}", style="yellow")
    accuracy, seconds = 100 * event["test_accuracy"], event["wall_time_s"]
    return Text(f"{job.label}: {accuracy:.2f} % in {seconds:.1f} s")
