"""Implicit SGD on the multi-scale Poisson problem: Li, Chen and Huang, AAAI 2023.

Every method is tried on one grid of learning rates from the same weights. What is judged is up to
which rate a training stays stable, and the error of the solution after equally many outer steps;
what an outer step costs in gradients is told beside it.
"""

from __future__ import annotations

import math
import statistics
from typing import Any

from gradwise.report.article import Picture, Table
from gradwise.report.drawing import COLORS, axes, band, svg
from gradwise.reproduce.cells import Cell, Tell
from gradwise.reproduce.claims import Claim, Conclusion
from gradwise.reproduce.experiments._pairs import All
from gradwise.reproduce.experiments._poisson import METHODS
from gradwise.reproduce.experiments._poisson_grid import STABLE, check_grid, run_grid
from gradwise.reproduce.experiments._poisson_trials import Trials

ARMS = {
    "sgd": ("SGD", "SGD"),
    "adam": ("Adam", "Adam"),
    "implicit-lbfgs": ("ImplicitSGD, lbfgs", "implicit SGD, L-BFGS inside"),
    "implicit-adam": ("ImplicitSGD, adam", "implicit SGD, Adam inside"),
}
"""By the names of cells: the method, and how it is called in words."""

IMPLICIT = ("implicit-lbfgs", "implicit-adam")


def cells(settings: dict[str, Any]) -> list[Cell]:
    """A cell for each method and seed: all learning rates."""
    check_grid(settings, ["lrs"])
    return [
        Cell(f"{arm}-seed={seed}", {"arm": arm, "seed": seed})
        for seed in settings["seeds"]
        for arm in ARMS
    ]


