"""Large steps find sparse features: Andriushchenko, Varre, Pillaud-Vivien, Flammarion, ICML 2023.

Three kinds of models: diagonal linear networks, a ReLU network on points of a line, and a residual
network on images. `gradwise.analysis.sparsity` measures, `gradwise.analysis.schedules` has the
schedules.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

from gradwise.errors import UserError
from gradwise.reproduce.cells import Cell, Tell
from gradwise.reproduce.claims import Claim, Conclusion, judge_greater
from gradwise.reproduce.experiments._several import Several, each
from gradwise.reproduce.experiments._sparse_diagonal import descend, largest, regression
from gradwise.reproduce.experiments._sparse_images import train_images
from gradwise.reproduce.experiments._sparse_page import Data, notes, percent, tables
from gradwise.reproduce.experiments._sparse_pictures import pictures
from gradwise.reproduce.experiments._sparse_relu import fit

KINDS = ("images-large", "images-small", "diagonal", "relu")  # the longest first


def cells(settings: dict[str, Any]) -> list[Cell]:
    """A cell for each kind of model and seed, of images one for each schedule."""
    decays, factors = settings["decays"], settings["gd_factors"]
    if len(decays) < 2 or sorted(set(decays)) != decays or not 0 < decays[0] <= decays[-1] < 1:
        raise UserError(f"expected two or more rising decays in (0, 1), got decays={decays}")
    if len(factors) != len(decays):
        raise UserError(
            f"expected a factor for each of {len(decays)} decays, got gd_factors={factors}"
        )
    for name in ("sgd_rates", "gd_rates"):
        if not settings[name] or sorted(settings[name], reverse=True) != settings[name]:
            raise UserError(f"expected falling {name}, got {name}={settings[name]}")
    return [
        Cell(f"{kind}-seed={seed}", {"kind": kind, "seed": seed})
        for kind in KINDS
        for seed in settings["image_seeds" if kind.startswith("images") else "seeds"]
    ]


def run(settings: dict[str, Any], arguments: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """One kind of model; a run that diverged is None."""
    kind, seed = arguments["kind"], arguments["seed"]
    if kind == "diagonal":
        return {
            "sgd": _diagonal(settings, seed, True, partial(_half, tell, 0)),
            "gd": _diagonal(settings, seed, False, partial(_half, tell, 1)),
        }
    if kind == "relu":
        found = {}
        for k, q in enumerate(settings["relu_decays"]):
            found[f"{q:g}"] = fit(
                settings["relu_width"],
                rate=settings["relu_rate"],
                peak=settings["relu_peak"],
                decay_at=q,
                steps=settings["relu_steps"],
                records=settings["records"],
                seed=seed,
            )
            tell(k + 1, len(settings["relu_decays"]))
        return found
    return {"run": train_images(settings, kind.removeprefix("images-"), seed, tell)}


def _half(tell: Tell, half: int, done: int, total: int) -> None:
    tell(half * total + done, 2 * total)


def _diagonal(settings: dict[str, Any], seed: int, stochastic: bool, tell: Tell) -> dict[str, Any]:
    """A constant step size, and larger ones that decay, at the edge of divergence."""
    kind = "sgd" if stochastic else "gd"
    steps, decays = settings["steps"], settings["decays"]
    factors = [settings["sgd_factor"]] * len(decays) if stochastic else settings["gd_factors"]
    n, d, r = settings[f"{kind}_problem"]
    problem = regression(n, d, r, steps, seed)
    records, least = settings["records"], settings["least"]
    train = partial(descend, problem, stochastic=stochastic, records=records, least=least)
    # The one that decays last is the one that diverges first.
    edge = largest(
        lambda rate: train(rate, decay_at=decays[-1], factor=factors[-1]), settings[f"{kind}_rates"]
    )
    tell(1, 3)
    if edge is None:
        return {"rate": None, "constant": None, "runs": [None] * len(decays)}
    rate, last = edge
    small = rate * settings[f"{kind}_small"]
    constant = train(small, decay_at=None, factor=1.0)
    tell(2, 3)
    pairs = zip(decays[:-1], factors[:-1], strict=True)
    runs = [train(rate, decay_at=q, factor=factor) for q, factor in pairs]
    tell(3, 3)
    return {"rate": rate, "constant": constant, "runs": [*runs, last]}


def conclude(settings: dict[str, Any], results: dict[str, dict[str, Any]]) -> Conclusion:
    """Judge sparsity, the plateau of the loss, and what both are worth."""
    data = Data(settings, results)
    images, diagonals, lines = data.images(), data.seeds("diagonal"), data.seeds("relu")
    decays, short, long = settings["decays"], *data.relu_ends
    phases = ["constant", *(percent(q) for q in decays)]
    sparser = Several(
        {
            f"stage {k + 1}": each(
                images,
                lambda pair, k=k: pair["small"]["active"][k] - pair["large"]["active"][k],  # type: ignore[misc]  # its own stage
                judge_greater,
            )
            for k in range(len(settings["blocks"]))
        }
    )
    distinct = each(
        images,
        lambda pair: pair["small"]["distinct_active"][-1] - pair["large"]["distinct_active"][-1],
        judge_greater,
    )
    fewer = Several(
        {
            f"{phases[k]} to {phases[k + 1]}": each(
                diagonals,
                lambda one, a=k: (
                    _ends(one["sgd"])[a]["nonzero"] - _ends(one["sgd"])[a + 1]["nonzero"]
                ),  # type: ignore[misc]  # its own
                judge_greater,
            )
            for k, _ in enumerate(pairwise(phases))
        }
    )

    schedules = list(enumerate(phases))[1:]
    better = Several(
        {name: each(diagonals, _gain("sgd", k), judge_greater) for k, name in schedules}
    )
    worse = Several({name: each(diagonals, _loss("gd", k), judge_greater) for k, name in schedules})
    simpler = Several(
        {
            words: each(
                lines,
                lambda one, name=name: math.log2(one[short][name] / one[long][name]),  # type: ignore[misc]  # its own
                judge_greater,
            )
            for name, words in (
                ("singular_sum", "sum of singular values"),
                ("active", "active share"),
                ("rank", "rank of the Jacobian"),
            )
        }
    )
    hovers = Several(
        {
            "share of the phase in plateaus, less a half": each(
                images, lambda pair: pair["large"]["share"] - 0.5, judge_greater
            )
        }
    )
    accuracy = Several(
        {
            "after large steps minus after small ones": each(
                images,
                lambda pair: pair["large"]["accuracy"] - pair["small"]["accuracy"],
                judge_greater,
            )
        }
    )
    deduplicated = "no numbers" if distinct is None else distinct.words("points", 100)
    claims = (
        Claim(
            "On images, large steps that decay late leave sparser features than small steps.",
            "Share of positive activations after small steps minus that after large ones: "
            f"{sparser.words('points', 100)}. Without duplicates in the last stage: "
            f"{deduplicated}.",
            sparser.verdict,
        ),
        Claim(
            "In diagonal linear networks, the longer SGD keeps its large steps, the fewer "
            "coordinates are left.",
            f"Non-zero coordinates fewer: {fewer.words()}.",
            fewer.verdict,
        ),
        Claim(
            "There, large steps of SGD that decay generalise better than a constant smaller one.",
            f"log10 of the factor by which the test loss is lower: {better.words()}.",
            better.verdict,
        ),
        Claim(
            "Large steps of gradient descent, which have no noise, generalise worse.",
            f"log10 of the factor by which the test loss is higher: {worse.words()}.",
            worse.verdict,
        ),
        Claim(
            "A ReLU network on a line has simpler features after a longer warm-up.",
            f"log2 of the factor from a warm-up of {percent(float(long))} down from "
            f"{percent(float(short))}: {simpler.words()}.",
            simpler.verdict,
        ),
        Claim(
            "While steps are large, the training loss stabilises at a level instead of falling.",
            f"On images, {hovers.words()}.",
            hovers.verdict,
        ),
        Claim(
            "Large steps that decay late give the better test accuracy on images.",
            f"Accuracy {accuracy.words('points', 100)}.",
            accuracy.verdict,
        ),
    )
    return Conclusion(claims, tables(data), pictures(data), notes(data))


def _ends(found: dict[str, Any]) -> list[Any]:
    """Of one method on diagonal networks: at the constant rate, then by schedule, or None."""
    return [found["constant"], *found["runs"]]


def _gain(method: str, k: int) -> Callable[[dict[str, Any]], float]:
    """log10 of the test loss at the constant rate over that with schedule k."""

    def value(one: dict[str, Any]) -> float:
        ends = _ends(one[method])
        return math.log10(ends[0]["test_loss"] / ends[k]["test_loss"])

    return value


def _loss(method: str, k: int) -> Callable[[dict[str, Any]], float]:
    """The opposite."""
    gain = _gain(method, k)
    return lambda one: -gain(one)
