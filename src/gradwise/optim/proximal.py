"""The proximal problem behind an implicit step, and the inner solvers that torch has for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradwise.backends.segments import wide_dtype
from gradwise.errors import UserError
from gradwise.layout import real_view

Closure = Callable[[], Any]
_LINE_SEARCH = 25  # closure calls that one L-BFGS iteration may take, torch's own bound
_PATIENCE = 5  # L-BFGS iterations in a row that may find nothing better


@dataclass(frozen=True)
class Point:
    """What one call of the closure told.

    Attributes:
        theta: [n].
        slope: [n], gradient of (7.2) in the coordinates u = (theta - theta_n) / sqrt(rate).
        value: (7.2) in these coordinates, `||u||^2 / 2 + L(theta) - L(theta_n) - shift . moved`.
        noise: how far rounding may have moved `value`.
        residual: ||sqrt(rate) slope||, that of (7.1).
    """

    theta: Tensor
    slope: Tensor
    value: float
    noise: float
    residual: float

    @property
    def finite(self) -> bool:
        """Whether neither the loss nor a gradient was NaN or infinite."""
        return math.isfinite(self.value) and math.isfinite(self.residual)


class System:
    """(7.2) over all parameters as one vector of n reals, and the best point seen.

    In u the proximal term is ||u||^2 / 2 whatever the rates are, so that groups with different
    learning rates and scales, 0 among them, make one well-scaled problem.

    Args:
        closure: the user's.
        params: those with a gradient, which is there for `loss` already.
        rates: learning rate times scale of each, broadcastable to the parameter's real view.
        shifts: what is taken off each gradient; None for 0.
        sign: -1 to maximize.
        loss: at theta_n.
    """

    def __init__(
        self,
        closure: Closure,
        params: list[Tensor],
        rates: Sequence[Tensor],
        shifts: Sequence[Tensor | None],
        sign: float,
        loss: Any,
    ) -> None:
        self.closure, self.params, self.sign = closure, params, sign
        wide = any(real_view(p).dtype == torch.float64 for p in params)
        self.dtype = torch.float64 if wide else torch.float32
        self.start = self._joined(params)
        self.root = self._spread(rates).sqrt_()
        self.shift: Tensor | None = None
        if any(shift is not None for shift in shifts):
            zero = torch.zeros(())
            self.shift = self._spread([zero if shift is None else shift for shift in shifts])
        self.calls, self.iterations, self.first = 1, 0, 0.0
        self.first = self._number(loss)
        self.best = self._point(self.start, loss)

    def at(self, theta: Tensor) -> Point:
        """Evaluate the model there; the answer may be not finite."""
        with torch.no_grad():
            self.write(theta)
            self.calls += 1
            with torch.enable_grad():
                loss = self.closure()
            point = self._point(theta, loss)
        if point.finite and self.gain(point, self.best) < 0:
            self.best = point
        return point

    def gain(self, point: Point, origin: Point) -> float:
        """How far (7.2) lies above its value at `origin`; negative is better.

        Near the solution the difference of two losses is rounding and would mislead a line search;
        the trapezoidal rule on the slopes, exact for quadratics, still sees it. So it is believed
        where the two differ by no more than rounding may explain.
        """
        way = torch.where(self.root > 0, (point.theta - origin.theta) / self.root, 0.0)
        smooth = float((point.slope + origin.slope).dot(way)) / 2
        gain = point.value - origin.value
        trusted = abs(gain - smooth) > point.noise + origin.noise
        return gain if trusted else smooth

    def write(self, theta: Tensor) -> None:
        """Put a point into the parameters."""
        for param, part in zip(self.params, self.split(theta), strict=True):
            real_view(param).copy_(part)

    def split(self, vector: Tensor) -> list[Tensor]:
        """Views of a vector [n], shaped like the parameters' real views."""
        views = [real_view(param) for param in self.params]
        parts = torch.split(vector, [view.numel() for view in views])
        return [part.view(view.shape) for part, view in zip(parts, views, strict=True)]

    def _point(self, theta: Tensor, loss: Any) -> Point:
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.params]
        grad = self._joined([g.resolve_conj() for g in grads])
        moved = theta - self.start
        pull = torch.where(self.root > 0, moved / self.root, 0.0)
        linear = moved.new_zeros(())
        if self.shift is not None:
            grad, linear = grad - self.shift, self.shift.dot(moved)
        slope = torch.addcmul(pull, self.root, grad, value=self.sign)
        wide = wide_dtype(slope.device)
        norms = [torch.linalg.vector_norm(x, dtype=wide) for x in (pull, self.root * slope)]
        drawn, residual, tilt = torch.stack([*norms, linear.to(wide)]).tolist()
        number, apart = self._number(loss), drawn**2 / 2
        value = apart + self.sign * (number - self.first - tilt)
        given = isinstance(loss, Tensor) and loss.dtype.is_floating_point
        noise = _rounding(loss.dtype if given else torch.float64) * abs(number)
        noise += _rounding(self.dtype) * (apart + abs(tilt))
        return Point(theta, slope, value, noise, residual)

    def _number(self, loss: Any) -> float:
        try:
            return float(loss.detach() if isinstance(loss, Tensor) else loss)
        except (TypeError, ValueError, RuntimeError) as error:
            shown = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else loss
            raise UserError(f"expected the closure to return one number, got {shown}") from error

    def _joined(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.cat([real_view(t).detach().reshape(-1).to(self.dtype) for t in tensors])

    def _spread(self, parts: Sequence[Tensor]) -> Tensor:
        shapes = [real_view(param).shape for param in self.params]
        wide = [part.to(self.start).expand(s) for part, s in zip(parts, shapes, strict=True)]
        return torch.cat([part.reshape(-1) for part in wide])


def _rounding(dtype: torch.dtype) -> float:
    """The relative error that a sum of many terms, some larger than itself, may have."""
    eps = torch.finfo(dtype).eps
    return max(2 * eps, min(1024 * eps, 1e-3))  # the narrow types would explain everything


@dataclass(frozen=True)
class _Trial:
    """A point that the line search has asked for: z, what is there, (7.2) above the base's."""

    z: Tensor
    point: Point
    gain: float


def by_lbfgs(system: System, max_inner: int, bound: float) -> None:
    """Minimise (7.2) with torch's L-BFGS until the residual is within `bound`.

    torch's thresholds for curvature and progress are absolute, so the unknown z = u / unit is
    scaled until they lie below rounding, whatever the unit of the problem. Each iteration is a call
    of its own, which evaluates nothing that the one before has seen already.
    """
    start, z = system.best, torch.zeros_like(system.start)
    limits = torch.finfo(z.dtype)
    norm = float(torch.linalg.vector_norm(start.slope))
    unit = max(norm * math.sqrt(limits.eps), limits.tiny)
    inner = torch.optim.LBFGS(
        [z],
        lr=max(1.0, float(start.slope.abs().sum()) / unit),  # the first trial: plain SGD's step
        max_iter=1,
        max_eval=1 + _LINE_SEARCH,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        history_size=min(max_inner, 100),
        line_search_fn="strong_wolfe",
    )
    base = last = low = _Trial(z.clone(), start, 0.0)  # of this iteration

    def look() -> _Trial | None:
        nonlocal last, low
        for trial in (last, low):
            if torch.equal(trial.z, z):
                return trial
        point = system.at(torch.addcmul(system.start, system.root, z, value=unit))
        if not point.finite:
            return None
        last = _Trial(z.clone(), point, system.gain(point, base.point) / unit / unit)
        low = min(low, last, key=lambda trial: trial.gain)
        return last

    def evaluate() -> float:
        trial = look()
        if trial is None:  # a NaN slope makes the line search halve its bracket
            z.grad = torch.full_like(z, math.nan)
            return math.inf
        z.grad = trial.point.slope / unit
        return trial.gain

    barren = 0
    for _ in range(max_inner):
        best = system.best
        inner.step(evaluate)  # type: ignore[no-untyped-call]  # torch has no types for it
        system.iterations += 1
        inner.param_groups[0]["lr"] = 1.0
        barren = barren + 1 if system.best is best else 0
        if system.best.residual <= bound or barren == _PATIENCE or torch.equal(z, base.z):
            return
        settled = look()  # what the line search chose; evaluated anew only in rare cases
        if settled is None:
            return
        base = last = low = _Trial(settled.z, settled.point, 0.0)


def by_adam(
    system: System, max_inner: int, bound: float, lr: float, states: list[dict[str, Any]]
) -> None:
    """Minimise (7.2) with torch's Adam on theta, which goes on from the states it left."""
    theta = system.start.clone()
    views = system.split(theta)
    inner = torch.optim.Adam(views, lr=lr)
    for view, state in zip(views, states, strict=True):
        inner.state[view] = state
    point = system.best
    for _ in range(max_inner):
        for view, grad in zip(views, system.split(system.root * point.slope), strict=True):
            view.grad = grad
        inner.step()
        system.iterations += 1
        theta.copy_(torch.where(system.root > 0, theta, system.start))
        point = system.at(theta.clone())
        if not point.finite or system.best.residual <= bound:
            return
