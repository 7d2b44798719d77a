"""Watching what a piece of code asks torch to do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import gradwise as gw

# What makes the host wait for a device, or hands it a value: reads, results whose size depends on
# values, and copies of host data.
WAITS = (
    "_local_scalar_dense",
    "item",
    "is_nonzero",
    "equal",
    "nonzero",
    "masked_select",
    "unique",
    "_unique2",
    "bincount",
    "lift_fresh",
    "lift_fresh_copy",
)


class Calls(TorchDispatchMode):
    """Records every call of an aten operation, and how often given tensors are read and written.

    Views cost nothing and are not counted.

    Args:
        watched: dense tensors.

    Attributes:
        names: the operations called, in order.
        waits: those of them that a device cannot be asked without waiting.
        reads: passes over each watched tensor's memory that read it.
        writes: the same for writing.
    """

    def __init__(self, watched: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.names: list[str] = []
        self.waits: list[str] = []
        tensors = list(watched)
        self.reads = [0.0] * len(tensors)
        self.writes = [0.0] * len(tensors)
        self._sizes = [max(t.numel(), 1) for t in tensors]
        self._places = {t.untyped_storage().data_ptr(): i for i, t in enumerate(tensors)}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name in WAITS:
            self.waits.append(name)
        if not func.is_view and name != "detach":
            self.names.append(name)
            self._count(func, name, args, kwargs)
        return func(*args, **kwargs)

    def _count(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> None:
        read: set[tuple[int, int, int]] = set()
        written: set[tuple[int, int, int]] = set()
        for i, argument in enumerate(func._schema.arguments):
            parts = self._parts(args[i] if i < len(args) else kwargs.get(argument.name))
            into = argument.alias_info is not None and argument.alias_info.is_write
            if into:
                written |= parts
            if not into or not (argument.is_out or name in ("copy_", "_foreach_copy_")):
                read |= parts
        for part, total in ((read, self.reads), (written, self.writes)):
            for place, _, numel in part:
                total[place] += numel / self._sizes[place]

    def _parts(self, value: Any) -> set[tuple[int, int, int]]:
        """Which watched tensor, from where, how much of it."""
        found = set()
        for leaf in tree_leaves(value):
            if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
                place = self._places.get(leaf.untyped_storage().data_ptr())
                if place is not None:
                    found.add((place, leaf.data_ptr(), leaf.numel()))
        return found


def watched(attachment: gw.Attachment) -> list[Calls]:
    """The calls of every hook run from now on, one `Calls` each."""
    runs: list[Calls] = []
    inner = attachment._hook._run

    def run() -> None:
        groups = attachment.optimizer.param_groups
        grads = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        with Calls([g for g in grads if g.layout == torch.strided]) as calls:
            inner()
        runs.append(calls)

    attachment._hook._run = run
    return runs
