"""Which interpolator noise finds: Pesme, Pillaud-Vivien and Flammarion, NeurIPS 2021.

Gradient descent and SGD on the same noiseless sparse regressions, from the same start, at the same
step sizes; `gradwise.analysis.implicit_bias` has the networks.
"""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from gradwise.analysis.implicit_bias import (
    DiagonalRuns,
    PlantedProblem,
    kkt_residual,
    planted_problem,
    train_diagonal,
)
from gradwise.errors import UserError
from gradwise.reproduce.cells import Cell, Tell
from gradwise.reproduce.claims import Claim, Conclusion, judge_equal, judge_greater
from gradwise.reproduce.experiments._diagonal_page import Data, lost, pictures, table
from gradwise.reproduce.experiments._several import Several, each


def cells(settings: dict[str, Any]) -> list[Cell]:
    """A cell for each seed: of the problem, and of the samples that SGD draws."""
    for name in ("alphas", "gammas"):
        values = settings[name]
        if not values or sorted(set(values)) != sorted(values) or min(values) <= 0:
            raise UserError(f"expected one or more {name} > 0, each once, got {name}={values}")
    if settings["records"] < 1:
        raise UserError(f"expected records >= 1, got records={settings['records']}")
    return [Cell(f"seed={seed}", {"seed": seed}) for seed in settings["seeds"]]


def run(settings: dict[str, Any], arguments: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """Both methods at all step sizes and scales of initialisation, on one problem."""
    seed, device = arguments["seed"], settings["device"]
    problem = planted_problem(settings["n"], settings["d"], settings["r"], seed)
    problem = PlantedProblem(
        problem.inputs.to(device), problem.targets.to(device), problem.solution.to(device)
    )
    cases = [(alpha, gamma) for alpha in settings["alphas"] for gamma in settings["gammas"]]
    alpha = torch.tensor([[a] for a, _ in cases], dtype=torch.float64, device=device)
    steps = settings["steps"]
    train = partial(
        train_diagonal,
        problem.data,
        alpha=alpha,
        gamma=torch.tensor([g for _, g in cases], dtype=torch.float64, device=device),
        steps=steps,
        seeds=[seed] * len(cases),
        record_every=max(steps // settings["records"], 1),
    )
    sgd = train(batch_size=1, progress=lambda done, all_: tell(done, 2 * all_))
    gd = train(batch_size=None, progress=lambda done, all_: tell(all_ + done, 2 * all_))
    runs = []
    for name, trained in (("sgd", sgd), ("gd", gd)):
        measured = _measure(problem, trained)
        for k, (a, g) in enumerate(cases):
            values = {key: value[k] for key, value in measured.items()}
            runs.append({"method": name, "alpha": a, "gamma": g, **values})
    return {"at": list(sgd.steps), "solution": problem.solution.tolist(), "runs": runs}


def _measure(problem: PlantedProblem, trained: DiagonalRuns) -> dict[str, list[Any]]:
    """By name, a value for each of the runs."""
    x, start, effective = problem.inputs, trained.alpha, trained.effective_alpha
    away = trained.betas - problem.solution
    off = trained.beta[:, problem.solution == 0].abs().sum(1)
    return {
        "distance": away.norm(dim=2).T.tolist(),
        "loss": trained.losses.T.tolist(),
        "off_support": off.tolist(),
        "shrunk": (effective / start).median(1).values.tolist(),
        "predicted": (trained.predicted_alpha / start).median(1).values.tolist(),
        "ratio": (effective / trained.predicted_alpha).median(1).values.tolist(),
        "kkt_effective": kkt_residual(x, trained.beta, effective).tolist(),
        "kkt_start": kkt_residual(x, trained.beta, start).tolist(),
        "beta": trained.beta.tolist(),
    }


# --- what is concluded ---


def conclude(settings: dict[str, Any], results: dict[str, dict[str, Any]]) -> Conclusion:
    """Judge sparsity, the effective alpha, and whether it is the one that is minimised."""
    data = Data(settings, results)
    tolerance, apart = settings["tolerance"], settings["apart"]
    closer = data.judged(lambda sgd, gd: gd["distance"][-1] - sgd["distance"][-1], judge_greater)
    sparser = data.judged(lambda sgd, gd: gd["off_support"] - sgd["off_support"], judge_greater)
    larger = Several(
        {
            f"alpha {alpha:g}, gamma {small:g} to {large:g}": each(
                data.results,
                lambda result, a=alpha, s=small, g=large: (  # type: ignore[misc]  # its own case
                    data.one(result, "sgd", a, s)["distance"][-1]
                    - data.one(result, "sgd", a, g)["distance"][-1]
                ),
                judge_greater,
            )
            for alpha in data.alphas
            for small, large in pairwise(data.gammas)
        }
    )
    agrees = data.judged(
        lambda sgd, _: sgd["ratio"] - 1, lambda values: judge_equal(values, within=tolerance)
    )
    stationary = data.judged(
        lambda sgd, _: math.log10(sgd["kkt_start"] / sgd["kkt_effective"]),
        lambda values: judge_greater(values, than=math.log10(apart)),
    )
    claims = (
        Claim(
            "SGD ends closer to the sparse solution than gradient descent from the same start.",
            "Distance to beta* of gradient descent minus that of SGD, at the end: "
            f"{closer.words()}.",
            closer.verdict,
        ),
        Claim(
            "Its solutions are sparser.",
            "Sum of |beta_j| where beta*_j is 0, of gradient descent minus that of SGD: "
            f"{sparser.words()}.",
            sparser.verdict,
        ),
        Claim(
            "The larger the step size of SGD, the closer.",
            f"By how much its distance to beta* is less at the larger step size: {larger.words()}.",
            larger.verdict,
        ),
        Claim(
            "The noise shrinks alpha to alpha_inf = alpha exp(-2 gamma diag(X^T X / n) int L ds).",
            "Median over coordinates of sqrt(w+ w-) over that prediction, less 1: "
            f"{agrees.words('%', 100)}; allowed is {100 * tolerance:g} %.",
            agrees.verdict,
        ),
        Claim(
            "SGD minimises the potential of this effective alpha, not that of the first alpha.",
            "log10 of the factor by which the optimality condition is violated more with alpha "
            f"than with the effective alpha: {stationary.words()}; asked for is more than "
            f"{math.log10(apart):.3g}, a factor of {apart:g}.",
            stationary.verdict,
        ),
    )
    notes = [
        "Equations are recalled from the paper and checked by derivation and numbers; problem and "
        "step sizes are this project's, with all entries of beta* equally large; the paper's own "
        "figures were not at hand.",
        "The prediction takes the integral of the loss from the run itself, as the paper's does.",
    ]
    if lost(data):
        notes.append(f"Left out for numbers that are not finite: {', '.join(lost(data))}.")
    return Conclusion(claims, (table(data),), pictures(data), tuple(notes))
