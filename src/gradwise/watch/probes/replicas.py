"""Whether DistributedDataParallel reduces the gradients of some parameters, and over how many."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterable, Iterator, Sequence

import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class Replicas:
    """Finds the `DistributedDataParallel` that reduces the gradients of given parameters.

    It marks neither the parameters nor the modules that it takes care of, and may be made before or
    after the optimizer, so it is looked for: among the modules of `model`, then among all objects
    that the garbage collector knows, which takes a tenth of a second in a large program. So the
    search is only made where processes have been joined, once where it finds something, and at ever
    longer intervals where it does not.

    Args:
        params: the parameters in question.
        model: where to look first.
    """

    def __init__(self, params: Sequence[Tensor], model: nn.Module | None = None) -> None:
        self._params = params
        self._model = None if model is None else weakref.ref(model)
        self._found: list[weakref.ref[DistributedDataParallel]] = []
        self._asked = 0  # since the last find
        self._next = 1  # the asking that searches

    @property
    def joined(self) -> bool:
        """Whether this process is one of several, whatever they do with their gradients."""
        return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1

    def size(self) -> int | None:
        """The number of processes over which all gradients are averaged during backward.

        Returns:
            1 where that does not happen; None where it happens to some of the parameters only, or
            over groups of different sizes.
        """
        if not self.joined:
            return 1
        wrappers = [wrapper for ref in self._found if (wrapper := ref()) is not None]
        if not wrappers or len(wrappers) < len(self._found):
            wrappers = self._search()
        sizes = {id(p): w.process_group.size() for w in wrappers for p in _reduced(w)}
        found = {sizes.get(id(p), 1) for p in self._params if p.requires_grad}
        if not found:
            return 1
        return found.pop() if len(found) == 1 else None

    def _search(self) -> list[DistributedDataParallel]:
        self._found.clear()
        self._asked += 1
        if self._asked < self._next:
            return []
        ours = {id(p) for p in self._params}
        for candidates in (self._modules(), _everything()):
            wrappers = [w for w in candidates if any(id(p) in ours for p in _reduced(w))]
            if wrappers:
                self._asked, self._next = 0, 1
                self._found = [weakref.ref(w) for w in wrappers]
                return wrappers
        self._next *= 2
        return []

    def _modules(self) -> Iterator[DistributedDataParallel]:
        model = None if self._model is None else self._model()
        return _wrappers(() if model is None else model.modules())


def _everything() -> Iterator[DistributedDataParallel]:
    return _wrappers(gc.get_objects())


def _wrappers(objects: Iterable[object]) -> Iterator[DistributedDataParallel]:
    for thing in objects:
        # By its type: asking a foreign object for its class may run code of its own.
        if issubclass(type(thing), DistributedDataParallel):
            yield thing  # type: ignore[misc]  # which mypy cannot conclude from the type's type


def _reduced(wrapper: DistributedDataParallel) -> Iterator[Tensor]:
    ignored = getattr(wrapper, "parameters_to_ignore", ())
    for name, param in wrapper.module.named_parameters():
        if name not in ignored:
            yield param
