"""Convex compact sets to decide in: where to start, how wide they are, how to project."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from gradwise.errors import UserError


class Domain(ABC):
    """A convex compact set X of float64 tensors of one shape.

    Attributes:
        start: a point of X, float64; its shape and device are those of all points.
        diameter: D, an upper bound of the Euclidean distance of any two points, > 0.
    """

    start: Tensor
    diameter: float

    @abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """The point of X nearest to x; same shape, float64."""


class Ball(Domain):
    """All points at most `radius` away from `center`; D = 2 radius.

    Args:
        radius: > 0.
        center: of any shape; made float64. Learners start there.

    Raises:
        UserError: where the radius is not positive and finite or the center not finite.

    Examples:
        >>> import torch
        >>> ball = Ball(1.0, torch.zeros(2))
        >>> ball.project(torch.tensor([3.0, 4.0])), ball.diameter
        (tensor([0.6000, 0.8000], dtype=torch.float64), 2.0)
    """

    def __init__(self, radius: float, center: Tensor) -> None:
        if not 0 < radius < math.inf:
            raise UserError(f"expected 0 < radius < inf, got radius={radius}")
        self.radius = float(radius)
        self.center = finite(center, "center")
        self.start = self.center
        self.diameter = 2 * self.radius

    def __repr__(self) -> str:
        return f"Ball(radius={self.radius}, center=tensor of shape {tuple(self.center.shape)})"

    def project(self, x: Tensor) -> Tensor:
        """The point itself, or the one of the sphere in its direction."""
        offset = x.to(self.center) - self.center
        norm = float(torch.linalg.vector_norm(offset))
        if norm == math.inf:  # squares too large for float64: shorten, keep the direction
            offset = offset / offset.abs().max()
            norm = float(torch.linalg.vector_norm(offset))
            return self.center + offset * (self.radius / norm)
        if norm <= self.radius:
            return self.center + offset
        return self.center + offset * (self.radius / norm)


class Box(Domain):
    """All points between `low` and `high`, entry by entry; D = ||high - low||.

    Args:
        low: lower corner, any shape; made float64.
        high: upper corner, same shape; learners start halfway.

    Raises:
        UserError: where the corners' shapes differ, they are not finite, low > high somewhere, or
            low == high everywhere.

    Examples:
        >>> import torch
        >>> box = Box(torch.zeros(2), torch.tensor([3.0, 4.0]))
        >>> box.project(torch.tensor([-1.0, 2.0])), box.diameter
        (tensor([0., 2.], dtype=torch.float64), 5.0)
    """

    def __init__(self, low: Tensor, high: Tensor) -> None:
        if low.shape != high.shape:
            raise UserError(
                f"expected low and high of one shape, got {tuple(low.shape)} and "
                f"{tuple(high.shape)}"
            )
        self.low = finite(low, "low")
        self.high = finite(high, "high").to(self.low)
        self.diameter = float(torch.linalg.vector_norm(self.high - self.low))
        if bool((self.low > self.high).any()) or not 0 < self.diameter < math.inf:
            raise UserError("expected low <= high everywhere and low < high somewhere")
        self.start = self.low + (self.high - self.low) / 2

    def __repr__(self) -> str:
        return f"Box(tensors of shape {tuple(self.low.shape)})"

    def project(self, x: Tensor) -> Tensor:
        """Clamp every entry."""
        return x.to(self.low).clamp(self.low, self.high)


class Projection(Domain):
    """A set of your own, given by its Euclidean projection.

    Args:
        project: maps a float64 tensor to the nearest point of the set.
        diameter: D > 0, at least the largest distance of two points.
        start: any tensor of the right shape; learners start at its projection.

    Raises:
        UserError: where the diameter is not positive and finite, start is not finite, or the
            projection changes its shape or makes it non-finite.

    Examples:
        The probability simplex:

        >>> import torch
        >>> def simplex(x):
        ...     s = x.sort(descending=True).values
        ...     excess = (s.cumsum(0) - 1) / torch.arange(1, len(x) + 1)
        ...     return (x - excess[s > excess][-1]).clamp(min=0)
        >>> domain = Projection(simplex, diameter=2**0.5, start=torch.zeros(4))
        >>> domain.start
        tensor([0.2500, 0.2500, 0.2500, 0.2500], dtype=torch.float64)
    """

    def __init__(self, project: Callable[[Tensor], Tensor], diameter: float, start: Tensor) -> None:
        if not 0 < diameter < math.inf:
            raise UserError(f"expected 0 < diameter < inf, got diameter={diameter}")
        self._project = project
        self.diameter = float(diameter)
        self.start = finite(start, "start")
        self.start = self.project(self.start)

    def project(self, x: Tensor) -> Tensor:
        """What the given function makes of x, checked."""
        nearest = self._project(x).detach()
        if nearest.shape != self.start.shape:
            raise UserError(
                f"expected project to keep the shape {tuple(self.start.shape)}, "
                f"got {tuple(nearest.shape)}"
            )
        return finite(nearest, "the projection")


def finite(x: Tensor, name: str) -> Tensor:
    """A float64 copy, detached.

    Raises:
        UserError: where x is complex or has NaN or infinite entries.
    """
    if x.is_complex():
        raise UserError(f"expected {name} to be real, got {x.dtype}")
    x = x.detach().to(torch.float64, copy=True)
    if not bool(x.isfinite().all()):
        raise UserError(f"expected {name} to be finite, got NaN or infinite entries")
    return x
