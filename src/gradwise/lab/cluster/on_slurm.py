"""A Slurm cluster that takes trials, by way of submitit."""

from __future__ import annotations

import contextlib
import getpass
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

from gradwise.errors import UserError
from gradwise.lab.cluster import remote
from gradwise.lab.cluster.base import Cluster, Duty, Lost, Task
from gradwise.lab.files import read_json

ROOM = 32  # trials in the queue where nobody says how many
MINUTES = 60  # of a trial where nobody says how long; it goes on from its checkpoint after that
_ANSWER_SECONDS = 30.0
_ASK_SECONDS = 3.0  # between two questions to the queue, for all trials together
_SEE_SECONDS = 60.0  # what a shared folder may take to show a file
_ENDED = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "REVOKED",
    "TIMEOUT",
}
# What this module decides itself, or what would make more than one process of a trial.
_OURS = {"array", "cpus_per_task", "error", "job_name", "nodes", "ntasks", "ntasks_per_node"}
_OURS |= {"no_requeue", "open_mode", "output", "requeue", "signal", "wrap"}
_GPU = {"gpus", "gpus_per_node", "gpus_per_task", "gres"}

_KEY = re.compile(r"[a-z][a-z0-9_]*")


def parse_options(text: str) -> dict[str, str | int]:
    """Options of sbatch from `partition=gpu,time=60`.

    A part without a `=` belongs to the value before it, as in `exclude=node1,node2`.

    Args:
        text: what the user wrote after `slurm:`; may be empty.

    Raises:
        UserError: where it is not such a list, or names an option that is not the user's to choose.

    Examples:
        >>> parse_options("partition=gpu,time=60,exclude=n1,n2")
        {'partition': 'gpu', 'time': 60, 'exclude': 'n1,n2'}
    """
    options: dict[str, str | int] = {}
    last = None
    for part in text.split(",") if text else []:
        key, equal, value = part.partition("=")
        if not equal and last is not None:
            options[last] = f"{options[last]},{part}"
            continue
        last = key.strip().removeprefix("--").replace("-", "_")
        if not equal or not value.strip() or not _KEY.fullmatch(last) or not value.isprintable():
            raise UserError(
                f"expected options of sbatch such as slurm:partition=gpu,time=60, got {part!r}"
            )
        if last in _OURS:
            raise UserError(f"option {last!r} of sbatch is set by gradwise, got {part!r}")
        if last in options:
            raise UserError(f"expected every option of sbatch once, got {last!r} twice")
        options[last] = value.strip()
    time_limit = str(options.get("time", MINUTES))
    if not (time_limit.isdecimal() and int(time_limit) > 0):
        raise UserError(f"expected time to be a number of minutes >= 1, got time={time_limit!r}")
    if "time" in options:
        options["time"] = int(time_limit)
    return options


