"""One step's affine map, applied out of place: what an optimizer folds into its update."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradwise.affine import Affine
from gradwise.errors import UserError
from gradwise.layout import Layout, real_view

_WIDE = (torch.float32, torch.float64)


class Fold:
    """A decided map for the gradients of all parameters of an optimizer, by their place.

    Args:
        affine: what the transforms decided, on the gradients' device.
        layout: of all parameters' gradients, in the optimizer's order.
    """

    def __init__(self, affine: Affine, layout: Layout) -> None:
        self.affine = affine
        self.layout = layout
        self._offset: Tensor | None = None  # -scale * shift, so that one call does both
        if affine.scale is not None and affine.shift is not None:
            self._offset = -affine.scale * affine.shift

    def touches(self, i: int) -> bool:
        """Whether the map may change the gradient of parameter i."""
        return self.affine.touched is None or self.affine.touched[i]

    def scale(self, i: int) -> Tensor | None:
        """The factor of gradient i, 0-d or one a row, broadcastable to it; None for 1."""
        return self._part(self.affine.scale, i)

    def shift(self, i: int) -> Tensor | None:
        """What is taken off gradient i before the factor, as `scale`; None for 0."""
        return self._part(self.affine.shift, i) if self.affine.shifts(i) else None

    def __call__(self, i: int, grad: Tensor, wide: bool = False) -> Tensor:
        """The mapped gradient of parameter i: a new tensor, or `grad` where nothing changes it.

        Args:
            i: place of the parameter among those of all groups.
            grad: real or complex, which counts as pairs of reals. Narrow types are mapped in
                float32.
            wide: leave it in float32 then, instead of rounding it to the gradient's type.

        Raises:
            UserError: for a sparse gradient that the map would shift.
        """
        scale, shift = self.scale(i), self.shift(i)
        if scale is None and shift is None:
            return grad
        if grad.layout != torch.strided:
            if shift is not None:
                raise UserError(
                    f"gradient {self.layout.names[i]!r} is sparse: shifting it would make it dense"
                )
            assert scale is not None
            return grad * scale
        if grad.is_complex():
            pairs = real_view(grad.resolve_conj())
            return torch.view_as_complex(self._map(pairs, scale, shift, i))
        mapped = self._map(grad, scale, shift, i)
        return mapped if wide else mapped.to(grad.dtype)

    def all(
        self, places: Sequence[int], grads: Sequence[Tensor], wide: bool = False
    ) -> list[Tensor]:
        """The mapped gradients of several parameters; one call for all where it only scales."""
        scale = self.affine.scale
        if self.affine.shift is None and scale is not None and scale.dim() == 0:
            kinds = {grad.dtype for grad in grads}
            whole = len(kinds) == 1 and all(g.layout == torch.strided for g in grads)
            if whole and kinds <= set(_WIDE) and all(map(self.touches, places)):
                factor = scale.to(kinds.pop())
                return list(torch._foreach_mul(list(grads), factor))
        return [self(i, grad, wide) for i, grad in zip(places, grads, strict=True)]

    def _map(self, grad: Tensor, scale: Tensor | None, shift: Tensor | None, i: int) -> Tensor:
        """In one call, in float32 or wider."""
        wide = grad if grad.dtype in _WIDE else grad.float()
        if scale is not None and shift is not None:
            offset = self._part(self._offset, i)
            assert offset is not None
            return torch.addcmul(offset.to(wide.dtype), wide, scale.to(wide.dtype))
        if shift is not None:
            return wide - shift.to(wide.dtype)
        assert scale is not None
        return wide * scale.to(wide.dtype)

    def _part(self, vector: Tensor | None, i: int) -> Tensor | None:
        if vector is None or not self.touches(i):
            return None
        if vector.dim() == 0:
            return vector
        start, rows = self.layout.offsets[i], self.layout.rows[i]
        if rows == 1:
            return vector[start]
        dims = len(self.layout.shapes[i])
        dtype = self.layout.dtypes[i]
        if dtype is not None and dtype.is_complex:
            dims += 1  # the pairs' own dimension
        return vector[start : start + rows].reshape((rows,) + (1,) * (dims - 1))
