"""What comes out of a trial: its curves, and `result.json`."""

from __future__ import annotations

import resource
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from gradwise._version import __version__

FINISHED, DIVERGED = "finished", "diverged"
_STATUS = Path("/proc/self/status")


@dataclass
class History:
    """The curves of a trial: one entry in each list an epoch.

    Attributes:
        step: optimizer steps done by then.
        epoch: epochs done, from 1.
        train_loss: mean loss over the epoch's batches, as it was optimized.
        test_loss: mean cross entropy over the test set.
        test_accuracy: share of the test set that is classified rightly.
    """

    step: list[int] = field(default_factory=list)
    epoch: list[int] = field(default_factory=list)
    train_loss: list[float] = field(default_factory=list)
    test_loss: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)

    def add(self, **values: float) -> None:
        """Add an epoch; takes one value for each list.

        Args:
            values: by the names of the lists.
        """
        for name, value in values.items():
            getattr(self, name).append(value)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, for JSON and checkpoints."""
        return asdict(self)


def verdict(history: History, diverged_at: int | None, num_classes: int) -> dict[str, Any]:
    """The part of the result that says how well it went.

    Args:
        history: the curves.
        diverged_at: the step (from 0) from which on the loss is no number, or None.
        num_classes: of the data set.

    Examples:
        >>> verdict(History([4], [1], [0.5], [0.6], [0.8]), None, 10)["test_accuracy"]
        0.8
        >>> verdict(History(), 3, 10)
        {'status': 'diverged', 'test_accuracy': 0.1, 'test_loss': None, 'diverged_at_step': 3}
    """
    if diverged_at is None:
        accuracy, loss, status = history.test_accuracy[-1], history.test_loss[-1], FINISHED
    else:
        # A model of NaNs knows nothing: it counts as guessing, and is not dropped.
        accuracy, loss, status = 1.0 / num_classes, None, DIVERGED
    return {
        "status": status,
        "test_accuracy": accuracy,
        "test_loss": loss,
        "diverged_at_step": diverged_at,
    }


def sound_result(result: dict[str, Any], method: str, seed: int) -> bool:
    """Whether a `result.json` is of this trial and holds what a summary needs.

    Args:
        result: as read.
        method: the trial's method.
        seed: the trial's seed.
    """
    accuracy, skipped = result.get("test_accuracy"), result.get("skipped")
    return (
        result.get("method") == method
        and result.get("seed") == seed
        and result.get("status") in (FINISHED, DIVERGED)
        and isinstance(accuracy, int | float)
        and 0 <= accuracy <= 1
        and isinstance(skipped, int)
        and all(isinstance(result.get(key), str) for key in ("init_checksum", "batches_checksum"))
    )


def versions_here() -> dict[str, str]:
    """The versions that decide a trial's numbers."""
    return {"gradwise": __version__, "torch": torch.__version__}


def device_name(device: torch.device) -> str:
    """How a device is called in reports.

    Args:
        device: where the trial ran.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return device.type


def peak_memory(device: torch.device) -> int:
    """The most memory in bytes so far: the tensors' on a GPU, else the whole process's.

    Args:
        device: where the trial ran.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if _STATUS.exists():
        # Not getrusage: on Linux its peak goes on from that of the process that started this one.
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
