"""Optimistic online mirror descent in Euclidean space, equations (9.1) to (9.4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from gradwise.analysis.online.domains import Domain, finite
from gradwise.errors import UserError

GradFn = Callable[[Tensor], Tensor]
Smoothness = Callable[[float], float] | float
Hint = Literal["lookahead", "last", "none"]

# Squares of such norms, times squared distances and summed over rounds, still fit into float64.
LARGEST_NORM = 1e100


@dataclass(frozen=True)
class OMDState:
    """What is known before a round; `round` counts from 1."""

    round: int
    anchor: Tensor  # xhat_t
    hint: Tensor  # M_t
    point: Tensor  # x_t
    step_size: float  # eta_t
    squares: float  # sum_{s<t} ||grad f_s(x_s) - M_s||^2


class OptimisticOMD:
    """Projected gradient descent that first steps along a guess of the coming gradient.

    Round t, from xhat_t, with the hint M_t (Xie, Zhao, Zhou, NeurIPS 2024, arXiv 2408.09074):

        x_t        = Proj_X(xhat_t - eta_t M_t)               (9.1)
        xhat_{t+1} = Proj_X(xhat_t - eta_t grad f_t(x_t))     (9.2)

    Convex functions:

        eta_{t+1} = min(eta_t, D / sqrt(delta + 4 G^2 + S_t), 1 / (c Lhat_t)),
        S_t = sum_{s<=t} ||grad f_s(x_s) - M_s||^2            (9.3)

    lambda-strongly convex ones:

        eta_t = min(eta_{t-1}, 2 / (lambda t), 1 / (c Lhat_{t-1}))       (9.4)

    Under generalized smoothness, ||Hess f(x)|| <= ell(||grad f(x)||) with a non-decreasing ell, the
    local smoothness is Lhat_t = ell(2 ||grad f_t(xhat_{t+1})||). Ordinary smoothness is a number
    for `ell`; without `ell` the Lhat terms drop out, which leaves the self-tuning step of an
    ordinarily smooth problem. Step sizes never grow.

    What the paper fixes and what not: (9.1), (9.2) and the shape of (9.3) are recalled [R], the
    step with delta and G is as others implement it [V2], (9.4), c, and the first step size are
    this library's reading [X]. That first step takes f_0 = 0, so M_1 = 0 and Lhat_0 = ell(0).

    Cost a round: two gradients and two projections; one gradient where neither the hint nor the
    smoothness needs the second. Keeps three tensors of the decision's shape, in float64.

    Args:
        domain: the set X, which gives shape, device, diameter D and projection.
        ell: smoothness as a function of the gradient's norm, or one number, or None.
        c: how far to stay below 1 / Lhat, > 0; 4 where None, of the usual 4 to 16 [X].
        strong_convexity: lambda > 0 for (9.4), None for (9.3).
        hint: M_{t+1} is grad f_t at xhat_{t+1} ("lookahead"), at x_t ("last"), or 0 ("none", which
            makes (9.3) without `ell` projected gradient descent with AdaGrad's norm step).
        delta: added under the root of (9.3), > 0; 1 where None.
        gradient_bound: G >= 0 in (9.3), a bound of all gradients' norms; 0 where None.
        start: xhat_1, projected; the domain's start where None.

    Raises:
        UserError: where an argument is out of its bounds, or has no meaning beside the others.

    Examples:
        >>> import torch
        >>> from gradwise.analysis.online import Ball
        >>> learner = OptimisticOMD(Ball(1.0, torch.zeros(2)), ell=lambda u: 4 + 3 * u)
        >>> target = torch.tensor([0.5, -0.5], dtype=torch.float64)
        >>> for _ in range(300):
        ...     x = learner.predict()  # decide, and only then see the function
        ...     learner.update(lambda z: z - target)
        >>> learner.predict()
        tensor([ 0.5000, -0.5000], dtype=torch.float64)

        A loss that autograd differentiates:

        >>> learner.update(torch.func.grad(lambda z: (z - target).pow(4).sum()))
        >>> learner.rounds
        301
    """

    def __init__(
        self,
        domain: Domain,
        *,
        ell: Smoothness | None = None,
        c: float | None = None,
        strong_convexity: float | None = None,
        hint: Hint = "lookahead",
        delta: float | None = None,
        gradient_bound: float | None = None,
        start: Tensor | None = None,
    ) -> None:
        if hint not in get_args(Hint):
            raise UserError(f"expected hint to be one of {get_args(Hint)}, got hint={hint!r}")
        if c is not None and ell is None:
            raise UserError(f"expected ell wherever c is given, got c={c} and no ell")
        for name, given in (("delta", delta), ("gradient_bound", gradient_bound)):
            if given is not None and strong_convexity is not None:
                raise UserError(f"expected no {name} beside strong_convexity, got {name}={given}")
        self.domain = domain
        self.hint: Hint = hint
        self.c = 4.0 if c is None else _positive(c, "c")
        self.delta = 1.0 if delta is None else _positive(delta, "delta")
        self.strong_convexity = (
            None if strong_convexity is None else _positive(strong_convexity, "strong_convexity")
        )
        self.gradient_bound = 0.0 if gradient_bound is None else float(gradient_bound)
        if not 0 <= self.gradient_bound < math.inf:
            raise UserError(f"expected 0 <= gradient_bound < inf, got {gradient_bound}")
        self._ell = ell if ell is None or callable(ell) else _positive(ell, "ell")
        self._looks_ahead = hint == "lookahead" or callable(ell)
        if start is not None and start.shape != domain.start.shape:
            raise UserError(
                f"expected start of shape {tuple(domain.start.shape)}, got {tuple(start.shape)}"
            )
        first = domain.start if start is None else finite(start, "start").to(domain.start)
        anchor = domain.project(first)
        step = self._step_size(1, math.inf, 0.0, self._smoothness(0.0))
        zeros = torch.zeros_like(anchor)
        self._state = OMDState(1, anchor, zeros, anchor, step, 0.0)

    def __repr__(self) -> str:
        curved = self.strong_convexity
        kind = "convex" if curved is None else f"strong_convexity={curved}"
        return f"OptimisticOMD({self.domain!r}, {kind}, hint={self.hint!r})"

    @property
    def rounds(self) -> int:
        """Rounds played, 0 at first."""
        return self._state.round - 1

    @property
    def step_size(self) -> float:
        """eta_t of the coming round."""
        return self._state.step_size

    def predict(self) -> Tensor:
        """x_t of (9.1): the decision of the coming round, a copy, the same until `update`."""
        return self._state.point.clone()

    def update(self, grad_fn: GradFn) -> None:
        """Learn from round t's function.

        Where anything fails here, the learner stays as it was.

        Args:
            grad_fn: maps a point of X (float64) to the gradient of f_t there, of the same shape.

        Raises:
            UserError: where a gradient has another shape, is not real, or has a norm of NaN or
                above 1e100.
        """
        self.commit(self.advance(grad_fn))

    def advance(self, grad_fn: GradFn) -> OMDState:
        """The state after this round, which `commit` takes; changes nothing."""
        now = self._state
        grad = gradient_at(grad_fn, now.point)
        anchor = self.domain.project(now.anchor - now.step_size * grad)
        ahead = gradient_at(grad_fn, anchor) if self._looks_ahead else grad
        hint = {"lookahead": ahead, "last": grad, "none": torch.zeros_like(grad)}[self.hint]
        squares = now.squares + _norm(grad - now.hint) ** 2
        smoothness = self._smoothness(_norm(ahead))
        step = self._step_size(now.round + 1, now.step_size, squares, smoothness)
        point = self.domain.project(anchor - step * hint)
        return OMDState(now.round + 1, anchor, hint, point, step, squares)

    def commit(self, state: OMDState) -> None:
        """Go on from a state that `advance` gave."""
        self._state = state

    def state_dict(self) -> dict[str, Any]:
        """Copies of all that changes: tensors and numbers, safe for `weights_only` loading."""
        state = asdict(self._state)  # a deep copy
        return {**state, "strong_convexity": self.strong_convexity}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take up where `state_dict` was called; the settings are those of this learner.

        Raises:
            UserError: where entries are missing or too many, a tensor's shape is another, or it
                was saved by a learner of another strong convexity.
        """
        names = [f.name for f in fields(OMDState)]
        if set(state_dict) != {*names, "strong_convexity"}:
            raise UserError(
                f"expected a state with {', '.join(names)} and strong_convexity, "
                f"got {', '.join(map(str, state_dict)) or 'nothing'}"
            )
        if state_dict["strong_convexity"] != self.strong_convexity:
            raise UserError(
                f"expected the state of a learner with strong_convexity={self.strong_convexity}, "
                f"got {state_dict['strong_convexity']}"
            )
        like = self.domain.start
        tensors = {name: state_dict[name] for name in ("anchor", "hint", "point")}
        for name, value in tensors.items():
            if not isinstance(value, Tensor) or value.shape != like.shape:
                raise UserError(f"expected {name} to be a tensor of shape {tuple(like.shape)}")
            tensors[name] = finite(value, name).to(like.device)
        numbers = {name: float(state_dict[name]) for name in ("step_size", "squares")}
        coming = int(state_dict["round"])
        for name, number in {"round": coming - 1, **numbers}.items():
            if not 0 <= number < math.inf:
                raise UserError(f"expected a sound {name} in the state, got {state_dict[name]}")
        self._state = OMDState(
            coming,
            *(tensors[name] for name in ("anchor", "hint", "point")),
            *(numbers[name] for name in ("step_size", "squares")),
        )

    def _smoothness(self, norm: float) -> float:
        if self._ell is None:
            return 0.0
        value = float(self._ell(2 * norm) if callable(self._ell) else self._ell)
        if not 0 <= value < math.inf:
            raise UserError(f"expected 0 <= ell < inf, got ell={value} at {2 * norm}")
        return value

    def _step_size(self, t: int, last: float, squares: float, smoothness: float) -> float:
        if self.strong_convexity is None:
            spread = self.delta + 4 * self.gradient_bound**2 + squares
            step = self.domain.diameter / math.sqrt(spread)
        else:
            step = 2 / (self.strong_convexity * t)
        local = 1 / (self.c * smoothness) if smoothness > 0 else math.inf
        return min(last, step, local)


def gradient_at(grad_fn: GradFn, point: Tensor) -> Tensor:
    """A float64 gradient at a copy of the point, checked; see `OptimisticOMD.update`."""
    grad = grad_fn(point.clone())
    if grad.shape != point.shape:
        raise UserError(
            f"expected a gradient of shape {tuple(point.shape)}, got {tuple(grad.shape)}"
        )
    if grad.is_complex():
        raise UserError(f"expected a real gradient, got {grad.dtype}")
    grad = grad.detach().to(point, copy=True)
    if not _norm(grad) <= LARGEST_NORM:
        raise UserError(
            f"expected a gradient of norm at most {LARGEST_NORM:g}, got norm {_norm(grad):g}"
        )
    return grad


def _norm(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x))


def _positive(value: float, name: str) -> float:
    if not 0 < value < math.inf:
        raise UserError(f"expected 0 < {name} < inf, got {name}={value}")
    return float(value)
