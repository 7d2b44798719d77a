"""Run jobs in processes of their own, several at a time; the death of one stops no other."""

from __future__ import annotations

import errno
import os
import queue
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from gradwise.lab.files import write_json
from gradwise.lab.job import Job, Work
from gradwise.lab.process import Event, JobProcess, Running, trial_process
from gradwise.lab.settings import Settings
from gradwise.lab.sharing import SharedStart
from gradwise.lab.slots import Slots

# What happened: "start", "step", "epoch", "note", "done" or "failed" in event["event"].
Listener = Callable[[Any, Event], None]

# Makes the process of a job, which puts its events into the queue.
Start = Callable[[Any, "queue.Queue[Any]"], Running]

# No job can go on with these, so none is tried.
_FULL_DISK = {errno.ENOSPC, errno.EDQUOT}


@runtime_checkable
class Choosy(Protocol):
    """A `Start` that also decides which job goes next, and whether a failed one goes again."""

    def __call__(self, job: Any, events: queue.Queue[Any]) -> Running:
        """Make the process of a job."""

    def choose(self, waiting: Sequence[Any]) -> Any | None:
        """The job to start next; None where all have to wait, which they must not if none runs."""

    def heard(self, job: Any, event: Event) -> None:
        """Take in what a running job tells."""

    def again(self, process: Running) -> str | None:
        """Told of each process that has ended: what to say where its job is to be started again."""


def run_jobs(
    jobs: Sequence[Job],
    settings: Settings,
    dataset: str,
    at_once: int,
    listen: Listener,
    slots: Slots | None = None,
) -> dict[Job, str]:
    """Run all trials, at most `at_once` at a time.

    Args:
        jobs: trials without a result.
        settings: what they share.
        dataset: fingerprint of the data that they share.
        at_once: processes at a time, >= 1.
        listen: told what happens, from the calling thread.
        slots: hands out devices that trials share; None where there is nothing to hand out.

    Returns:
        The reason of failure of every trial that failed.

    Raises:
        OSError: as `run_all`.
        KeyboardInterrupt: as `run_all`.
    """

    def start(
        job: Job, events: queue.Queue[Any], environment: dict[str, str] | None = None
    ) -> JobProcess:
        return trial_process(job, settings, dataset, events, environment)

    return run_all(
        jobs, start if slots is None else SharedStart(slots, start, listen), at_once, listen
    )


def run_all(
    jobs: Sequence[Any], start: Start | Choosy, at_once: int, listen: Listener
) -> dict[Any, str]:
    """Run jobs of any kind, at most `at_once` at a time.

    Args:
        jobs: `Work` without a result.
        start: makes the process of a job; one that is `Choosy` has a say in their order.
        at_once: processes at a time, >= 1.
        listen: told what happens, from the calling thread.

    Returns:
        The reason of failure of every job that failed.

    Raises:
        OSError: where the disk is full, or processes cannot be started.
        KeyboardInterrupt: as it came. Whatever is raised, all processes have been ended then,
            and their last checkpoints are good.
    """
    events: queue.Queue[tuple[Running, Event | None]] = queue.Queue()
    waiting = list(jobs)
    running: list[Running] = []
    failed: dict[Work, str] = {}
    begun: set[Work] = set()
    choosy = start if isinstance(start, Choosy) else None
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting[0] if choosy is None else choosy.choose(tuple(waiting))
                if job is None:
                    break
                waiting.remove(job)
                running.append(start(job, events))
                if job not in begun:
                    begun.add(job)
                    listen(job, {"event": "start"})
            process, event = events.get()
            if event is None:
                running.remove(process)
                process.wait()
                again = None if choosy is None else choosy.again(process)
                if again is not None:
                    waiting.insert(0, process.job)
                    listen(process.job, {"event": "note", "text": again})
                    continue
                ended = _ended(process)
                if ended["event"] == "failed":
                    failed[process.job] = ended["reason"]
                listen(process.job, ended)
            elif process in running and event["event"] != "done":  # done is what left a result
                if choosy is not None:
                    choosy.heard(process.job, event)
                listen(process.job, event)
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.wait()
    return failed


def _ended(process: Running) -> dict[str, Any]:
    """What became of a process that has ended, as an event; failures are written down.

    Raises:
        OSError: where it ended because the disk is full.
    """
    job = process.job
    result = job.result()
    failure_file = job.folder / "failure.json"
    if result is not None:
        failure_file.unlink(missing_ok=True)
        return {"event": "done", **result}
    number = (process.error or {}).get("errno")
    if number in _FULL_DISK:
        raise OSError(number, os.strerror(number), str(job.folder))
    failure = process.failure()
    write_json(failure_file, failure)
    return {"event": "failed", "reason": failure["reason"]}
