"""Gradient-regularised natural gradients on the Poisson problem: Dash and others, 2026.

RENG and RING against the same natural gradient without regularisation, R-Kalman against the plain
filter, all of them against SGD and Adam. There are few collocation points, so that a network can
fit them without solving the equation in between, and there is something to generalise.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gradwise.errors import UserError
from gradwise.optim import RKalman
from gradwise.report.article import Picture, Table
from gradwise.report.drawing import COLORS, axes, band, svg
from gradwise.reproduce.cells import Cell, Tell
from gradwise.reproduce.claims import Claim, Conclusion
from gradwise.reproduce.experiments._pairs import All
from gradwise.reproduce.experiments._poisson import METHODS, Method
from gradwise.reproduce.experiments._poisson_grid import STABLE, Option, check_grid, run_grid
from gradwise.reproduce.experiments._poisson_trials import Trials

_KALMAN = replace(
    METHODS["RKalman"],
    make=lambda model, noise, rho: RKalman(model.parameters(), rho=rho, observation_noise=noise),
)
ARMS: dict[str, tuple[str, Method, str]] = {
    "sgd": ("SGD", METHODS["SGD"], "first_lrs"),
    "adam": ("Adam", METHODS["Adam"], "first_lrs"),
    "natural": ("natural gradient, rho = 0", METHODS["RING, rho=0"], "lrs"),
    "reng": ("RENG", METHODS["RENG"], "lrs"),
    "ring": ("RING", METHODS["RING"], "lrs"),
    "kalman": ("Kalman filter, rho = 0", _KALMAN, "noises"),
    "rkalman": ("R-Kalman", _KALMAN, "noises"),
}
"""By the names of cells: the words, the method, and the setting that is its grid."""

PLAIN = {"reng": "natural", "ring": "natural", "rkalman": "kalman"}
"""What each regularised method is without its regularisation."""

_BUDGET = "evaluations"


def cells(settings: dict[str, Any]) -> list[Cell]:
    """A cell for each method and seed: all values of its option, and of rho."""
    check_grid(settings, ["lrs", "first_lrs", "noises"])
    for rho in settings["rhos"]:
        if not 0 < rho < math.inf:
            raise UserError(f"expected positive rhos, got rhos={settings['rhos']}")
    if not settings["rhos"]:
        raise UserError("expected at least one of rhos, got none")
    return [
        Cell(f"{arm}-seed={seed}", {"arm": arm, "seed": seed})
        for seed in settings["seeds"]
        for arm in ARMS
    ]


def run(settings: dict[str, Any], arguments: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """Train with each pair of a value and rho."""
    arm = arguments["arm"]
    _, method, grid = ARMS[arm]
    rhos = settings["rhos"] if arm in PLAIN else [0.0]
    options = [(value, rho) for rho in rhos for value in settings[grid]]
    return run_grid(method, options, settings, arguments["seed"], tell)


def conclude(settings: dict[str, Any], results: dict[str, dict[str, Any]]) -> Conclusion:
    """Judge generalisation, stability and speed against the same method without rho."""
    trials = Trials(settings, results)

    def against_plain(by: str, key: str) -> All:
        return All(
            {
                f"{ARMS[arm][0]} {_at(trials.best(arm, _BUDGET, by))}": trials.gains(
                    arm, plain, _BUDGET, by, key
                )
                for arm, plain in PLAIN.items()
            }
        )

    general = against_plain("held_out", "error")
    speed = against_plain("loss", "loss")
    stable = All({ARMS[arm][0]: _bolder(settings, trials, arm) for arm in PLAIN})
    first = All(
        {
            f"{ARMS[arm][0]} against {ARMS[other][0]}": trials.gains(
                arm, other, _BUDGET, "held_out", "error"
            )
            for arm in PLAIN
            for other in ("sgd", "adam")
        }
    )
    budget = f"after {settings[_BUDGET]} gradient evaluations"
    claims = (
        Claim(
            "Gradient regularisation makes natural gradients generalise better.",
            f"log10 of the error of u without regularisation over that with it, {budget}: "
            f"{general.words()}.",
            general.verdict,
        ),
        Claim(
            "Gradient regularisation makes natural gradients more stable.",
            "log10 of the boldest stable setting with regularisation over that without it, the "
            "learning rate of RENG and RING, one over the observation noise of R-Kalman: "
            f"{stable.words()}.",
            stable.verdict,
        ),
        Claim(
            "Gradient regularisation makes natural gradients train faster.",
            f"log10 of the training loss without regularisation over that with it, {budget}: "
            f"{speed.words()}.",
            speed.verdict,
        ),
        Claim(
            "Gradient-regularised natural gradients generalise better than SGD and Adam.",
            f"log10 of the other's error of u over their own, {budget}: {first.words()}.",
            first.verdict,
        ),
    )
    notes = [
        "The paper's tasks are vision and language, and its update equations were not seen: the "
        "optimizers are this library's reconstruction, and this problem is this library's choice. "
        "What is not reproduced here is not thereby refuted there.",
        "Values of the tuned option and of rho > 0 are those with the lowest median loss at 1000 "
        "points that are not trained on; for the claim on training, with the lowest median "
        "training loss. The exact solution decides nothing. Regularised methods choose from "
        f"{len(settings['rhos'])} times as many settings, which favours them slightly.",
        f"Stable means that the loss is finite and below {STABLE:g} times the first throughout, "
        "for this setting and all milder ones of the grid; rho is the one chosen for "
        "generalisation. A seed at which both are stable on the whole grid, or on none of it, "
        "tells nothing and is left out. Equally many steps are looked at.",
        "A Hessian-vector product counts as one gradient evaluation more, the Jacobian of the "
        f"Kalman filters as its {settings['points'] + 2} rows, though it is one batched pass.",
    ]
    lost = [name for name, one in results.items() if not any(map(trials.stable, one["trials"]))]
    if lost:
        notes.append(f"Not stable at any setting: {', '.join(sorted(lost))}.")
    return Conclusion(claims, _tables(settings, trials), _pictures(settings, trials), tuple(notes))


def _at(option: Option | None) -> str:
    return "never stable" if option is None else f"(rho {option[1]:g})"


def _bolder(settings: Mapping[str, Any], trials: Trials, arm: str) -> list[float]:
    """Seed by seed, how many decades bolder the settings are that regularisation keeps stable."""
    best = trials.best(arm, _BUDGET, "held_out")
    if best is None:
        return []
    if ARMS[arm][2] == "noises":
        return trials.bolder(arm, PLAIN[arm], best[1], bold=False)[0]
    # Regularisation takes two evaluations a step: equally many steps are looked at.
    return trials.bolder(arm, PLAIN[arm], best[1], within=settings[_BUDGET] // 2)[0]


def _middle(trials: Trials, arm: str, option: Option, key: str) -> str:
    found = [trials.number(arm, option, seed, _BUDGET, key) for seed in trials.seeds]
    middle = statistics.median(found)
    if math.isinf(middle):
        return "unstable"
    return f"{middle:.0f}" if key == "steps" else f"{middle:.2g}"


def _tables(settings: Mapping[str, Any], trials: Trials) -> tuple[Table, ...]:
    rows: list[tuple[str, ...]] = []
    for arm, (words, method, _) in ARMS.items():
        best = trials.best(arm, _BUDGET, "held_out")
        if best is None:
            rows.append((words, "never stable", *("",) * 6))
            continue
        shown = [
            _middle(trials, arm, best, key)
            for key in ("error", "held_out", "loss", "steps", "seconds")
        ]
        tuned = f"{method.tuned.replace('_', ' ')} {best[0]:g}"
        rows.append((words, *shown, tuned, f"{best[1]:g}" if arm in PLAIN else ""))
    options = []
    for arm, plain in PLAIN.items():
        words, method, grid = ARMS[arm]
        for value in settings[grid]:
            cells = [_middle(trials, plain, (value, 0.0), "error")]
            cells += [_middle(trials, arm, (value, r), "error") for r in settings["rhos"]]
            options.append((words, f"{method.tuned.replace('_', ' ')} {value:g}", *cells))
    return (
        Table(
            f"After {settings[_BUDGET]} gradient evaluations",
            (
                *("method", "error of u", "loss elsewhere", "training loss", "steps", "CPU s"),
                *("tuned", "rho"),
            ),
            tuple(rows),
            "Medians over the seeds. CPU seconds depend on the machine and on what else it does.",
        ),
        Table(
            "Error of u by rho",
            ("method", "tuned", "rho 0", *(f"rho {rho:g}" for rho in settings["rhos"])),
            tuple(options),
            "Medians over the seeds.",
        ),
    )


def _pictures(settings: Mapping[str, Any], trials: Trials) -> tuple[Picture, ...]:
    colors = dict(zip(ARMS, COLORS, strict=False))
    best = {arm: trials.best(arm, _BUDGET, "held_out") for arm in ARMS}
    with axes(1, 2, sharey=True, height=3.6) as (figure, panels):
        for panel, axis in zip(panels, ("evaluations", "seconds"), strict=True):
            for arm, option in best.items():
                if option is None:
                    continue
                ends = [trials.number(arm, option, seed, _BUDGET, axis) for seed in trials.seeds]
                end = max(x for x in ends if math.isfinite(x))
                start = 2.0 if axis == "evaluations" else end / 300
                places = [start * (end / start) ** (i / 29) for i in range(30)]
                rows = trials.along(arm, option, axis, places, "error")
                band(panel, places, rows, ARMS[arm][0], colors[arm])
            panel.set_xscale("log")
            panel.set_xlabel("gradient evaluations" if axis == "evaluations" else "CPU seconds")
        panels[0].set_ylabel("log10 of the relative error of u")
        if any(option is not None for option in best.values()):
            panels[1].legend()
        course = Picture(
            "natural-gradient-error",
            "Error of the solution over gradient evaluations and over CPU time: mean of the "
            "logarithm over the seeds and its 95 % interval, each method at the setting with the "
            "lowest loss at points that are not trained on.",
            "Two panels with a curve a method, the error over gradient evaluations on the left "
            "and over CPU seconds on the right; the first table has the numbers at their ends.",
            svg(figure),
        )
    with axes() as (figure, panel):
        for arm, (words, _, _) in ARMS.items():
            pairs = [
                [trials.number(arm, option, seed, _BUDGET, key) for key in ("loss", "error")]
                for option in trials.of.get(arm, {})
                for seed in trials.seeds
            ]
            kept = [pair for pair in pairs if all(0 < x < math.inf for x in pair)]
            shown = "o" if arm in PLAIN else "x"
            if kept:
                x, y = zip(*kept, strict=True)
                panel.scatter(x, y, 14, color=colors[arm], marker=shown, label=words, alpha=0.7)
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.set_xlabel("training loss")
        panel.set_ylabel("relative error of u")
        if panel.collections:
            panel.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        fit = Picture(
            "natural-gradient-fit",
            "Error of the solution against training loss at the end of every stable training, all "
            "settings and seeds. At an equal loss a lower point generalises better.",
            "A cloud of points a method, training loss to the right and error upward, both "
            "logarithmic; regularised methods are dots, the others crosses.",
            svg(figure),
        )
    return course, fit
