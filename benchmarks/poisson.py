"""A physics-informed network on the 1-D multi-scale Poisson problem, trained with each optimizer.

    python benchmarks/poisson.py [--k 10] [--seeds 3] [--seconds 5] [--out FILE.json]

-u'' = f on (0, 1), u(0) = u(1) = 0, with f such that u(x) = sin(2 pi x) + 0.1 sin(k pi x). The
problem is of the family of arXiv 2303.01767 (implicit SGD); that paper's own settings were not
available [OPEN]. k = 50 is usual in the literature, the default of 10 is a CPU's size.

Every method has a grid of four values of one option, on the same seeds; everything else is the
library's default. A trial goes on until a number of outer steps, a number of gradient evaluations
and a CPU time are all used up, and is looked at as each of them ends. For each of the three budgets
the value with the lowest median training loss is reported; the exact solution decides nothing.

A gradient evaluation is one pass back through the loss. A Hessian-vector product counts as one
more, a Jacobian as many as it has rows.
"""

from __future__ import annotations

import argparse
import json
import math
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gradwise.optim import RENG, RING, ImplicitSGD, RKalman
from side_by_side import environment

BUDGETS = ("steps", "evaluations", "seconds")


class Poisson:
    """The network, its residuals at fixed points, and how far it is from the exact solution.

    Args:
        k: of the fast part of the solution; a whole number, so that the solution is 0 at both ends.
        points: collocation points, at the middles of equal cells.
        width: of each of the two hidden layers.
        boundary: weight of the mean square at the ends, beside that of the equation's residual.
        seed: of the initial weights.
    """

    def __init__(
        self, k: int = 10, points: int = 128, width: int = 32, boundary: float = 1.0, seed: int = 0
    ) -> None:
        torch.manual_seed(seed)
        hidden = (nn.Linear(1, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh())
        self.model = nn.Sequential(*hidden, nn.Linear(width, 1)).double()
        self.k, self.points = k, points
        inner = (torch.arange(points, dtype=torch.float64) + 0.5) / points
        self.x = torch.cat([inner, inner.new_tensor([0.0, 1.0])])[:, None]
        slow, fast = 2 * math.pi, k * math.pi
        self.f = slow**2 * torch.sin(slow * inner) + 0.1 * fast**2 * torch.sin(fast * inner)
        # In units of f the residuals are of order 1 whatever k is, and so is the loss at u = 0.
        self.unit = float(self.f.square().mean().sqrt())
        self.weight = math.sqrt(boundary * points / 2)

    def exact(self, x: Tensor) -> Tensor:
        """The solution."""
        return torch.sin(2 * math.pi * x) + 0.1 * torch.sin(self.k * math.pi * x)

    def residuals(self) -> Tensor:
        """Of the equation at the points, then of both ends: [points + 2], each of order 1."""
        x = self.x.clone().requires_grad_()
        u = self.model(x)
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (bend,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
        equation = (-bend[: self.points, 0] - self.f) / self.unit
        return torch.cat([equation, self.weight * u[self.points :, 0]])

    def loss(self) -> Tensor:
        """Mean square of the equation's residuals plus `boundary` times that of the ends."""
        return self.residuals().square().sum() / self.points

    @torch.no_grad()
    def error(self) -> float:
        """||u - exact|| / ||exact|| at 1001 points."""
        x = torch.linspace(0, 1, 1001, dtype=torch.float64)[:, None]
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


NATURAL = (0.001, 0.003, 0.01, 0.03)
IMPLICIT = (1.0, 10.0, 100.0, 1000.0)
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
        lambda model, lr, rho: ImplicitSGD(model.parameters(), lr), "lr", IMPLICIT
    ),
    "ImplicitSGD, adam": Method(
        lambda model, lr, rho: ImplicitSGD(model.parameters(), lr, inner="adam"), "lr", IMPLICIT
    ),
    "RENG": Method(lambda model, lr, rho: RENG(model, lr, rho), "lr", NATURAL, "loss", 2),
    "RING": Method(lambda model, lr, rho: RING(model, lr, rho), "lr", NATURAL, "loss"),
    # What RENG and RING are without their regularisation: tells what that does.
    "RING, rho=0": Method(lambda model, lr, rho: RING(model, lr, 0.0), "lr", NATURAL, "loss"),
    # The filter's gain needs no learning rate; what makes its steps small is the noise.
    "RKalman": Method(
        lambda model, noise, rho: RKalman(model.parameters(), observation_noise=noise),
        *("observation_noise", (0.3, 1.0, 3.0, 10.0), "residuals", None),
    ),
}


