"""What a run of a recipe will do, known before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradwise.errors import UserError
from gradwise.lab.device import resolve_device
from gradwise.reproduce.cells import Cell, Comparison, check_names
from gradwise.reproduce.recipe import Recipe, load_recipe
from gradwise.reproduce.task import experiment

__all__ = ["Plan", "plan", "reads_files"]

_BUILT_IN = ("digits", "synthetic")  # data that need no files


@dataclass(frozen=True)
class Plan:
    """What a run of a recipe will do.

    Attributes:
        recipe: the experiment.
        scale: one of `SCALES`.
        settings: at that scale, with what was asked for instead, `data_dir` and `device`.
        changed: names of the settings that were asked for instead.
        cells: its units of work; none where it has comparisons.
        comparisons: of methods; none where it has cells.
    """

    recipe: Recipe
    scale: str
    settings: dict[str, Any]
    changed: tuple[str, ...]
    cells: tuple[Cell, ...]
    comparisons: tuple[Comparison, ...]

    @property
    def units(self) -> int:
        """How many cells or trials there are."""
        return len(self.cells) + sum(one.trials for one in self.comparisons)


def reads_files(settings: Mapping[str, Any]) -> bool:
    """Whether an experiment with these settings reads data from files.

    Args:
        settings: of the recipe; `data` names the data set, where there is one.
    """
    return settings.get("data", "synthetic") not in _BUILT_IN


def plan(
    name: str,
    *,
    scale: str = "small",
    overrides: Mapping[str, Any] | None = None,
    data_dir: str | Path | None = None,
    device: str = "auto",
) -> Plan:
    """What `reproduce` would do; runs nothing.

    Args:
        name: of the recipe.
        scale: one of `SCALES`.
        overrides: settings to change, by name.
        data_dir: folder of the data's files, where the recipe reads any.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".

    Raises:
        UserError: where an argument is out of its bounds, or data are needed and not named.
    """
    recipe = load_recipe(name)
    settings = recipe.at(scale, overrides)
    if reads_files(settings) and data_dir is None:
        raise UserError(
            f"{name} at scale {scale} reads {settings['data']}: name the folder that holds it with "
            "--data-dir"
        )
    folder = None if data_dir is None else str(Path(data_dir).expanduser().resolve())
    settings |= {"data_dir": folder, "device": str(resolve_device(device))}
    module = experiment(recipe.experiment)
    cells: tuple[Cell, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    if hasattr(module, "comparisons"):
        comparisons = tuple(module.comparisons(settings))
    else:
        cells = tuple(module.cells(settings))
    check_names([one.name for one in cells] + [one.name for one in comparisons])
    return Plan(recipe, scale, settings, tuple(sorted(overrides or {})), cells, comparisons)