class SlurmCluster(Cluster):
    """The Slurm cluster of which this machine is a login node.

    Args:
        options: of sbatch, for every trial.

    Raises:
        UserError: where submitit is not installed, this machine has no Slurm, or it does not
            answer.
    """

    name = "Slurm"
    patience_s = None  # queues of hours are usual

    def __init__(self, options: dict[str, str | int]) -> None:
        try:
            import submitit
        except ImportError as error:
            raise UserError(
                "cluster slurm needs the package submitit: pip install 'gradwise[slurm]'"
            ) from error
        for program in ("sbatch", "srun", "squeue", "scancel"):
            if shutil.which(program) is None:
                raise UserError(f"cluster slurm needs a machine with {program}, found none on PATH")
        self._submitit: Any = submitit
        self._options = options
        self._queue = _Queue()
        self._queue.ask()

    def has_gpus(self) -> bool:
        """Whether the options ask for one."""
        return bool(_GPU & set(self._options))

    def room(self, threads: int, gpus: int) -> int:
        """A fair number: Slurm itself decides how many of them run."""
        return ROOM

    def send(self, duty: Duty, order: dict[str, Any], threads: int, gpus: int) -> Task:
        """Submit a job of one task, which Slurm itself never tries twice."""
        end = Path(order["end"])
        try:
            folder = end.parent / "slurm"
            folder.mkdir(mode=0o700, exist_ok=True)  # what lies in there is run as this user
            executor = self._submitit.SlurmExecutor(folder=folder)
            executor.update_parameters(**self._parameters(threads, gpus))
            return _SlurmTask(executor.submit(remote.for_batch, duty, order), end, self._queue)
        except (ValueError, RuntimeError) as error:
            lines = [line for line in str(error).splitlines() if "error" in line.lower()]
            told = (lines or str(error).splitlines() or [type(error).__name__])[-1].strip()
            raise UserError(f"Slurm takes no trials: {told}") from error

    def _parameters(self, threads: int, gpus: int) -> dict[str, Any]:
        given = dict(self._options)
        if gpus and not _GPU & set(given):
            given["gpus_per_node"] = gpus
        known = self._submitit.SlurmExecutor._valid_parameters()
        more = {key.replace("_", "-"): given.pop(key) for key in list(given) if key not in known}
        return {
            "job_name": "gradwise",
            "time": MINUTES,
            "cpus_per_task": threads,
            # Since 22.05 a step no longer takes this from its job.
            "srun_args": [f"--cpus-per-task={threads}"],
            **given,
            # Sent again by us alone: two that do so would make two of the same trial.
            "additional_parameters": {**more, "no-requeue": True},
        }

    def close(self) -> None:
        """Nothing is held."""


class _SlurmTask:
    def __init__(self, job: Any, end: Path, queue: _Queue) -> None:
        self._job, self._end, self._queue = job, end, queue
        self._sent = time.monotonic()

    def over(self) -> bool:
        return self._end.exists() or self._state() in _ENDED

    def _state(self) -> str:
        state = self._queue.state(self._job.job_id)
        if state is None:  # not listed: forgotten since it ended, or not listed yet
            return "CANCELLED" if time.monotonic() - self._sent > _ANSWER_SECONDS else "PENDING"
        return state

    def outcome(self) -> dict[str, Any]:
        state = self._state()
        # Who came to the end has written it down; the others have had their time to.
        end = time.monotonic() + (_SEE_SECONDS if state == "COMPLETED" else 2 * _ASK_SECONDS)
        while not self._end.exists():
            if time.monotonic() >= end:
                raise Lost(f"its Slurm job {self._job.job_id} ended as {state}{self._last_words()}")
            time.sleep(0.3)
        return read_json(self._end)

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = self._job.paths.stderr.read_text(errors="replace").strip().splitlines()
            return f" ({lines[-1].strip()})" if lines else ""
        return ""

    def cancel(self) -> None:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            self._job.cancel(check=False)


class _Queue:
    """What Slurm says of all jobs of this user, asked for now and then.

    The queue is asked and not the accounting, which submitit asks: many clusters have none, and
    submitit then takes a job that died for one that runs.
    """

    def __init__(self) -> None:
        self._states: dict[str, str] = {}
        self._asked = float("-inf")
        self._lock = threading.Lock()

    def state(self, job_id: str) -> str | None:
        """The state of a job; None where Slurm does not know it.

        Args:
            job_id: as sbatch gave it.
        """
        with self._lock:
            if time.monotonic() - self._asked > _ASK_SECONDS:
                with contextlib.suppress(UserError):  # it restarts now and then: the jobs live on
                    self.ask()
                self._asked = time.monotonic()
            return self._states.get(job_id)

    def ask(self) -> None:
        """Ask Slurm.

        Raises:
            UserError: where it does not answer.
        """
        command = ["squeue", "-h", "-t", "all", "-u", getpass.getuser(), "-o", "%i %T"]
        try:
            told = subprocess.run(  # noqa: S603 - our own words only, no shell
                command, capture_output=True, text=True, timeout=_ANSWER_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UserError(f"Slurm does not answer: {error}") from error
        if told.returncode:
            line = (told.stderr.strip().splitlines() or ["squeue failed"])[-1]
            raise UserError(f"Slurm does not answer: {line}")
        rows = [line.split() for line in told.stdout.splitlines()]
        self._states = {row[0]: row[1] for row in rows if len(row) == 2}