class Training:
    """One model with one optimizer; counts what it does.

    Attributes:
        steps: outer ones.
        evaluations: of the gradient.
        seconds: CPU time of this process in `step`.
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
        loss.backward()
        return loss.detach()

    def _loss(self) -> Tensor:
        self._count()
        return self.problem.loss()

    def _residuals(self) -> Tensor:
        self._count()
        return self.problem.residuals()


def trial(training: Training, budgets: dict[str, float]) -> dict[str, dict[str, float | None]]:
    """Train until every budget is used up; what there was as each of them ended.

    Args:
        training: fresh.
        budgets: how much of each of `BUDGETS` there is.

    Returns:
        For each budget what was used, the loss and the error, None where they are not finite.
    """
    found: dict[str, dict[str, float | None]] = {}
    alive = True
    while len(found) < len(budgets):
        alive = alive and math.isfinite(training.step())
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


def summary(trials: Sequence[dict[str, Any]], budget: str) -> list[dict[str, Any]]:
    """For each method the value with the lowest median loss at a budget, over the seeds."""

    def over_seeds(of: list[dict[str, Any]], key: str) -> list[float]:
        found = [t["at"][budget][key] for t in of]
        return sorted(math.inf if value is None else value for value in found)

    rows = []
    for name in dict.fromkeys(t["method"] for t in trials):
        by_value: dict[float, list[dict[str, Any]]] = {}
        for t in trials:
            if t["method"] == name:
                by_value.setdefault(t["value"], []).append(t)
        median = {v: statistics.median(over_seeds(of, "loss")) for v, of in by_value.items()}
        best = min(median, key=lambda v: median[v])
        ends = {key: over_seeds(by_value[best], key) for key in ("error", "loss", *BUDGETS)}
        rows.append(
            {"budget": budget, "method": name, "tuned": METHODS[name].tuned, "best": best}
            | {"not_finite": sum(not math.isfinite(e) for e in ends["error"])}
            | {key: _json(statistics.median(values)) for key, values in ends.items()}
            | {"error_range": [_json(ends["error"][0]), _json(ends["error"][-1])]}
        )
    return rows


def _json(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON knows no infinity


def show(rows: Sequence[dict[str, Any]], title: str) -> None:
    """Print the rows of one budget."""
    print(f"\n{title}: medians over the seeds, and the range of the error")
    print(
        f"{'':20s}{'error':>9s}{'range':>20s}{'loss':>10s}{'steps':>7s}{'gradients':>11s}"
        f"{'CPU s':>7s}  best of the grid"
    )
    for row in rows:
        error, loss, low, high = (
            "diverged" if value is None else f"{value:.2g}"
            for value in (row["error"], row["loss"], *row["error_range"])
        )
        print(
            f"{row['method']:20s}{error:>9s}{f'{low}..{high}':>20s}{loss:>10s}"
            f"{row['steps']:7.0f}{row['evaluations']:11.0f}{row['seconds']:7.2f}"
            f"  {row['tuned']} {row['best']:g}"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the grid, print three tables, and write them with every trial."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--points", type=int, default=128)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--boundary", type=float, default=1.0, help="weight of the ends")
    parser.add_argument("--rho", type=float, default=0.05, help="of RENG and RING")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--evaluations", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--out", type=Path, help="a JSON file")
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    budgets = {name: getattr(options, name) for name in BUDGETS}
    print(environment())
    trials = []
    for seed in range(options.seeds):  # outermost, so that a busy machine slows down all methods
        for name in options.methods:
            for value in METHODS[name].grid:
                problem = Poisson(options.k, options.points, options.width, options.boundary, seed)
                training = Training(METHODS[name], value, problem, options.rho)
                at = trial(training, budgets)
                trials.append({"method": name, "value": value, "seed": seed, "at": at})
    rows = []
    for budget in BUDGETS:
        rows += summary(trials, budget)
        show([row for row in rows if row["budget"] == budget], f"{budgets[budget]:g} {budget}")
    if options.out is not None:
        shown = {"command": shlex.join(["python", "benchmarks/poisson.py", *arguments])}
        problem = {key: getattr(options, key) for key in ("k", "points", "width", "boundary")}
        shown |= {"environment": environment(), "problem": problem, "budgets": budgets}
        shown |= {"rho": options.rho, "seeds": list(range(options.seeds))}
        grids = {name: {METHODS[name].tuned: METHODS[name].grid} for name in options.methods}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(shown | {"grids": grids, "rows": rows, "trials": trials}, indent=1)
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
