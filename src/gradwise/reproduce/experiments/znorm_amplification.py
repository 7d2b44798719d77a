"""What ZNorm and autoscale multiply the gradients of each layer with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from gradwise.errors import UserError
from gradwise.report.article import Picture, Table
from gradwise.report.drawing import COLORS, axes, band, svg
from gradwise.reproduce.cells import Comparison
from gradwise.reproduce.claims import (
    INCONCLUSIVE,
    NOT_REPRODUCED,
    REPRODUCED,
    Claim,
    Conclusion,
    Judged,
    judge_greater,
)
from gradwise.reproduce.experiments._amplification_factors import Factors, factors
from gradwise.reproduce.experiments._cifar import (
    Trace,
    absent,
    compared,
    losses,
    over_models,
    shown,
    steps_of,
    times,
    traces,
)

__all__ = ["comparisons", "conclude"]

_METHODS = ("znorm", "autoscale")
_CONTROL = "znorm, on autoscale's gradients"  # which it has not changed itself


Found = Mapping[str, Mapping[str, Mapping[int, Factors]]]  # by model, method, seed
Ratios = Mapping[str, Mapping[int, float]]  # by model, seed


def comparisons(settings: dict[str, Any]) -> list[Comparison]:
    """ZNorm and autoscale, for each model.

    Args:
        settings: of the recipe.

    Raises:
        UserError: where a setting is out of its bounds.
    """
    if settings["record_every"] < 1:
        raise UserError(f"expected record_every >= 1, got record_every={settings['record_every']}")
    if not settings["far"] > 1:
        raise UserError(f"expected far > 1, got far={settings['far']:g}")
    return compared(settings, _METHODS, baseline="autoscale", record_every=settings["record_every"])


def conclude(settings: dict[str, Any], results: dict[str, dict[str, Any]]) -> Conclusion:
    """Judge what is said of amplification.

    Args:
        settings: of the recipe.
        results: of the comparisons, by model.

    Raises:
        UserError: where a record is missing or damaged.
    """
    notes: list[str] = []
    found: dict[str, dict[str, dict[int, Factors]]] = {}
    trained: dict[str, list[Trace]] = {}
    for model, result in results.items():
        found[model] = {method: {} for method in (*_METHODS, _CONTROL)}
        recorded = traces(settings, model, result["folder"])
        trained[model] = recorded["znorm"]
        for method, ones in recorded.items():
            for one in ones:
                if one.ended != "finished":
                    notes.append(
                        f"{shown(model)} with {method}, seed {one.seed}, diverged: its factors "
                        "are those up to there."
                    )
                found[model][method][one.seed] = factors(one, method)
                if method == "autoscale":
                    found[model][_CONTROL][one.seed] = factors(one, "znorm")
    ratios = {model: _ratios(by["znorm"]) for model, by in found.items()}
    return Conclusion(
        (_far(found, ratios, settings), _worst(ratios, settings), _never(found)),
        (_table(found),),
        (_picture(found),),
        (*notes, *_notes(settings, trained)),
    )


def _far(found: Found, ratios: Ratios, settings: Mapping[str, Any]) -> Claim:
    bound = math.log10(settings["far"])
    judged: dict[str, Judged | None] = {
        model: judge_greater([*by.values()], than=bound) if by else None
        for model, by in ratios.items()
    }
    return Claim(
        "ZNorm amplifies layers whose gradients have a low standard deviation far more than "
        f"others: its largest factor is more than {settings['far']:g} times its smallest one.",
        "largest over smallest factor: "
        + "; ".join(
            f"{shown(model)} {times(one)}{_range(found[model]['znorm'])}"
            for model, one in judged.items()
        ),
        over_models(judged),
    )


def _ratios(ones: Mapping[int, Factors]) -> dict[int, float]:
    """Powers of ten by seed; without trainings that recorded nothing."""
    return {seed: ratio for seed, one in ones.items() if (ratio := one.ratio) is not None}


def _range(ones: Mapping[int, Factors]) -> str:
    ends = _ends(ones)
    return "" if ends is None else f", factors from {ends[0]:.3g} to {ends[1]:.3g}"


def _ends(ones: Mapping[int, Factors]) -> tuple[float, float] | None:
    """Smallest and largest factor, geometric means of the trainings."""
    ends = np.array([one.ends for one in ones.values()], np.float64).reshape(-1, 2)
    ends = ends[np.isfinite(ends).all(axis=1)]
    if not len(ends):
        return None
    low, high = np.exp(np.log(ends).mean(axis=0))
    return float(low), float(high)


def _worst(ratios: Ratios, settings: Mapping[str, Any]) -> Claim:
    worst = settings["worst"]
    judged: dict[str, Judged | None] = {}
    for model, by in ratios.items():
        if model != worst:
            theirs = ratios.get(worst, {})
            pairs = [theirs[seed] - value for seed, value in by.items() if seed in theirs]
            judged[model] = judge_greater(pairs) if pairs else None
    told = "; ".join(f"{shown(model)} {times(one)}" for model, one in judged.items())
    return Claim(
        f"That is worst in {shown(worst)}: its largest factor over its smallest one is more than "
        "that of the other models.",
        f"ratio of {shown(worst)} over that of {told}" if told else "no other model took part",
        over_models(judged) if judged else INCONCLUSIVE,
    )


def _never(found: Found) -> Claim:
    """No interval here: one factor above 1 would refute it."""
    alphas = [
        one.by_layer[np.isfinite(one.by_layer)]
        for by in found.values()
        for one in by["autoscale"].values()
    ]
    every = np.concatenate(alphas) if alphas else np.empty(0)
    text = "Autoscale never amplifies: its common factor is never above 1."
    if not len(every):
        return Claim(text, "no factor was recorded", INCONCLUSIVE)
    trainings = sum(1 for one in alphas if len(one))
    return Claim(
        text,
        f"largest factor {every.max():.6g}, smallest {every.min():.3g}, over {trainings} trainings",
        REPRODUCED if every.max() <= 1 else NOT_REPRODUCED,
    )


def _table(found: Found) -> Table:
    rows = []
    for model, by in found.items():
        for method, ones in by.items():
            ends = _ends(ones)
            if ends is None:
                continue
            low, high = ends
            most = [
                one.layers[int(np.nanargmax(one.profile))]
                for one in ones.values()
                if np.isfinite(one.profile).any()
            ]
            layer = max(dict.fromkeys(most), key=most.count)
            ratio = "1, one for all layers"
            if method != "autoscale":
                ratio = times(judge_greater([*_ratios(ones).values()]))
            rows.append(
                (
                    shown(model),
                    method,
                    f"{low:.3g}",
                    f"{high:.3g}",
                    ratio,
                    layer if method != "autoscale" else "",
                )
            )
    return Table(
        "Factors",
        ("model", "method", "smallest", "largest", "largest over smallest", "amplified most"),
        tuple(rows),
        "Standard deviation of a tensor's gradient after the transform over that before. Medians "
        "of the steps, geometric means of the seeds.",
    )


def _picture(found: Found) -> Picture:
    with axes(1, len(found), height=3.0, squeeze=False, sharey=True) as (figure, grid):
        for axis, (model, by) in zip(grid[0], found.items(), strict=True):
            for color, method in zip(COLORS[2:0:-1], _METHODS, strict=True):
                rows = [one.profile for one in by[method].values()]
                if rows:
                    depth = [float(place) for place in range(1, len(rows[0]) + 1)]
                    band(axis, depth, rows, method, color, marker=".", geometric=True)
            axis.axhline(1, color="#6b6b6b", linestyle=":", linewidth=0.8)
            axis.set_yscale("log")
            axis.set_title(shown(model))
            axis.set_xlabel("layer, from the first to the last")
        grid[0][0].set_ylabel("factor")
        grid[0][0].legend()
        return Picture(
            "factors",
            "What each weight tensor's gradient is multiplied with, median of the steps; "
            "geometric means over seeds with 95 % intervals. Above the dotted line it is "
            "amplified.",
            "Lines of factors over layers on a logarithmic axis, one panel for each model: "
            "ZNorm's, a factor for each layer, and autoscale's, one for all.",
            svg(figure),
        )


def _notes(settings: Mapping[str, Any], trained: Mapping[str, list[Trace]]) -> tuple[str, ...]:
    notes = [
        f"Each training has {steps_of(settings)} steps, under the method whose factors are shown. "
        "ZNorm's factors follow from the recorded standard deviations by its formula; autoscale's "
        "were recorded.",
        "That autoscale's factor is at most 1 holds by construction here: its closed form is this "
        "library's own, chosen for that claim, as the paper's was not seen. The run checks that "
        "the implementation keeps it.",
        "Where normalisation follows, ZNorm's large steps let weights grow, which makes their "
        f"gradients smaller and its factors larger still; losses of its trainings in the first and "
        f"the last tenth: {losses(trained) or 'none'}. The table therefore also has what ZNorm "
        "would do to the gradients of autoscale's trainings.",
        "The more layers a model has, the farther apart the largest and the smallest of them can "
        "be: models are compared as they are, whatever their depth.",
    ]
    return (*notes, *absent(trained))
