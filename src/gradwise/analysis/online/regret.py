"""What a learner lost by not knowing the functions: regret, and what it is measured against.

    REG_T = sum_t f_t(x_t) - min_{u in X} sum_t f_t(u)
    V_T   = sum_{t>=2} sup_{x in X} ||grad f_t(x) - grad f_{t-1}(x)||^2

after Xie, Zhao and Zhou, NeurIPS 2024, https://arxiv.org/abs/2408.09074 [R]. `play` plays all
rounds and measures both; `best_fixed_point` is the u of the regret, with a certificate of how good
it is that needs no more than gradients and the projection.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from gradwise.analysis.online._spectral import FixedPoint, best_fixed_point
from gradwise.analysis.online._values import Loss, Valued, finite_number, summed
from gradwise.analysis.online.domains import Domain, finite
from gradwise.analysis.online.omd import GradFn, gradient_at
from gradwise.errors import UserError

__all__ = ["FixedPoint", "Learner", "Loss", "Regret", "best_fixed_point", "play"]

Progress = Callable[[int, int], None]


@runtime_checkable
class Learner(Protocol):
    """What `play` asks of a learner; `OptimisticOMD` and `UniversalLearner` are two."""

    @property
    def domain(self) -> Domain:
        """X."""

    def predict(self) -> Tensor:
        """x_t, the decision of the coming round."""

    def update(self, grad_fn: GradFn) -> None:
        """Learn from round t's function."""


@dataclass(frozen=True)
class Regret:
    """A game of T rounds; all tensors float64, losses in the unit that the functions have.

    Attributes:
        losses: f_t(x_t), (T,).
        comparator_losses: f_t(u), (T,), of the fixed point u that the learner is measured against.
        comparator: u, and how far its total is from the smallest one.
        played_variation: sum_{2<=s<=t} ||grad f_s(x_s) - grad f_{s-1}(x_s)||^2, (T,): at the points
            that were played, so a lower bound of V_t; None where it was not asked for.
        gradient_variation: V_t itself, (T,), from the suprema that were given; None without them.
    """

    losses: Tensor
    comparator_losses: Tensor
    comparator: FixedPoint
    played_variation: Tensor | None = None
    gradient_variation: Tensor | None = None

    @property
    def rounds(self) -> int:
        """T."""
        return len(self.losses)

    @property
    def cumulative(self) -> Tensor:
        """sum_{s<=t} f_s(x_s) - f_s(u), (T,); u is the same for all t, the one of all T rounds."""
        return (self.losses - self.comparator_losses).cumsum(0)

    @property
    def regret(self) -> float:
        """REG_T against u.

        Where u was found in hindsight, the regret against the best point is this or up to
        `comparator.gap` more.
        """
        return math.fsum((self.losses - self.comparator_losses).tolist())

    def to_dict(self) -> dict[str, Any]:
        """The fields and what follows from them as numbers and lists."""
        values: dict[str, Any] = {
            "rounds": self.rounds,
            "regret": self.regret,
            "cumulative": self.cumulative,
            **{name: getattr(self, name) for name in ("losses", "comparator_losses")},
            "played_variation": self.played_variation,
            "gradient_variation": self.gradient_variation,
            "comparator": asdict(self.comparator),
        }
        plain: dict[str, Any] = _plain(values)
        return plain


