"""Made-up records of trainings."""

from collections.abc import Callable
from typing import Any

import numpy as np

from gradwise.report.article import Picture
from gradwise.reproduce.experiments._cifar import Trace

STEPS = 100
LAYERS = 8
BLANK = Picture("blank", "Nothing.", "Nothing.", b"<?xml")
"""Stands in for pictures, which take a second each."""


def made_up(
    seed: int,
    std: Callable[[np.ndarray, int], np.ndarray],
    *,
    alpha: Any = 1.0,
    ended: str = "finished",
    steps: int = STEPS,
) -> Trace:
    """A training of 8 layers of 10 values; `std` gives that of a layer from the share of time."""
    time = np.linspace(0, 1, steps)
    noise = np.random.default_rng(seed).lognormal(0, 0.02, (steps, LAYERS))
    values = np.stack([std(time, layer) * np.ones(steps) for layer in range(LAYERS)], axis=1)
    return Trace(
        seed,
        ended,
        tuple(f"layer{layer}.weight" for layer in range(LAYERS)),
        np.full(LAYERS, 10.0),
        np.arange(steps),
        values * noise,
        np.broadcast_to(np.asarray(alpha, np.float64), (steps,)).copy(),
        5 - time,
    )


def told(by_model: dict[str, dict[str, list[Trace]]]) -> Callable[..., dict[str, list[Trace]]]:
    """What stands in for reading the records."""
    return lambda settings, model, folder: by_model[model]


def results(by_model: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What the comparisons came to, as `conclude` takes it."""
    return {model: {"summary": {}, "folder": model} for model in by_model}
