"""Does momentum reduce noise? Sato and Iiduka, "Momentum Does Not Reduce Stochastic Noise in SGD".

SGD, heavy ball and normalised heavy ball on the same images, at the same step size and batch sizes;
`gradwise.analysis.noise` has the measurements, of the coming step of each run at its own point.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from gradwise.errors import UserError
from gradwise.reproduce.cells import Cell, Tell
from gradwise.reproduce.claims import (
    INCONCLUSIVE,
    Claim,
    Conclusion,
    judge_equal,
    judge_greater,
    overall,
)
from gradwise.reproduce.experiments._direction_page import (
    NAMES,
    Data,
    critical,
    notes,
    slope,
    tables,
)
from gradwise.reproduce.experiments._direction_pictures import pictures
from gradwise.reproduce.experiments._direction_runs import (
    CRITERIA,
    NETWORKS,
    RULES,
    at_rest,
    images,
    train,
)
from gradwise.reproduce.experiments._several import Several, each


def cells(settings: dict[str, Any]) -> list[Cell]:
    """A cell for each batch size and seed, of all three rules; the longest first."""
    sizes = settings["batch_sizes"]
    if len(sizes) < 3 or sorted(set(sizes)) != sizes or sizes[0] < 1:
        raise UserError(f"expected three or more rising batch sizes, got batch_sizes={sizes}")
    rows = settings["train_images"]
    if rows and sizes[-1] >= rows:
        raise UserError(f"expected batch sizes below train_images={rows}, got {sizes[-1]}")
    for name, known in (("network", NETWORKS), ("criterion", CRITERIA)):
        if settings[name] not in known:
            raise UserError(f"expected {name} in {known}, got {name}={settings[name]!r}")
    for name in ("looks", "checks", "epochs", "draws", "rest_draws"):
        if settings[name] < 1:
            raise UserError(f"expected {name} >= 1, got {name}={settings[name]}")
    if settings["judged_from"] > sizes[-1]:
        raise UserError(
            f"expected judged_from <= {sizes[-1]}, got judged_from={settings['judged_from']}"
        )
    if not 0 < settings["beta"] < 1:
        raise UserError(f"expected 0 < beta < 1, got beta={settings['beta']}")
    if not 0 < settings["margin"] < 1:
        raise UserError(f"expected 0 < margin < 1, got margin={settings['margin']}")
    return [
        Cell(f"b={size}-seed={seed}", {"batch_size": size, "seed": seed})
        for size in sizes
        for seed in settings["seeds"]
    ]


def run(settings: dict[str, Any], arguments: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """All rules from the same start along the same batches; a run that diverged is None."""
    size, seed, sizes = arguments["batch_size"], arguments["seed"], settings["batch_sizes"]
    data = images(settings)
    found: dict[str, Any] = {"samples": len(data.inputs), "rest": None}
    for k, rule in enumerate(RULES):
        # One run serves the comparison of batch sizes at the same point: SGD's at a middle one.
        also = sizes if rule == "sgd" and size == sizes[len(sizes) // 2] else ()
        trained = train(settings, data, rule, size, seed, partial(_part, tell, k), also=also)
        found[rule] = None if trained is None else trained.found
        if rule == "sgd" and size == sizes[0] and trained is not None:
            found["rest"] = at_rest(settings, data, trained.model, size, seed)
    return found


def _part(tell: Tell, k: int, done: int, total: int) -> None:
    tell(k * total + done, len(RULES) * total)


def conclude(settings: dict[str, Any], results: dict[str, dict[str, Any]]) -> Conclusion:
    """Judge both kinds of momentum, the law of gradient noise, and the critical batch size."""
    data = Data(settings, results)
    least = math.log10(1 - settings["margin"])
    shb, nshb = (
        Several(
            {
                f"b = {size}": each(
                    data.cells(size),
                    lambda cell, rule=rule: data.level(cell, rule) - data.level(cell, "sgd"),  # type: ignore[misc]  # its own rule
                    lambda values: judge_greater(values, than=least),
                )
                for size in data.judged
            }
        )
        for rule in ("shb", "nshb")
    )
    law = each(
        data.cells(data.middle),
        lambda cell: slope(data.sizes, cell["sgd"]["noises"]) + 1,
        lambda values: judge_equal(values, within=settings["slope_within"]),
    )
    costs = {rule: critical(data, rule) for rule in RULES}
    allowed = f"{100 * settings['margin']:g} %"
    along = "; ".join(f"{NAMES[rule]} {data.slope_along(rule)}" for rule in RULES)
    claims = (
        Claim(
            "Momentum does not reduce the noise of the search direction: along the run, that of "
            "heavy ball is not below that of SGD.",
            "log10 of the mean square noise of SHB over that of SGD, both along their own runs at "
            f"the same steps: {shb.words()}. A reduction would be one by more than {allowed}, "
            f"{least:.3g}.",
            shb.verdict,
        ),
        Claim(
            "Nor does normalised heavy ball reduce it.",
            f"The same of NSHB over SGD: {nshb.words()}. A reduction would be one by more than "
            f"{allowed}, {least:.3g}.",
            nshb.verdict,
        ),
        Claim(
            "The noise of batch gradients falls with the batch size as C^2 / b.",
            "Slope of log E|g - G|^2 over log b at the same points of runs of SGD, plus 1: "
            f"{'no numbers' if law is None else law.words()}; allowed is "
            f"{settings['slope_within']:g}. Along runs with batch sizes of their own, where C^2 "
            f"is not the same, the slope is, for comparison: {along}.",
            INCONCLUSIVE if law is None else law.verdict,
        ),
        Claim(
            "There is a critical batch size, which reaches a threshold with the fewest samples.",
            f"Samples until {data.threshold}: {'; '.join(costs[r].words for r in RULES)}.",
            overall(cost.verdict for cost in costs.values()),
        ),
    )
    return Conclusion(claims, tables(data, costs), pictures(data), notes(data))
