"""A job's process as seen from the runner: started, listened to, ended."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from gradwise.lab import worker
from gradwise.lab.files import write_json
from gradwise.lab.job import Job, Work
from gradwise.lab.settings import Settings

LOG_TAIL = 2000  # bytes of a dead job's log that its failure keeps
_KILLED_SECONDS = 5.0
_LAST_EVENTS_SECONDS = 2.0  # for what a dead process has said and nobody has read yet
# Whoever would else start a thread for each core: OpenMP, with pyarrow's pool; libraries of linear
# algebra under torch, NumPy and SciPy; and the compilers that torch.compile runs beside each other.
_POOLS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "TORCHINDUCTOR_COMPILE_THREADS",
)

Event = dict[str, Any]


@runtime_checkable
class Running(Protocol):
    """A running job, wherever it runs.

    Attributes:
        job: what runs.
        error: what it told of its own failure, or None.
    """

    job: Work
    error: Event | None

    def kill(self) -> None:
        """End it at once; its last checkpoint is good."""

    def wait(self) -> None:
        """Wait for one that has ended or was killed."""

    def failure(self) -> dict[str, Any]:
        """Why it ended without a result: `reason`, `exit_code` and the `log`'s end."""


class JobProcess:
    """A running job: its process, and the threads that read its events and await its end.

    Args:
        job: what runs; its folder takes the specification and the log.
        spec: the file's name and content that tell the process what to do.
        task: the module whose `run` does it; see `gradwise.lab.worker`.
        threads: CPU threads that it may use.
        events: takes `(self, event)` for all it tells, and `(self, None)` when it has ended.
        environment: variables that its environment has besides or instead.
        cwd: the folder that it runs in; None for this process's.

    Attributes:
        job: the same.
        error: what it told of its own failure, or None.

    Raises:
        OSError: where the process cannot be started or nothing can be written.
    """

    def __init__(
        self,
        job: Work,
        spec: tuple[str, dict[str, Any]],
        task: str,
        threads: int,
        events: queue.Queue[Any],
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.job = job
        self.error: Event | None = None
        job.folder.mkdir(parents=True, exist_ok=True)
        path = job.folder / spec[0]
        write_json(path, spec[1])
        count = str(threads)
        environment = {
            **os.environ,
            **dict.fromkeys(_POOLS, count),
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # equal sums in every run
            "PYTHONUNBUFFERED": "1",  # what was said before a crash is in the log
            **(environment or {}),
        }
        self.log = job.folder / "log.txt"
        with self.log.open("ab") as log:
            self._log_begins = log.tell()
            log.write(time.strftime("--- started %Y-%m-%d %H:%M:%S\n").encode())
            log.flush()
            # By path and with -P: else the current directory would come first on the module search
            # path, and a user's `random.py` would be everyone's. A session of its own: Ctrl-C
            # reaches the runner, which ends its jobs in order. Its standard input is what tells
            # it that the runner is gone; see `Lifeline`.
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter, no shell
                [sys.executable, "-P", str(Path(worker.__file__).resolve()), str(path), task],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                cwd=cwd,
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read, args=(events,), daemon=True)
        self._reader.start()
        threading.Thread(target=self._await, args=(events,), daemon=True).start()

    def _read(self, events: queue.Queue[Any]) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines, contextlib.suppress(ValueError):
            for line in lines:
                event = json.loads(line)  # torn only where the process died in the middle of it
                if event["event"] == "error":
                    self.error = event
                else:
                    events.put((self, event))

    def _await(self, events: queue.Queue[Any]) -> None:
        self._process.wait()
        # Processes that the user's code forked hold on to the pipe: do not wait for those.
        self.kill()
        self._reader.join(_LAST_EVENTS_SECONDS)
        events.put((self, None))

    def kill(self) -> None:
        """End the process and all that it started, at once; its last checkpoint is good."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def wait(self) -> None:
        """Wait for a process that has ended or was killed."""
        with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in the system: not our wait
            self._process.wait(_KILLED_SECONDS)
        if self._process.stdin is not None:
            self._process.stdin.close()

    def failure(self) -> dict[str, Any]:
        """Why the process ended without a result: `reason`, `exit_code` and the `log`'s end."""
        code = self._process.wait()
        if self.error is not None:
            reason = str(self.error["message"])
        elif code < 0:
            reason = f"its process was ended by {_signal_name(-code)}"
            if -code == signal.SIGKILL:
                reason += ", by hand or for lack of memory"
        else:
            reason = f"its process ended with exit code {code}"
        with self.log.open("rb") as log:
            log.seek(max(self._log_begins, log.seek(0, os.SEEK_END) - LOG_TAIL))
            tail = log.read().decode(errors="replace")
        return {"reason": reason, "exit_code": code, "log": tail}


def trial_process(
    job: Job,
    settings: Settings,
    dataset: str,
    events: queue.Queue[Any],
    environment: Mapping[str, str] | None = None,
) -> JobProcess:
    """Start a trial.

    Args:
        job: the trial.
        settings: what all trials share, with all learning rates.
        dataset: fingerprint of the data that the trial has to find.
        events: as in `JobProcess`.
        environment: likewise.
    """
    spec = trial_spec(job, settings, dataset)
    return JobProcess(job, ("trial.json", spec), worker.TASK, settings.threads, events, environment)


def trial_spec(job: Job, settings: Settings, dataset: str) -> dict[str, Any]:
    """What `trial.json` says: all that the process of a trial has to know.

    Args:
        job: the trial.
        settings: what all trials share, with all learning rates.
        dataset: fingerprint of the data that the trial has to find.
    """
    return {
        "settings": job.settings(settings).to_dict(),
        "method": job.method,
        "seed": job.seed,
        "folder": str(job.folder.resolve()),
        "dataset": dataset,
    }


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
