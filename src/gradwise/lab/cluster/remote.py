"""What a cluster's worker does with an order: run a trial as the runner does, and tell of it.

The trial runs in a process of its own, as on one machine. What it tells goes into a file of the
shared folder, the *ticket*, which the sender made and reads. The trial ends when the ticket is
taken away (the sender holds this worker for dead and has sent another), and when the sender has
not moved its sign of life for a while.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import queue
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gradwise._version import __version__
from gradwise.errors import UserError
from gradwise.lab.cluster.base import Duty
from gradwise.lab.files import write_json
from gradwise.lab.job import read_result
from gradwise.lab.process import Event, JobProcess
from gradwise.lab.settings import Settings

_LOOK_SECONDS = 1.0  # between two looks at whether the trial is still wanted
_SEE_SECONDS = 10.0  # what a shared folder may take to show a new file

_leave = threading.Event()  # set where the cluster wants this process to end


@dataclass(frozen=True)
class _There:
    """The trial as its own process knows it: `Work`, without what only the sender needs."""

    folder: Path
    label: str

    def result(self) -> dict[str, Any] | None:
        return read_result(self.folder)


def versions() -> dict[str, str]:
    """The versions that decide whether two machines can work on one comparison.

    Builds of torch for other devices count as the same version.
    """
    return {"gradwise": __version__, "torch": torch.__version__.split("+")[0]}


def probe(order: dict[str, Any]) -> dict[str, Any]:
    """Say whether this worker could run trials, and what device and precision it would take.

    Args:
        order: `ticket`, a file with `token` in it; `versions` and `settings` of the sender.

    Returns:
        `settings`, resolved here; or `refused`, the reason in a sentence.
    """
    ticket = Path(order["ticket"])
    try:
        refused = _differing(order) or _unseen(ticket, order["token"])
        if refused:
            return {"refused": refused}
        with ticket.open("ab") as file:
            file.write(b"\n")
        return {"settings": Settings.from_dict(order["settings"]).resolved().to_dict()}
    except UserError as error:
        return {"refused": f"worker {platform.node()}: {error}"}
    except OSError as error:
        return {
            "refused": f"worker {platform.node()} cannot write into --out {ticket.parents[2]}: "
            f"{error.strerror or error}"
        }


def run(order: dict[str, Any]) -> dict[str, Any]:
    """Run a trial to its end.

    Args:
        order: `ticket` and `sign`, the files that tie the trial to its sender; `lease_s`, how many
            seconds the sign of life may stand still; `folder` and `label` of the trial; `spec`,
            name and content of its specification; `task`, the module that runs it; `threads`;
            `cwd`, where modules of the user's are; `versions` of the sender.

    Returns:
        `done`; or `lost`, the reason why somebody else has to go on with it; or `failure`, as
        `JobProcess.failure` gives it, and `error`, what the trial told of its own failure.
    """
    if refused := _differing(order):
        return _failed(refused)
    ticket, folder = Path(order["ticket"]), Path(order["folder"])
    tie = _Tie(order)
    events: queue.Queue[tuple[JobProcess, Event | None]] = queue.Queue()
    cwd = Path(order["cwd"])
    try:
        process = JobProcess(
            _There(folder, order["label"]),
            (order["spec"][0], order["spec"][1]),
            order["task"],
            order["threads"],
            events,
            cwd=cwd if cwd.is_dir() else None,
        )
        try:
            lost = _pass_on(events, ticket, tie)
        finally:
            process.kill()
            process.wait()
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        return _failed(f"{error.strerror or error}{where}", error.errno)
    if read_result(folder) is not None:
        return {"done": True}
    if lost is not None:
        return {"lost": lost}
    failure = process.failure()
    if failure["exit_code"] == -signal.SIGTERM:  # not from us: so do clusters end all there is
        return {"lost": "the cluster ended its process"}
    return {"failure": failure, "error": process.error}


def for_batch(duty: Duty, order: dict[str, Any]) -> None:
    """Do a duty as a job of a batch system: give way to its signals, leave the outcome in a file.

    Args:
        duty: `probe` or `run`.
        order: as the duty takes it, and `end`, the file.
    """
    # Sent before a limit of time, and before somebody more important gets the machine.
    for name in ("SIGTERM", "SIGUSR1", "SIGUSR2"):
        signal.signal(getattr(signal, name), lambda number, frame: _leave.set())
    outcome = duty(order)
    with contextlib.suppress(OSError):  # then it counts as lost
        write_json(Path(order["end"]), outcome)


def _pass_on(
    events: queue.Queue[tuple[JobProcess, Event | None]], ticket: Path, tie: _Tie
) -> str | None:
    """Write down what a trial tells, until its end.

    Returns:
        None where it came to its end; else the reason to end it.
    """
    while True:
        if (reason := tie.torn()) is not None:
            return reason
        try:
            event = events.get(timeout=_LOOK_SECONDS)[1]
        except queue.Empty:
            continue
        if event is None:
            return None
        # Never made here, and closed each time: that is when a shared folder shows it to others.
        with contextlib.suppress(FileNotFoundError):
            handle = os.open(ticket, os.O_WRONLY | os.O_APPEND)
            try:
                os.write(handle, json.dumps(event).encode() + b"\n")
            finally:
                os.close(handle)


class _Tie:
    """What a trial hangs by."""

    def __init__(self, order: dict[str, Any]) -> None:
        self._ticket, self._sign = Path(order["ticket"]), Path(order["sign"])
        self._lease: float = order["lease_s"]
        self._seen: bytes | None = None
        self._moved = time.monotonic()
        self._looked = -_LOOK_SECONDS

    def torn(self) -> str | None:
        """The reason to end, or None."""
        if _leave.is_set():
            return "the cluster wanted its machine back"
        now = time.monotonic()
        if now - self._looked < _LOOK_SECONDS:
            return None
        self._looked = now
        if not self._ticket.exists():
            return "it was taken away from its worker"
        try:
            sign: bytes | None = self._sign.read_bytes()
        except OSError:  # a shared folder may be away for a moment
            sign = self._seen
        if sign != self._seen:
            self._seen, self._moved = sign, now
        # By this machine's clock alone: those of two machines differ.
        if now - self._moved > self._lease:
            return f"whoever sent it gave no sign of life for {self._lease:g} s"
        return None


def _differing(order: dict[str, Any]) -> str | None:
    here = versions()
    for name, version in order["versions"].items():
        if here.get(name) != version:
            return (
                f"worker {platform.node()} has {name} {here.get(name)} and this machine {version}: "
                "install the same version on both"
            )
    return None


def _unseen(ticket: Path, token: str) -> str | None:
    end = time.monotonic() + _SEE_SECONDS
    while True:
        with contextlib.suppress(OSError):
            if ticket.read_text().strip() == token:
                return None
        if time.monotonic() >= end:
            return (
                f"worker {platform.node()} does not see --out {ticket.parents[2]}: choose a folder "
                "on storage that all machines share"
            )
        time.sleep(0.5)


def _failed(message: str, errno: int | None = None) -> dict[str, Any]:
    error = {"event": "error", "message": message, "errno": errno}
    return {"failure": {"reason": message, "exit_code": None, "log": ""}, "error": error}
