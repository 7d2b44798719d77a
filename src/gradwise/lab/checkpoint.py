"""A trial's checkpoint: everything that makes a resumed trial give the same numbers."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gradwise.errors import UserError
from gradwise.watch.store.files import replace_file

FORMAT = 1


def save_checkpoint(path: Path, values: Mapping[str, Any]) -> None:
    """Write a checkpoint in one step; the last one stays until the new one is whole.

    Args:
        path: the file.
        values: tensors and plain values, nested in dicts and lists.

    Raises:
        OSError: where the disk refuses; the old checkpoint is then untouched.
    """
    # By way of memory: torch's own file writer reports a full disk as an internal error.
    content = io.BytesIO()
    torch.save({"format": FORMAT, **values}, content)
    replace_file(path, content.getvalue())


def load_checkpoint(path: Path, device: torch.device, owner: Mapping[str, Any]) -> dict[str, Any]:
    """Read a checkpoint without running anything in it.

    Args:
        path: the file.
        device: where its tensors go.
        owner: entries that have to be in it with these very values; they say whose it is.

    Raises:
        UserError: where it is torn, of another format or of another owner.
        OSError: where the system does not let it be read.
    """
    try:
        values = torch.load(path, map_location=device, weights_only=True)
    except OSError:
        raise  # says nothing about the file
    except Exception as error:  # torch raises nearly anything for a file that is not one of its own
        raise UserError(f"{path.name} is damaged") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise UserError(f"{path.name} is not of format {FORMAT}")
    for key, value in owner.items():
        if values.get(key) != value:
            raise UserError(f"{path.name} is of another trial: its {key} is not this one's")
    return values
