"""Regret against the variation of the gradients: Xie, Zhao and Zhou, NeurIPS 2024.

Methods play on a ball against functions that stay, alternate, are drawn anew, alternate ever less,
or drift; `_online_games` has the functions. What is judged is how regret over its bound grows with
the number of rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from gradwise.analysis.online import Ball, OptimisticOMD, UniversalLearner, play
from gradwise.errors import UserError
from gradwise.reproduce.cells import Cell, Tell
from gradwise.reproduce.claims import Claim, Conclusion
from gradwise.reproduce.experiments._online_games import FAMILIES, Game, game, smoothness
from gradwise.reproduce.experiments._online_page import (
    LEARNERS,
    SLOW,
    VARIED,
    Data,
    Games,
    Key,
    Value,
    Values,
    below,
    equal,
    greater,
    notes,
    pictures,
    rounds_of,
    tables,
)

CURVE = 50  # points of a drawn course


def cells(settings: dict[str, Any]) -> list[Cell]:
    """A cell for each seed and family: all worlds and numbers of rounds."""
    for name in ("rounds", "slow_rounds"):
        lengths = settings[name]
        if len(lengths) < 2 or sorted(set(lengths)) != lengths or lengths[0] < 1:
            raise UserError(f"expected two or more rising rounds, got {name}={lengths}")
    return [
        Cell(f"{family}-seed={seed}", {"family": family, "seed": seed})
        for family in settings["families"]
        for seed in settings["seeds"]
    ]


def run(settings: dict[str, Any], arguments: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """Play; regrets, variations and courses by world."""
    family, seed = arguments["family"], arguments["seed"]
    lengths = {world: rounds_of(settings, world) for world in settings["worlds"]}
    total, done = sum(map(sum, lengths.values())) * len(LEARNERS), 0
    results: dict[str, Any] = {}
    for world in lengths:
        course: dict[str, list[float]] = {}
        regrets: Values = {name: [] for name in LEARNERS}
        facts: Values = {"variation": [], "gap": []}
        for rounds in lengths[world]:
            played = game(family, world, rounds, settings, seed)
            facts["variation"].append(played.variation)
            u = None
            for name in LEARNERS:
                result = play(
                    _learner(name, played, rounds, settings),
                    played.losses,
                    gradients=played.gradients,
                    total=played.total,
                    comparator=u,
                    played_variation=False,
                )
                regrets[name].append(result.regret)
                if u is None:
                    u = result.comparator.point
                    facts["gap"].append(float(result.comparator.gap or 0.0))
                if rounds == lengths[world][-1]:
                    at = np.linspace(0, rounds - 1, min(CURVE, rounds)).astype(int)
                    course[name] = result.cumulative[torch.from_numpy(at)].tolist()
                done += rounds
                tell(done, total)
        results[world] = {"regret": regrets, **facts, "at": (at + 1).tolist(), "course": course}
    return results


def _learner(
    name: str, played: Game, rounds: int, settings: dict[str, Any]
) -> OptimisticOMD | UniversalLearner:
    ball = Ball(
        settings["radius"],
        torch.zeros(settings["dim"], dtype=torch.float64, device=settings["device"]),
    )
    ell = played.ell
    c = None if ell is None else settings["c"]
    if name == "strongly":
        return OptimisticOMD(ball, ell=ell, c=c, strong_convexity=settings["curvature"])
    if name == "universal":
        return UniversalLearner(ball, rounds, ell=ell, c=c)
    if name == "ogd":
        return OptimisticOMD(ball, hint="none")
    return OptimisticOMD(ball, ell=ell, c=c, hint="none" if name == "no hint" else "lookahead")


# --- what is concluded ---


def conclude(settings: dict[str, Any], results: dict[str, dict[str, Any]]) -> Conclusion:
    """Judge the rates, and what hints are worth."""
    data = Data(settings, results)
    families = [f for f in FAMILIES if f in settings["families"]]
    varied = [(f, w) for f in families for w in VARIED if w in settings["worlds"]]
    slow = [(f, w) for f in families for w in SLOW if w in settings["worlds"]]
    curved = [key for key in varied if key[0] == "curved"]
    linear = [key for key in varied if key[0] == "linear"]
    static = [key for key in slow if key[1] == "static"]
    tolerance, factor, still = (settings[key] for key in ("tolerance", "factor", "still"))
    extra = settings["c"] * smoothness(0.0) * (2 * settings["radius"]) ** 2 / 2

    def bounded(learner: str, bound: Callable[[float], float], among: list[Key]) -> Games:
        def growth(family: str) -> Value:
            plus = extra if learner == "convex" and family == "curved" else 1.0
            return lambda r, v: exponent(
                settings["rounds"], r[learner], [bound(x) for x in v], plus
            )

        return Games({key: below(data.each(*key, growth(key[0])), tolerance) for key in among})

    def grown(learner: str) -> Value:
        return lambda r, v: r[learner][-1] / max(r[learner][0], 1e-9) - 1

    def lost(by: str) -> Value:
        return lambda r, v: r[by][-1] - r["convex"][-1]

    convex = bounded("convex", math.sqrt, varied)
    strongly = bounded("strongly", math.log1p, curved)
    universal = bounded("universal", math.log1p, curved) | bounded("universal", math.sqrt, linear)
    near = Games(
        {key: below(data.each(*key, behind(key[0])), math.log(factor)) for key in varied + static}
    )
    constant = Games(
        {
            (family, learner): equal(data.each(family, "static", grown(learner)), still)
            for family, _ in static
            for learner in ("convex", "strongly", "universal")
            if learner != "strongly" or family == "curved"
        }
    )
    moving = [key for key in slow if key != ("linear", "static")]
    hints = Games({key: greater(data.each(*key, lost("no hint"))) for key in moving})
    plain = Games({key: greater(data.each(*key, lost("ogd"))) for key in moving})
    first, *_, last = settings["slow_rounds"]
    power = f"half-way to the next worse rate is {tolerance:g}"
    claims = [
        Claim(
            "For convex functions the regret is O(sqrt(V_T)).",
            f"(a + regret) / (a + sqrt(V_T)) grows as T to the power {convex.words('largest')}; "
            f"{power}. a is 1 for linear functions, and {extra:g} for curved ones: the least that "
            "the bound's additive term c Lhat D^2 / 2 can be.",
            convex.verdict,
        ),
        Claim(
            "For strongly convex functions the regret is O(log V_T).",
            f"(1 + regret) / (1 + log(1 + V_T)) grows as T to the power "
            f"{strongly.words('largest')}; {power}.",
            strongly.verdict,
        ),
        Claim(
            "The universal method attains both rates without knowing the curvature.",
            "(1 + regret) / (1 + bound), log(1 + V_T) for curved and sqrt(V_T) for linear "
            f"functions, grows as T to the power {universal.words('largest')}; {power}.",
            universal.verdict,
        ),
        Claim(
            f"The universal method is within a factor of {factor:g} of the method that knows.",
            "The logarithm of its 1 + regret over that of the better one, in the longest games, "
            f"is {near.words('largest')}; allowed is {math.log(factor):.3g}.",
            near.verdict,
        ),
        Claim(
            "Where the functions stay as they are (V_T = 0), the regret is bounded.",
            f"From {first} to {last} rounds it grows by a share of "
            f"{constant.words('farthest from 0')}; allowed is {still:g}.",
            constant.verdict,
        ),
        Claim(
            "Where the gradients vary little, a hint helps.",
            "Regret without the hint minus regret with it, all else equal, in the longest games: "
            f"{hints.words('smallest')}. Static linear functions are not judged: one step is all "
            "there is to learn. For projected gradient descent whose steps ignore the smoothness, "
            f"minus the optimistic method: {plain.words('smallest')}.",
            hints.verdict,
        ),
    ]
    return Conclusion(
        tuple(claims),
        tables=tables(data, families),
        pictures=pictures(data, families),
        notes=notes(data),
    )


def exponent(
    rounds: Sequence[int], regrets: Sequence[float], bounds: Sequence[float], plus: float
) -> float:
    """The power of T that (plus + regret) / (plus + bound) grows with, by a line through logs.

    Args:
        rounds: T, two or more.
        regrets: at each; what is negative counts as 0, since the bound is from above.
        bounds: likewise.
        plus: > 0.
    """
    pairs = zip(regrets, bounds, strict=True)
    ratio = [math.log((plus + max(r, 0.0)) / (plus + b)) for r, b in pairs]
    return float(np.polyfit(np.log(rounds), ratio, 1)[0])


def behind(family: str) -> Value:
    """How far the universal method is behind whoever knows, as a difference of logarithms.

    Args:
        family: on linear functions only the convex method is right.
    """
    known = ("convex", "strongly") if family == "curved" else ("convex",)

    def difference(regrets: Values, variation: list[float]) -> float:
        logs = {name: math.log1p(max(row[-1], 0.0)) for name, row in regrets.items()}
        return logs["universal"] - min(logs[name] for name in known)

    return difference
