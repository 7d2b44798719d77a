"""How a list of tensors is cut into the segments that `Moments` describe.

A layout is static: it depends on shapes, on which tensors are there and on which are sparse, never
on values. So whatever a transform has to know about structure (who is eligible, how many values
there are) is known on the host before anything runs, and costs no synchronisation.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Literal, TypeVar, cast

import torch
from torch import Tensor

from gradwise.errors import UserError

Per = Literal["tensor", "row"]
T = TypeVar("T")


def real_view(tensor: Tensor) -> Tensor:
    """The tensor as real numbers: a complex value counts as a pair of reals."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


@dataclass(frozen=True, eq=False)
class Layout:
    """The segments of a list of tensors: one a tensor, or one a row of dimension 0.

    Attributes:
        names: one name a tensor.
        shapes: the tensors' shapes.
        numels: real values in each tensor (a complex value counts two; 0 where there is none).
        rows: segments of each tensor: 1, or `shape[0]` where it is cut into rows.
        dense: False for a sparse tensor.
        present: False where the list holds None.
        dtypes: the tensors' types, None where the list holds None.
        shared: whether other processes hold parts of the tensors, or whole ones. What has a
            gradient at a step is known from the counts then, not from here.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    numels: tuple[int, ...]
    rows: tuple[int, ...]
    dense: tuple[bool, ...]
    present: tuple[bool, ...]
    dtypes: tuple[torch.dtype | None, ...] = ()
    shared: bool = False
    cache: dict[Hashable, object] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.shapes)

    @cached_property
    def segments(self) -> int:
        """The number of segments S."""
        return sum(self.rows)

    @cached_property
    def by_tensor(self) -> bool:
        """Whether every tensor is one segment."""
        return all(row == 1 for row in self.rows)

    @cached_property
    def eligible(self) -> tuple[bool, ...]:
        """The set E of (1.1): dense, at least two dimensions and at least two values.

        Biases and norm-layer parameters stay outside: centring a vector of per-channel gradients
        removes information, and centring a single value removes all of it.
        """
        return tuple(
            dense and len(shape) >= 2 and numel >= 2
            for dense, shape, numel in zip(self.dense, self.shapes, self.numels, strict=True)
        )

    @cached_property
    def segment_numels(self) -> tuple[int, ...]:
        """The number of values in each segment."""
        return tuple(
            numel // rows
            for numel, rows in zip(self.numels, self.rows, strict=True)
            for _ in range(rows)
        )

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where each tensor's segments start."""
        starts, at = [], 0
        for rows in self.rows:
            starts.append(at)
            at += rows
        return tuple(starts)

    @cached_property
    def merged(self) -> Layout:
        """The same tensors with one segment each."""
        if self.by_tensor:
            return self
        ones = (1,) * len(self)
        return self.cached("merged", lambda: replace(self, rows=ones, cache={}))

    def warm(self) -> None:
        """Compute all that is cached, so that nothing is left to compute under torch.compile."""
        for layout in (self, self.merged):
            for name, value in vars(type(layout)).items():
                if isinstance(value, cached_property):
                    getattr(layout, name)

    def count(self, device: torch.device) -> Tensor:
        """int64 [S]: the number of values in each segment."""
        return self._constant("count", device, torch.int64, lambda: self.segment_numels)

    def tensor_of_segment(self, device: torch.device) -> Tensor:
        """int64 [S]: the index of the tensor that each segment belongs to."""

        def values() -> list[int]:
            return [i for i, rows in enumerate(self.rows) for _ in range(rows)]

        return self._constant("tensor", device, torch.int64, values)

    def numel_of(self, which: tuple[bool, ...]) -> int:
        """The number of values in the chosen tensors."""
        return self.cached(
            ("numel", which),
            lambda: sum(n for n, w in zip(self.numels, which, strict=True) if w),
        )

    def mask(self, which: Sequence[bool], device: torch.device, dtype: torch.dtype) -> Tensor:
        """[S] of `dtype`: 1 in the segments of the chosen tensors, 0 elsewhere."""
        which = tuple(which)

        def values() -> list[bool]:
            return [w for w, rows in zip(which, self.rows, strict=True) for _ in range(rows)]

        return self._constant(("mask", which), device, dtype, values)

    def only(self, present: tuple[bool, ...]) -> Layout:
        """The same segments with some tensors not there."""
        if present == self.present:
            return self
        return self.cached(("only", present), lambda: replace(self, present=present, cache={}))

    def of_params(self, dtypes: tuple[torch.dtype | None, ...]) -> Layout:
        """The same segments for the parameters, which are dense where their gradients are not."""
        dense = (True,) * len(self)
        return self.cached(
            ("params", dtypes), lambda: replace(self, dense=dense, dtypes=dtypes, cache={})
        )

    def cached(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returns, made once a layout."""
        if key not in self.cache:
            self.cache[key] = make()
        return cast(T, self.cache[key])

    def _constant(
        self,
        key: Hashable,
        device: torch.device,
        dtype: torch.dtype,
        values: Callable[[], Sequence[float]],
    ) -> Tensor:
        # Copied to the device once a layout; a copy a step would make the host wait.
        return self.cached(
            (key, device, dtype), lambda: torch.tensor(values(), dtype=dtype, device=device)
        )


@lru_cache(maxsize=64)
def _layout(
    names: tuple[str, ...],
    shapes: tuple[torch.Size | None, ...],
    dtypes: tuple[torch.dtype | None, ...],
    sparse: tuple[bool, ...],
    per: Per,
) -> Layout:
    present = tuple(shape is not None for shape in shapes)
    sizes = tuple(torch.Size(()) if shape is None else shape for shape in shapes)
    numels = tuple(
        size.numel() * (2 if dtype.is_complex else 1) if dtype is not None else 0
        for size, dtype in zip(sizes, dtypes, strict=True)
    )
    rows = tuple(
        size[0] if per == "row" and len(size) >= 2 and numel > 0 and not is_sparse else 1
        for size, numel, is_sparse in zip(sizes, numels, sparse, strict=True)
    )
    return Layout(names, sizes, numels, rows, tuple(not s for s in sparse), present, dtypes)


def layout_of(
    tensors: Sequence[Tensor | None], names: Sequence[str] | None = None, per: Per = "tensor"
) -> Layout:
    """The layout of a list of tensors.

    Args:
        tensors: dense or sparse tensors; None stands for one that has no gradient now.
        names: one a tensor; "0", "1", ... where not given.
        per: "tensor" makes one segment a tensor, "row" one for every index of dimension 0 of a
            tensor with two or more dimensions (an output unit of a linear or convolution weight).

    Raises:
        UserError: where names and tensors differ in number, or `per` is neither of the two.
    """
    if per not in ("tensor", "row"):
        raise UserError(f"expected per to be 'tensor' or 'row', got per={per!r}")
    if names is not None and len(names) != len(tensors):
        raise UserError(
            f"expected one name for each of the {len(tensors)} tensors, got {len(names)} names"
        )
    return _layout(
        tuple(names) if names is not None else tuple(map(str, range(len(tensors)))),
        tuple([None if t is None else t.shape for t in tensors]),
        tuple([None if t is None else t.dtype for t in tensors]),
        tuple([t is not None and t.layout != torch.strided for t in tensors]),
        per,
    )
