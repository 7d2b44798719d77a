"""The best fixed point in hindsight: projected gradients with spectral steps, and a certificate."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gradwise.analysis.online._values import Loss, Valued, finite_number, summed
from gradwise.analysis.online.domains import Domain, finite
from gradwise.analysis.online.omd import GradFn, gradient_at
from gradwise.errors import UserError

MEMORY = 10  # values that a new one may be above the last of, if below the largest
DECREASE = 1e-4  # of what the slope promises
HALVINGS = 40

Look = Callable[[Tensor], tuple[float, Tensor]]


@dataclass(frozen=True)
class FixedPoint:
    """A point of X that all rounds are measured against.

    Attributes:
        point: u, float64.
        loss: sum_t f_t(u).
        gap: for convex functions, sum_t f_t(u) is at most this much above the smallest of X; None
            where the point was given, not searched for.
        iterations: of the search; 0 for a given point.
    """

    point: Tensor
    loss: float
    gap: float | None
    iterations: int


def best_fixed_point(
    total: Loss | Sequence[Loss],
    domain: Domain,
    *,
    gradient: GradFn | None = None,
    start: Tensor | None = None,
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
    progress: Callable[[int, int], None] | None = None,
) -> FixedPoint:
    """The point of X where a convex function is smallest, to within a tolerance that is certified.

    Spectral projected gradient: E. G. Birgin, J. M. Martinez, M. Raydan, Nonmonotone Spectral
    Projected Gradient Methods on Convex Sets, SIAM J. Optim. 10, 2000. It ends where the
    certificate is below the tolerance: with g the gradient at x, x+ = Proj_X(x - s g), any s > 0,

        F(x) - F(u) <= <g, x - x+> + ||x - x+|| D / s     for all u in X [D],

    as F is convex and <x - s g - x+, u - x+> <= 0. It also ends after `max_iterations`, or where
    rounding hides any decrease; `gap` says how good the point is in every case. For functions that
    are not convex the point is merely stationary, and the gap means nothing.

    Args:
        total: F, maps a float64 point of X to one number; or functions whose sum it is.
        domain: X.
        gradient: of F as one function; by autograd where None.
        start: where to begin, projected; the domain's start where None.
        tolerance: > 0, in the unit of F.
        max_iterations: >= 1.
        progress: is told the iterations done and `max_iterations`, which may not be needed.

    Raises:
        UserError: where an argument is out of its bounds or has no meaning beside another, or F
            or its gradient is not finite.

    Examples:
        The point of the unit ball that is nearest to (3, 4):

        >>> import torch
        >>> from gradwise.analysis.online import Ball, best_fixed_point
        >>> target = torch.tensor([3.0, 4.0], dtype=torch.float64)
        >>> best = best_fixed_point(
        ...     lambda x: (x - target).square().sum(), Ball(1.0, torch.zeros(2)))
        >>> best.point, round(best.loss, 6), best.gap <= 1e-6
        (tensor([0.6000, 0.8000], dtype=torch.float64), 16.0, True)
    """
    if not 0 < tolerance < math.inf:
        raise UserError(f"expected 0 < tolerance < inf, got tolerance={tolerance}")
    if max_iterations < 1:
        raise UserError(f"expected max_iterations >= 1, got max_iterations={max_iterations}")
    first = domain.start if start is None else finite(start, "start").to(domain.start)
    if first.shape != domain.start.shape:
        raise UserError(
            f"expected start of shape {tuple(domain.start.shape)}, got {tuple(first.shape)}"
        )
    if callable(total):
        function = Valued(total, gradient)
    elif gradient is not None or not total:
        raise UserError("expected a gradient beside one function alone, or at least one function")
    else:
        function = summed([Valued(f) for f in total])

    def look(x: Tensor) -> tuple[float, Tensor]:
        value = finite_number(function.loss_at(x), "the total loss")
        return value, gradient_at(function.gradient, x)

    x = domain.project(first)
    value, grad = look(x)
    best, best_value, floor = x, value, -math.inf  # no point of X has less than the floor
    step = _first_step(domain, grad)
    recent = deque([value], maxlen=MEMORY)
    iterations = 0
    while True:
        floor = max(floor, value - _certificate(domain, x, grad, step))
        if best_value - floor <= tolerance or iterations == max_iterations:
            break
        along = domain.project(x - step * grad) - x
        found = _search(look, x, along, float((grad * along).sum()), max(recent))
        if found is None:
            break
        iterations += 1
        if progress is not None:
            progress(iterations, max_iterations)
        moved, value, slope = found
        step = _spectral(moved - x, slope - grad, _first_step(domain, slope))
        x, grad = moved, slope
        recent.append(value)
        if value < best_value:
            best, best_value = x, value
    return FixedPoint(best, best_value, max(0.0, best_value - floor), iterations)


def _certificate(domain: Domain, x: Tensor, grad: Tensor, step: float) -> float:
    """The smallest of the bound over a few s."""
    bounds = []
    for s in {step, *(_first_step(domain, grad) * 10.0**k for k in (-2, 0, 2))}:
        off = x - domain.project(x - s * grad)
        width = float(torch.linalg.vector_norm(off)) * domain.diameter / s
        bounds.append(float((grad * off).sum()) + width)
    return max(0.0, min(bounds))


def _first_step(domain: Domain, grad: Tensor) -> float:
    norm = float(torch.linalg.vector_norm(grad))
    return domain.diameter / norm if norm > 0 else 1.0


def _spectral(moved: Tensor, bent: Tensor, fallback: float) -> float:
    """Barzilai and Borwein's step; a long one where the function is not curved."""
    curved, square = float((moved * bent).sum()), float(moved.square().sum())
    longest = 1e4 * fallback
    return min(square / curved, longest) if curved > square / longest else longest


def _search(
    look: Look, x: Tensor, along: Tensor, slope: float, reference: float
) -> tuple[Tensor, float, Tensor] | None:
    """A point along a feasible direction that is enough below the reference; None if none is."""
    if not slope < 0:
        return None
    share = 1.0
    for _ in range(HALVINGS):
        moved = x + share * along
        value, grad = look(moved)
        if value <= reference + DECREASE * share * slope:
            return moved, value, grad
        share /= 2
    return None
