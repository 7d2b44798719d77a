"""Run trials in processes of their own, several at a time; the death of one stops no other."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradwise.errors import UserError
from gradwise.lab.files import read_json, write_json
from gradwise.lab.settings import Settings

STOP_SECONDS = 5.0  # what a trial gets to end when it is asked to
LOG_TAIL = 2000  # characters of a dead trial's log that its failure keeps


@dataclass(frozen=True)
class Job:
    """One trial to run.

    Attributes:
        method: as `--methods` names it.
        seed: the trial's seed.
        folder: where its files go.
    """

    method: str
    seed: int
    folder: Path

    @property
    def label(self) -> str:
        """How the trial is called in messages."""
        return f"{self.method} seed {self.seed}"

    def result(self) -> dict[str, Any] | None:
        """The result, where the trial has come to its end; a foreign or torn file is none."""
        path = self.folder / "result.json"
        if not path.exists():
            return None
        try:
            result = read_json(path)
        except UserError:
            return None
        same = result.get("method") == self.method and result.get("seed") == self.seed
        return result if same and result.get("status") in ("finished", "diverged") else None


# What happened: "start", "step", "epoch", "done" or "failed" in event["event"].
Listener = Callable[[Job, dict[str, Any]], None]


class _Worker:
    """A running trial: its process and the thread that reads its events."""

    def __init__(self, job: Job, settings: Settings, events: queue.Queue[Any]) -> None:
        self.job = job
        job.folder.mkdir(parents=True, exist_ok=True)
        spec = job.folder / "trial.json"
        write_json(
            spec,
            {
                "settings": settings.to_dict(),
                "method": job.method,
                "seed": job.seed,
                "folder": str(job.folder.resolve()),
            },
        )
        threads = str(settings.threads)
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
        self.log = job.folder / "log.txt"
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C reaches the runner, which ends its trials in order.
            self.process = subprocess.Popen(  # noqa: S603 - our own interpreter, no shell
                [sys.executable, "-m", "gradwise.lab.worker", str(spec)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        self.error: dict[str, Any] | None = None
        self.thread = threading.Thread(target=self._read, args=(events,), daemon=True)
        self.thread.start()

    def _read(self, events: queue.Queue[Any]) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                try:
                    event = json.loads(line)
                except ValueError:
                    continue  # a user's own print in a model or data function
                if isinstance(event, dict) and "event" in event:
                    if event["event"] == "error":
                        self.error = event
                    else:
                        events.put((self, event))
        self.process.wait()
        events.put((self, None))

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()

    def reap(self) -> None:
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.thread.join(STOP_SECONDS)

    def failure(self) -> dict[str, Any]:
        """Why the process ended without a result."""
        code = self.process.returncode
        if self.error is not None:
            reason = str(self.error.get("message", ""))
        elif code < 0:
            reason = f"its process was ended by signal {-code}"
        else:
            reason = f"its process ended with exit code {code}"
        tail = self.log.read_bytes()[-LOG_TAIL:].decode(errors="replace")
        return {"reason": reason, "exit_code": code, "log": tail}


def run_jobs(
    jobs: Sequence[Job], settings: Settings, at_once: int, listen: Listener
) -> dict[Job, str]:
    """Run all jobs, at most `at_once` at a time.

    Args:
        jobs: trials without a result.
        settings: what they share.
        at_once: processes at a time, >= 1.
        listen: told what happens, from the calling thread.

    Returns:
        The reason of failure of every job that failed.

    Raises:
        KeyboardInterrupt: as it came; all processes have been ended then, and their last
            checkpoints are good.
    """
    events: queue.Queue[tuple[_Worker, dict[str, Any] | None]] = queue.Queue()
    waiting = list(jobs)
    running: set[_Worker] = set()
    failed: dict[Job, str] = {}
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                worker = _Worker(waiting.pop(0), settings, events)
                running.add(worker)
                listen(worker.job, {"event": "start"})
            worker, event = events.get()
            if event is not None:
                if event["event"] != "done":
                    listen(worker.job, event)
                continue
            running.discard(worker)
            job = worker.job
            result = job.result()
            failure_file = job.folder / "failure.json"
            if result is not None:
                failure_file.unlink(missing_ok=True)
                listen(job, {"event": "done", **result})
            else:
                failure = worker.failure()
                failed[job] = failure["reason"]
                listen(job, {"event": "failed", "reason": failure["reason"]})
                write_json(failure_file, failure)
    finally:
        for worker in running:
            worker.stop()
        for worker in running:
            worker.reap()
    return failed
