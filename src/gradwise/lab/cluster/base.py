"""What a comparison asks of a cluster, whatever runs it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

# Runs on a worker, importable there by name: takes an order and tells what came of it.
Duty = Callable[[dict[str, Any]], dict[str, Any]]


class Lost(Exception):
    """A task is over and has not told how it ended: its worker died or was taken away."""


@runtime_checkable
class Task(Protocol):
    """Something that was sent to a cluster."""

    def over(self) -> bool:
        """Whether it has ended, however; what cannot be known now is no."""

    def outcome(self) -> dict[str, Any]:
        """What the duty returned, once it is over.

        Raises:
            Lost: where it has told nothing, with a reason that goes after "because".
            UserError: where the worker could not even begin with it.
        """

    def cancel(self) -> None:
        """End it, also while it waits for a worker."""


class Cluster(ABC):
    """Machines that take trials; a connection to them, closed with `close`.

    Attributes:
        name: how it is called in messages.
        patience_s: seconds that the first task may wait for a worker; None for as long as it takes.
    """

    name: str
    patience_s: float | None

    @abstractmethod
    def has_gpus(self) -> bool:
        """Whether trials get a GPU where the device is "auto"."""

    @abstractmethod
    def room(self, threads: int, gpus: int) -> int:
        """How many trials to send at once where nobody says it; at least 1.

        Args:
            threads: CPU threads of each.
            gpus: GPUs of each.
        """

    @abstractmethod
    def send(self, duty: Duty, order: dict[str, Any], threads: int, gpus: int) -> Task:
        """Send a task.

        Args:
            duty: runs on the worker.
            order: JSON values; what the duty takes. `order["end"]` is a file that is free for the
                cluster's own use.
            threads: CPU threads that it is given.
            gpus: GPUs that it is given.

        Raises:
            UserError: where the cluster refuses it.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of the connection; tasks that are still there end."""
