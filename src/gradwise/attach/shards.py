"""Gradients that are spread over processes: what is here, and the whole that decisions are about.

A transform decides on whole tensors: the mean of a layer is that of all its shards, the global norm
that of all layers, wherever they are. So each process measures its shards, one small all-reduce a
device mesh adds up count, sum and sum of squares of every segment, and the map that comes out is
applied to the shards. Gradients are never gathered. Where extremes are wanted as well (somebody
watches), a second one takes their maximum.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gradwise.affine import Affine
from gradwise.attach.agreement import agree
from gradwise.attach.placement import Placement, Ring, placement_of
from gradwise.errors import UserError
from gradwise.layout import Layout, Per
from gradwise.moments import Moments
from gradwise.transforms import State

Replicated = Callable[[str], bool]

_SUMS = ("count", "sum", "sumsq", "nonfinite", "zeros")


@dataclass(frozen=True)
class Spread:
    """Which processes hold other parameters than this one, beyond what DTensors say of themselves.

    Attributes:
        group: they and this one; None where all plain parameters are equal everywhere.
        replicated: says by name which plain parameters are equal on all of them; None for none.
    """

    group: Any = None
    replicated: Replicated | None = None


class Shards:
    """How an optimizer's parameters are spread over processes, found out once.

    Making one is a collective call where `spread` has a group.

    Args:
        params: the optimizer's, in its order.
        names: one a parameter.
        per: what a segment is.
        spread: which processes hold other parameters.

    Attributes:
        layout: of the whole tensors, those of other processes among them.
        met: whether the processes have agreed on a state to begin with.

    Raises:
        UserError: where a placement is not supported or the processes do not fit together.
    """

    def __init__(
        self, params: Sequence[Tensor], names: Sequence[str], per: Per, spread: Spread
    ) -> None:
        self._places = [placement_of(p, n) for p, n in zip(params, names, strict=True)]
        own = [
            _Whole.of(n, p, place) for n, p, place in zip(names, params, self._places, strict=True)
        ]
        self._at = list(range(len(own)))  # of the own tensors among all
        self._given: tuple[int, ...] = ()  # those that this process speaks for in its group
        self._stages: Ring | None = None  # the group
        listed = own
        if spread.group is not None:
            listed, self._at, gives = _exchange(own, spread)
            self._given = tuple(at for at, mine in zip(self._at, gives, strict=True) if mine)
            size = dist.get_world_size(spread.group)
            self._stages = Ring(spread.group, size, "the parameters of process_group")
        self.layout = _layout_of_wholes(listed, per)
        self._rings: dict[Ring, list[int]] = {}
        for i, place in enumerate(self._places):
            if place.ring is not None and place.sharded:
                self._rings.setdefault(place.ring, []).append(i)
        self._all_rings = [*self._rings, *([] if self._stages is None else [self._stages])]
        self._agreed: set[Ring] = set()  # whose processes all want extremes
        self._warned = False
        self.met = False

    def meet(self, known: bool, state: State, skipped: Tensor) -> tuple[State, Tensor]:
        """The state and the steps skipped that all processes go on from; a collective call.

        Args:
            known: whether they are more than a beginning here.
            state: the transforms'.
            skipped: 0-d.
        """
        self.met = True
        *values, skipped = agree(self._all_rings, known, [*state.values(), skipped])
        return dict(zip(state, values, strict=True)), skipped

    def local(self, grads: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The parts of the gradients that are here, in the memory of the gradients themselves.

        Raises:
            UserError: where a gradient is placed otherwise than its parameter.
        """
        return [
            None if grad is None else place.part(grad)
            for grad, place in zip(grads, self._places, strict=True)
        ]

    def whole(self, parts: Moments, extremes: bool) -> Moments:
        """The moments of whole tensors from those of the parts here; a collective call.

        Args:
            parts: of `local`; those of the parameters, where it has any, ride along.
            extremes: whether extremes and zeros are wanted. They come as soon as all processes
                want them, and from then on take a second all-reduce at every step, wanted or not:
                processes that disagree about how many there are would wait for each other.
        """
        index, params = self._index(parts.layout), parts.params
        both = [parts] if params is None else [parts, params]
        sums = torch.cat([self._sums(one, index) for one in both], 1)
        sums = self._sum(sums, extremes)
        span = self._span(parts, index) if self._agreed else None
        agreed = extremes and all(ring in self._agreed for ring in self._all_rings)
        if extremes and not agreed and not self._warned:
            self._warned = True
            warnings.warn(
                "min, max and zeros of sharded gradients are left out until all processes want "
                "them: call gradwise.watch on every process",
                stacklevel=2,
            )
        found = [
            _moments(self.layout, part, span if agreed and one is parts else None)
            for one, part in zip(both, torch.split(sums, len(_SUMS), 1), strict=True)
        ]
        return found[0] if params is None else replace(found[0], params=found[1])

    def part(self, affine: Affine, layout: Layout) -> Affine:
        """The map of whole tensors for their parts here.

        Args:
            affine: of the segments of `self.layout`.
            layout: of the parts.
        """
        index = self._index(layout)
        scale, shift = (
            v if v is None or v.dim() == 0 else v.index_select(0, index.to(v.device))
            for v in (affine.scale, affine.shift)
        )
        touched, shifted = (
            None if flags is None else tuple(flags[i] for i in self._at)
            for flags in (affine.touched, affine.shifted)
        )
        return Affine(scale, shift, touched, shifted)

    def _index(self, layout: Layout) -> Tensor:
        """int64 [S of the parts]: which segment of the whole each one belongs to."""

        def make() -> Tensor:
            return torch.tensor(list(self._segments(layout)), dtype=torch.int64)

        return layout.cached((id(self), "index"), make)

    def _segments(self, layout: Layout) -> Iterator[int]:
        for i, (place, at) in enumerate(zip(self._places, self._at, strict=True)):
            start = self.layout.offsets[at]
            if layout.rows[i] == 1 and self.layout.rows[at] != 1:
                yield start + place.first_row_within(self.layout.rows[at])
            else:
                first = place.first_row if self.layout.rows[at] != 1 else 0
                yield from range(start + first, start + first + layout.rows[i])

    def _mask(self, layout: Layout, device: torch.device) -> Tensor:
        """Flags [S of the parts, 1]: whose values this process adds to the sums of its mesh."""
        which = [place.counts for place in self._places]
        return layout.mask(which, device, torch.bool)[:, None]

    def _sums(self, parts: Moments, index: Tensor) -> Tensor:
        count = parts.count.to(parts.mean.dtype)
        total = count * parts.mean
        zeros = torch.zeros_like(count) if parts.zeros is None else parts.zeros.to(count)
        columns = (count, total, parts.m2 + total * parts.mean, parts.nonfinite.to(count), zeros)
        own = torch.where(self._mask(parts.layout, count.device), torch.stack(columns, 1), 0.0)
        whole = own.new_zeros(self.layout.segments, len(_SUMS))
        return whole.index_add_(0, index.to(own.device), own)

    def _sum(self, sums: Tensor, extremes: bool) -> Tensor:
        """[S, k] added up over all processes, who also say whether they want extremes."""
        flags = sums.new_zeros(1, sums.shape[1])
        flags[0, 0] = float(extremes)
        for ring, tensors in self._rings.items():
            rows = self._rows(tuple(self._at[i] for i in tensors), sums.device)
            told = ring.all_reduce(torch.cat([sums[rows], flags]), dist.ReduceOp.SUM)
            sums = sums.index_copy(0, rows, told[:-1])
            self._agree(ring, told, extremes)
        if self._stages is not None:
            # Every segment is complete where somebody speaks for it; the others add nothing.
            rows = self._rows(self._given, sums.device)
            whole = torch.zeros_like(sums).index_copy(0, rows, sums[rows])
            told = self._stages.all_reduce(torch.cat([whole, flags]), dist.ReduceOp.SUM)
            sums = told[:-1]
            self._agree(self._stages, told, extremes)
        return sums

    def _agree(self, ring: Ring, told: Tensor, extremes: bool) -> None:
        # Read on the host only by who wants extremes and does not know of the others yet.
        if extremes and ring not in self._agreed and int(told[-1, 0]) == ring.size:
            self._agreed.add(ring)

    def _span(self, parts: Moments, index: Tensor) -> Tensor:
        """[S, 2] of -min and max over all processes that agreed to have them."""
        count = parts.count[:, None]
        span = count.new_full((len(parts), 2), -torch.inf, dtype=parts.mean.dtype)
        if parts.min is not None and parts.max is not None:
            own = torch.stack((-parts.min, parts.max), 1)
            span = torch.where((count > 0) & self._mask(parts.layout, own.device), own, span)
        whole = span.new_full((self.layout.segments, 2), -torch.inf)
        index = index.to(span.device)[:, None].expand_as(span)
        whole = whole.scatter_reduce(0, index, span, "amax")
        for ring, tensors in self._rings.items():
            if ring in self._agreed:
                rows = self._rows(tuple(self._at[i] for i in tensors), span.device)
                part = ring.all_reduce(whole[rows], dist.ReduceOp.MAX)
                whole = whole.index_copy(0, rows, part)
        if self._stages is not None and self._stages in self._agreed:
            whole = self._stages.all_reduce(whole, dist.ReduceOp.MAX)
        return whole

    def _rows(self, tensors: tuple[int, ...], device: torch.device) -> Tensor:
        """The segments of some tensors of the whole."""

        def make() -> Tensor:
            layout = self.layout
            rows = [layout.offsets[i] + r for i in tensors for r in range(layout.rows[i])]
            return torch.tensor(rows, dtype=torch.int64, device=device)

        return self.layout.cached(("rows", tensors, device), make)


