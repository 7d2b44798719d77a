"""A Ray cluster that takes trials."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

from gradwise.errors import UserError
from gradwise.lab.cluster.base import Cluster, Duty, Lost, Task

_ANSWER_SECONDS = 10.0
_ANYWHERE = "auto"  # Ray's word for RAY_ADDRESS or the cluster that this machine is part of


class RayCluster(Cluster):
    """A connection to a Ray cluster; one that this process has already is used and left alone.

    Args:
        address: as `ray.init` takes it; None for the cluster that `RAY_ADDRESS` names or that this
            machine is part of.

    Raises:
        UserError: where Ray is not installed or the cluster does not answer.
    """

    name = "the Ray cluster"
    patience_s = 600.0  # also for machines that have to be started first

    def __init__(self, address: str | None) -> None:
        try:
            import ray
        except ImportError as error:
            raise UserError(
                "cluster ray needs the package ray: pip install 'gradwise[ray]'"
            ) from error
        self._ray: Any = ray
        self._own = not ray.is_initialized()
        if self._own:
            self._connect(address or os.environ.get("RAY_ADDRESS") or _ANYWHERE)

    def _connect(self, address: str) -> None:
        _knock(address)  # Ray itself may try for minutes
        try:
            with _own_signals():
                self._ray.init(
                    address=address,
                    # Standard output is for the answer, and each trial has its log.
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
        except Exception as error:  # of many kinds, by address and version
            line = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise UserError(f"no Ray cluster answers at {address!r}: {line}") from error

    def has_gpus(self) -> bool:
        """Whether any machine of it has a GPU."""
        return bool(self._ray.cluster_resources().get("GPU", 0) >= 1)

    def room(self, threads: int, gpus: int) -> int:
        """As many trials as find their CPUs and GPUs on the machines that are there now."""
        machines = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        fits = 0
        for has in machines:
            by_cpu = int(has.get("CPU", 0) // threads)
            fits += min(by_cpu, int(has.get("GPU", 0) // gpus)) if gpus else by_cpu
        return max(fits, 1)

    def send(self, duty: Duty, order: dict[str, Any], threads: int, gpus: int) -> Task:
        """Send a task, which Ray itself never tries twice."""
        task = self._ray.remote(duty).options(
            num_cpus=threads,
            num_gpus=gpus,
            max_retries=0,
            name=f"gradwise {order.get('label', 'look')}",
        )
        try:
            return _RayTask(self._ray, task.remote(order))
        except Exception as error:
            raise UserError(f"{self.name} takes no trials: {_line(error)}") from error

    def close(self) -> None:
        """Disconnect; Ray then ends what this process has sent."""
        if self._own:
            self._ray.shutdown()


class _RayTask:
    def __init__(self, ray: Any, reference: Any) -> None:
        self._ray, self._reference = ray, reference

    def over(self) -> bool:
        ready, _ = self._ray.wait([self._reference], timeout=0)
        return bool(ready)

    def outcome(self) -> dict[str, Any]:
        errors = self._ray.exceptions
        try:
            told: dict[str, Any] = self._ray.get(self._reference)
            return told
        except errors.RayTaskError as error:  # what raised there, which the duty itself does not
            raise UserError(f"a Ray worker cannot run trials: {_line(error)}") from error
        except errors.OutOfMemoryError as error:
            raise Lost("its machine ran out of memory") from error
        except errors.RayError as error:
            raise Lost(f"its worker died ({type(error).__name__})") from error

    def cancel(self) -> None:
        with contextlib.suppress(Exception):  # over, or the cluster is gone: nothing left to end
            self._ray.cancel(self._reference, force=True)


def _line(error: Exception) -> str:
    """The last line of what Ray says, which is that of the cause."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


def _knock(address: str) -> None:
    """See whether anybody listens at an address.

    Raises:
        UserError: where it is none, or nobody does.
    """
    if address == _ANYWHERE:
        return
    host, colon, port = address.removeprefix("ray://").rstrip("/").rpartition(":")
    if not (host and colon and port.isdigit() and 0 < int(port) < 65536):
        raise UserError(f"expected the address of a Ray cluster as HOST:PORT, got {address!r}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"no Ray cluster answers at {address!r}: {reason}") from error


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keep the handlers of signals: Ray puts its own where this program has its own already."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # one that was not set from Python cannot be set from there
                signal.signal(number, handler)
