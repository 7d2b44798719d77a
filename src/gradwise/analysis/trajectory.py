"""Where training goes: trajectory maps, angles, lengths, and training norm layers alone.

Singh, He, Hofmann, Schoelkopf, The Directionality of Optimization Trajectories in Neural Networks,
ICLR 2025, https://arxiv.org/abs/2403.07379.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from torch import Tensor, nn

from gradwise.analysis._checkpoints import Entry, FolderStore, MemoryStore, layout
from gradwise.analysis._hallmarks import Angles, TrajectoryMap, TrajectoryReport, report_of
from gradwise.analysis._norms_only import NormsOnly, freeze_all_but_norms
from gradwise.analysis._products import Products, accumulate, grown, mirror, width_of
from gradwise.errors import UserError

__all__ = [
    "Angles",
    "NormsOnly",
    "TrajectoryMap",
    "TrajectoryRecorder",
    "TrajectoryReport",
    "freeze_all_but_norms",
]

Weights = nn.Module | Mapping[str, Tensor]
Progress = Callable[[int, int], None]


class TrajectoryRecorder:
    """Records checkpoints of a model and reports the hallmarks of its trajectory.

    `add` keeps a copy of the parameters, in their own dtypes, and computes nothing. `report` reads
    all copies once, a piece of a parameter at a time, and accumulates two n x n Gram matrices a
    layer in float64 (as seen from the origin and from theta_0); a later report computes only the
    rows that are new. Held at once: `memory` bytes of pieces and the Gram matrices of the model
    and of one layer, 32 n^2 bytes; in memory, all copies and 16 n^2 bytes a layer besides.

    With a folder, a checkpoint takes the bytes of the parameters on disk, and a recorder that is
    made again for the same folder goes on where the last one ended; one recorder at a time.

    Buffers, such as running statistics, are no part of the trajectory; frozen parameters are, and
    a parameter that the model uses twice counts once. Parameters that are sharded over processes
    have to be gathered first: `add` takes a mapping too.

    Args:
        model: whose named parameters are recorded, or the tensors themselves by name. It is looked
            at, not kept.
        folder: where checkpoints go, made where missing; None keeps them in memory.
        layers: maps a parameter's name to its layer's; None takes the module that it belongs to.
        memory: bytes for pieces of parameters, >= 1.

    Raises:
        UserError: where there are no parameters, one is not of real floating-point numbers, the
            folder holds something else, a file in it is damaged, or memory < 1.

    Examples:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> recorder = TrajectoryRecorder(model)
        >>> for weights in ([[1.0, 0.0]], [[1.0, 1.0]], [[0.0, 1.0]]):
        ...     model.weight.data = torch.tensor(weights)
        ...     recorder.add(model)
        >>> report = recorder.report()
        >>> report.map.cosines
        tensor([[1.0000, 0.7071, 0.0000],
                [0.7071, 1.0000, 0.7071],
                [0.0000, 0.7071, 1.0000]], dtype=torch.float64)
        >>> report.path_length, round(report.efficiency, 4), round(report.turns.mean, 4)
        (2.0, 0.7071, 1.5708)
    """

    def __init__(
        self,
        model: Weights,
        *,
        folder: str | os.PathLike[str] | None = None,
        layers: Callable[[str], str] | None = None,
        memory: int = 2**28,
    ) -> None:
        if memory < 1:
            raise UserError(f"expected memory >= 1, got memory={memory}")
        self._entries = layout(_tensors(model))
        self._memory = memory
        self._layers: dict[str, list[Entry]] = {}
        for entry in self._entries:
            name = _module_of(entry.name) if layers is None else layers(entry.name)
            self._layers.setdefault(name, []).append(entry)
        self._store: MemoryStore | FolderStore = (
            MemoryStore() if folder is None else FolderStore(Path(folder), self._entries)
        )

    def __len__(self) -> int:
        return len(self._store.steps)

    def __repr__(self) -> str:
        return f"TrajectoryRecorder({len(self)} checkpoints of {len(self._entries)} parameters)"

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of layers, in the order of the model."""
        return tuple(self._layers)

    @property
    def steps(self) -> tuple[float, ...]:
        """Where in training the checkpoints are from."""
        return tuple(self._store.steps)

    def add(self, model: Weights, step: float | None = None) -> None:
        """Record a checkpoint.

        Args:
            model: the model, or another one or a mapping with the same parameters.
            step: where in training this is, in any unit, above the last one's; None is 1 more
                than the last one's, from 0.

        Raises:
            UserError: where a parameter is missing, has another shape or dtype, or has NaN or
                infinite entries, or where the step is not above the last one. Nothing is recorded
                then.
            OSError: where it cannot be written; the checkpoints before stay.
        """
        steps = self._store.steps
        last = steps[-1] if steps else -math.inf
        at = float(step) if step is not None else last + 1 if steps else 0.0
        if not last < at < math.inf:
            raise UserError(
                f"expected a step above the last checkpoint's {last:g}, got step={at:g}: "
                "rewind() forgets checkpoints that are to be made anew"
            )
        tensors = _tensors(model)
        found = []
        for entry in self._entries:
            tensor = tensors.get(entry.name)
            if tensor is None:
                raise UserError(f"expected a parameter {entry.name}, the model has none")
            if tuple(tensor.shape) != entry.shape or tensor.dtype != entry.dtype:
                raise UserError(
                    f"expected {entry.name} to be {entry.shape} of {entry.dtype}, got "
                    f"{tuple(tensor.shape)} of {tensor.dtype}"
                )
            if not bool(tensor.isfinite().all()):
                raise UserError(f"expected finite parameters, {entry.name} has NaN or infinity")
            found.append(tensor)
        self._store.append(at, found)

    def rewind(self, count: int) -> None:
        """Forget all but the first checkpoints, for a training that goes on from an earlier one.

        Args:
            count: how many to keep, 0 <= count <= len(self).

        Raises:
            UserError: where count is out of its bounds.
        """
        if not 0 <= count <= len(self):
            raise UserError(f"expected 0 <= count <= {len(self)}, got count={count}")
        if count < len(self):
            self._store.cut(count)

    def report(
        self, layer: str | None = None, *, progress: Progress | None = None
    ) -> TrajectoryReport:
        """The hallmarks of the checkpoints so far.

        Args:
            layer: one of `layers`; None is the whole model.
            progress: called with the parameters' entries gone through, and how many there are.

        Raises:
            UserError: where there is no checkpoint or no such layer, or products of parameters are
                too large for float64.
        """
        if layer is not None and layer not in self._layers:
            raise UserError(f"expected layer to be one of {', '.join(self.layers)}, got {layer!r}")
        names = self.layers if layer is None else (layer,)
        total: Products | None = None
        for products in self._all(names, progress):
            total = products if total is None else total + products
        assert total is not None
        return report_of(total, self.steps, layer)

    def layer_reports(self, *, progress: Progress | None = None) -> Iterator[TrajectoryReport]:
        """A report for each layer, one at a time.

        Args:
            progress: see `report`.

        Raises:
            UserError: see `report`.
        """
        for name, products in zip(self.layers, self._all(self.layers, progress), strict=True):
            yield report_of(products, self.steps, name)

    def _all(self, names: tuple[str, ...], progress: Progress | None) -> Iterator[Products]:
        if not len(self):
            raise UserError("expected at least 1 checkpoint, none was added")
        done, total = 0, sum(e.numel for name in names for e in self._layers[name])
        for name in names:
            products = self._products(self._layers[name])
            done += sum(e.numel for e in self._layers[name])
            if progress is not None:
                progress(done, total)
            yield products

    def _products(self, entries: list[Entry]) -> Products:
        """The products of a layer, complete."""
        count = len(self)
        # A name that a layer of other parameters does not share.
        key = hashlib.sha256("\n".join(e.name for e in entries).encode()).hexdigest()[:16]
        known = Products.of_flat(self._store.load(key), count)
        if known.count == count:
            return known
        products = grown(known, count)
        for entry in entries:

            def read(index: int, start: int, out: Tensor, entry: Entry = entry) -> None:
                self._store.read(index, entry, start, out)

            width = width_of(self._memory, count)
            accumulate(products, known.count, entry.numel, width, read)
        products = mirror(products)
        if not all(bool(p.isfinite().all()) for p in (products.origin, products.start)):
            raise UserError("expected parameters whose squares fit into float64, some do not")
        self._store.save(key, products.flat())
        return products


def _tensors(model: Weights) -> dict[str, Tensor]:
    items = model.named_parameters() if isinstance(model, nn.Module) else model.items()
    return {name: tensor.detach() for name, tensor in items}


def _module_of(name: str) -> str:
    return name.rpartition(".")[0] or name
