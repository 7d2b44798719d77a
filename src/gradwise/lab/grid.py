"""A grid of learning rates: which one is chosen for a method, and what there is to say about it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gradwise.lab.job import Job, rate_text

Results = Mapping[Job, dict[str, Any] | None]


def choose(rates: Sequence[float], results: Results) -> float | None:
    """The learning rate with the best mean accuracy on the rows held out, for one method.

    Of equals, the one with the smaller mean loss there, and then the smaller one. A trial that
    diverged counts as guessing, with an infinite loss; one without a result takes no part.

    Args:
        rates: the grid, ascending.
        results: of the method's trials.

    Returns:
        One of `rates`, or None while there is no result.
    """
    scores = [_score(rate, results) for rate in rates]
    best = max((score for score in scores if score is not None), default=None)
    return None if best is None else rates[scores.index(best)]


def _score(rate: float, results: Results) -> tuple[float, float] | None:
    done = [r for job, r in results.items() if job.lr == rate and r is not None]
    if not done:
        return None
    losses = [math.inf if (loss := r["validation_loss"]) is None else float(loss) for r in done]
    accuracy = math.fsum(float(r["validation_accuracy"]) for r in done) / len(done)
    return accuracy, -math.fsum(losses) / len(done)


def of_rate(rate: float | None, results: Results) -> dict[Job, dict[str, Any] | None]:
    """The trials with one learning rate.

    Args:
        rate: the learning rate; None where there is no grid.
        results: of trials.
    """
    return {job: result for job, result in results.items() if job.lr == rate}


def budget(rates: Sequence[float], seeds: int) -> str:
    """What every method was given, in words.

    Args:
        rates: the grid.
        seeds: how many there are.

    Examples:
        >>> budget((0.01, 0.1, 1.0), 5)
        '3 learning rates x 5 seeds each'
    """
    return f"{len(rates)} learning rates x {seeds} seed{'s' * (seeds != 1)} each"


def grid_notes(
    rates: Sequence[float],
    seeds: int,
    held_out: int,
    chosen: Mapping[str, float | None],
    missing: int,
) -> list[str]:
    """What a reader has to know about a grid.

    Args:
        rates: the grid, ascending.
        seeds: how many there are.
        held_out: rows that were held out.
        chosen: the learning rate of each method.
        missing: trials without a result.
    """
    listed = ", ".join(map(rate_text, rates))
    notes = [
        f"The budget was the same for every method: {budget(rates, seeds)} ({listed}). A method's "
        "learning rate is the one with the best mean accuracy on "
        f"{held_out} validation row{'s' * (held_out != 1)} taken out of the training set; "
        "no trial trained on them, and the test set took no part in the choice."
    ]
    if missing:
        notes.append(
            f"{missing} trial{'s' * (missing != 1)} of the grid "
            f"{'has' if missing == 1 else 'have'} no result, so the choice is not final."
        )
    for rate, which in ((rates[0], "smallest"), (rates[-1], "largest")):
        names = [method for method, own in chosen.items() if own == rate]
        if names:
            notes.append(
                f"The {which} learning rate of the grid, {rate_text(rate)}, was the best for "
                f"{', '.join(names)}: a better one may lie beyond it."
            )
    return notes
