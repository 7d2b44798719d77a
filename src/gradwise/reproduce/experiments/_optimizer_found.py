"""What the trainings of an optimizer and its baselines came to, read from their comparisons."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradwise.errors import UserError
from gradwise.lab.files import read_json

__all__ = ["Runs", "label", "read"]


@dataclass(frozen=True)
class Runs:
    """One optimizer's trainings, at its chosen learning rate; in lists one entry a seed.

    A training that diverged counts as guessing from there on: the accuracy of a class in so many,
    and the loss of equal probabilities.

    Attributes:
        spec: the optimizer as the comparison names it.
        learning_rate: the one that was chosen, or the only one.
        accuracy: [S] at the end, on the test set.
        losses: [S][E] mean training loss of each epoch.
        accuracies: [S][E] on the test set after each epoch.
        diverged: how many did.
        seconds: mean of the time spent on training.
        grid: learning rate, mean accuracy on the rows held out and on the test set; empty where
            there was nothing to choose.
        seen: [S] checksums of first weights, and of batches (None where it diverged).
    """

    spec: str
    learning_rate: float
    accuracy: list[float]
    losses: list[list[float]]
    accuracies: list[list[float]]
    diverged: int
    seconds: float
    grid: tuple[tuple[float, float, float], ...]
    seen: tuple[tuple[str, str | None], ...]


def label(spec: str) -> str:
    """An optimizer's name without its arguments.

    Args:
        spec: such as "hgm(gamma=0.3)".

    Examples:
        >>> label("hgm(gamma=0.3)")
        'hgm'
    """
    return spec.partition("(")[0].strip()


def read(settings: Mapping[str, Any], results: Mapping[str, Any]) -> dict[str, Runs]:
    """The trainings of all optimizers, by label, the method first.

    Args:
        settings: of the recipe.
        results: of the comparisons, by name.

    Raises:
        UserError: where one is missing or damaged.
    """
    found: dict[str, Runs] = {}
    for name, result in results.items():
        try:
            methods = result["summary"]["methods"]
            for spec, told in methods.items():
                found[label(spec)] = _runs(spec, told, Path(result["folder"]), settings)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise UserError(f"comparison {name} is damaged: {error!r}") from error
    wanted = [label(spec) for spec in (settings["method"], *settings["baselines"])]
    for one in wanted:
        if one not in found:
            raise UserError(f"expected results of {', '.join(wanted)}, got none of {one}")
    return {one: found[one] for one in wanted}


def _runs(spec: str, told: Mapping[str, Any], folder: Path, settings: Mapping[str, Any]) -> Runs:
    if told["seeds"] != settings["seeds"]:
        raise ValueError(f"{spec} has seeds {told['seeds']}, not {settings['seeds']}")
    ends = [_finished(read_json(folder / one / "result.json")) for one in told["folder"]]
    curves = [_curves(one, settings["epochs"]) for one in ends]
    return Runs(
        spec=spec,
        learning_rate=float(ends[0]["learning_rate"]),
        accuracy=[float(one["test_accuracy"]) for one in ends],
        losses=[losses for losses, _ in curves],
        accuracies=[accuracies for _, accuracies in curves],
        diverged=sum(one["status"] == "diverged" for one in ends),
        seconds=math.fsum(float(one["wall_time_s"]) for one in ends) / len(ends),
        grid=tuple(
            (
                float(rate["learning_rate"]),
                float(rate["validation_accuracy"]["mean"]),
                float(rate["test_accuracy"]["mean"]),
            )
            for rate in told.get("grid", ())
        ),
        seen=tuple(
            (
                one["init_checksum"],
                None if one["status"] == "diverged" else one["batches_checksum"],
            )
            for one in ends
        ),
    )


def _finished(result: dict[str, Any]) -> dict[str, Any]:
    if result["status"] not in ("finished", "diverged"):
        raise ValueError(f"a trial is {result['status']}")
    return result


def _curves(result: Mapping[str, Any], epochs: int) -> tuple[list[float], list[float]]:
    """Training loss and test accuracy of each epoch."""
    history = result["history"]
    losses = [float(value) for value in history["train_loss"]]
    accuracies = [float(value) for value in history["test_accuracy"]]
    if result["status"] == "diverged":
        guess = float(result["test_accuracy"])  # one class in so many
        losses += [-math.log(guess)] * (epochs - len(losses))
        accuracies += [guess] * (epochs - len(accuracies))
    if len(losses) != epochs or len(accuracies) != epochs:
        raise ValueError(f"a trial has {len(losses)} epochs, not {epochs}")
    return losses, accuracies
