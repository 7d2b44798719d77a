"""One learner for convex and strongly convex functions alike, without knowing which."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradwise.analysis.online.domains import Domain, finite
from gradwise.analysis.online.meta import AdaptMLProd
from gradwise.analysis.online.omd import (
    GradFn,
    Hint,
    OptimisticOMD,
    Smoothness,
    gradient_at,
)
from gradwise.errors import UserError


def geometric_grid(rounds: int) -> list[float]:
    """Curvatures 1/T, 2/T, 4/T, ... up to the first one >= 1: ceil(log2 T) + 1 of them.

    One of them is within a factor of 2 below any lambda in [1/T, 1]; less curvature than 1/T is
    worth no more than none over T rounds.

    Args:
        rounds: T >= 1.

    Raises:
        UserError: where rounds < 1.

    Examples:
        >>> geometric_grid(8)
        [0.125, 0.25, 0.5, 1.0]
    """
    if rounds < 1:
        raise UserError(f"expected rounds >= 1, got rounds={rounds}")
    return [2**k / rounds for k in range((rounds - 1).bit_length() + 1)]


class UniversalLearner:
    """Two layers: base learners for every curvature, and weights that find the best of them.

    The decision is x_t = sum_i p_{t,i} x_{t,i}, over one `OptimisticOMD` for convex functions and
    one for each strong convexity lambda of a grid (Xie, Zhao, Zhou, NeurIPS 2024, arXiv
    2408.09074). The weights are `AdaptMLProd`'s, (9.5) to (9.7), for the losses
    <grad f_t(x_t), x_{t,i}>; their hint is the last round's grad f_{t-1}(x_{t-1}) at the new
    x_{t,i}. The paper promises regret O(sqrt(V_T)) for convex and O(log V_T) for strongly convex
    functions, V_T the gradient variation; this is an implementable reading of it [X], see
    `AdaptMLProd` and `OptimisticOMD` for what is whose.

    Cost a round: one gradient for the weights, and those of every base learner.

    Args:
        domain: the set X.
        rounds: T, about how many rounds there will be; sets the grid. More may be played.
        curvatures: a grid of lambdas instead; may be empty. Give one of the two.
        ell: smoothness, for all base learners; see `OptimisticOMD`.
        c: for all base learners.
        hint: for all base learners; "none" takes it from the weights too.
        start: for all base learners.

    Attributes:
        learners: the base learners, the convex one first.

    Raises:
        UserError: where not exactly one of rounds and curvatures is given, or an argument is out
            of its bounds.

    Examples:
        >>> import torch
        >>> from gradwise.analysis.online import Box
        >>> box = Box(-torch.ones(3), torch.ones(3))
        >>> learner = UniversalLearner(box, rounds=300, ell=1.0)
        >>> target = torch.tensor([0.5, 0.0, -2.0], dtype=torch.float64)
        >>> for _ in range(300):
        ...     x = learner.predict()
        ...     learner.update(lambda z: z - target)
        >>> learner.predict().round(decimals=3)
        tensor([ 0.5000,  0.0000, -1.0000], dtype=torch.float64)
        >>> len(learner.learners), round(sum(learner.weights), 12)
        (11, 1.0)
    """

    def __init__(
        self,
        domain: Domain,
        rounds: int | None = None,
        *,
        curvatures: Sequence[float] | None = None,
        ell: Smoothness | None = None,
        c: float | None = None,
        hint: Hint = "lookahead",
        start: Tensor | None = None,
    ) -> None:
        if (rounds is None) == (curvatures is None):
            raise UserError(
                f"expected either rounds or curvatures, got rounds={rounds} and "
                f"curvatures={curvatures}"
            )
        grid = geometric_grid(rounds) if rounds is not None else curvatures
        self.domain = domain
        self.learners = tuple(
            OptimisticOMD(domain, ell=ell, c=c, hint=hint, start=start, strong_convexity=curved)
            for curved in (None, *(grid or ()))
        )
        self._meta = AdaptMLProd(len(self.learners))
        self._hinted = hint != "none"
        self._last: Tensor | None = None  # grad f_{t-1}(x_{t-1})
        self._rounds = 0
        self._mix()

    def __repr__(self) -> str:
        return f"UniversalLearner({self.domain!r}, {len(self.learners)} base learners)"

    @property
    def rounds(self) -> int:
        """Rounds played, 0 at first."""
        return self._rounds

    @property
    def weights(self) -> tuple[float, ...]:
        """The coming round's p, one a base learner."""
        return tuple(self._weights)

    def predict(self) -> Tensor:
        """x_t: the decision of the coming round, a copy, the same until `update`."""
        return self._point.clone()

    def update(self, grad_fn: GradFn) -> None:
        """Learn from round t's function.

        Where anything fails here, the learner stays as it was.

        Args:
            grad_fn: maps a point of X (float64) to the gradient of f_t there, of the same shape.

        Raises:
            UserError: where a gradient is unusable; see `OptimisticOMD.update`.
        """
        grad = gradient_at(grad_fn, self._point)
        losses = _inner(grad, self._points)
        states = [learner.advance(grad_fn) for learner in self.learners]
        mean = math.fsum(p * z for p, z in zip(self._weights, losses, strict=True))
        self._meta.update([mean - z for z in losses], self._guesses)
        for learner, state in zip(self.learners, states, strict=True):
            learner.commit(state)
        self._last = grad if self._hinted else None
        self._rounds += 1
        self._mix()

    def state_dict(self) -> dict[str, Any]:
        """Copies of all that changes, safe for `weights_only` loading."""
        return {
            "rounds": self._rounds,
            "hint": None if self._last is None else self._last.clone(),
            "weights": self._meta.state_dict(),
            "learners": [learner.state_dict() for learner in self.learners],
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take up where `state_dict` was called; the settings are those of this learner.

        Raises:
            UserError: where it was saved by a learner of another shape or grid.
        """
        if set(state_dict) != {"rounds", "hint", "weights", "learners"}:
            raise UserError(
                "expected a state with rounds, hint, weights and learners, "
                f"got {', '.join(map(str, state_dict)) or 'nothing'}"
            )
        hint, states = state_dict["hint"], state_dict["learners"]
        if len(states) != len(self.learners):
            raise UserError(
                f"expected the state of {len(self.learners)} base learners, got {len(states)}"
            )
        like = self.domain.start
        if hint is not None and (not isinstance(hint, Tensor) or hint.shape != like.shape):
            raise UserError(f"expected hint to be a tensor of shape {tuple(like.shape)}")
        if (hint is not None) != (self._hinted and state_dict["rounds"] > 0):
            raise UserError("expected a hint in the state exactly where hints are used")
        before = self.state_dict()
        try:
            self._take(state_dict)
        except UserError:
            self._take(before)
            raise
        self._mix()

    def _take(self, state_dict: Mapping[str, Any]) -> None:
        for learner, state in zip(self.learners, state_dict["learners"], strict=True):
            learner.load_state_dict(state)
        self._meta.load_state_dict(state_dict["weights"])
        hint = state_dict["hint"]
        self._last = None if hint is None else finite(hint, "hint").to(self.domain.start)
        self._rounds = int(state_dict["rounds"])

    def _mix(self) -> None:
        """Weights and decision of the coming round, from what the base learners decide."""
        self._points = torch.stack([learner.predict() for learner in self.learners])
        guessed = None if self._last is None else _inner(self._last, self._points)
        self._weights, self._guesses = self._meta.weights(guessed)
        p = torch.tensor(self._weights, dtype=torch.float64, device=self._points.device)
        self._point: Tensor = torch.tensordot(p, self._points, dims=1)


def _inner(grad: Tensor, points: Tensor) -> list[float]:
    """[N] inner products of [...] with [N, ...]."""
    products: list[float] = (points.flatten(1) @ grad.flatten()).tolist()
    return products
