"""Where the tensors of one parameter group lie, in the form that the kernels of update.c read."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from gradwise.backends.launch import PIECE, addresses, integers
from gradwise.backends.update_inputs import (
    KERNELS,
    PLAIN,
    REDUCED,
    TYPES,
    Fold,
    check,
    lies,
    order_of,
    same_structure,
    structure_of,
    takes,
)
from gradwise.layout import Layout

NUMBERS = 8  # most numbers of a method
_HOST, _SMALL = torch.device("cpu"), (torch.float32, torch.float64)
CONSTANTS = 16  # doubles a tensor that the kernels keep between counting and updating
_STEP_WIDE, _SCALAR_WIDE = 1, 2  # flags of `wide`: 0-d states are float64 instead of float32


class _Work(ctypes.Structure):
    """`struct work` of update.c."""

    _fields_ = (
        *[(name, ctypes.c_void_p) for name in ("param", "grad", "first", "second")],
        *[(name, ctypes.c_void_p) for name in ("step", "scalar", "type", "wide")],
        *[(name, ctypes.c_void_p) for name in ("length", "segment", "begin")],
        *[(name, ctypes.c_void_p) for name in ("owner", "start", "stop")],
        *[(name, ctypes.c_void_p) for name in ("partial", "constant", "option")],
        *[(name, ctypes.c_void_p) for name in ("scale", "shift")],
        *[(name, ctypes.c_int64) for name in ("scales", "shifts", "kind")],
    )


class Plan:
    """Tables of addresses and sizes for the kernels, made where tensors have changed.

    Raises:
        ValueError: where the lists differ in length or are not those of the method.
    """

    def __init__(
        self,
        kind: str,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        buffers: Sequence[Sequence[Tensor]],
        steps: Sequence[Tensor],
        fold: Fold | None,
    ) -> None:
        self.signature = signature = KERNELS[kind]
        self.reduces = kind in REDUCED
        self._fold = structure_of(fold)
        shaped = buffers[: len(buffers) - signature.scalars]
        scalars = buffers[len(shaped) :]
        check(signature, params, grads, shaped, scalars, steps, fold)
        for state in chain(steps, *scalars):
            if state.dim() or state.dtype not in _SMALL or state.device != _HOST:
                raise ValueError("expected 0-d float32 or float64 tensors in host memory")
        rows = [1] * len(params) if fold is None else [fold[1].rows[i] for i in fold[2]]
        self.held = [*chain(params, *buffers, steps)]
        self._lies = [t.data_ptr() for t in self.held]
        self.numels = [param.numel() for param in params]
        self._dtypes = [param.dtype for param in params]
        self._orders = [order_of(param) for param in params]
        self._plain = all(order == PLAIN for order in self._orders)
        states = [[buffer[i] for buffer in shaped] for i in range(len(params))]
        self._states, self._rows = states, rows
        fits = [takes(*each) for each in zip(params, grads, states, rows, strict=True)]
        self.taken = [i for i, fit in enumerate(fits) if fit]
        self._left = [i for i, fit in enumerate(fits) if not fit]
        self.params = [params[i] for i in self.taken]
        self._tables(grads, shaped, scalars, steps, fold)

    @property
    def left(self) -> list[int]:
        """The places of what the kernels cannot take."""
        return [*self._left]

    @property
    def work(self) -> tuple[int]:
        """The address that the kernels take."""
        return (ctypes.addressof(self._work),)

    def fits(self, grads: Sequence[Tensor], fold: Fold | None) -> bool:
        """Whether the tables still hold; takes over where the gradients lie now.

        Args:
            grads: one a parameter.
            fold: the map of this step.
        """
        if self._lies != [t.data_ptr() for t in self.held] or not same_structure(fold, self._fold):
            return False
        count = len(self.numels)
        if self._left:
            for i in self._left:
                if takes(self.held[i], grads[i], self._states[i], self._rows[i]):
                    return False
            grads = [grads[i] for i in self.taken]
            fit = all(
                takes(self.held[i], grad, self._states[i], self._rows[i])
                for i, grad in zip(self.taken, grads, strict=True)
            )
        elif self._plain:
            fit = (
                [g.numel() for g in grads] == self.numels
                and [g.dtype for g in grads] == self._dtypes
                and [g.is_contiguous() for g in grads].count(True) == count
                and [g.is_neg() for g in grads].count(False) == count
            )
        else:
            fit = all(
                g.numel() == n and g.dtype == dtype and lies(g, order) and not g.is_neg()
                for g, n, dtype, order in zip(
                    grads, self.numels, self._dtypes, self._orders, strict=True
                )
            )
        if fit:
            self._grad[:] = [g.data_ptr() for g in grads]
        return fit

    def set(
        self,
        lr: float | Tensor,
        coupled: float | Tensor,
        decoupled: float | Tensor,
        maximize: bool,
        numbers: Sequence[float | Tensor],
        cosine: Tensor | None,
        fold: Fold | None,
    ) -> None:
        """Hand over what belongs to this step alone; see `Update`.

        Raises:
            ValueError: where there are not as many numbers as the method has.
        """
        if len(numbers) != len(self.signature.numbers):
            raise ValueError(f"expected the numbers {self.signature.numbers}, got {numbers}")
        given = (lr, coupled, decoupled, maximize, cosine is not None, cosine, *numbers)
        for i, value in enumerate(given):
            if isinstance(value, Tensor):  # copied, not read: nothing waits where it is a device's
                self._options[i].copy_(value.detach())
            elif value is not None:
                self._option[i] = value
        scale = None if fold is None else _vector(fold[0].scale, fold[1])
        shift = None if fold is None else _vector(fold[0].shift, fold[1])
        self._map = (scale, shift)  # kept while the kernels read them
        self._work.scale = None if scale is None else scale.data_ptr()
        self._work.shift = None if shift is None else shift.data_ptr()
        self._work.scales = int(scale is not None and scale.dim() > 0)
        self._work.shifts = int(shift is not None and shift.dim() > 0)

    def sums(self) -> Tensor:
        """float64 [3, taken]: what the kernels have summed over each tensor's pieces."""
        pieces = torch.frombuffer(self._partial, dtype=torch.float64).view(-1, 3)
        out = torch.zeros(len(self.taken), 3, dtype=torch.float64)
        owners = torch.tensor([*self._owner], dtype=torch.int64)
        return out.index_add_(0, owners, pieces[: len(owners)]).t()

    def _tables(
        self,
        grads: Sequence[Tensor],
        shaped: Sequence[Sequence[Tensor]],
        scalars: Sequence[Sequence[Tensor]],
        steps: Sequence[Tensor],
        fold: Fold | None,
    ) -> None:
        taken = self.taken
        numels = [self.numels[i] for i in taken]
        nothing = (ctypes.c_uint64 * len(taken))()

        def column(lists: Sequence[Sequence[Tensor]], which: int) -> Any:
            if len(lists) <= which or not lists[which]:
                return nothing
            return addresses([lists[which][i] for i in taken])

        counts = [range(0, numel, PIECE) for numel in numels]
        pieces = [(t, at) for t, starts in enumerate(counts) for at in starts]
        stops = [min(at + PIECE, numels[t]) for t, at in pieces]
        begins = [0]
        for starts in counts:
            begins.append(begins[-1] + len(starts))
        segments = [-1] * len(taken)
        if fold is not None:
            affine, layout, places = fold
            for t, i in enumerate(taken):
                if affine.touched is None or affine.touched[places[i]]:
                    segments[t] = layout.offsets[places[i]]
        wide = [
            _STEP_WIDE * (bool(steps) and steps[i].dtype == torch.float64)
            | _SCALAR_WIDE * (bool(scalars) and scalars[0][i].dtype == torch.float64)
            for i in taken
        ]
        lengths = [max(n // self._rows[i], 1) for i, n in zip(taken, numels, strict=True)]
        self.values, self.pieces = sum(numels), len(pieces)
        self._grad = column((grads,), 0)
        self._owner = integers([t for t, _ in pieces])
        self._partial = (ctypes.c_double * (3 * max(len(pieces), 1)))()
        self._options = torch.zeros(6 + NUMBERS, dtype=torch.float64)
        self._option = (ctypes.c_double * (6 + NUMBERS)).from_address(self._options.data_ptr())
        self._arrays = {
            "param": addresses(self.params),
            "grad": self._grad,
            "first": column(shaped, 0),
            "second": column(shaped, 1),
            "step": column((steps,), 0),
            "scalar": column(scalars, 0),
            "type": integers([TYPES[self._dtypes[i]] for i in taken]),
            "wide": integers(wide),
            "length": integers(lengths),
            "segment": integers(segments),
            "begin": integers(begins),
            "owner": self._owner,
            "start": integers([at for _, at in pieces]),
            "stop": integers(stops),
            "partial": self._partial,
            "constant": (ctypes.c_double * (CONSTANTS * max(len(taken), 1)))(),
            "option": self._option,
        }
        where = {name: ctypes.addressof(array) for name, array in self._arrays.items()}
        self._work = _Work(**where, kind=self.signature.code)


def _vector(vector: Tensor | None, layout: Layout) -> Tensor | None:
    """A map's numbers as the kernels read them: float64, one for all or one a segment."""
    if vector is None:
        return None
    if vector.dim() and vector.numel() != layout.segments:
        raise ValueError("the map is not one of the layout")
    return vector.detach().to("cpu", torch.float64).contiguous()
