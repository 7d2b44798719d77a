"""Run trials in processes of their own, several at a time; the death of one stops no other."""

from __future__ import annotations

import errno
import os
import queue
from collections.abc import Callable, Sequence
from typing import Any

from gradwise.lab.files import write_json
from gradwise.lab.job import Job
from gradwise.lab.process import Event, TrialProcess
from gradwise.lab.settings import Settings

# What happened: "start", "step", "epoch", "note", "done" or "failed" in event["event"].
Listener = Callable[[Job, Event], None]

# No trial can go on with these, so none is tried.
_FULL_DISK = {errno.ENOSPC, errno.EDQUOT}


def run_jobs(
    jobs: Sequence[Job], settings: Settings, dataset: str, at_once: int, listen: Listener
) -> dict[Job, str]:
    """Run all jobs, at most `at_once` at a time.

    Args:
        jobs: trials without a result.
        settings: what they share.
        dataset: fingerprint of the data that they share.
        at_once: processes at a time, >= 1.
        listen: told what happens, from the calling thread.

    Returns:
        The reason of failure of every job that failed.

    Raises:
        OSError: where the disk is full, or processes cannot be started.
        KeyboardInterrupt: as it came. Whatever is raised, all processes have been ended then,
            and their last checkpoints are good.
    """
    events: queue.Queue[tuple[TrialProcess, Event | None]] = queue.Queue()
    waiting = list(jobs)
    running: list[TrialProcess] = []
    failed: dict[Job, str] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                running.append(TrialProcess(waiting.pop(0), settings, dataset, events))
                listen(running[-1].job, {"event": "start"})
            process, event = events.get()
            if event is None:
                running.remove(process)
                process.wait()
                ended = _ended(process)
                if ended["event"] == "failed":
                    failed[process.job] = ended["reason"]
                listen(process.job, ended)
            elif process in running and event["event"] != "done":  # done is what left a result
                listen(process.job, event)
    finally:
        for process in running:
            process.kill()
        for process in running:
            process.wait()
    return failed


def _ended(process: TrialProcess) -> dict[str, Any]:
    """What became of a process that has ended, as an event; failures are written down.

    Raises:
        OSError: where it ended because the disk is full.
    """
    job = process.job
    result = job.result()
    if result is not None:
        job.failure_file.unlink(missing_ok=True)
        return {"event": "done", **result}
    number = (process.error or {}).get("errno")
    if number in _FULL_DISK:
        raise OSError(number, os.strerror(number), str(job.folder))
    failure = process.failure()
    write_json(job.failure_file, failure)
    return {"event": "failed", "reason": failure["reason"]}