def run(settings: dict[str, Any], arguments: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """Train at each learning rate."""
    method = METHODS[ARMS[arguments["arm"]][0]]
    options = [(lr, 0.0) for lr in settings["lrs"]]
    return run_grid(method, options, settings, arguments["seed"], tell)


def conclude(settings: dict[str, Any], results: dict[str, dict[str, Any]]) -> Conclusion:
    """Judge stability and the error at equal outer steps; tell the error at equal gradients."""
    trials = Trials(settings, results)
    stable = All({ARMS[arm][1]: trials.bolder(arm, "sgd")[0] for arm in IMPLICIT})

    def better(than: str, budget: str) -> All:
        return All({ARMS[a][1]: trials.gains(a, than, budget, "loss", "error") for a in IMPLICIT})

    sgd, adam = better("sgd", "steps"), better("adam", "steps")
    top = settings["lrs"][-1]
    reached = sum(
        trials.reach(arm, seed, 0.0)[0] == len(settings["lrs"])
        for arm in IMPLICIT
        for seed in trials.seeds
    )
    claims = (
        Claim(
            "Implicit SGD stays stable at learning rates at which SGD diverges.",
            "log10 of the largest stable learning rate over SGD's, seed by seed: "
            f"{stable.words()}. In {reached} of {len(IMPLICIT) * len(trials.seeds)} trainings the "
            f"largest rate of the grid, {top:g}, is still stable, so that this is a lower bound.",
            stable.verdict,
        ),
        Claim(
            "On a multi-scale problem its error is lower than SGD's.",
            f"log10 of SGD's error over its own after {settings['steps']} outer steps, each at the "
            f"learning rate with the lowest median loss: {sgd.words()}.",
            sgd.verdict,
        ),
        Claim(
            "On a multi-scale problem its error is lower than Adam's.",
            f"log10 of Adam's error over its own after {settings['steps']} outer steps: "
            f"{adam.words()}.",
            adam.verdict,
        ),
    )
    evaluations = f"{settings['evaluations']} gradient evaluations"
    cost = [
        f"{ARMS[arm][1]} {found:.1f}"
        for arm in IMPLICIT
        if (found := _each_step(trials, arm)) is not None
    ]
    notes = [
        f"Stable means that the loss is finite and below {STABLE:g} times the first throughout, "
        "at this rate and at all smaller ones of the grid.",
        "The paper's claim is judged at equal outer steps, though these do not cost the same. "
        f"Gradient evaluations an outer step: SGD and Adam 1; {'; '.join(cost) or 'not known'}.",
        f"At an equal number of {evaluations} log10 of the other's error over that of implicit "
        f"SGD is, against SGD: {better('sgd', 'evaluations').words()}. Against Adam: "
        f"{better('adam', 'evaluations').words()}. Above 0 it has the smaller error.",
        "The paper's own problem sizes and learning rates are not known to us.",
    ]
    lost = [name for name, one in results.items() if not any(map(trials.stable, one["trials"]))]
    if lost:
        notes.append(f"Not stable at any learning rate: {', '.join(sorted(lost))}.")
    return Conclusion(
        claims, (_table(settings, trials),), _pictures(settings, trials), tuple(notes)
    )


def _each_step(trials: Trials, arm: str) -> float | None:
    """Mean gradient evaluations of an outer step at the arm's best learning rate."""
    best = trials.best(arm, "steps", "loss")
    if best is None:
        return None
    used = [
        (
            trials.number(arm, best, s, "steps", "evaluations"),
            trials.number(arm, best, s, "steps", "steps"),
        )
        for s in trials.seeds
    ]
    return statistics.fmean(a / b for a, b in used if a < math.inf)


def _table(settings: dict[str, Any], trials: Trials) -> Table:
    rows = []
    for arm, (_, words) in ARMS.items():
        for budget in ("steps", "evaluations"):
            best = trials.best(arm, budget, "loss")
            shown = f"{settings[budget]} {'outer steps' if budget == 'steps' else 'gradients'}"
            if best is None:
                rows.append((words, shown, *("never stable",), *("",) * 4))
                continue
            found = {
                key: sorted(trials.number(arm, best, s, budget, key) for s in trials.seeds)
                for key in ("error", "loss", "evaluations", "seconds")
            }
            middle = {key: statistics.median(values) for key, values in found.items()}
            rows.append(
                (
                    words,
                    shown,
                    f"{middle['error']:.2g} ({found['error'][0]:.2g} to {found['error'][-1]:.2g})",
                    f"{middle['loss']:.2g}",
                    f"{best[0]:g}",
                    f"{middle['evaluations']:.0f}",
                    f"{middle['seconds']:.2g}",
                )
            )
    return Table(
        "What a budget buys",
        ("method", "budget", "relative error of u", "loss", "learning rate", "gradients", "CPU s"),
        tuple(rows),
        "Medians over the seeds, and the range of the error, at the learning rate with the lowest "
        "median loss for this budget. CPU seconds depend on the machine and on what else it does.",
    )


def _pictures(settings: dict[str, Any], trials: Trials) -> tuple[Picture, ...]:
    colors = dict(zip(ARMS, COLORS, strict=False))
    with axes(1, 2, sharey=True) as (figure, panels):
        for panel, budget in zip(panels, ("steps", "evaluations"), strict=True):
            end = settings[budget]
            places = sorted({round(end ** (i / 39)) for i in range(40)})
            for arm, (_, words) in ARMS.items():
                best = trials.best(arm, budget, "loss")
                if best is not None:
                    rows = trials.along(arm, best, budget, places, "error")
                    band(panel, places, rows, f"{words}, lr {best[0]:g}", colors[arm])
            panel.set_xscale("log")
            panel.set_xlabel("outer steps" if budget == "steps" else "gradient evaluations")
            panel.legend()
        panels[0].set_ylabel("log10 of the relative error of u")
        course = Picture(
            "implicit-sgd-error",
            "Error of the solution over outer steps, and over what they cost: mean of the "
            "logarithm over the seeds and its 95 % interval. Each method at the learning rate that "
            "is best for the panel's budget.",
            "Two panels with a curve a method, the error over outer steps on the left and over "
            "gradient evaluations on the right; the table has the numbers at their right ends.",
            svg(figure),
        )
    with axes() as (figure, axis):
        lrs = settings["lrs"]
        for arm, (_, words) in ARMS.items():
            table = [
                [
                    math.log10(loss) if 0 < loss < math.inf else math.nan
                    for lr in lrs
                    for loss in [trials.number(arm, (lr, 0.0), seed, "evaluations", "loss")]
                ]
                for seed in trials.seeds
            ]
            band(axis, lrs, table, words, colors[arm], marker="o")
        axis.set_xscale("log")
        axis.set_xlabel("learning rate")
        axis.set_ylabel("log10 of the final loss")
        axis.legend()
        rates = Picture(
            "implicit-sgd-rates",
            f"Loss after {settings['evaluations']} gradient evaluations against the learning "
            "rate; unstable trainings are left out, so that a line ends where its method diverges.",
            "A curve a method over the learning rate on a logarithmic axis; each covers the rates "
            "at which its method is stable.",
            svg(figure),
        )
    return course, rates
