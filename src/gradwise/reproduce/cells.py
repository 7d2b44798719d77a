"""The units of work that an experiment is made of."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradwise.errors import UserError
from gradwise.lab.job import read_result
from gradwise.lab.settings import Settings

__all__ = ["Cell", "CellJob", "Comparison", "Tell", "check_names"]

Tell = Callable[[int, int], None]
"""Told how much of a cell is done: `(done, total)`."""

_NAME = re.compile(r"[A-Za-z0-9=._+-]+")


@dataclass(frozen=True)
class Cell:
    """One unit of work, such as a seed under one condition; it runs in a process of its own.

    Attributes:
        name: unique in the experiment, of letters, digits and =._+-.
        arguments: what distinguishes it, plain JSON values.
    """

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Comparison:
    """A comparison of methods as `gradwise compare` runs it.

    Attributes:
        name: unique in the experiment, of letters, digits and =._+-.
        settings: what its trials share.
        methods: as `--methods` names them.
        seeds: one trial a method and seed.
        baseline: what the others are compared with; None for the usual one.
    """

    name: str
    settings: Settings
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    baseline: str | None = None

    @property
    def trials(self) -> int:
        """How many there are."""
        return len(self.methods) * len(self.seeds) * max(len(self.settings.grid), 1)


@dataclass(frozen=True)
class CellJob:
    """A cell as the runner sees it.

    Attributes:
        cell: what is to be done.
        folder: where its files go.
    """

    cell: Cell = field(compare=False)
    folder: Path

    @property
    def label(self) -> str:
        """How it is called in messages."""
        return self.cell.name

    def result(self) -> dict[str, Any] | None:
        """What `result.json` holds, where the cell has come to its end; a torn file is none."""
        result = read_result(self.folder)
        if result is None:
            return None
        sound = isinstance(result.get("value"), dict) and isinstance(
            result.get("wall_time_s"), int | float
        )
        same = result.get("arguments") == self.cell.arguments
        return result if sound and same else None


def check_names(names: list[str]) -> None:
    """Names that can be folders, each once.

    Args:
        names: of cells or comparisons.

    Raises:
        UserError: otherwise.
    """
    for name in names:
        if not _NAME.fullmatch(name) or name in (".", ".."):
            raise UserError(f"expected a cell's name of letters, digits and =._+-, got {name!r}")
        if names.count(name) > 1:
            raise UserError(f"expected every cell to have a name of its own, got {name!r} twice")
