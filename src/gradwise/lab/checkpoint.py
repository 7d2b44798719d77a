"""A trial's checkpoint: everything that makes a resumed trial give the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from gradwise.errors import UserError
from gradwise.lab.files import write_atomically

FORMAT = 1


def save_checkpoint(path: Path, values: dict[str, Any]) -> None:
    """Write a checkpoint in one step; the last one stays until the new one is whole."""
    write_atomically(path, lambda temporary: torch.save({"format": FORMAT, **values}, temporary))


def load_checkpoint(path: Path, device: torch.device) -> dict[str, Any]:
    """Read a checkpoint without running anything in it.

    Raises:
        UserError: where it is torn, foreign or of another format.
    """
    try:
        values = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise UserError(
            f"checkpoint {path} cannot be read: delete it to run the trial from its start"
        ) from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise UserError(f"checkpoint {path} is not of format {FORMAT}")
    return values
