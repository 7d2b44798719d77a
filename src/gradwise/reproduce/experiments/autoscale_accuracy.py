"""Test accuracy with autoscale beside plain descent, centring, ZNorm and clipping."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradwise.errors import UserError
from gradwise.lab.statistics import mean_ci
from gradwise.report.article import Picture, Table
from gradwise.report.drawing import COLORS, axes, svg
from gradwise.report.words import accuracy_points, p_value, span
from gradwise.reproduce.cells import Comparison
from gradwise.reproduce.claims import Claim, Conclusion, Judged, judge_greater
from gradwise.reproduce.experiments._cifar import absent, compared, over_models, shown, steps_of

__all__ = ["comparisons", "conclude"]

_METHOD = "autoscale"


@dataclass(frozen=True)
class Scores:
    """Test accuracies of one model, by method and seed, and what the lab says of them.

    Attributes:
        accuracy: by method, by seed; a training that diverged counts as guessing.
        compared: by method but the baseline, the lab's comparison with it.
        diverged: by method, the seeds that did.
    """

    accuracy: dict[str, dict[int, float]]
    compared: dict[str, dict[str, Any]]
    diverged: dict[str, list[int]]

    def gains(self, method: str, baseline: str) -> dict[int, float]:
        """By how much a method is more accurate, by seed."""
        theirs = self.accuracy[baseline]
        return {
            seed: value - theirs[seed]
            for seed, value in self.accuracy[method].items()
            if seed in theirs
        }


def comparisons(settings: dict[str, Any]) -> list[Comparison]:
    """All methods, for each model.

    Args:
        settings: of the recipe.

    Raises:
        UserError: where a setting is out of its bounds.
    """
    methods, baseline = settings["methods"], settings["baseline"]
    for name in (_METHOD, baseline):
        if name not in methods:
            raise UserError(f"expected {name} among methods, got {', '.join(methods)}")
    if baseline == _METHOD:
        raise UserError(f"expected another baseline than {_METHOD}, got baseline={baseline!r}")
    if not 0 < settings["margin"] < 1:
        raise UserError(f"expected 0 < margin < 1, got margin={settings['margin']:g}")
    return compared(settings, methods, baseline=baseline, record_every=0)


def conclude(settings: dict[str, Any], results: dict[str, dict[str, Any]]) -> Conclusion:
    """Judge what is said of the accuracy.

    Args:
        settings: of the recipe.
        results: of the comparisons, by model.

    Raises:
        UserError: where a summary is damaged.
    """
    baseline = settings["baseline"]
    found = {model: _scores(model, result) for model, result in results.items()}
    gains = {model: scores.gains(_METHOD, baseline) for model, scores in found.items()}
    return Conclusion(
        (_maintains(gains, settings), _improves(gains, settings)),
        tuple(_table(model, scores, baseline) for model, scores in found.items()),
        (_picture(found, settings),),
        _notes(settings, found),
    )


def _scores(model: str, result: Mapping[str, Any]) -> Scores:
    try:
        methods = result["summary"]["methods"]
        compared_by = {one["method"]: one for one in result["summary"]["comparisons"]}
        accuracy, diverged = {}, {}
        for name, told in methods.items():
            pairs = zip(told["seeds"], told["test_accuracy"]["values"], strict=True)
            accuracy[name] = {
                seed: float(value)
                for seed, value in pairs
                if value is not None and math.isfinite(value)
            }
            ends = zip(told["seeds"], told["status"], strict=True)
            diverged[name] = [seed for seed, status in ends if status == "diverged"]
        return Scores(accuracy, compared_by, diverged)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"the summary of {shown(model)} is damaged: {error!r}") from error


def _maintains(gains: Mapping[str, Mapping[int, float]], settings: Mapping[str, Any]) -> Claim:
    judged: dict[str, Judged | None] = {
        model: judge_greater([*by.values()], than=-settings["margin"]) if by else None
        for model, by in gains.items()
    }
    return Claim(
        f"With {_METHOD} no model's test accuracy is lower than with {settings['baseline']} by "
        f"{100 * settings['margin']:g} points or more.",
        f"{_METHOD} less {settings['baseline']}: "
        + "; ".join(f"{shown(model)} {_points(one)}" for model, one in judged.items()),
        over_models(judged),
    )


def _improves(gains: Mapping[str, Mapping[int, float]], settings: Mapping[str, Any]) -> Claim:
    """Over all models together: to look for one of several would find it by chance."""
    seeds = [seed for seed in settings["seeds"] if all(seed in by for by in gains.values())]
    means = [math.fsum(by[seed] for by in gains.values()) / len(gains) for seed in seeds]
    judged = judge_greater(means, negligible=settings["margin"]) if means else None
    return Claim(
        f"With {_METHOD} the test accuracy is higher than with {settings['baseline']}, in the mean "
        "of the models.",
        f"{_METHOD} less {settings['baseline']}, mean of {', '.join(map(shown, gains))}: "
        f"{_points(judged)}; a gain below {100 * settings['margin']:g} points counts as none",
        over_models({"all": judged}),
    )


def _points(judged: Judged | None) -> str:
    return "nothing to judge" if judged is None else judged.words("points", scale=100)


def _table(model: str, scores: Scores, baseline: str) -> Table:
    rows = []
    for method, by in scores.accuracy.items():
        mean, interval = mean_ci([*by.values()]) if by else (None, None)
        told = scores.compared.get(method)
        against = ("", "", "", "baseline")
        if told is not None:
            bounds = told["ci95"]
            against = (
                accuracy_points(told["difference"]),
                span(None if bounds is None else (bounds[0], bounds[1]), signed=True),
                p_value(told["p"]),
                told["verdict"],
            )
        diverged = len(scores.diverged[method])
        rows.append(
            (
                method,
                "–" if mean is None else f"{100 * mean:.2f}",
                span(interval),
                *against,
                f"{diverged} of {len(by)}",
            )
        )
    return Table(
        f"{shown(model)}: test accuracy, %",
        ("method", "mean", "interval", f"less {baseline}", "interval", "p", "verdict", "diverged"),
        tuple(rows),
        "95 % intervals over seeds; differences in points, paired by seed; p of the paired t-test, "
        "corrected for the number of methods (Holm).",
    )


def _picture(found: Mapping[str, Scores], settings: Mapping[str, Any]) -> Picture:
    baseline = settings["baseline"]
    others = [method for method in settings["methods"] if method != baseline]
    height = 1.1 + 0.32 * len(others)
    with axes(1, len(found), height=height, squeeze=False, sharey=True) as (figure, grid):
        for axis, (model, scores) in zip(grid[0], found.items(), strict=True):
            axis.axvline(0, color="#6b6b6b", linewidth=0.8)
            axis.axvline(-100 * settings["margin"], color="#6b6b6b", linestyle=":", linewidth=0.8)
            for place, method in enumerate(others):
                gains = [100 * gain for gain in scores.gains(method, baseline).values()]
                _dots(axis, place, gains, COLORS[place % len(COLORS)])
            axis.set_title(shown(model))
            axis.set_xlabel(f"points above {baseline}")
        grid[0][0].set_yticks(range(len(others)), others)
        grid[0][0].invert_yaxis()
        return Picture(
            "accuracy-differences",
            f"Test accuracy less that of {baseline}, in points: a dot a seed, the mean and its "
            "95 % interval. Dotted: the margin within which autoscale counts as not worse.",
            f"Dots of differences in accuracy from {baseline}, a row for each method, a panel for "
            "each model.",
            svg(figure),
        )


def _dots(axis: Any, place: int, gains: Sequence[float], color: str) -> None:
    axis.plot(gains, [place] * len(gains), "o", color=color, alpha=0.5, markersize=4)
    if gains:
        mean, interval = mean_ci(gains)
        axis.plot([mean], [place + 0.25], "D", color=color, markersize=4)
        if interval is not None:
            axis.plot(interval, [place + 0.25] * 2, "-", color=color)


def _notes(settings: Mapping[str, Any], found: Mapping[str, Scores]) -> tuple[str, ...]:
    notes = [
        f"All methods ran with learning rate {settings['lr']:g}, for {steps_of(settings)} steps a "
        "training; none was tuned, and ZNorm, which makes gradients much larger, may want a far "
        "smaller one. No claim is made of it here.",
        "The numbers of the paper's table were not available to us, so only the direction is "
        "compared. The closed form of autoscale's factor is this library's own; the paper's was "
        "not seen.",
    ]
    notes.extend(absent(found))
    for model, scores in found.items():
        level = [*scores.accuracy[settings["baseline"]].values()]
        if level and mean_ci(level)[0] < settings["trained"]:
            notes.append(
                f"{shown(model)} reaches {100 * mean_ci(level)[0]:.1f} % with "
                f"{settings['baseline']}, at the very beginning of what it can learn: this says "
                "how methods set out, and little about where they end."
            )
        lost = [
            f"{method} (seed {', '.join(map(str, seeds))})"
            for method, seeds in scores.diverged.items()
            if seeds
        ]
        if lost:
            notes.append(
                f"Diverged and counted as guessing: {shown(model)} with {', '.join(lost)}."
            )
    return tuple(notes)
