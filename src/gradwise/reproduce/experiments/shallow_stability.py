"""Stability and generalisation of shallow networks: Lei, Jin and Ying, NeurIPS 2022.

A network of one trained layer, its runs on neighbouring data sets, and its generalisation gap;
`gradwise.analysis.stability` measures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from gradwise.analysis.stability import Stability, shallow_stability
from gradwise.errors import UserError
from gradwise.reproduce.cells import Cell, Tell
from gradwise.reproduce.claims import Claim, Conclusion, judge_equal, judge_greater
from gradwise.reproduce.experiments._several import Several, each
from gradwise.reproduce.experiments._stability_page import Data, pictures, table

POINTS = 16  # steps at which the loss is looked at besides, for its sum


def cells(settings: dict[str, Any]) -> list[Cell]:
    """A cell for each seed: a teacher, and a data set and start of each size."""
    for name in ("ns", "steps"):
        values = settings[name]
        if len(values) < 2 or sorted(set(values)) != values or values[0] < 1:
            raise UserError(f"expected two or more rising {name} >= 1, got {name}={values}")
    return [Cell(f"seed={seed}", {"seed": seed}) for seed in settings["seeds"]]


def run(settings: dict[str, Any], arguments: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """Pairs of runs for every size of the data set; on the CPU, which suits such small ones."""
    steps, ns = settings["steps"], settings["ns"]
    between = {int(t) for t in np.geomspace(1, steps[-1], POINTS).round()}
    at = sorted({0, *between, *steps})
    sizes = {}
    for k, n in enumerate(ns):
        # The larger take longer, in proportion.
        done, whole = sum(ns[:k]) * at[-1], sum(ns) * at[-1]
        found = shallow_stability(
            n,
            steps=at,
            replaced=settings["replaced"],
            lr=settings["lr"],
            width=settings["width"],
            dimension=settings["dimension"],
            noise=settings["noise"],
            test_samples=settings["test_samples"],
            seed=arguments["seed"],
            progress=lambda step, _, done=done, n=n, whole=whole: tell(  # type: ignore[misc]  # its own n
                done + n * step, whole
            ),
        )
        sizes[str(n)] = _measured(found, at, settings)
    return {"at": at, "sizes": sizes}


def _measured(found: Stability, at: Sequence[int], settings: dict[str, Any]) -> dict[str, Any]:
    """eps^2, gap, bound and what (14.5) says of eps^2, at all steps."""
    if found.train_loss is None:  # it is measured always
        raise UserError("expected the training loss")
    losses, steps = found.train_loss.mean(1).numpy(), np.asarray(at)
    eps = found.eps_squared.numpy()
    area = np.concatenate([[0.0], np.cumsum((losses[1:] + losses[:-1]) / 2 * np.diff(steps))])
    growth = settings["lr"] ** 2 * steps * area / found.samples**2
    with np.errstate(invalid="ignore", divide="ignore"):
        constant = eps / growth  # not a number at step 0
    return {
        "eps_squared": eps.tolist(),
        "gap": found.gap.tolist(),
        "bound": found.bound().tolist(),
        "train_loss": losses.tolist(),
        "constant": [x if math.isfinite(x) else None for x in constant.tolist()],
    }


# --- what is concluded ---


def conclude(settings: dict[str, Any], results: dict[str, dict[str, Any]]) -> Conclusion:
    """Judge the law of eps^2, its growth, the gap and the bound."""
    data = Data(settings, results)
    tolerance = settings["tolerance"]
    law = data.at_steps(
        lambda result, t: data.slope(result, "eps_squared", t, log=True) + 2,
        lambda values: judge_equal(values, within=tolerance),
    )
    falls = data.at_steps(lambda result, t: -data.slope(result, "gap", t, log=False), judge_greater)
    grows = Several(
        {
            f"n {n}, step {early} to {late}": each(
                data.results,
                lambda result, n=n, a=early, b=late: math.log2(  # type: ignore[misc]  # its own
                    data.value(result, "eps_squared", n, b)
                    / data.value(result, "eps_squared", n, a)
                ),
                judge_greater,
            )
            for n in data.ns
            for early, late in pairwise(data.steps)
        }
    )
    holds = Several(
        {
            f"n {n}, step {t}": each(
                data.results,
                lambda result, n=n, t=t: (  # type: ignore[misc]  # its own
                    data.value(result, "bound", n, t) - data.value(result, "gap", n, t)
                ),
                judge_greater,
            )
            for n in data.ns
            for t in data.steps
        }
    )
    constant = data.at_steps(
        lambda result, t: data.slope(result, "constant", t, log=True),
        lambda values: judge_equal(values, within=tolerance),
    )
    claims = (
        Claim(
            "Stability improves as 1/n^2 in the regime of small losses: n^2 eps^2 is flat in n.",
            "Exponent with which n^2 eps^2 grows with n, by a line through the logarithms: "
            f"{law.words()}; allowed is {tolerance:g}, half-way to eps^2 ~ 1/n.",
            law.verdict,
        ),
        Claim(
            "eps^2 follows (lr^2 t / n^2) times the sum of the training losses so far.",
            "Exponent with which eps^2 over that grows with n: "
            f"{constant.words()}; allowed is {tolerance:g}.",
            constant.verdict,
        ),
        Claim(
            "The longer training lasts, the less stable it is.",
            f"log2 of the growth of eps^2: {grows.words()}.",
            grows.verdict,
        ),
        Claim(
            "The generalisation gap falls with n.",
            f"By how much it falls with a doubling of n, by a line over log2 n: {falls.words()}.",
            falls.verdict,
        ),
        Claim(
            "Stability bounds the gap: it is at most (G/2) eps^2 + sqrt(2 G L_S) eps.",
            f"The bound minus the gap: {holds.words()}.",
            holds.verdict,
        ),
    )
    notes = [
        "The paper is theory and has no experiment; this one is this project's. Its theorems "
        "ask for a width that grows with the number of steps, which is not checked here.",
        "Each seed has its own teacher, test samples, data sets and starts; the mean over "
        "replaced samples and seeds stands for the expectations. The mean of the bounds of seeds "
        "is at most the bound of the means, so that the comparison is on the safe side.",
        "G is the largest curvature that any weights allow, over all samples at hand.",
    ]
    lost = [
        f"n {n}, step {t}"
        for k, n in enumerate(data.ns)
        for t in data.steps
        if any(math.isnan(row[k]) for row in data.rows("eps_squared", t))
    ]
    if lost:
        notes.append(f"Left out for numbers that are not finite: {', '.join(lost)}.")
    return Conclusion(claims, (table(data),), pictures(data), tuple(notes))
