"""The sender's part of a sweep: a first look at a worker, and the trials."""

from __future__ import annotations

import os
import queue
import shutil
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gradwise.errors import UserError
from gradwise.lab import worker
from gradwise.lab.cluster import remote
from gradwise.lab.cluster.base import Cluster, Lost, Task
from gradwise.lab.cluster.desk import LEASE_SECONDS, Desk, open_desk
from gradwise.lab.cluster.process import ClusterProcess, answer
from gradwise.lab.folder import locked
from gradwise.lab.job import Job
from gradwise.lab.process import Event, Running, trial_spec
from gradwise.lab.runner import Listener, run_all
from gradwise.lab.settings import Settings
from gradwise.lab.sharing import Plan

RETRIES = 3  # times in a row that a trial may be lost without having come further


def plan_there(
    cluster: Cluster,
    settings: Settings,
    out: Path,
    jobs: int | None,
    per_device: int | None,
    tell: Callable[[str], None] = lambda text: None,
) -> tuple[Plan, Settings]:
    """How many trials are sent at a time, and with which settings; counterpart of `plan`.

    Args:
        cluster: where trials will run.
        settings: what they share.
        out: the comparison's folder; not there afterwards where it was not there before.
        jobs: trials that are sent at a time; None for as many as the cluster has room for.
        per_device: has to be None: it is the cluster that hands out GPUs.
        tell: told where it takes a while.

    Returns:
        The plan, and the settings with the device and the precision that "auto" stands for on a
        worker.

    Raises:
        UserError: where a number is out of its bounds, a worker could not run trials of this
            comparison, or none is free in time.
        OSError: where the disk is full.
    """
    if jobs is not None and jobs < 1:
        raise UserError(f"expected jobs >= 1, got jobs={jobs}")
    if per_device is not None:
        raise UserError(
            f"expected no per_device on {cluster.name}, which hands out its GPUs itself, "
            f"got per_device={per_device}"
        )
    device = settings.device
    if device == "auto":
        device = "cuda" if cluster.has_gpus() else "cpu"
    if device.startswith("cuda:"):
        raise UserError(
            f"expected device to be auto, cpu or cuda on {cluster.name}, which chooses the GPU, "
            f"got device={device!r}"
        )
    told = _look(cluster, {**settings.to_dict(), "device": device}, out, tell)
    there = Settings.from_dict(told)
    return Plan(jobs or cluster.room(there.threads, _gpus(there.device))), there


def _look(
    cluster: Cluster, asked: dict[str, Any], out: Path, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Ask a worker what the settings mean there, and so whether it is fit to run trials."""
    new = not out.exists()
    try:
        with locked(out), open_desk(out) as desk:
            ticket, token = desk.ticket(), uuid.uuid4().hex
            ticket.write_text(token)
            order = {
                **_ends(ticket),
                "token": token,
                "settings": asked,
                "versions": remote.versions(),
            }
            task = cluster.send(remote.probe, order, asked["threads"], _gpus(asked["device"]))
            waits = f"waiting for a free worker of {cluster.name}"
            told = answer(task, cluster.patience_s, lambda: tell(waits))
    except Lost as error:
        raise UserError(f"a worker of {cluster.name} was lost at once, because {error}") from error
    finally:
        if new:
            shutil.rmtree(out, ignore_errors=True)
    if "refused" in told:
        raise UserError(told["refused"])
    settings: dict[str, Any] = told["settings"]
    return settings


def run_there(
    cluster: Cluster,
    jobs: Sequence[Job],
    settings: Settings,
    dataset: str,
    out: Path,
    at_once: int,
    listen: Listener,
) -> dict[Job, str]:
    """Run trials on a cluster; counterpart of `run_jobs`.

    Args:
        cluster: where.
        jobs: trials without a result.
        settings: what they share, resolved.
        dataset: fingerprint of the data that they share.
        out: the comparison's folder, held with `locked`.
        at_once: trials that are sent at a time, >= 1.
        listen: told what happens, from the calling thread.

    Returns:
        The reason of failure of every trial that failed.

    Raises:
        UserError: where the cluster refuses them.
        OSError: as `run_all`.
        KeyboardInterrupt: as `run_all`.
    """
    with open_desk(out) as desk:
        return run_all(jobs, _Sender(cluster, settings, dataset, desk), at_once, listen)


class _Sender:
    """Sends trials, and those that were lost again; what `run_all` takes as `start`.

    A trial is given up when it was lost `RETRIES` + 1 times in a row without having finished
    another epoch; how often it takes an epoch's worth of work with it does not matter, as where a
    batch system gives each attempt an hour.
    """

    def __init__(self, cluster: Cluster, settings: Settings, dataset: str, desk: Desk) -> None:
        self._cluster, self._settings, self._dataset = cluster, settings, dataset
        self._desk = desk
        self._left: dict[Any, int] = {}

    def choose(self, waiting: Sequence[Any]) -> Any | None:
        """The next one in their order."""
        return waiting[0]

    def __call__(self, job: Job, events: queue.Queue[Any]) -> ClusterProcess:
        """Send a trial."""
        ticket = self._desk.ticket()
        order = {
            **_ends(ticket),
            "sign": str(self._desk.sign),
            "lease_s": LEASE_SECONDS,
            "task": worker.TASK,
            "threads": self._settings.threads,
            "cwd": os.getcwd(),
            "versions": remote.versions(),
            "folder": str(job.folder.resolve()),
            "label": job.label,
            "spec": ["trial.json", trial_spec(job, self._settings, self._dataset)],
        }

        def send() -> Task:
            gpus = _gpus(self._settings.device)
            return self._cluster.send(remote.run, order, self._settings.threads, gpus)

        self._left.setdefault(job, RETRIES)
        return ClusterProcess(job, ticket, send, events)

    def heard(self, job: Any, event: Event) -> None:
        """Notice that a trial comes further."""
        if event["event"] == "epoch":
            self._left[job] = RETRIES

    def again(self, process: Running) -> str | None:
        """What there is to say where a trial that was lost is sent again; else None."""
        assert isinstance(process, ClusterProcess)
        job = process.job
        if process.lost is None or job.result() is not None or not self._left[job]:
            return None
        self._left[job] -= 1
        checkpoint = (job.folder / "checkpoint.pt").exists()
        how = "goes on from its checkpoint" if checkpoint else "begins again"
        return f"{how} on another worker, because {process.lost}"


def _ends(ticket: Path) -> dict[str, str]:
    return {"ticket": str(ticket), "end": str(ticket.with_suffix(".end"))}


def _gpus(device: str) -> int:
    return 1 if device.startswith("cuda") else 0
