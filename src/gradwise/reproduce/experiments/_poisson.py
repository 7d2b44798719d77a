"""A physics-informed network on the 1-D multi-scale Poisson problem, and its training.

-u'' = f on (0, 1), u(0) = u(1) = 0, with f such that u(x) = sin(2 pi x) + 0.1 sin(k pi x). The
problem is of the family of arXiv 2303.01767 (implicit SGD); that paper's own settings were not
available.

A gradient evaluation is one pass back through the loss. A Hessian-vector product counts as one
more, a Jacobian as many as it has rows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gradwise.errors import UserError
from gradwise.optim import RENG, RING, ImplicitSGD, RKalman

__all__ = ["BUDGETS", "METHODS", "Method", "Poisson", "Training", "trial"]

BUDGETS = ("steps", "evaluations", "seconds")
"""What a training may use up, attributes of `Training`."""


class Poisson:
    """The network, its residuals at fixed points, and how far it is from the exact solution.

    Args:
        k: of the fast part of the solution; a whole number, so that the solution is 0 at both ends.
        points: collocation points, at the middles of equal cells.
        width: of each of the two hidden layers.
        boundary: weight of the mean square at the ends, beside that of the equation's residual.
        seed: of the initial weights, the same on every device.
        device: where everything is; float64, but float32 on "mps", which has no other.

    Raises:
        UserError: where a number is out of its bounds.

    Examples:
        >>> problem = Poisson(k=4, points=32, width=16)
        >>> problem.residuals().shape, round(problem.loss().item(), 1)
        (torch.Size([34]), 1.2)
    """

    def __init__(
        self,
        k: int = 10,
        points: int = 128,
        width: int = 32,
        boundary: float = 1.0,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        for name, value in (("k", k), ("points", points), ("width", width)):
            if value < 1:
                raise UserError(f"expected {name} >= 1, got {name}={value}")
        if not 0 < boundary < math.inf:
            raise UserError(f"expected 0 < boundary < inf, got boundary={boundary}")
        dtype = torch.float32 if device.startswith("mps") else torch.float64
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            hidden = (nn.Linear(1, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
            model = nn.Sequential(*hidden, nn.Linear(width, 1))
        self.model = model.to(device=device, dtype=dtype)
        self.k, self.points, self.boundary = k, points, boundary
        inner = (torch.arange(points, dtype=dtype, device=device) + 0.5) / points
        self.x = torch.cat([inner, inner.new_tensor([0.0, 1.0])])[:, None]
        self.f = self.source(inner)
        # In units of f the residuals are of order 1 whatever k is, and so is the loss at u = 0.
        self.unit = float(self.f.square().mean().sqrt())
        self.weight = math.sqrt(boundary * points / 2)

    def source(self, x: Tensor) -> Tensor:
        """The right-hand side f at any points, in the shape of `x`."""
        slow, fast = 2 * math.pi, self.k * math.pi
        return slow**2 * torch.sin(slow * x) + 0.1 * fast**2 * torch.sin(fast * x)

    def exact(self, x: Tensor) -> Tensor:
        """The solution."""
        return torch.sin(2 * math.pi * x) + 0.1 * torch.sin(self.k * math.pi * x)

    def _bend(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """What the network says and its second derivative at points [N, 1], each [N, 1]."""
        x = points.clone().requires_grad_()
        u = self.model(x)
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
        return u, bend

    def residuals(self) -> Tensor:
        """Of the equation at the points, then of both ends: [points + 2], each of order 1."""
        u, bend = self._bend(self.x)
        equation = (-bend[: self.points, 0] - self.f) / self.unit
        return torch.cat([equation, self.weight * u[self.points :, 0]])

    def loss(self) -> Tensor:
        """Mean square of the equation's residuals plus `boundary` times that of the ends."""
        return self.residuals().square().sum() / self.points

    def held_out(self) -> float:
        """The loss at other points, 1000 for the equation, none of which is trained on."""
        between = torch.linspace(0, 1, 1002, dtype=self.x.dtype, device=self.x.device)[1:-1, None]
        _, bend = self._bend(between)
        equation = (-bend.detach() - self.source(between)) / self.unit
        with torch.no_grad():
            ends = self.model(self.x[self.points :])
        return float(equation.square().mean() + self.boundary * ends.square().mean())

    @torch.no_grad()
    def error(self) -> float:
        """||u - exact|| / ||exact|| at 1001 points."""
        x = torch.linspace(0, 1, 1001, dtype=self.x.dtype, device=self.x.device)[:, None]
        exact = self.exact(x)
        return float((self.model(x) - exact).norm() / exact.norm())


