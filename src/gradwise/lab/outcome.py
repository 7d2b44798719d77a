"""What comes out of a trial: its curves, and `result.json`."""

from __future__ import annotations

import platform
import resource
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradwise._version import __version__

FINISHED, DIVERGED = "finished", "diverged"
_STATUS = Path("/proc/self/status")
_CONTEXT = 640 * 2**20  # bytes of a GPU for a process's context and kernels, on the safe side


@dataclass
class History:
    """The curves of a trial: one entry in each list an epoch.

    Attributes:
        step: optimizer steps done by then.
        epoch: epochs done, from 1.
        train_loss: mean loss over the epoch's batches, as it was optimized.
        test_loss: mean cross entropy over the test set.
        test_accuracy: share of the test set that is classified rightly.
        validation_loss: as `test_loss`, over rows held out of the training set; empty without any.
        validation_accuracy: likewise.
    """

    step: list[int] = field(default_factory=list)
    epoch: list[int] = field(default_factory=list)
    train_loss: list[float] = field(default_factory=list)
    test_loss: list[float] = field(default_factory=list)
    test_accuracy: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    validation_accuracy: list[float] = field(default_factory=list)

    def add(self, **values: float) -> None:
        """Add an epoch; takes one value for each list.

        Args:
            values: by the names of the lists.
        """
        for name, value in values.items():
            getattr(self, name).append(value)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, for JSON and checkpoints; those of a validation where there is one."""
        lists = asdict(self)
        return {k: v for k, v in lists.items() if v or not k.startswith("validation")}


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


def validated(history: History, diverged_at: int | None, num_classes: int) -> dict[str, Any]:
    """The part of the result that says how well it went on rows held out of the training set.

    Args:
        history: the curves, with those of the validation.
        diverged_at: as in `verdict`.
        num_classes: of the data set.

    Examples:
        >>> validated(History(), 3, 10)
        {'validation_accuracy': 0.1, 'validation_loss': None}
    """
    diverged = diverged_at is not None
    return {
        "validation_accuracy": 1 / num_classes if diverged else history.validation_accuracy[-1],
        "validation_loss": None if diverged else history.validation_loss[-1],
    }


def sound_result(result: dict[str, Any], method: str, seed: int, lr: float | None = None) -> bool:
    """Whether a `result.json` is of this trial and holds what a summary needs.

    Args:
        result: as read.
        method: the trial's method.
        seed: the trial's seed.
        lr: the trial's learning rate where it is one of a grid; such a trial has a validation.
    """
    skipped = result.get("skipped")
    if lr is not None:
        if result.get("learning_rate") != lr or not _share(result.get("validation_accuracy")):
            return False
        loss = result.get("validation_loss")
        if loss is not None and not isinstance(loss, int | float):
            return False
    return (
        result.get("method") == method
        and result.get("seed") == seed
        and result.get("status") in (FINISHED, DIVERGED)
        and _share(result.get("test_accuracy"))
        and isinstance(skipped, int)
        and all(isinstance(result.get(key), str) for key in ("init_checksum", "batches_checksum"))
    )


def _share(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1


def versions_here() -> dict[str, str]:
    """The versions that decide a trial's numbers."""
    return {"gradwise": __version__, "torch": torch.__version__}


def versions_in_full() -> dict[str, str]:
    """The same with what else a page on numbers names."""
    return {
        **versions_here(),
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def device_name(device: torch.device) -> str:
    """How a device is called in reports.

    Args:
        device: where the trial ran.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return device.type


def device_memory(device: torch.device) -> dict[str, int] | None:
    """Bytes of a GPU that this process has `held` at most, and that are `free` there now.

    What the driver keeps for a process besides tensors cannot be asked for, so that it is estimated
    from above.

    Args:
        device: where the trial runs.

    Returns:
        None where trials share no device memory of their own.
    """
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    # Reserved and not allocated: what torch keeps for later is not there for others.
    held = torch.cuda.max_memory_reserved(device) + _CONTEXT
    return {"held": int(held), "free": int(free)}


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
