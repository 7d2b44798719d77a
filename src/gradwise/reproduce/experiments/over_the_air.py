"""AdaGrad-OTA and Adam-OTA under heavy-tailed interference: Wang and others, IEEE TSP 2025.

Clients send their gradients at once over a fading channel with alpha-stable interference. The same
seeds, learning rates to choose from and rounds are given to a server that takes plain SGD steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradwise.errors import UserError
from gradwise.reproduce.cells import Cell, Tell
from gradwise.reproduce.claims import Claim, Conclusion
from gradwise.reproduce.experiments._over_the_air import METHODS, read, train
from gradwise.reproduce.experiments._over_the_air_page import (
    ADAPTIVE,
    LAST,
    Accuracies,
    keys,
    name,
    pictures,
    table,
    tail,
)
from gradwise.reproduce.experiments._pairs import All


def cells(settings: dict[str, Any]) -> list[Cell]:
    """A cell for each method, tail index, number of clients and seed: all learning rates."""
    alphas = settings["alphas"]
    if len(alphas) < 2 or sorted(set(alphas)) != alphas or not 1 < alphas[0] < 2 >= alphas[-1]:
        raise UserError(
            f"expected two or more rising alphas above 1 and up to 2, got alphas={alphas}"
        )
    if settings["clients_alpha"] not in alphas:
        raise UserError(
            f"expected clients_alpha to be one of alphas={alphas}, "
            f"got clients_alpha={settings['clients_alpha']}"
        )
    if settings["checks"] < LAST or settings["rounds"] < settings["checks"]:
        raise UserError(
            f"expected {LAST} <= checks <= rounds, got checks={settings['checks']} and "
            f"rounds={settings['rounds']}"
        )
    return [
        Cell(
            name((method, alpha, clients), seed),
            {"method": method, "alpha": alpha, "clients": clients, "seed": seed},
        )
        for seed in settings["seeds"]
        for method, alpha, clients in keys(settings)
    ]


def run(settings: dict[str, Any], arguments: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """Train with each learning rate."""
    task = read(settings)
    lrs = settings[f"{arguments['method']}_lrs"]
    found: dict[str, Any] = {"chance": 1 / task.classes, "trainings": []}
    for done, lr in enumerate(lrs):
        found["trainings"].append({"lr": lr, **train(task, settings, lr=lr, **arguments)})
        tell(done + 1, len(lrs))
    return found


# --- what is concluded ---


def _minus(a: dict[int, float], b: dict[int, float]) -> list[float]:
    return [a[seed] - b[seed] for seed in a if seed in b]


def conclude(settings: dict[str, Any], results: dict[str, dict[str, Any]]) -> Conclusion:
    """Judge what survives heavy tails, and how fast."""
    data, usual = Accuracies(settings, results), settings["clients"]
    alphas, share = settings["alphas"], settings["recovered"]
    heavy = [alpha for alpha in alphas if alpha < 2]

    def recovered(method: str, alpha: float) -> list[float]:
        with_it, without = data.ends((method, alpha, usual)), data.ends((method, None, usual))
        return [
            (with_it[seed] - data.chance) / (without[seed] - data.chance) - share
            for seed in with_it
            if seed in without and without[seed] > data.chance
        ]

    def each(pair: Any, methods: Sequence[str] = ADAPTIVE, among: Sequence[float] = heavy) -> All:
        return All({f"{METHODS[m][0]} at {tail(a)}": pair(m, a) for m in methods for a in among})

    trained = each(recovered)
    lead = each(lambda m, a: _minus(data.ends((m, a, usual)), data.ends(("sgd", a, usual))))
    slopes = {
        seed: slope(alphas, [data.means(("adagrad", a, usual)).get(seed) for a in alphas])
        for seed in settings["seeds"]
    }
    slower = All({"AdaGrad-OTA": [x for x in slopes.values() if x is not None]})
    faster = All(
        {
            tail(a): _minus(data.means(("adam", a, usual)), data.means(("adagrad", a, usual)))
            for a in alphas
        }
    )
    counts = sorted({*settings["other_clients"], usual})
    at = settings["clients_alpha"]
    many = All(
        {
            METHODS[m][0]: _minus(data.ends((m, at, counts[-1])), data.ends((m, at, counts[0])))
            for m in ADAPTIVE
        }
    )
    plain = each(recovered, ("sgd",))
    claims = (
        Claim(
            "AdaGrad-OTA and Adam-OTA converge under heavy-tailed interference.",
            "Share of what is learnt without interference that is learnt with it (accuracy above "
            f"chance), minus {share:g}: {trained.words()}.",
            trained.verdict,
        ),
        Claim(
            "Under heavy-tailed interference they are more accurate than a server with SGD.",
            f"Test accuracy above that of SGD: {lead.words('points', 100.0)}.",
            lead.verdict,
        ),
        Claim(
            "The heavier the tail, the slower AdaGrad-OTA converges.",
            "Test accuracy, mean over all rounds, rises with the tail index, by a line through all "
            f"of them per 0.1 of it: {slower.words('points', 10.0)}.",
            slower.verdict,
        ),
        Claim(
            "Adam-OTA converges faster than AdaGrad-OTA.",
            "Test accuracy, mean over all rounds, above AdaGrad-OTA's: "
            f"{faster.words('points', 100.0)}.",
            faster.verdict,
        ),
        Claim(
            "More clients help, since fading averages out.",
            f"Test accuracy with {counts[-1]} clients above that with {counts[0]}, at "
            f"{tail(at)}: {many.words('points', 100.0)}.",
            many.verdict,
        ),
    )
    notes = [
        f"SGD's share of what it learns without interference, minus {share:g}: {plain.words()}.",
        "The learning rate of each condition is the one with the highest mean accuracy on "
        "training rows that no client has; the numbers are from the test rows, the mean of the "
        f"last {LAST} checks where nothing else is said.",
        "Clients send a gradient of one batch each round, without local steps. With more clients "
        "a round uses more rows, as over the air they cost no more time; interference does not "
        "fall with their number, since it is added behind the average.",
        "The paper's data split, network, and parameters of the channel were not seen.",
    ]
    if lost := data.diverged():
        notes.append(
            "Ended in what is no number, and counts as right by chance from there on: "
            f"{'; '.join(lost)}."
        )
    return Conclusion(claims, (table(data),), pictures(data, counts), tuple(notes))


def slope(x: Sequence[float], y: Sequence[float | None]) -> float | None:
    """Of the line through points by least squares; None where one is missing.

    Args:
        x: two or more places, not all the same.
        y: as many values.

    Examples:
        >>> round(slope([1.0, 1.5, 2.0], [0.1, 0.2, 0.3]), 3)
        0.2
    """
    known = [value for value in y if value is not None]
    if len(known) < len(y):
        return None
    return float(np.polyfit(x, known, 1)[0])
