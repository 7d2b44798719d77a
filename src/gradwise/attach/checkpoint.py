"""Transform state inside the optimizer's own checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

PREFIX = "gradwise:"


class CheckpointHooks:
    """Lets tensors ride in `optimizer.state_dict()` and back.

    They ride as extra entries of the first parameter group, because that is what survives every
    way in which people save optimizers: an optimizer without gradwise carries them along, one that
    is attached after loading finds them, and tools that flatten state see plain tensors.

    Args:
        optimizer: where the hooks go.
        save: gives the tensors to save.
        load: takes loaded tensors; returns False where they belong to something else.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        save: Callable[[], dict[str, Tensor]],
        load: Callable[[dict[str, Tensor]], bool],
    ) -> None:
        self._save = save
        self._load = load
        self._handles = [
            optimizer.register_state_dict_post_hook(self._on_save),
            optimizer.register_load_state_dict_pre_hook(self._on_load),
        ]
        if optimizer.param_groups:
            first = optimizer.param_groups[0]
            self._take({key: first.pop(key) for key in list(first) if _is_ours(key)})

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _on_save(self, optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
        if state_dict["param_groups"]:
            tensors = {PREFIX + key: value for key, value in self._save().items()}
            state_dict["param_groups"][0].update(tensors)

    def _on_load(
        self, optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]
    ) -> dict[str, Any]:
        groups = [dict(group) for group in state_dict["param_groups"]]
        if groups:
            self._take({key: groups[0].pop(key) for key in list(groups[0]) if _is_ours(key)})
        return {**state_dict, "param_groups": groups}

    def _take(self, found: dict[str, Any]) -> None:
        tensors = {key.removeprefix(PREFIX): torch.as_tensor(v) for key, v in found.items()}
        if tensors and not self._load(tensors):
            names = sorted({key.split(":")[0] for key in tensors})
            warnings.warn(
                f"the checkpoint holds state of {', '.join(names)}, which is not what is attached: "
                "the transforms begin anew",
                stacklevel=4,
            )


def _is_ours(key: object) -> bool:
    return isinstance(key, str) and key.startswith(PREFIX)
