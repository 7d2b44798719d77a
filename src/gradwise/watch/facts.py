"""What is worth knowing about a run besides its numbers."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from gradwise._version import __version__
from gradwise.attach import Attachment


def facts(
    attachment: Attachment, model: nn.Module | None, told: Mapping[str, Any], **more: Any
) -> dict[str, Any]:
    """The `meta` of a watched run, as plain JSON values.

    Args:
        attachment: what measures.
        model: None where nobody named one.
        told: what the user wants to be kept.
        more: what else belongs there.
    """
    return {
        "kind": "watch",
        "optimizer": type(attachment.optimizer).__name__,
        "model": None if model is None else type(model).__name__,
        "transform": repr(attachment.transform),
        "command": [str(argument) for argument in sys.argv],
        "host": platform.node(),
        "versions": {
            "gradwise": __version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
        **more,
        **told,
    }


def is_writer() -> bool:
    """Whether this process is the one of its group that records."""
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not there or torch.distributed.get_rank() == 0
