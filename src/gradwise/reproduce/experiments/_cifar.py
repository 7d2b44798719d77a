"""What the recipes on gradients of image classifiers share: trainings, records, claims of many."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gradwise.errors import UserError
from gradwise.lab.data.catalog import IMAGE_SETS
from gradwise.lab.models import build
from gradwise.lab.settings import Settings
from gradwise.report.folder import read_run
from gradwise.reproduce.cells import Comparison
from gradwise.reproduce.claims import INCONCLUSIVE, Judged, overall
from gradwise.watch.store import load

__all__ = [
    "Matrix",
    "Trace",
    "absent",
    "compared",
    "losses",
    "over_models",
    "shown",
    "steps_of",
    "times",
    "traces",
]

Matrix = npt.NDArray[np.float64]

_SHOWN = {"resnet20": "ResNet-20", "resnet56": "ResNet-56", "vgg16bn": "VGG-16-BN"}
_SHAPES = {"digits": ((1, 8, 8), 10)} | {
    one.name: (one.shape, one.num_classes) for one in IMAGE_SETS.values()
}


def shown(model: str) -> str:
    """A network's name as papers write it.

    Args:
        model: as the lab calls it.

    Examples:
        >>> shown("vgg16bn"), shown("mlp")
        ('VGG-16-BN', 'mlp')
    """
    return _SHOWN.get(model, model)


def absent(models: Iterable[str]) -> tuple[str, ...]:
    """A sentence on the paper's models that took no part, or none.

    Args:
        models: those that did.

    Examples:
        >>> absent(["resnet20", "vgg16bn"])
        ("Of the paper's models, ResNet-56 took no part at this scale.",)
        >>> absent(["resnet20", "resnet56", "vgg16bn"])
        ()
    """
    taken = set(models)
    missing = ", ".join(name for model, name in _SHOWN.items() if model not in taken)
    told = f"Of the paper's models, {missing} took no part at this scale."
    return (told,) if missing else ()


def compared(
    settings: Mapping[str, Any], methods: Sequence[str], *, baseline: str, record_every: int
) -> list[Comparison]:
    """A comparison of methods for each of the recipe's models.

    Args:
        settings: of the recipe.
        methods: as `--methods` names them.
        baseline: one of them.
        record_every: steps between two records of the gradients; 0 for none.

    Raises:
        UserError: where a setting is out of its bounds.
    """
    if not settings["models"]:
        raise UserError("expected at least one model in models, got none")
    return [
        Comparison(
            model,
            Settings(
                data=settings["data"],
                data_dir=settings["data_dir"],
                model=model,
                epochs=settings["epochs"],
                batch_size=settings["batch_size"],
                optimizer="sgd",
                lr=settings["lr"],
                momentum=settings["momentum"],
                weight_decay=settings["weight_decay"],
                schedule=settings["schedule"],
                augment=settings["augment"],
                limit_train=settings["limit_train"],
                limit_test=settings["limit_test"],
                device=settings["device"],
                record_every=record_every,
            ),
            tuple(methods),
            tuple(settings["seeds"]),
            baseline,
        )
        for model in settings["models"]
    ]


def steps_of(settings: Mapping[str, Any]) -> int:
    """How many steps a training has.

    Args:
        settings: of the recipe.
    """
    rows = settings["limit_train"]
    return int(settings["epochs"] * (rows // max(1, min(settings["batch_size"], rows))))


@dataclass(frozen=True)
class Trace:
    """What one training recorded of the tensors that the transforms work on, before they did.

    Attributes:
        seed: the training's.
        ended: "finished" or "diverged".
        layers: [E] names of the tensors, in the order of the model.
        numel: [E] how many values each has.
        steps: [K] numbers of the recorded steps.
        std: [K, E] standard deviation of each gradient.
        alpha: [K] the transform's common factor; NaN where each layer has its own.
        loss: [K] of the batch, before the step.
    """

    seed: int
    ended: str
    layers: tuple[str, ...]
    numel: Matrix
    steps: npt.NDArray[np.int64]
    std: Matrix
    alpha: Matrix
    loss: Matrix

    @property
    def sigma(self) -> Matrix:
        """[K] the standard deviation of all of them together, each around its own mean (1.3)."""
        found: Matrix = np.sqrt((self.std**2) @ self.numel / self.numel.sum())
        return found


def traces(settings: Mapping[str, Any], model: str, folder: str) -> dict[str, list[Trace]]:
    """What the trainings of a model recorded, by method, seed by seed.

    Args:
        settings: of the recipe.
        model: the network's name.
        folder: of the comparison.

    Raises:
        UserError: where a record is missing or damaged.
    """
    numel = _eligible(model, settings["data"])
    found: dict[str, list[Trace]] = {}
    for trial in read_run(Path(folder)).all_trials():
        if trial.watch is None:
            raise UserError(
                f"expected a record of {model}, {trial.method}, seed {trial.seed} in {folder}: "
                "run it again in another --out"
            )
        with warnings.catch_warnings(record=True):  # what it warns of is refused below
            warnings.simplefilter("always")
            run = load(trial.watch)
            steps, std = run.metric("std")
            table = run.steps
        if run.damaged:
            raise UserError(f"the record in {trial.watch} is damaged: {run.damaged[0].name}")
        names = [name for name in run.layer_names if name in numel]
        of_step = [
            np.asarray(table.column(name), np.float64)
            if name in table.column_names
            else np.full(len(steps), np.nan)
            for name in ("alpha", "loss")
        ]
        if len(names) != len(numel) or any(len(values) != len(steps) for values in of_step):
            raise UserError(f"the record in {trial.watch} is not one of {model}")
        places = [run.layer_names.index(name) for name in names]
        found.setdefault(trial.method, []).append(
            Trace(
                trial.seed,
                trial.status,
                tuple(names),
                np.array([numel[name] for name in names], np.float64),
                steps,
                std[:, places].astype(np.float64),
                *of_step,
            )
        )
    return found


def losses(by_model: Mapping[str, Sequence[Trace]]) -> str:
    """How far trainings went: mean losses in the first and the last tenth, in words.

    Args:
        by_model: the trainings of each model.
    """
    told = []
    for model, ones in by_model.items():
        ends = [
            (one.loss[:tenth].mean(), one.loss[-tenth:].mean())
            for one in ones
            if (tenth := len(one.loss) // 10)
        ]
        if ends:
            first, last = np.mean(ends, axis=0)
            told.append(f"{shown(model)} {first:.3g} to {last:.3g}")
    return "; ".join(told)


def _eligible(model: str, data: str) -> dict[str, int]:
    """The tensors that autoscale and ZNorm work on (1.1), and how many values each has."""
    if data not in _SHAPES:
        raise UserError(f"expected data to be one of {', '.join(_SHAPES)}, got data={data!r}")
    shape, classes = _SHAPES[data]
    with torch.device("meta"):
        network = build(model, num_classes=classes, in_shape=shape)
    return {
        name: one.numel()
        for name, one in network.named_parameters()
        if one.ndim >= 2 and one.numel() >= 2
    }


def over_models(judged: Mapping[str, Judged | None]) -> str:
    """The verdict on a claim that is made of each of several models.

    Args:
        judged: by model; None where there is nothing to judge.

    Returns:
        Reproduced where it is for each, not where it is not for one, else inconclusive.

    Examples:
        >>> from gradwise.reproduce.claims import judge_greater
        >>> over_models({"a": judge_greater([1.0, 1.1]), "b": judge_greater([1.0, -1.0])})
        'inconclusive at this scale'
    """
    return overall(INCONCLUSIVE if one is None else one.verdict for one in judged.values())


def times(judged: Judged | None) -> str:
    """A judged logarithm to the base of ten as a factor, in words.

    Args:
        judged: or None where there is nothing to judge.

    Examples:
        >>> from gradwise.reproduce.claims import judge_greater
        >>> times(judge_greater([1.0, 1.0]))
        '10 (95 % interval 10 to 10, n = 2)'
    """
    if judged is None:
        return "nothing to judge"
    if judged.ci95 is None:
        return f"{_power(judged.mean)} (no interval, n = {judged.n})"
    low, high = map(_power, judged.ci95)
    return f"{_power(judged.mean)} (95 % interval {low} to {high}, n = {judged.n})"


def _power(exponent: float) -> str:
    return f"{10**exponent:.3g}" if abs(exponent) < math.log10(1e100) else f"1e{exponent:.0f}"
