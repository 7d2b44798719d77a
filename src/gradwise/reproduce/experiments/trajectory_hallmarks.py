"""Where training goes: Singh, He, Hofmann, Schölkopf, ICLR 2025.

The same network from the same start, with and without weight decay and momentum, recorded by
`gradwise.analysis.trajectory`; with both, also with norm layers alone from some epoch on.
"""

from __future__ import annotations

from typing import Any

from gradwise.errors import UserError
from gradwise.reproduce.cells import Cell, Tell
from gradwise.reproduce.claims import Claim, Conclusion, judge_equal, judge_greater
from gradwise.reproduce.experiments._several import Several, each
from gradwise.reproduce.experiments._trajectory_page import (
    CONDITIONS,
    Data,
    notes,
    pictures,
    similarity,
    tables,
)
from gradwise.reproduce.experiments._trajectory_training import train

FULL = "both"  # the condition that has runs with norm layers alone, and the longest cells


def cells(settings: dict[str, Any]) -> list[Cell]:
    """A cell for each condition and seed, the longest first."""
    for name in ("freeze_at", "drops"):
        shares = settings[name]
        if sorted(set(shares)) != shares or any(not 0 < share < 1 for share in shares):
            raise UserError(f"expected rising {name} in (0, 1), got {name}={shares}")
    if not settings["freeze_at"]:
        raise UserError("expected one or more freeze_at, got freeze_at=[]")
    if not 0 < settings["part"] <= 0.5:
        raise UserError(f"expected 0 < part <= 0.5, got part={settings['part']}")
    if settings["part"] * settings["checkpoints"] < 2:
        raise UserError(
            f"expected checkpoints >= {2 / settings['part']:g} for two steps in each part, got "
            f"checkpoints={settings['checkpoints']}"
        )
    epochs = [max(round(share * settings["epochs"]), 1) for share in settings["freeze_at"]]
    if len(set(epochs)) < len(epochs) or epochs[-1] >= settings["epochs"]:
        raise UserError(
            f"expected freeze_at to fall on epochs of their own before the last of "
            f"{settings['epochs']}, got freeze_at={settings['freeze_at']}"
        )
    return [
        Cell(f"{condition}-seed={seed}", {"condition": condition, "seed": seed})
        for condition in CONDITIONS
        for seed in settings["seeds"]
    ]


def run(settings: dict[str, Any], arguments: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """One run with its trajectory; None where it diverged."""
    condition = CONDITIONS[arguments["condition"]]
    found = train(
        settings,
        decay=condition.decay,
        momentum=condition.momentum,
        seed=arguments["seed"],
        frozen=arguments["condition"] == FULL,
        tell=tell,
    )
    return {"run": found}


# --- what is concluded ---


def conclude(settings: dict[str, Any], results: dict[str, dict[str, Any]]) -> Conclusion:
    """Judge exploration early, similarity later, and norm layers alone."""
    data = Data(settings, results)
    part, margin, last = settings["part"], settings["margin"], settings["freeze_at"][-1]

    def explored(pairs: dict[str, tuple[str, str]]) -> Several:
        """By how much the directional similarity of the first part is lower with than without."""
        return Several(
            {
                case: each(
                    data.seeds(),
                    lambda by, a=on, b=off: (  # type: ignore[misc]  # its own pair
                        similarity(by[b], 0, part) - similarity(by[a], 0, part)
                    ),
                    judge_greater,
                )
                for case, (on, off) in pairs.items()
            }
        )

    decay = explored(
        {"with momentum": (FULL, "momentum"), "without momentum": ("decay", "neither")}
    )
    momentum = explored(
        {"with weight decay": (FULL, "decay"), "without weight decay": ("momentum", "neither")}
    )
    later = Several(
        {
            words.name: each(
                data.seeds(),
                lambda by, c=condition: (  # type: ignore[misc]  # its own condition
                    similarity(by[c], 1 - part, 1) - similarity(by[c], 0, part)
                ),
                judge_greater,
            )
            for condition, words in CONDITIONS.items()
        }
    )
    matches = {
        share: each(
            data.seeds(),
            lambda by, k=k: by[FULL]["frozen"][k]["accuracy"] - by[FULL]["accuracy"],  # type: ignore[misc]  # its own k
            lambda values: judge_equal(values, within=margin),
        )
        for k, share in enumerate(settings["freeze_at"])
    }
    enough = Several({f"from {100 * last:g} % of the epochs on": matches[last]})
    others = [
        f"from {100 * share:g} %, not judged, {judged.words('points', 100)}"
        for share, judged in matches.items()
        if share != last and judged is not None
    ]
    alone = "; ".join([enough.words("points", 100), *others])
    known = data.frozen_share()
    share = "—" if known is None else f"{100 * known:.2f}"
    claims = (
        Claim(
            "Weight decay makes the first part of training explore more directions.",
            f"Mean directional similarity of the first {100 * part:.0f} % without weight decay "
            f"minus that with it: {decay.words()}.",
            decay.verdict,
        ),
        Claim(
            "So does momentum.",
            f"Mean directional similarity of the first {100 * part:.0f} % without momentum minus "
            f"that with it: {momentum.words()}.",
            momentum.verdict,
        ),
        Claim(
            "Later, directional similarity is high: the path is nearly straight.",
            f"Mean directional similarity of the last {100 * part:.0f} % minus that of the first: "
            f"{later.words()}.",
            later.verdict,
        ),
        Claim(
            "Training the norm layers alone from some epoch on matches training everything.",
            f"Test accuracy with {share} % of parameters frozen minus that of full training: "
            f"{alone}; allowed is {100 * margin:g}.",
            enough.verdict,
        ),
    )
    return Conclusion(claims, tables(data), pictures(data), notes(data))
