"""Parameters from the files that people save their models in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradwise.errors import UserError

PLACES = ("state_dict", "model_state_dict", "model", "module", "net", "weights", "params")
RUNNING = ("running_mean", "running_var", "num_batches_tracked")


def read_parameters(path: Path, key: str | None = None) -> dict[str, Tensor]:
    """The parameters in a file that `torch.save` wrote, on the CPU; runs no code of the file.

    What is no parameter as far as a file can tell is left out: whole numbers, running statistics
    of norm layers (by their names), and second names of tensors that share memory. Other buffers
    of floating-point numbers look like parameters and count.

    Args:
        path: of a state dict, or of a dict that holds one.
        key: where in the file the state dict is, with dots between the keys of nested dicts; None
            finds it by the usual names.

    Raises:
        UserError: where the file cannot be read that way, or has no state dict there.
    """
    found = _state(_load(path), path, key)
    kept: dict[str, Tensor] = {}
    seen: set[tuple[int, int, tuple[int, ...]]] = set()
    for name, tensor in found.items():
        if not isinstance(tensor, Tensor) or not tensor.dtype.is_floating_point:
            continue
        if name.rpartition(".")[2] in RUNNING:
            continue
        place = (
            tensor.untyped_storage().data_ptr(),
            int(tensor.storage_offset()),
            tuple(tensor.shape),
        )
        if tensor.numel() and place in seen:
            continue
        seen.add(place)
        kept[name] = tensor.detach()
    if not kept:
        raise UserError(f"expected parameters of floating-point numbers in {path}, found none")
    return kept


def _load(path: Path) -> Any:
    try:
        try:  # tensors are read as they are used
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # files of torch before 1.6 cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except Exception as error:  # torch raises nearly anything for a file that is not one of its own
        raise UserError(
            f"expected {path} to be a state dict saved by torch.save and readable with "
            f"weights_only=True, got {type(error).__name__}"
        ) from error


def _state(content: Any, path: Path, key: str | None) -> Mapping[str, Any]:
    if key is not None:
        for part in key.split("."):
            if not isinstance(content, Mapping) or part not in content:
                raise UserError(f"expected key {key} in {path}, it has {_keys(content)}")
            content = content[part]
        if not _is_state(content):
            raise UserError(f"expected a state dict at key {key} of {path}, got other things")
        return _named(content)
    if _is_state(content):
        return _named(content)
    places = content if isinstance(content, Mapping) else {}
    for place in PLACES:
        if _is_state(places.get(place)):
            return _named(places[place])
    raise UserError(
        f"expected a state dict in {path}, it has {_keys(content)}: name its place as --key KEY"
    )


def _is_state(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(x, Tensor) for x in value.values())


def _named(state: Mapping[Any, Any]) -> Mapping[str, Any]:
    return {str(name): value for name, value in state.items()}


def _keys(value: Any) -> str:
    if not isinstance(value, Mapping):
        return f"a value of type {type(value).__name__}"
    return "keys " + (", ".join(map(str, [*value][:8])) or "none")
