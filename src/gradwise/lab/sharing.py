"""Trials that share devices: how many at a time, where each one goes, and what is said about it."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gradwise.errors import UserError
from gradwise.lab.device import cores, places
from gradwise.lab.process import Event, Running
from gradwise.lab.settings import Settings
from gradwise.lab.slots import Place, Slots

# Makes the process of a trial with these variables in its environment.
StartWith = Callable[[Any, "queue.Queue[Any]", dict[str, str]], Running]


@dataclass(frozen=True)
class Plan:
    """How the trials of a comparison are run.

    Attributes:
        at_once: processes at a time.
        slots: hands out the GPUs; None where trials need none.
        note: what the user is told about it, or None.
    """

    at_once: int
    slots: Slots | None = None
    note: str | None = None


def plan(settings: Settings, jobs: int | None, per_device: int | None) -> Plan:
    """How many trials run at a time, and where.

    On a CPU as many as there are cores for, and never more; on GPUs `per_device` on each.

    Args:
        settings: resolved ones.
        jobs: processes at a time; None for as many as fit.
        per_device: trials on one GPU at a time; None for 1, or as many as `jobs` asks for.

    Raises:
        UserError: where a number is out of its bounds, or `per_device` means nothing here.
    """
    if jobs is not None and jobs < 1:
        raise UserError(f"expected jobs >= 1, got jobs={jobs}")
    if per_device is not None and per_device < 1:
        raise UserError(f"expected per_device >= 1, got per_device={per_device}")
    device = torch.device(settings.device)
    if device.type != "cuda":
        if per_device is not None:
            raise UserError(
                f"expected a CUDA device with per_device={per_device}, got device={device}: choose "
                "how many trials run at a time with jobs (--jobs) there"
            )
        return _on_cores(settings, jobs) if device.type == "cpu" else Plan(jobs or 1)
    gpus = places(device)
    if per_device is None:
        per_device = 1 if jobs is None else -(-jobs // len(gpus))
    most = per_device * len(gpus)
    if jobs is not None and jobs > most:
        raise UserError(
            f"expected jobs <= {most} with per_device={per_device} on {len(gpus)} "
            f"GPU{'s' if len(gpus) > 1 else ''}, got jobs={jobs}"
        )
    return Plan(jobs or most, Slots(gpus, per_device))


def _on_cores(settings: Settings, jobs: int | None) -> Plan:
    there, threads = cores(), settings.threads
    most = max(there // threads, 1)
    if jobs is None or jobs <= most:
        note = None
        if threads > there:
            note = f"threads={threads} is more than the {there} cores here, so trials will be slow"
        return Plan(jobs or most, note=note)
    with_threads = f" with threads={threads}" if threads > 1 else ""
    return Plan(
        most,
        note=f"jobs={jobs}{with_threads} is more than the {there} cores here have room for: "
        f"{most} at a time",
    )


class SharedStart:
    """Starts trials on the devices that slots hand out; what `run_all` takes as `start`.

    Args:
        slots: who goes where.
        start: makes the process of a trial.
        listen: told, once, that memory keeps trials waiting.
    """

    def __init__(
        self, slots: Slots, start: StartWith, listen: Callable[[Any, Event], None]
    ) -> None:
        self._slots = slots
        self._start = start
        self._listen = listen
        self._told = False
        self._chosen: tuple[Any, Place] | None = None

    def choose(self, waiting: Sequence[Any]) -> Any | None:
        """The trial to start next; None where all of them wait for those that run.

        Args:
            waiting: in their order.
        """
        self._chosen = offer = self._slots.offer(waiting)
        if offer is None and self._slots.short is not None and not self._told:
            self._told = True
            place, left, need = self._slots.short
            text = f"waits: {_gib(left)} would be left on {place.name}, and a trial takes up to "
            self._listen(waiting[0], {"event": "note", "text": text + _gib(need)})
        return None if offer is None else offer[0]

    def __call__(self, job: Any, events: queue.Queue[Any]) -> Running:
        """Start the trial that was chosen last.

        Args:
            job: the trial.
            events: as in `JobProcess`.
        """
        assert self._chosen is not None
        assert self._chosen[0] == job
        place = self._slots.begin(*self._chosen)
        return self._start(
            job, events, {} if place.visible is None else {"CUDA_VISIBLE_DEVICES": place.visible}
        )

    def heard(self, job: Any, event: Event) -> None:
        """Take in what a trial tells.

        Args:
            job: the trial.
            event: any of its events.
        """
        memory = event.get("memory")
        if isinstance(memory, dict):
            self._slots.heard(job, memory["held"], memory["free"])

    def again(self, process: Running) -> str | None:
        """What there is to say where a trial that has ended is to be started again; else None.

        Args:
            process: the trial's, which has ended.
        """
        short = process.error is not None and process.error.get("out_of_memory") is True
        job: Any = process.job
        if self._slots.end(job, out_of_memory=short):
            return "ran out of the device's memory beside another trial, and goes on alone"
        return None


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