@dataclass(frozen=True)
class _Whole:
    """A whole tensor as processes tell each other of it."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    held: tuple[int, ...]  # global ranks that hold it together; () for a plain tensor

    @classmethod
    def of(cls, name: str, param: Tensor, place: Placement) -> _Whole:
        held = () if place.ring is None else place.ring.ranks
        return cls(name, tuple(param.shape), param.dtype, held)


def _exchange(own: list[_Whole], spread: Spread) -> tuple[list[_Whole], list[int], list[bool]]:
    """All whole tensors of a group, where the own ones are among them, and who speaks for them.

    A tensor that several processes hold together, or that is equal on all, is listed once, and the
    first of them speaks for it.
    """
    try:
        size, rank = dist.get_world_size(spread.group), dist.get_rank(spread.group)
        told: list[Any] = [None] * size
        dist.all_gather_object(told, own, group=spread.group)
    except (RuntimeError, ValueError, TypeError) as error:
        raise UserError(f"the processes of process_group cannot be reached: {error}") from error
    listed: list[_Whole] = []
    places: dict[Hashable, int] = {}
    at: list[int] = []
    gives: list[bool] = []
    for r, wholes in enumerate(told):
        for i, one in enumerate(wholes):
            same = bool(one.held) or (spread.replicated is not None and spread.replicated(one.name))
            key = (one.name, one.held) if same else (r, i)
            known = key in places
            if not known:
                places[key] = len(listed)
                listed.append(one)
            elif listed[places[key]] != one:
                first = listed[places[key]]
                raise UserError(
                    f"expected parameter {one.name!r} to be the same on all processes of "
                    f"process_group, got shapes {first.shape} and {one.shape}"
                )
            if r == rank:
                at.append(places[key])
                gives.append(not known)
    counts: dict[str, int] = {}
    for one in listed:
        counts[one.name] = counts.get(one.name, 0) + 1
    owner = {places[key]: key[0] for key in places if isinstance(key, tuple)}
    named = [
        replace(one, name=f"rank{owner[i]}.{one.name}") if counts[one.name] > 1 else one
        for i, one in enumerate(listed)
    ]
    return named, at, gives


def _layout_of_wholes(wholes: Sequence[_Whole], per: Per) -> Layout:
    shapes = tuple(torch.Size(one.shape) for one in wholes)
    numels = tuple(
        shape.numel() * (2 if one.dtype.is_complex else 1)
        for shape, one in zip(shapes, wholes, strict=True)
    )
    rows = tuple(
        shape[0] if per == "row" and len(shape) >= 2 and numel > 0 else 1
        for shape, numel in zip(shapes, numels, strict=True)
    )
    there = (True,) * len(wholes)
    names, dtypes = tuple(one.name for one in wholes), tuple(one.dtype for one in wholes)
    return Layout(names, shapes, numels, rows, there, there, dtypes, shared=True)


def _moments(layout: Layout, sums: Tensor, span: Tensor | None) -> Moments:
    count, total, sumsq, nonfinite, zeros = sums.unbind(1)
    mean = total / count.clamp(min=1)
    m2 = torch.where(count > 0, sumsq - count * mean.square(), 0.0)
    # Rounding may leave less than nothing of values that are all the same; a NaN stays one.
    m2 = torch.where(m2 < 0, 0.0, m2)
    low = high = None
    if span is not None:
        low, high = (torch.where(count > 0, end, 0.0) for end in (-span[:, 0], span[:, 1]))
    return Moments(
        layout,
        count.to(torch.int64),
        mean,
        m2,
        nonfinite.to(torch.int64),
        low,
        high,
        None if span is None else zeros.to(torch.int64),
    )
