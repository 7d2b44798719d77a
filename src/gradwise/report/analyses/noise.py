"""Gradient noise at a point, and what rules of stepping make of it."""

from __future__ import annotations

import math
from collections.abc import Mapping

from gradwise.analysis.noise import DirectionNoise, GradientNoise
from gradwise.report.article import Picture, Table
from gradwise.report.drawing import COLORS, axes, svg

SOURCE = "Sato and Iiduka, Momentum Does Not Reduce Stochastic Noise in SGD"
URL = "https://arxiv.org/abs/2402.02325"
NAMES = {"sgd": "SGD", "heavy-ball": "heavy ball", "normalized": "normalised heavy ball"}


def lead(gradient: GradientNoise, rules: Mapping[str, DirectionNoise]) -> str:
    """The answer in two sentences.

    Args:
        gradient: what was measured.
        rules: by name.
    """
    scale = gradient.noise_scale
    if gradient.norm == 0:
        return "The gradient of all data is 0 here: whatever a batch adds to it is noise."
    if scale is None:
        return "A batch is the whole set, so that its gradient has no noise."
    share = gradient.variance / gradient.norm**2
    b = gradient.batch_size
    words = (
        f"The noise of a batch of {b} is {share:.3g} times the squared gradient of all data: "
        f"{'noise' if share > 1 else 'the gradient'} is the larger part of a step, and at batches "
        f"of about {scale:.3g} the two are equal."
    )
    if "sgd" in rules and "normalized" in rules and gradient.variance > 0:
        saved = rules["sgd"].spread / rules["normalized"].spread
        words += (
            f" At a point that stands still, normalised momentum divides the spread by {saved:.3g}."
        )
    if "heavy-ball" in rules and gradient.norm > 0:
        far = rules["heavy-ball"].lag / gradient.norm
        words += (
            f" Heavy ball goes {far + 1:.3g} times the gradient, a lag of {far:.3g} times, which "
            "is a larger learning rate rather than noise."
        )
    return words


def tables(gradient: GradientNoise, rules: Mapping[str, DirectionNoise]) -> tuple[Table, ...]:
    """The measurement, and a row for each rule.

    Args:
        gradient: what was measured.
        rules: by name.
    """
    g, variance = gradient, f"{gradient.variance:.4g}"
    if g.error is not None:
        variance += f" ± {g.error:.2g}"
    measured = Table(
        "Gradient noise",
        ("quantity", "value", "unit", "what it is"),
        (
            ("loss", f"{g.loss:.4g}", "", f"mean of {g.samples} samples"),
            ("|G|", f"{g.norm:.4g}", "loss / parameter", "norm of the gradient of all samples"),
            ("E|g - G|²", variance, "(loss / parameter)²", f"noise of a batch of {g.batch_size}"),
            ("C²", _number(g.c2), "(loss / parameter)²", "noise of a batch of one sample"),
            ("C² / |G|²", _number(g.noise_scale), "samples", "noise scale: batch where both equal"),
        ),
        f"± is the standard error over {g.batches} {'batch' if g.batches == 1 else 'batches'}.",
    )
    rows = tuple(
        (
            NAMES.get(name, name),
            f"{one.lag:.4g}",
            f"{one.spread:.4g}",
            f"{one.noise:.4g}",
            _number(one.noise / g.norm**2 if g.norm else None),
        )
        for name, one in rules.items()
    )
    directions = Table(
        "Search-direction noise",
        ("rule", "lag", "spread", "lag² + spread", "over |G|²"),
        rows,
        "Lag: how far the mean direction is from the gradient, in loss / parameter. Spread: what "
        "varies from batch to batch, squared. The last column is in squared gradients.",
    )
    return measured, directions


def notes(gradient: GradientNoise, replacement: bool, from_loader: bool) -> tuple[str, ...]:
    """What the numbers rest on.

    Args:
        gradient: what was measured.
        replacement: whether samples may come twice.
        from_loader: whether the batches are a loader's own.
    """
    g = gradient
    if from_loader:
        drawn = "the first full ones of a second pass of the loader, in its order"
    else:
        drawn = f"drawn {'with' if replacement else 'without'} replacement, independently"
    return (
        "The model stood still, in evaluation mode and without augmentation.",
        f"It took one pass over {g.samples} samples and {g.batches} batches of {g.batch_size}, "
        f"{drawn}.",
        "The rules are those of many steps at this very point, from the one measurement: lag = "
        "|w / (1 - beta) - 1| |G| and spread = w² E|g - G|² / (1 - beta²). In a run the point "
        "moves; the noise of a step with the buffer of an optimizer is measured in Python by "
        "Direction.of(optimizer, model).",
        "The noise scale says where larger batches begin to pay less at this point. Which batch "
        "size needs the least work in a training run is another question: critical_batch_size.",
    )


def pictures(gradient: GradientNoise, rules: Mapping[str, DirectionNoise]) -> tuple[Picture, ...]:
    """Noise over batch size against the gradient; lag and spread of the rules.

    Args:
        gradient: what was measured.
        rules: by name.
    """
    square = gradient.norm**2 or 1.0
    with axes(1, 2) as (figure, (left, right)):
        scale = gradient.noise_scale
        if scale:
            low, high = min(1.0, scale / 4), max(4.0 * scale, float(gradient.samples))
            left.loglog([low, high], [scale / low, scale / high], label="noise")
            left.axhline(1.0, color="#6b6b6b", linestyle=":", label="gradient")
            left.plot(
                [gradient.batch_size],
                [scale / gradient.batch_size],
                "o",
                color=COLORS[1],
                label=f"batch of {gradient.batch_size}",
            )
            left.legend()
        left.set_xlabel("batch size")
        left.set_ylabel("over |G|²")
        names = [NAMES.get(name, name) for name in rules]
        for shift, label, values in (
            (-0.2, "lag²", [one.lag**2 / square for one in rules.values()]),
            (0.2, "spread", [one.spread / square for one in rules.values()]),
        ):
            places = [at + shift for at in range(len(names))]
            right.barh(places, [value or math.nan for value in values], 0.38, label=label)
        right.set_yticks(range(len(names)), names)
        right.set_xscale("log")
        right.set_xmargin(0.15)  # so that the shortest bar can be seen
        right.invert_yaxis()
        right.set_xlabel("over |G|²" if gradient.norm else "squared")
        right.legend()
        return (
            Picture(
                "noise",
                "Left: the noise of a batch's gradient over the squared gradient of all data, "
                "C²/(b |G|²) with samples drawn with replacement; it crosses 1 at the noise scale. "
                "Right: the two parts of search-direction noise of each rule; none where it is 0.",
                f"A falling line of noise over batch size; and bars of lag and spread for "
                f"{', '.join(names)}.",
                svg(figure),
            ),
        )


def _number(value: float | None) -> str:
    return "—" if value is None else f"{value:.4g}"
