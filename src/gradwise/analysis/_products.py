"""Inner products of the checkpoints of a trajectory, in float64, piece by piece."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_ROWS = 128  # of a Gram matrix at a time, so that of its two halves only one is computed
# Pieces of all checkpoints that are held at once: points, displacements, and the steps with
# what they are cut from.
_PIECES = 5

Read = Callable[[int, int, Tensor], None]


@dataclass(frozen=True)
class Products:
    """What the hallmarks of a trajectory theta_0..theta_T are computed from, n = T + 1.

    All of it adds up over parameters, so that a layer's is the sum of its tensors' and a model's
    the sum of its layers'. Row t depends on checkpoints up to t alone, so that it grows by rows.

    Attributes:
        origin: [n, n] <theta_i, theta_j>.
        start: [n, n] <theta_i - theta_0, theta_j - theta_0>. Not derived from `origin`: small
            moves of large weights would drown in its rounding.
        near: [n, 4], with d_t = theta_t - theta_{t-1}: ||d_t||^2, <d_t, d_{t-1}>,
            <theta_{t-1}, d_t> and <theta_{t-1} - theta_0, d_t>; 0 where an index is below 0.
    """

    origin: Tensor
    start: Tensor
    near: Tensor

    @property
    def count(self) -> int:
        """How many checkpoints: n."""
        return len(self.near)

    def __add__(self, other: Products) -> Products:
        return Products(
            self.origin + other.origin, self.start + other.start, self.near + other.near
        )

    def flat(self) -> Tensor:
        """All numbers in a row."""
        return torch.cat([self.origin.reshape(-1), self.start.reshape(-1), self.near.reshape(-1)])

    @classmethod
    def of_flat(cls, row: Tensor | None, most: int) -> Products:
        """The way back; empty where the row is none of at most `most` checkpoints."""
        n = 0 if row is None else round((len(row) / 2 + 1) ** 0.5 - 1)
        if row is None or n > most or 2 * n * n + 4 * n != len(row):
            return cls.zeros(0)
        grams, near = row[: 2 * n * n].view(2, n, n), row[2 * n * n :].view(n, 4)
        return cls(grams[0], grams[1], near)

    @classmethod
    def zeros(cls, n: int) -> Products:
        """Of n checkpoints of no parameter."""
        grams = torch.zeros(2, n, n, dtype=torch.float64)
        return cls(grams[0], grams[1], torch.zeros(n, 4, dtype=torch.float64))


def width_of(memory: int, count: int) -> int:
    """How many entries of a parameter to take at once within `memory` bytes."""
    return max(1, memory // (8 * _PIECES * count))


def grown(known: Products, count: int) -> Products:
    """A copy for `count` checkpoints whose new rows are 0."""
    taken, made = known.count, Products.zeros(count)
    made.origin[:taken, :taken] = known.origin
    made.start[:taken, :taken] = known.start
    made.near[:taken] = known.near
    return made


def accumulate(into: Products, known: int, numel: int, width: int, read: Read) -> None:
    """Add one parameter's products to the rows from `known` on, left of the diagonal.

    Args:
        into: changed in place; `mirror` completes it.
        known: rows that are complete already.
        numel: entries of the parameter.
        width: entries at once.
        read: fills a float64 tensor with a checkpoint's entries from some entry on.
    """
    count = into.count
    for begin in range(0, numel, width):
        points = torch.empty(count, min(width, numel - begin), dtype=torch.float64)
        for index, row in enumerate(points):
            read(index, begin, row)
        away = points - points[0]
        for low in range(known, count, _ROWS):
            high = min(low + _ROWS, count)
            into.origin[low:high, :high] += points[low:high] @ points[:high].T
            into.start[low:high, :high] += away[low:high] @ away[:high].T
        first = max(known, 1)  # the first new checkpoint with a step to it
        steps = points[first:] - points[first - 1 : -1]
        near = into.near[first:]
        near[:, 0] += _dots(steps, steps)
        near[:, 2] += _dots(points[first - 1 : -1], steps)
        near[:, 3] += _dots(away[first - 1 : -1], steps)
        near[1:, 1] += _dots(steps[1:], steps[:-1])
        if known > 1 and count > known:  # the turn at the seam
            near[0, 1] += steps[0] @ (points[first - 1] - points[first - 2])


def mirror(products: Products) -> Products:
    """Both halves, from what is on and left of the diagonal."""
    origin, start = (g.tril() + g.tril(-1).T for g in (products.origin, products.start))
    return Products(origin, start, products.near)


def _dots(a: Tensor, b: Tensor) -> Tensor:
    """[n] inner products of rows, without the [n, width] product in between."""
    return torch.einsum("ij,ij->i", a, b)
