"""Affine maps of gradients, `g <- scale * (g - shift)`: what a transform decides."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gradwise.layout import Layout


@dataclass(frozen=True)
class Affine:
    """One affine map a segment, `g <- scale * (g - shift)`.

    What is known without looking at values is kept static (None and `touched`), so that a map
    which only scales, only shifts or leaves a tensor alone costs no pass it does not need.

    Attributes:
        scale: 0-d (one factor for all touched tensors), [S] (one a segment), or None for 1.
        shift: 0-d or [S], in the gradients' unit, or None for 0.
        touched: one flag a tensor; tensors with False keep their bits. None touches all.
        shifted: one flag a tensor; False where the shift is known to be 0. None: as `touched`.

    Examples:
        >>> import torch
        >>> from gradwise.layout import layout_of
        >>> layout = layout_of([torch.zeros(3), torch.zeros(5)])
        >>> centre = Affine(shift=torch.tensor([1.0, 2.0]))
        >>> halve = Affine(scale=torch.tensor(0.5))
        >>> centre.then(halve, layout)
        Affine(scale=tensor(0.5000), shift=tensor([1., 2.]), touched=None, shifted=(True, True))
    """

    scale: Tensor | None = None
    shift: Tensor | None = None
    touched: tuple[bool, ...] | None = None
    shifted: tuple[bool, ...] | None = None

    def shifts(self, tensor: int) -> bool:
        """Whether the map may shift that tensor (by its place in the list)."""
        flags = self.touched if self.shifted is None else self.shifted
        return self.shift is not None and (flags is None or flags[tensor])

    @property
    def is_identity(self) -> bool:
        """Whether the map is statically known to change nothing."""
        if self.touched is not None and not any(self.touched):
            return True
        return self.scale is None and self.shift is None

    def then(self, other: Affine, layout: Layout) -> Affine:
        """This map followed by `other`, as one map.

        `s2 (s1 (g - k1) - k2) = s1 s2 (g - (k1 + k2 / s1))`; where s1 is 0 nothing is left that
        could be shifted, so k2 is 0 as well and the quotient counts as 0.

        Args:
            other: the map applied second.
            layout: the segments that both maps speak of.
        """
        if self.is_identity:
            return other
        if other.is_identity:
            return self
        first, second = self, other
        if self.touched != other.touched:
            first, second = self.spread(layout), other.spread(layout)
        shift = first.shift
        if second.shift is not None:
            moved = second.shift
            if first.scale is not None:
                moved = torch.where(first.scale == 0, 0.0, moved / first.scale)
            shift = moved if shift is None else shift + moved
        scale = first.scale if second.scale is None else second.scale
        if first.scale is not None and second.scale is not None:
            scale = first.scale * second.scale
        touched = _either(self.touched, other.touched)
        shifted = tuple(self.shifts(i) or other.shifts(i) for i in range(len(layout)))
        return Affine(scale, shift, touched, None if shifted == touched else shifted)

    def spread(self, layout: Layout) -> Affine:
        """The same map written out for every segment: 1 and 0 where nothing is touched."""
        some = self.scale if self.scale is not None else self.shift
        if some is None:
            return Affine()
        if self.touched is None:
            on = torch.ones((), dtype=torch.bool, device=some.device)
        else:
            on = layout.mask(self.touched, some.device, torch.bool)
        return Affine(
            None if self.scale is None else torch.where(on, self.scale, 1.0),
            None if self.shift is None else torch.where(on, self.shift, 0.0),
        )

    def where(self, condition: Tensor) -> Affine:
        """This map where the 0-d `condition` holds, the identity elsewhere; no host sync."""
        return Affine(
            None if self.scale is None else torch.where(condition, self.scale, 1.0),
            None if self.shift is None else torch.where(condition, self.shift, 0.0),
            self.touched,
            self.shifted,
        )

    def in_units_of(self, factor: Tensor) -> Affine:
        """The same map for gradients that are stored multiplied by the 0-d `factor`.

        With G = factor * g, `scale * (g - shift)` is `scale * (G - factor * shift)` in G's unit.
        """
        shift = None if self.shift is None else self.shift * factor
        return Affine(self.scale, shift, self.touched, self.shifted)


def _either(
    first: tuple[bool, ...] | None, second: tuple[bool, ...] | None
) -> tuple[bool, ...] | None:
    if first is None or second is None:
        return None
    return tuple(a or b for a, b in zip(first, second, strict=True))
