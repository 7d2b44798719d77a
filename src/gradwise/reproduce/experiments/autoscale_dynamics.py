"""The standard deviation of gradients over training: of each layer, and of all together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from gradwise.errors import UserError
from gradwise.report.article import Table
from gradwise.reproduce.cells import Comparison
from gradwise.reproduce.claims import Claim, Conclusion, Judged, judge_greater
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
from gradwise.reproduce.experiments._dynamics_pictures import global_std, layer_std
from gradwise.reproduce.experiments._dynamics_trends import PARTS, Trends, apart, sound, trends_of

__all__ = ["comparisons", "conclude"]

_PLAIN = "sgd"  # the paper looks at the gradients that it then sets out to normalise
_METHODS = (_PLAIN, "autoscale")
Found = Mapping[str, Mapping[str, list[Trace]]]


def comparisons(settings: dict[str, Any]) -> list[Comparison]:
    """Plain descent and autoscale, for each model.

    Args:
        settings: of the recipe.

    Raises:
        UserError: where a setting is out of its bounds.
    """
    every, stretches = settings["record_every"], settings["stretches"]
    if every < 1:
        raise UserError(f"expected record_every >= 1, got record_every={every}")
    if stretches < PARTS:
        raise UserError(f"expected stretches >= {PARTS}, got stretches={stretches}")
    if not 0.5 <= settings["steady"] < 1:
        raise UserError(f"expected 0.5 <= steady < 1, got steady={settings['steady']:g}")
    if not settings["negligible"] >= 1:
        raise UserError(f"expected negligible >= 1, got negligible={settings['negligible']:g}")
    records = -(-steps_of(settings) // every)
    if records < stretches:
        raise UserError(
            f"expected at least stretches={stretches} records a training, got {records}: "
            "train longer or record more often"
        )
    return compared(settings, _METHODS, baseline=_PLAIN, record_every=every)


def conclude(settings: dict[str, Any], results: dict[str, dict[str, Any]]) -> Conclusion:
    """Judge what is said of the gradients' standard deviations.

    Args:
        settings: of the recipe.
        results: of the comparisons, by model.

    Raises:
        UserError: where a record is missing or damaged.
    """
    notes: list[str] = []
    found = {
        model: {
            method: _finished(model, method, ones, notes)
            for method, ones in traces(settings, model, result["folder"]).items()
        }
        for model, result in results.items()
    }
    trends = {
        model: {method: trends_of(ones, settings["stretches"]) for method, ones in by.items()}
        for model, by in found.items()
    }
    plain = {model: by[_PLAIN] for model, by in trends.items()}
    return Conclusion(
        (_falls(plain, settings), _steadily(plain, settings), _differently(plain, settings)),
        (_global_table(trends), _layer_table(trends)),
        (layer_std(found), global_std(found)),
        (*notes, *_notes(settings, found)),
    )


def _finished(model: str, method: str, ones: list[Trace], notes: list[str]) -> list[Trace]:
    """The trainings that came to their end with gradients that are numbers."""
    left = [one for one in ones if one.ended == "finished" and sound(one)]
    lost = [str(one.seed) for one in ones if one not in left]
    if lost:
        notes.append(
            f"Left out, as it diverged or its gradients vanished: {shown(model)} with {method}, "
            f"seed {', '.join(lost)}."
        )
    return left


def _judge(
    plain: Mapping[str, Trends | None], values: Any, **bounds: float
) -> dict[str, Judged | None]:
    judged: dict[str, Judged | None] = {}
    for model, one in plain.items():
        numbers = [] if one is None else [float(value) for value in values(one)]
        judged[model] = judge_greater(numbers, **bounds) if numbers else None
    return judged


def _listed(words: Mapping[str, str]) -> str:
    return "; ".join(f"{shown(model)} {told}" for model, told in words.items())


def _falls(plain: Mapping[str, Trends | None], settings: Mapping[str, Any]) -> Claim:
    negligible = float(np.log10(settings["negligible"]))
    judged = _judge(plain, lambda one: one.fall, negligible=negligible)
    return Claim(
        "The global standard deviation of the gradients falls over training.",
        "first tenth of training over the last: "
        + _listed({model: times(one) for model, one in judged.items()}),
        over_models(judged),
    )


def _steadily(plain: Mapping[str, Trends | None], settings: Mapping[str, Any]) -> Claim:
    judged = _judge(plain, lambda one: one.lower, than=settings["steady"])
    return Claim(
        "It falls steadily: of two stretches of training, the later one has the lower one, for "
        f"more than {100 * settings['steady']:g} % of all pairs.",
        f"share of pairs of {settings['stretches']} stretches: "
        + _listed(
            {
                model: "nothing to judge" if one is None else one.words("%", scale=100)
                for model, one in judged.items()
            }
        ),
        over_models(judged),
    )


def _differently(plain: Mapping[str, Trends | None], settings: Mapping[str, Any]) -> Claim:
    negligible = float(np.log10(settings["negligible"]))
    judged = _judge(plain, lambda one: apart(one.change), negligible=negligible)
    return Claim(
        "The standard deviations of single layers behave differently from layer to layer.",
        "from the first tenth to the last, layers that rise most and layers that fall most, as "
        "chosen by the other seeds, go apart by the factor "
        + _listed({model: times(one) for model, one in judged.items()}),
        over_models(judged),
    )


def _global_table(trends: Mapping[str, Mapping[str, Trends | None]]) -> Table:
    rows = []
    for model, by in trends.items():
        for method, one in by.items():
            if one is not None:
                first, last = np.exp(np.log(one.ends).mean(axis=0))
                factor = times(judge_greater([float(value) for value in one.fall]))
                share = f"{100 * one.lower.mean():.1f}"
                rows.append((shown(model), method, f"{first:.3g}", f"{last:.3g}", factor, share))
    return Table(
        "Global standard deviation",
        ("model", "method", "first tenth", "last tenth", "first over last", "later lower, %"),
        tuple(rows),
        "Of all tensors with at least two dimensions together, each around its own mean, before "
        "any transform. Geometric means over steps and seeds.",
    )


def _layer_table(trends: Mapping[str, Mapping[str, Trends | None]]) -> Table:
    rows = []
    for model, by in trends.items():
        for method, one in by.items():
            if one is not None and one.layers:
                mean = one.change.mean(axis=0)
                most, least = int(mean.argmin()), int(mean.argmax())
                early, late = 10 ** one.spread.mean(axis=0)
                rows.append(
                    (
                        shown(model),
                        method,
                        f"{len(one.layers)}",
                        f"× {10 ** mean[most]:.3g}, {one.layers[most]}",
                        f"× {10 ** mean[least]:.3g}, {one.layers[least]}",
                        f"{early:.3g}",
                        f"{late:.3g}",
                    )
                )
    return Table(
        "Standard deviations of layers",
        (
            "model",
            "method",
            "tensors",
            "fell most",
            "fell least",
            "largest over smallest, first tenth",
            "last tenth",
        ),
        tuple(rows),
        "What a tensor's standard deviation is multiplied with from the first tenth to the last. "
        "Geometric means over the seeds.",
    )


def _notes(settings: Mapping[str, Any], found: Found) -> tuple[str, ...]:
    return (
        f"Claims are judged on plain SGD, {len(settings['seeds'])} seeds of {steps_of(settings)} "
        "steps; gradients are those of single batches, whose noise is part of their standard "
        "deviation.",
        "How far trainings went, by the mean loss in their first and last tenth: "
        f"{losses({model: by[_PLAIN] for model, by in found.items()}) or 'none did'}.",
        "The closed form of autoscale's factor is this library's own; the paper's was not seen.",
        *absent(found),
    )
