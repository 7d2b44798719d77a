"""Where the tensors of one parameter group lie, in the form that the update kernels read."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, pairwise
from operator import is_

import torch
from torch import Tensor

from gradwise.backends.gpu.tables import (
    ALIGNED,
    LEFT,
    TYPES,
    Chunks,
    Table,
    how_it_lies,
    to_device,
)
from gradwise.backends.update_inputs import (
    PLAIN,
    Fold,
    lies,
    order_of,
    same_structure,
    structure_of,
)

BLOCK = 2048  # values of a parameter that a program holds at once
OPTIONS = 16  # numbers before the counts
_HOST = torch.device("cpu")


class Plan:
    """The tables of one group, for tensors that lie as they do now."""

    def __init__(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        buffers: Sequence[Sequence[Tensor]],
        steps: Sequence[Tensor],
        fold: Fold | None,
        there: bool,
    ) -> None:
        self.held = [*chain(params, *buffers, steps)]
        self.device = device = params[0].device
        self.fold = structure_of(fold)
        self.numels = [param.numel() for param in params]
        self.rows = [1] * len(params) if fold is None else [fold[1].rows[i] for i in fold[2]]
        self.orders = [order_of(param) for param in params]
        each = zip(*buffers, strict=True) if buffers else [()] * len(params)
        self.fit = [
            _fits(param, states, rows, device)
            for param, states, rows in zip(params, each, self.rows, strict=True)
        ]
        self.there = there and bool(steps)
        where, kinds = (
            (device, (torch.float32,)) if there else (_HOST, (torch.float32, torch.float64))
        )
        if any(s.device != where or s.dtype not in kinds or s.dim() for s in steps):
            self.fit = [False] * len(params)
        self.states = len(buffers)
        self.own = self._own()
        self.lies = self.how(grads)
        state = [b.dtype for b in buffers[0]] if buffers else [p.dtype for p in params]
        mapped = [0] * len(params)
        if fold is not None:
            affine, _, places = fold
            mapped = [int(affine.touched is None or affine.touched[i]) for i in places]
        self.mapped = to_device(torch.tensor(mapped, dtype=torch.int32), device)
        self.chunks = Chunks(
            self.numels,
            self.rows,
            [0] * len(params) if fold is None else [fold[1].offsets[i] for i in fold[2]],
            [(param.dtype, kind) for param, kind in zip(params, state, strict=True)],
            self.lies,
            1 if fold is None else fold[1].segments,
            BLOCK,
            device,
        )
        self.addresses = Table(5 * len(params), torch.int64, device)
        self.options = Table(OPTIONS + len(params), torch.float64, device)

    def still_fits(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        buffers: Sequence[Sequence[Tensor]],
        steps: Sequence[Tensor],
        fold: Fold | None,
    ) -> bool:
        """Whether the tables hold for these tensors, whose addresses may be others."""
        held = [*chain(params, *buffers, steps)]
        if len(held) != len(self.held) or not len(grads) == len(params) == len(self.numels):
            return False
        return (
            same_structure(fold, self.fold)
            and len(buffers) == self.states
            and all(map(is_, held, self.held))
            and self._own() == self.own
            and self.how(grads) == self.lies
        )

    def how(self, grads: Sequence[Tensor]) -> tuple[int, ...]:
        """How each parameter lies, with its gradient and states."""
        found = []
        for i, grad in enumerate(grads):
            how = LEFT
            param = self.held[i]
            if self.fit[i] and grad.shape == param.shape and lies(grad, self.orders[i]):
                how = how_it_lies(grad, self.numels[i], param.dtype, self.rows[i], self.device)
                how = min(how, self.own[i])
            found.append(how)
        return tuple(found)

    def _own(self) -> list[int]:
        """How parameters and states lie; only `LEFT` and `ALIGNED` are looked up."""
        count = len(self.numels)
        shaped = self.held[: count * (1 + self.states)]
        odd = {i % count for i, tensor in enumerate(shaped) if tensor.data_ptr() % 16}
        return [ALIGNED - 1 if i in odd else ALIGNED for i in range(count)]

    def where(self, grads: Sequence[Tensor]) -> Tensor:
        """The addresses: parameters, gradients, two states, counts."""
        count = len(grads)
        found = [[0] * count for _ in range(5)]
        for i, how in enumerate(self.lies):
            if how == LEFT:
                continue
            found[0][i], found[1][i] = self.held[i].data_ptr(), grads[i].data_ptr()
            for k in range(self.states):
                found[2 + k][i] = self.held[(1 + k) * count + i].data_ptr()
            if self.there:
                found[4][i] = self.held[(1 + self.states) * count + i].data_ptr()
        return self.addresses([*chain(*found)])


def _fits(param: Tensor, states: Sequence[Tensor], rows: int, device: torch.device) -> bool:
    """Whether kernels can go through a parameter and its states side by side."""
    order = order_of(param)
    if param.dtype not in TYPES or param.device != device or param.numel() == 0:
        return False
    if how_it_lies(param, param.numel(), param.dtype, rows, device) == LEFT:
        return False
    if order not in range(PLAIN, PLAIN + 4) or not lies(param, order):
        return False
    kinds = {state.dtype for state in states}
    if len(kinds) > 1 or not kinds <= {param.dtype, torch.float32}:
        return False
    for state in states:
        if state.shape != param.shape or not lies(state, order):
            return False
        if how_it_lies(state, param.numel(), state.dtype, rows, device) == LEFT:
            return False
    everything = (param, *states)
    ends = sorted((t.data_ptr(), t.data_ptr() + t.numel() * t.element_size()) for t in everything)
    return all(low[1] <= high[0] for low, high in pairwise(ends))
