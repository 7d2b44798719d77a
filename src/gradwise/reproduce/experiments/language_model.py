"""Autoscale, clipping and nothing in a character-level language model under AdamW."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gradwise.lab.statistics import mean_ci
from gradwise.report.article import Table
from gradwise.reproduce.cells import Cell, Tell
from gradwise.reproduce.claims import Claim, Conclusion, Judged, judge_greater
from gradwise.reproduce.experiments._char_found import Floats, Found, read
from gradwise.reproduce.experiments._char_pictures import pictures
from gradwise.reproduce.experiments._char_text import load_text
from gradwise.reproduce.experiments._char_training import JUDGED, bad_steps, check, train

__all__ = ["cells", "conclude", "run"]

_OWN = "gradwise's own claim:"
_CLIP = "clipping the norm"
_NAMES = {"nothing": "nothing", "clip": _CLIP}
_BATCHES = {
    "random": "batches of random characters",
    "scrambled": "batches with scrambled targets and too large a loss",
}


def cells(settings: dict[str, Any]) -> list[Cell]:
    """One a seed, condition and method, over all learning rates.

    Args:
        settings: of the recipe.

    Raises:
        UserError: where a setting is out of its bounds.
    """
    check(settings)
    return [
        Cell(
            f"{condition}.{method}.seed={seed}",
            {"condition": condition, "method": method, "seed": seed},
        )
        for seed in settings["seeds"]
        for condition in settings["conditions"]
        for method in settings["methods"]
    ]


def run(settings: dict[str, Any], arguments: dict[str, Any], tell: Tell) -> dict[str, Any]:
    """Train with one method under one condition from one seed, once a learning rate.

    Args:
        settings: of the recipe.
        arguments: `condition`, `method` and `seed`.
        tell: told how many steps are done.

    Returns:
        `text` (facts), `uniform_bits`, `bad_steps`, and in `runs` what `train` gives by learning
        rate; the losses of single steps are kept at `curve_lr` alone.

    Raises:
        UserError: where a setting is out of its bounds, or there is no such text.
    """
    check(settings)
    text = load_text(settings["data"], settings["data_dir"], settings["context"])
    condition, seed = arguments["condition"], arguments["seed"]
    steps, rates = settings["steps"], settings["learning_rates"]
    runs = []
    for at, lr in enumerate(rates):

        def told(step: int, before: int = at * steps) -> None:
            tell(before + step, len(rates) * steps)

        one = train(settings, text, arguments["method"], condition, seed, lr, told)
        if lr != settings["curve_lr"]:
            del one["losses"]
        runs.append(one)
    tell(len(rates) * steps, len(rates) * steps)
    return {
        "text": text.facts(),
        "uniform_bits": text.uniform_bits,
        "bad_steps": bad_steps(settings, condition, seed),
        "runs": runs,
    }


def conclude(settings: dict[str, Any], results: dict[str, dict[str, Any]]) -> Conclusion:
    """Judge gradwise's claims on autoscale, seed by seed.

    Args:
        settings: of the recipe.
        results: of the cells, by name.

    Raises:
        UserError: where results are missing or damaged.
    """
    found = read(settings, results)
    margin, within = settings["margin"], settings["within"]
    claims = [_best_claim(found, other, margin) for other in ("nothing", "clip")]
    claims.append(_width_claim(found, within))
    claims += [
        _damage_claim(found, condition, other, margin)
        for condition in found.bad
        for other in ("nothing", "clip")
    ]
    return Conclusion(
        tuple(claims),
        (_summary_table(found, within), _rates_table(found)),
        pictures(found, settings["curve_lr"]),
        _notes(found, settings),
    )


def _best_claim(found: Found, other: str, margin: float) -> Claim:
    ours, theirs = found.best("autoscale", "clean"), found.best(other, "clean")
    judged = judge_greater((theirs - ours).tolist(), than=-margin)
    return Claim(
        f"{_OWN} with the best of all learning rates, autoscale ends at most {margin:g} bits a "
        f"character above {_NAMES[other]}.",
        f"test loss {ours.mean():.3f} with autoscale and {theirs.mean():.3f} with {other}; "
        f"{_gain(judged, other)}",
        judged.verdict,
    )


def _width_claim(found: Found, within: float) -> Claim:
    ours, theirs = (found.width(method, "clean", within) for method in ("autoscale", "clip"))
    # Half a step of a grid of half decades: less cannot be told by one.
    judged = judge_greater((ours - theirs).tolist(), than=-0.5)
    return Claim(
        f"{_OWN} the learning rates that come within {within:g} bits of the best of all methods "
        f"span at least as much with autoscale as with {_CLIP}, give or take a "
        "quarter of a decade.",
        f"{ours.mean():.2f} half decades with autoscale and {theirs.mean():.2f} with clip; "
        f"autoscale less clip {judged.words('half decades')}",
        judged.verdict,
    )


def _damage_claim(found: Found, condition: str, other: str, margin: float) -> Claim:
    ours, theirs = (found.damage(method, condition) for method in ("autoscale", other))
    judged = judge_greater((theirs - ours).tolist(), negligible=margin)
    return Claim(
        f"{_OWN} {_BATCHES[condition]} cost less with autoscale than with {_NAMES[other]}, each "
        "at the learning rate that is best for it under them.",
        f"they add {ours.mean():+.3f} bits a character with autoscale and {theirs.mean():+.3f} "
        f"with {other}; {_gain(judged, other)}",
        judged.verdict,
    )


def _gain(judged: Judged, other: str) -> str:
    return f"{other} less autoscale {judged.words('bits')}"


def _summary_table(found: Found, within: float) -> Table:
    rows = []
    for condition in found.conditions:
        for method in found.methods:
            rates = [found.rates[place] for place in found.chosen(method, condition)]
            clean = condition == "clean"
            added = [
                "" if clean else _interval(found.damage(method, condition, chosen_anew=anew))
                for anew in (True, False)
            ]
            rows.append(
                (
                    condition,
                    method,
                    ", ".join(f"{rate:g}" for rate in rates),
                    _interval(found.best(method, condition)),
                    *added,
                    _interval(found.width(method, condition, within), 2),
                    f"{int(found.diverged[method, condition].sum())} of "
                    f"{found.diverged[method, condition].size}",
                )
            )
    return Table(
        "Test loss in bits a character",
        (
            "condition",
            "method",
            "learning rates chosen",
            "test loss",
            "added by bad batches",
            "added, learning rate of clean",
            "width, half decades",
            "diverged",
        ),
        tuple(rows),
        "Mean and 95 % interval over the seeds. Each seed's learning rate is the one of the least "
        "validation loss, in the same condition but for the column that says otherwise. Width: "
        f"learning rates whose test loss is within {within:g} bits of the least of all methods.",
    )


def _rates_table(found: Found) -> Table:
    rows = [
        (condition, method, *(f"{loss:.3f}" for loss in found.test[method, condition].mean(axis=0)))
        for condition in found.conditions
        for method in found.methods
    ]
    return Table(
        "Test loss by learning rate",
        ("condition", "method", *(f"{rate:g}" for rate in found.rates)),
        tuple(rows),
        f"Mean of the seeds, bits a character; guessing blindly has {found.uniform:.3f}, which a "
        "run that diverged or is worse counts as.",
    )


def _interval(values: Floats, digits: int = 3) -> str:
    mean, interval = mean_ci(values.tolist())
    if interval is None:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ({interval[0]:.{digits}f} to {interval[1]:.{digits}f})"


def _notes(found: Found, settings: dict[str, Any]) -> tuple[str, ...]:
    train, validation, test = found.text["characters"]
    notes = [
        "No paper makes these claims: they are gradwise's own, and so is the closed form of "
        "autoscale's factor.",
        "All methods have the same budget: as many steps, the same learning rates, weights to "
        "begin with, batches and bad batches. The learning rate is chosen on one part of the text "
        "and the loss reported on another.",
        f"The text has {train} characters to learn, {validation} to choose by and {test} to "
        f"report, {found.text['vocabulary']} kinds with the one for unknown characters, SHA-256 "
        f"{found.text['sha256'][:16]}. Intervals are over seeds, not over texts.",
        "Autoscale takes its factor from tensors of two dimensions and more, and scales norms and "
        "biases by it as well. Clipping takes its factor from all of them.",
    ]
    if found.bad:
        hits = np.mean([len(found.bad_steps[seed]) for seed in found.seeds])
        notes.append(
            f"A run has {hits:.1f} bad batches on average in {settings['steps']} steps; both kinds "
            "hit the same steps."
        )
    notes += _edges(found, "clean", settings["within"])
    return tuple(notes)


def _edges(found: Found, condition: str, within: float) -> Sequence[str]:
    """What the ends of the grid of learning rates hide."""
    ends = {0, len(found.rates) - 1}
    told = [
        method
        for method in JUDGED
        if len(found.rates) > 1 and ends & set(found.chosen(method, condition).tolist())
    ]
    notes = []
    if told:
        notes.append(
            f"The best learning rate lies at an end of those tried with {', '.join(told)}: there "
            "may be a better one beyond."
        )
    least = min(float(found.test[method, condition].min()) for method in found.methods)
    if any(found.test[method, condition][:, -1].min() <= least + within for method in JUDGED):
        notes.append("The largest learning rate is still a good one: widths end with the grid.")
    return notes