@dataclass(frozen=True)
class Method:
    """An optimizer and the grid it is tried on.

    Attributes:
        make: of the model, the tuned value and rho.
        tuned: the option whose values the grid has.
        grid: four values.
        closure: what `step` wants: one that goes backward, the bare loss, or the residuals.
        passes: back through the loss for each call of the closure; None for one a residual.
    """

    make: Callable[[nn.Module, float, float], Any]
    tuned: str
    grid: tuple[float, float, float, float]
    closure: Literal["backward", "loss", "residuals"] = "backward"
    passes: int | None = 1


_NATURAL = (0.001, 0.003, 0.01, 0.03)
_IMPLICIT = (1.0, 10.0, 100.0, 1000.0)

METHODS = {
    "SGD": Method(
        lambda model, lr, rho: torch.optim.SGD(model.parameters(), lr),
        *("lr", (0.01, 0.03, 0.1, 0.3)),
    ),
    "Adam": Method(
        lambda model, lr, rho: torch.optim.Adam(model.parameters(), lr),
        *("lr", (3e-4, 1e-3, 3e-3, 1e-2)),
    ),
    "ImplicitSGD, lbfgs": Method(
        lambda model, lr, rho: ImplicitSGD(model.parameters(), lr), "lr", _IMPLICIT
    ),
    "ImplicitSGD, adam": Method(
        lambda model, lr, rho: ImplicitSGD(model.parameters(), lr, inner="adam"), "lr", _IMPLICIT
    ),
    "RENG": Method(lambda model, lr, rho: RENG(model, lr, rho), "lr", _NATURAL, "loss", 2),
    "RING": Method(lambda model, lr, rho: RING(model, lr, rho), "lr", _NATURAL, "loss"),
    # What RENG and RING are without their regularisation: tells what that does.
    "RING, rho=0": Method(lambda model, lr, rho: RING(model, lr, 0.0), "lr", _NATURAL, "loss"),
    # The filter's gain needs no learning rate; what makes its steps small is the noise.
    "RKalman": Method(
        lambda model, noise, rho: RKalman(model.parameters(), observation_noise=noise),
        *("observation_noise", (0.3, 1.0, 3.0, 10.0), "residuals", None),
    ),
}
"""By name, with the library's defaults for everything but the tuned option and rho."""


class Training:
    """One model with one optimizer; counts what it does.

    Args:
        method: the optimizer.
        value: of its tuned option.
        problem: fresh.
        rho: of RENG and RING.

    Attributes:
        steps: outer ones.
        evaluations: of the gradient.
        seconds: CPU time of this process in `step`.

    Examples:
        >>> training = Training(METHODS["RENG"], 1e-3, Poisson(k=4, points=32, width=16))
        >>> loss = training.step()
        >>> training.steps, training.evaluations
        (1, 2)
    """

    def __init__(self, method: Method, value: float, problem: Poisson, rho: float = 0.05) -> None:
        self.problem, self.method = problem, method
        self.optimizer = method.make(problem.model, value, rho)
        self.steps, self.evaluations, self.seconds = 0, 0, 0.0

    def step(self) -> float:
        """One outer step; the loss before it, in the optimizer's own unit."""
        start = time.process_time()
        loss = self.optimizer.step(getattr(self, f"_{self.method.closure}"))
        self.seconds += time.process_time() - start
        self.steps += 1
        return float(loss)

    def _count(self) -> None:
        passes = self.method.passes
        self.evaluations += len(self.problem.x) if passes is None else passes

    def _backward(self) -> Tensor:
        self._count()
        self.optimizer.zero_grad()
        loss = self.problem.loss()
        loss.backward()  # type: ignore[no-untyped-call]  # torch has no annotation there
        return loss.detach()

    def _loss(self) -> Tensor:
        self._count()
        return self.problem.loss()

    def _residuals(self) -> Tensor:
        self._count()
        return self.problem.residuals()


def trial(
    training: Training,
    budgets: dict[str, float],
    watch: Callable[[Training, float], bool] | None = None,
) -> dict[str, dict[str, float | None]]:
    """Train until every budget is used up; what there was as each of them ended.

    Args:
        training: fresh.
        budgets: how much of each of `BUDGETS`, or of some of them, there is.
        watch: told after each step, with the loss before it in the optimizer's own unit; says
            whether to go on. What is given up counts as not finite.

    Returns:
        For each budget what was used, the loss and the error, None where they are not finite.
    """
    found: dict[str, dict[str, float | None]] = {}
    alive = True
    while len(found) < len(budgets):
        loss = training.step()
        alive = alive and math.isfinite(loss)
        if watch is not None:
            alive = watch(training, loss) and alive
        used = {name: getattr(training, name) for name in BUDGETS}
        over = [n for n in budgets if n not in found and (not alive or used[n] >= budgets[n])]
        if over:
            ends = {
                "loss": float(training.problem.loss().detach()),
                "error": training.problem.error(),
            }
            shown = {n: v if alive and math.isfinite(v) else None for n, v in ends.items()}
            found |= {name: {**used, **shown} for name in over}
    return found
