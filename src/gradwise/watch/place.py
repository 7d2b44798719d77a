"""Which folder a watch records into: the one asked for, one to go on in, or one beside it."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from gradwise.errors import UserError
from gradwise.watch.store.runfile import read_run_file

T = TypeVar("T")


class WatchWarning(UserWarning):
    """Something about watching that does not go as asked; the training goes on."""


@dataclass(frozen=True)
class Beginning:
    """Where a run begins.

    Attributes:
        step: the number of its first step from here.
        run: the run that a checkpoint belongs to, None for a new one.
        asked: whether the caller named the step, so that the folder asked for is the one to go on.
    """

    step: int = 0
    run: str | None = None
    asked: bool = False


def siblings(out: Path) -> Iterator[Path]:
    """The folder and those that take its place where it is not free: a, a-2, a-3, ..."""
    yield out
    for number in itertools.count(2):
        yield out.with_name(f"{out.name}-{number}")


def take_place(
    out: Path, beginning: Beginning, make: Callable[[Path, int | None], T]
) -> tuple[T, Path] | None:
    """Open the run folder that serves; nothing that is there already is lost.

    A run that goes on is looked for among the folder and its siblings. A new run takes the first
    of them that is free. Everything that is not as asked is told in a warning.

    Args:
        out: the folder asked for.
        beginning: where the run begins.
        make: opens a folder, given the step to resume from or None for a new run; raises
            UserError where it cannot.

    Returns:
        What `make` returned, and the folder; None where nothing can be recorded.
    """
    why = None
    going_on = _run_to_go_on(out, beginning)
    if going_on is not None:
        try:
            return make(going_on, beginning.step), going_on
        except UserError as error:
            why = str(error)
    for folder in itertools.islice(siblings(out), 1000):
        if is_taken(folder):
            continue
        try:
            made = make(folder, None)
        except UserError as error:
            if is_taken(folder):  # somebody else was faster
                continue
            _warn(f"nothing is recorded, because {error}")
            return None
        if why is not None:
            _warn(f"recording to {folder}, because {why}")
        elif folder != out:
            _warn(f"recording to {folder}, because {out} holds something else already")
        return made, folder
    _warn(f"nothing is recorded, because {out} and its siblings up to {folder} are taken")
    return None


def _run_to_go_on(out: Path, beginning: Beginning) -> Path | None:
    if beginning.asked:
        return out if is_taken(out) else None
    if beginning.run is None:
        return None
    for folder in itertools.takewhile(is_taken, siblings(out)):
        try:
            info = read_run_file(folder)
        except UserError:  # not a run, or a newer one
            continue
        if info.meta.get("run") == beginning.run:
            return folder
    return None


def is_taken(folder: Path) -> bool:
    """Whether there is anything in the folder, or something else than a folder in its place."""
    try:
        return bool(os.listdir(folder))
    except FileNotFoundError:
        return False
    except OSError:
        return folder.exists()


def _warn(message: str) -> None:
    warnings.warn(message, WatchWarning, stacklevel=2)
