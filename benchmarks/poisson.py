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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gradwise.reproduce.experiments._poisson import BUDGETS, METHODS, Poisson, Training, trial
from side_by_side import environment


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
