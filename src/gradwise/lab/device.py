"""Where trials run: the device that a name stands for, and the cores there are."""

from __future__ import annotations

import os

import torch

from gradwise.errors import UserError


def resolve_device(name: str) -> torch.device:
    """The torch device that a name stands for.

    Raises:
        UserError: where there is no such device here.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("cpu")
    try:
        device = torch.device(name)
        torch.zeros((), device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UserError(f"device {name!r} cannot be used here: {reason}") from error
    if device.type == "meta":
        raise UserError("device 'meta' cannot be used here: it holds no values")
    return device


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
