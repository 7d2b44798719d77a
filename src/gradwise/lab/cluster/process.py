"""A trial on a cluster as the runner sees it: sent, listened to, ended."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gradwise.errors import UserError
from gradwise.lab.cluster.base import Lost, Task
from gradwise.lab.job import Work
from gradwise.lab.process import LOG_TAIL, Event

_LOOK_SECONDS = 0.3
_CANCELLED_SECONDS = 15.0  # for a cancelled task to be gone
_SEE_SECONDS = 60.0  # what a shared folder may take to show a result


class ClusterProcess:
    """A job that was sent to a cluster: `gradwise.lab.process.Running`.

    Args:
        job: what runs.
        ticket: the file through which it tells; made here, and gone when it has ended, so that a
            worker that is alive after all, but cut off, does not go on writing.
        send: sends it.
        events: takes `(self, event)` for all it tells, and `(self, None)` when it has ended.

    Attributes:
        job: the same.
        error: what it told of its own failure, or None.
        lost: why its worker is no more, where it has not failed by itself; None otherwise.

    Raises:
        UserError: where the cluster refuses it.
        OSError: where nothing can be written into the folder.
    """

    def __init__(
        self, job: Work, ticket: Path, send: Callable[[], Task], events: queue.Queue[Any]
    ) -> None:
        self.job = job
        self.error: Event | None = None
        self.lost: str | None = None
        self._failure: dict[str, Any] = {}
        self._killed = threading.Event()
        self._ticket = ticket
        job.folder.mkdir(parents=True, exist_ok=True)
        ticket.touch()
        self._task = send()
        self._thread = threading.Thread(target=self._follow, args=(events,), daemon=True)
        self._thread.start()

    def _follow(self, events: queue.Queue[Any]) -> None:
        try:
            self._listen(events)
            if not self._killed.is_set():
                self._take(self._task.outcome())
        except Lost as lost:
            self.lost = str(lost)
            self._fail(f"its worker was lost, because {self.lost}")
        except Exception as error:  # the runner waits for an end, whatever it was
            self._fail(str(error).splitlines()[0] if str(error) else type(error).__name__)
        finally:
            self._ticket.unlink(missing_ok=True)
            events.put((self, None))

    def _listen(self, events: queue.Queue[Any]) -> None:
        """Pass on what the job tells until its task is over."""
        place = 0
        while True:
            over = self._task.over()  # before the last look: then nothing is missed
            place, told = _read(self._ticket, place)
            for event in told:
                events.put((self, event))
            if over:
                return
            if self._killed.wait(_LOOK_SECONDS):
                _until(self._task.over, _CANCELLED_SECONDS)
                return

    def _take(self, outcome: dict[str, Any]) -> None:
        if "lost" in outcome:
            raise Lost(outcome["lost"])
        if "failure" in outcome:
            self.error, self._failure = outcome["error"], outcome["failure"]
        elif not _until(lambda: self.job.result() is not None, _SEE_SECONDS):
            self._fail(f"its result is not seen in {self.job.folder}: is it on shared storage?")

    def _fail(self, reason: str) -> None:
        self.error = {"event": "error", "message": reason}
        self._failure = {"reason": reason, "exit_code": None, "log": self._log()}

    def _log(self) -> str:
        try:
            return (self.job.folder / "log.txt").read_bytes()[-LOG_TAIL:].decode(errors="replace")
        except OSError:
            return ""

    def kill(self) -> None:
        """Cancel the job, also one that waits for a worker; its last checkpoint is good."""
        self._killed.set()
        self._task.cancel()

    def wait(self) -> None:
        """Wait for a job that has ended or was cancelled, as long as that should take."""
        self._thread.join(_CANCELLED_SECONDS + 1)

    def failure(self) -> dict[str, Any]:
        """Why it ended without a result: `reason`, `exit_code` and the `log`'s end."""
        return self._failure


def answer(task: Task, seconds: float | None, waiting: Callable[[], None]) -> dict[str, Any]:
    """Wait for what a task answers; it is cancelled where that takes too long.

    Args:
        task: what was sent.
        seconds: how long to wait; None for as long as it takes.
        waiting: called once where it takes a while.

    Raises:
        UserError: where there is no answer in time.
        Lost: where the worker was lost.
    """
    began, told = time.monotonic(), False
    try:
        while not task.over():
            spent = time.monotonic() - began
            if seconds is not None and spent > seconds:
                raise UserError(f"the cluster had no worker free within {seconds:g} s")
            if not told and spent > 10:
                waiting()
                told = True
            time.sleep(_LOOK_SECONDS)
    except BaseException:
        task.cancel()
        raise
    return task.outcome()


def _read(ticket: Path, place: int) -> tuple[int, list[Event]]:
    """What has been added to a ticket since: where it ends now, and the events."""
    try:
        with ticket.open("rb") as file:
            file.seek(place)
            text = file.read()
    except OSError:  # a shared folder may be away for a moment
        return place, []
    whole = text[: text.rfind(b"\n") + 1]  # the rest is still being written
    return place + len(whole), [json.loads(line) for line in whole.splitlines()]


def _until(condition: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= end:
            return False
        time.sleep(_LOOK_SECONDS)
    return True
