"""A physics-informed network: right gradients through u'', and what a budget of them is worth.

The problem and the counting are those of `benchmarks/poisson.py` and of two recipes, at a smaller
size. Figures that are asserted hold with a margin of two or more on each of five seeds, three of
which run here.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gradwise.optim import RKalman
from gradwise.reproduce.experiments._poisson import METHODS, Poisson, Training

pytestmark = pytest.mark.slow

EVALUATIONS = 1000
RHO = 0.05
seeds = pytest.mark.parametrize("seed", [0, 1, 2])


def small(seed: int = 0) -> Any:
    return Poisson(k=4, points=32, width=16, seed=seed)


def trained(name: str, value: float, seed: int) -> tuple[Any, list[float]]:
    """A training that has used its gradient evaluations, and its losses, the last one included."""
    training = Training(METHODS[name], value, small(seed))
    losses = []
    while training.evaluations < EVALUATIONS:
        losses.append(training.step())
        if not math.isfinite(losses[-1]):
            return training, losses
    return training, [*losses, training.problem.loss().item()]


def differences(of: Callable[[], Tensor], params: list[Tensor], h: float = 1e-5) -> Tensor:
    """Central differences of `of` in every value of the parameters, the last dimension."""
    found = []
    for param in params:
        flat = param.detach().view(-1)
        for i in range(len(flat)):
            there = flat[i].item()
            ends = []
            for at in (there + h, there - h):
                flat[i] = at
                ends.append(of().detach())
            flat[i] = there
            found.append((ends[0] - ends[1]) / (2 * h))
    return torch.stack(found, -1)


def joined(tensors: Any) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def apart(got: Tensor, wanted: Tensor) -> float:
    return ((got - wanted).norm() / wanted.norm()).item()


class Tiny:
    """A problem of 97 parameters, its plain gradient, and the gradient that a step leaves."""

    def __init__(self) -> None:
        self.problem = Poisson(k=4, points=16, width=8)
        self.params = list(self.problem.model.parameters())

    def slope(self) -> Tensor:
        return joined(torch.autograd.grad(self.problem.loss(), self.params))

    def left(self, name: str) -> Tensor:
        Training(METHODS[name], 1e-3, self.problem, RHO).step()
        return joined(p.grad for p in self.params)


def test_the_residuals_are_those_of_the_equation() -> None:
    problem = small()
    inner = problem.x[: problem.points].clone().requires_grad_()
    (slope,) = torch.autograd.grad(problem.exact(inner).sum(), inner, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), inner)
    torch.testing.assert_close(-bend[:, 0], problem.f)
    assert problem.exact(problem.x[problem.points :]).abs().max() < 1e-12

    h = 1e-4
    with torch.no_grad():
        u = [problem.model(problem.x[: problem.points] + at)[:, 0] for at in (-h, 0.0, h)]
        ends = problem.model(problem.x[problem.points :])[:, 0]
    equation = (-(u[0] - 2 * u[1] + u[2]) / h**2 - problem.f) / problem.unit
    got = problem.residuals().detach()
    torch.testing.assert_close(got[: problem.points], equation, rtol=1e-6, atol=1e-6)
    loss = equation.square().mean() + ends.square().mean()
    torch.testing.assert_close(problem.loss().detach(), loss, rtol=1e-6, atol=1e-6)


def test_reng_takes_the_gradient_of_the_regularised_loss() -> None:
    """u'' is differentiated for the gradient and once more for the Hessian-vector product."""
    tiny = Tiny()

    def regularised() -> Tensor:
        return tiny.problem.loss() + RHO / 2 * tiny.slope().square().sum()

    wanted = differences(regularised, tiny.params)
    plain = tiny.slope()
    got = tiny.left("RENG")
    assert apart(got, wanted) < 1e-7
    assert apart(plain, wanted) > 1e-2  # the regularisation is there to be seen


def test_ring_takes_the_gradient_further_up() -> None:
    tiny = Tiny()
    before, plain = joined(tiny.params), tiny.slope()
    torch.nn.utils.vector_to_parameters(before + RHO * plain, tiny.params)
    wanted = differences(tiny.problem.loss, tiny.params)
    torch.nn.utils.vector_to_parameters(before, tiny.params)
    assert apart(tiny.left("RING"), wanted) < 1e-7
    assert apart(plain, wanted) > 1e-2


def test_rkalman_takes_the_jacobian_of_the_residuals() -> None:
    tiny = Tiny()
    jacobian = differences(tiny.problem.residuals, tiny.params)
    e = tiny.problem.residuals().detach()
    optimizer = RKalman(tiny.params, rho=0.01, observation_noise=2.0)
    optimizer.step(tiny.problem.residuals)
    gram, eye = jacobian @ jacobian.T, torch.eye(len(e), dtype=e.dtype)
    noise = torch.linalg.inv(eye / 2.0 + 0.01 * gram / 4.0)
    wanted = jacobian.T @ torch.linalg.solve(gram + noise, e)  # P = I before the first step
    assert apart(joined(p.grad for p in tiny.params), wanted) < 1e-6


@pytest.mark.parametrize("inner", ["lbfgs", "adam"])
def test_what_implicit_sgd_reports_is_the_residual_of_its_equation(inner: str) -> None:
    """An independent gradient, by differences, where the step has arrived."""
    tiny = Tiny()
    before = joined(tiny.params)
    training = Training(METHODS[f"ImplicitSGD, {inner}"], 10.0, tiny.problem)
    training.step()
    there = differences(tiny.problem.loss, tiny.params)
    residual = (joined(tiny.params) - before + 10.0 * there).norm().item()
    assert residual == pytest.approx(training.optimizer.residual, rel=1e-5, abs=1e-7)
    assert training.evaluations == training.optimizer.closure_calls > 1


@seeds
def test_implicit_sgd_is_stable_where_sgd_diverges(seed: int) -> None:
    _, losses = trained("SGD", 1.0, seed)
    assert not max(losses) < 1e3  # NaN and infinity too
    for lr in (1.0, 100.0):
        training, losses = trained("ImplicitSGD, lbfgs", lr, seed)
        # Of (7.2), a step never ends above where it began, so neither does the loss.
        assert all(b <= a * (1 + 1e-9) for a, b in itertools.pairwise(losses))
    assert training.problem.error() < 2e-3


@seeds
def test_an_equal_number_of_gradients(seed: int) -> None:
    """SGD at the best of its rates, everything else at a fixed value; no order among the others."""
    sgd = [trained("SGD", lr, seed) for lr in METHODS["SGD"].grid]
    sgd_loss = min(losses[-1] for _, losses in sgd if math.isfinite(losses[-1]))
    assert sgd_loss > 0.05  # stiff: it has not left the start far behind
    bounds = {
        "Adam": (0.01, 2e-3),
        "ImplicitSGD, lbfgs": (100.0, 5e-4),
        "ImplicitSGD, adam": (100.0, 1e-2),
        "RENG": (0.003, 0.04),
        "RING": (0.003, 0.04),
        "RKalman": (1.0, 0.02),
    }
    for name, (value, bound) in bounds.items():
        training, losses = trained(name, value, seed)
        assert training.evaluations < EVALUATIONS * 1.05, name
        assert losses[-1] < bound < sgd_loss, name
