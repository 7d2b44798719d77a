"""What gradwise has to remember, inside the optimizer's own checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradwise.errors import UserError
from gradwise.transforms import State

PREFIX = "gradwise:"


class CheckpointHooks:
    """Lets tensors and plain values ride in `optimizer.state_dict()` and back.

    They ride as extra entries of the first parameter group, because that is what survives nearly
    every way in which people save optimizers: an optimizer without gradwise carries them along, one
    that is attached after loading finds them, and tools that walk through state see plain tensors.

    Args:
        optimizer: where the hooks go.
        save: gives the tensors to save.
        load: takes what a checkpoint holds, which is nothing where it was made before the first
            step or without gradwise; raises UserError where it can make no use of it.
        prefix: of the entries' names; they are nobody else's.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        save: Callable[[], Mapping[str, Any]],
        load: Callable[[dict[str, Any]], None],
        prefix: str = PREFIX,
    ) -> None:
        self._prefix = prefix
        self._save = save
        self._load = load
        self._handles = [
            optimizer.register_state_dict_post_hook(self._on_save),
            optimizer.register_load_state_dict_post_hook(self._take),
        ]
        self._take(optimizer)  # what was loaded before attaching

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _on_save(self, optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
        if state_dict["param_groups"]:
            entries = {self._prefix + key: value for key, value in self._save().items()}
            state_dict["param_groups"][0].update(entries)

    def _take(self, optimizer: torch.optim.Optimizer) -> None:
        # torch has put a copy of the entries into the group itself, where they do not belong.
        group = optimizer.param_groups[0] if optimizer.param_groups else {}
        keys = [key for key in group if str(key).startswith(self._prefix)]
        found = {key.removeprefix(self._prefix): group.pop(key) for key in keys}
        try:
            self._load(found)
        except UserError as error:
            self._load({})
            warnings.warn(
                f"the transforms begin anew, without the state in the checkpoint: {error}",
                stacklevel=5,
            )


def plain(state: Mapping[str, Tensor], growing: Sequence[str]) -> dict[str, Any]:
    """A transform's state for a checkpoint: what grows as lists, the rest as tensors.

    torch's distributed checkpoints load a tensor into one that is there already and has to have
    its size.
    """
    return {key: v.tolist() if key in growing else v for key, v in state.items()}


def flatten(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """An attachment's `state_dict` as entries by name; the transform's name comes first."""
    name = state_dict["transform"]
    entries = {**state_dict["state"], "skipped": state_dict["skipped"]}
    return {f"{name}:{key}": value for key, value in entries.items()}


def unflatten(entries: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What `flatten` was given.

    Raises:
        UserError: where an entry belongs to other transforms than `name`.
    """
    foreign = sorted({key.split(":")[0] for key in entries} - {name})
    if foreign:
        raise UserError(f"expected state of {name!r}, got state of {foreign[0]!r}")
    state = {key.removeprefix(f"{name}:"): value for key, value in entries.items()}
    return {"transform": name, "skipped": state.pop("skipped", None), "state": state}


def checked(state_dict: Mapping[str, Any], name: str) -> tuple[State, Tensor]:
    """A copy of the transform's state in a `state_dict`, and of the number of steps skipped.

    Raises:
        UserError: where it is not the state of transforms called `name`.
    """
    found, state = state_dict.get("transform"), state_dict.get("state")
    if found != name:
        raise UserError(f"expected state of {name!r}, got state of {found!r}")
    if not isinstance(state, Mapping):
        raise UserError(f"expected the state of {name!r} to be a dict, got {state!r:.80}")
    state = {key: _as_tensor(value) for key, value in state.items()}
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise UserError(f"expected {key!r} of {name!r} to be a tensor, got {value!r:.80}")
    skipped = state_dict.get("skipped")
    if not isinstance(skipped, Tensor) or skipped.dim() > 0 or skipped.is_floating_point():
        raise UserError(
            f"expected 'skipped' of {name!r} to be an integer tensor, got {skipped!r:.80}"
        )
    return {key: value.clone() for key, value in state.items()}, skipped.clone()


def _as_tensor(value: Any) -> Any:
    """A list of numbers as a vector; anything else as it is."""
    if isinstance(value, list) and all(isinstance(one, float) for one in value):
        return torch.tensor(value, dtype=torch.float64)
    return value


def fits(state: State, fresh: State) -> bool:
    """Whether a state has the form of a fresh one; an entry that begins empty may have grown."""
    return state.keys() == fresh.keys() and all(
        value.is_floating_point() == fresh[key].is_floating_point()
        and value.dim() == fresh[key].dim()
        and (value.shape == fresh[key].shape or fresh[key].numel() == 0)
        for key, value in state.items()
    )