def play(
    learner: Learner,
    losses: Sequence[Loss],
    *,
    gradients: Sequence[GradFn] | None = None,
    comparator: Tensor | None = None,
    total: Loss | None = None,
    suprema: Callable[[int], float] | None = None,
    played_variation: bool = True,
    tolerance: float = 1e-6,
    progress: Progress | None = None,
) -> Regret:
    """Let a learner decide once for each function, and measure its regret.

    Cost: a loss and a gradient a round at the decision, what else the learner asks for, one more
    gradient (of the function before) for the played variation, and, unless a comparator is given,
    some tens of times the gradient of all functions. The decisions are not kept.

    Args:
        learner: plays on from where it is.
        losses: f_1..f_T, maps of a float64 point of X to one number; convex for what is said about
            regret to hold.
        gradients: grad f_1..grad f_T; by autograd where None.
        comparator: u in X; None is the best fixed point in hindsight, by `best_fixed_point` from
            the domain's start.
        total: sum_t f_t as one function that autograd differentiates, where that is faster than
            adding up; only for the search of the comparator.
        suprema: maps t = 2..T to sup_{x in X} ||grad f_t(x) - grad f_{t-1}(x)||^2, or a bound of
            it from above, for `gradient_variation`.
        played_variation: whether to measure it.
        tolerance: of the search: the total at u is this near the smallest one, in its unit.
        progress: is told the rounds done and all; the search for a comparator counts as one more.

    Raises:
        UserError: where there is no function, there are not as many gradients, a loss or gradient
            is not finite or of another shape, a supremum is negative, or the comparator is outside
            of X.

    Examples:
        >>> import torch
        >>> from gradwise.analysis.online import Ball, OptimisticOMD, play
        >>> ball = Ball(1.0, torch.zeros(2))
        >>> slope = torch.tensor([3.0, 4.0], dtype=torch.float64)
        >>> game = play(OptimisticOMD(ball), [lambda x: slope @ x] * 50, suprema=lambda t: 0.0)
        >>> game.comparator.point, round(game.comparator_losses.sum().item(), 6)
        (tensor([-0.6000, -0.8000], dtype=torch.float64), -250.0)
        >>> game.losses[0].item(), game.losses[-1].item(), round(game.regret, 6)
        (0.0, -5.0, 5.0)
        >>> game.gradient_variation[-1].item(), game.played_variation[-1].item()
        (0.0, 0.0)
    """
    if not losses:
        raise UserError("expected at least one function to play, got none")
    if gradients is not None and len(gradients) != len(losses):
        raise UserError(f"expected {len(losses)} gradients, one a loss, got {len(gradients)}")
    count, domain = len(losses), learner.domain
    rounds = [Valued(f, None if gradients is None else gradients[t]) for t, f in enumerate(losses)]
    given = None if comparator is None else _inside(comparator, domain)
    ticks = count + (given is None)
    suffered, steps = [], []
    for t, function in enumerate(rounds):
        x = learner.predict()
        suffered.append(finite_number(function.loss_at(x), f"the loss of round {t + 1}"))
        if played_variation:
            before = gradient_at(rounds[t - 1].gradient, x) if t else None
            now = gradient_at(function.gradient, x)
            steps.append(0.0 if before is None else float((now - before).square().sum()))
        learner.update(function.gradient)
        function.forget()
        if progress is not None:
            progress(t + 1, ticks)
    sups = None if suprema is None else [0.0, *(_supremum(suprema, t + 1) for t in range(1, count))]
    if given is None:
        whole = Valued(total) if total is not None else summed(rounds)
        best = best_fixed_point(whole.loss, domain, gradient=whole.gradient, tolerance=tolerance)
    else:
        best = FixedPoint(given, math.nan, None, 0)
    at = [finite_number(f.loss(best.point), "a loss at the comparator") for f in rounds]
    best = FixedPoint(best.point, math.fsum(at), best.gap, best.iterations)
    if progress is not None and given is None:
        progress(ticks, ticks)
    return Regret(
        losses=torch.tensor(suffered, dtype=torch.float64),
        comparator_losses=torch.tensor(at, dtype=torch.float64),
        comparator=best,
        played_variation=_running(steps) if played_variation else None,
        gradient_variation=None if sups is None else _running(sups),
    )


def _inside(point: Tensor, domain: Domain) -> Tensor:
    if point.shape != domain.start.shape:
        raise UserError(
            f"expected a comparator of shape {tuple(domain.start.shape)}, got {tuple(point.shape)}"
        )
    point = finite(point, "the comparator").to(domain.start)
    off = float(torch.linalg.vector_norm(domain.project(point) - point))
    if off > 1e-9 * domain.diameter:
        raise UserError(f"expected a comparator inside the domain, got one {off:g} outside")
    return point


def _supremum(suprema: Callable[[int], float], t: int) -> float:
    value = float(suprema(t))
    if not 0 <= value < math.inf:
        raise UserError(f"expected suprema(t) >= 0 and finite, got {value} for t={t}")
    return value


def _running(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).cumsum(0)


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value
