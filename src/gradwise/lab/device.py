"""Where trials run: the device that a name stands for, and the cores there are."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path

import torch

from gradwise.errors import UserError
from gradwise.lab.slots import Place

_PROC = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")


def check_device(name: str) -> None:
    """Refuse what is the name of no device, on any machine.

    Args:
        name: "auto" or a name as torch has them.

    Raises:
        UserError: where it is none.
    """
    if name == "auto":
        return
    try:
        device = torch.device(name)
    except RuntimeError as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"device {name!r} cannot be used here: {reason}") from error
    if device.type == "meta":
        raise UserError("device 'meta' cannot be used here: it holds no values")


def resolve_device(name: str) -> torch.device:
    """The torch device that a name stands for.

    Raises:
        UserError: where there is no such device here.
    """
    check_device(name)
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("cpu")
    device = torch.device(name)
    try:
        torch.zeros((), device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"device {name!r} cannot be used here: {reason}") from error
    return device


def places(device: torch.device, environment: Mapping[str, str] = os.environ) -> list[Place]:
    """The devices that trials on `device` may be spread over.

    "cuda" without a number stands for every GPU that this process sees. A trial there is told by
    `CUDA_VISIBLE_DEVICES` which one is its own, and calls it "cuda" whichever it is, so that its
    settings and its numbers do not depend on that. Where the variable is set already, its entries
    are handed on as they are: numbers, and names of GPUs and of their parts, mean the same to the
    trial as they did here.

    Args:
        device: where trials run.
        environment: where `CUDA_VISIBLE_DEVICES` is looked up.
    """
    if str(device) != "cuda":
        return [Place(str(device))]
    count = max(torch.cuda.device_count(), 1)
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    names = [str(number) for number in range(count)] if listed is None else listed.split(",")
    return [Place(f"GPU {name.strip()}", name.strip()) for name in names[:count]]


def cores() -> int:
    """CPU cores that this process may use, by its affinity and by the quota of its container."""
    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    return max(math.floor(min(count, _quota())), 1)


def _quota() -> float:
    """Cores' worth of time that control groups allow; infinite where they set no bound."""
    try:
        groups = [line.split(":", 2) for line in _PROC.read_text().splitlines()]
    except OSError:  # no Linux
        return math.inf
    allowed = math.inf
    for _, controllers, path in (group for group in groups if len(group) == 3):
        if controllers and "cpu" not in controllers.split(","):
            continue
        # The first version of the interface has a folder for each of its controllers.
        root = _CGROUPS / "cpu" if controllers else _CGROUPS
        folder = root / path.lstrip("/")
        # Every group above bounds it as well; inside a container the path may be the host's.
        for level in (folder, *folder.parents):
            if level == root or root in level.parents:
                allowed = min(allowed, _quota_of(level))
    return allowed


def _quota_of(folder: Path) -> float:
    """The same of one control group."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        share = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # none, or "max"
        return math.inf
    return share if share > 0 else math.inf
