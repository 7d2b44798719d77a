"""What lies in a folder that somebody wants to watch: a run, nothing yet, or something else."""

from __future__ import annotations

import os
from pathlib import Path

from gradwise.errors import UserError

__all__ = ["awaited", "runs_inside"]

RUN_FILE = "run.json"
_LISTED = 8  # runs that a sentence names
_DEPTH = 6  # a comparison has its runs in trials/METHOD/seed-N/watch
_VISITED = 5000  # entries looked at, at most: the folder may be somebody's home


def awaited(folder: Path) -> str | None:
    """Why there is no run in a folder yet; None where there is one.

    Args:
        folder: the run folder.

    Raises:
        UserError: where no run will ever be, because something else is there; with the runs
            inside, where there are some.
    """
    try:
        if (folder / RUN_FILE).exists():
            return None
        if not os.path.lexists(folder):
            return "there is no such folder yet"
        if not folder.is_dir():
            raise UserError(f"expected a run folder, got the file {folder}{_hint(folder)}")
        names = sorted(name for name in os.listdir(folder) if not _before_a_run(name))
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror or error}") from None
    if not names:
        return "the folder is there, nothing is recorded yet"
    inside = runs_inside(folder)
    if (folder / RUN_FILE).exists():  # it has begun meanwhile
        return None
    if inside:
        listed = ", ".join(map(str, inside[:_LISTED]))
        more = f" and {len(inside) - _LISTED} more" if len(inside) > _LISTED else ""
        what = f"{len(inside)} runs are in it" if inside[1:] else "there is one in it"
        raise UserError(f"{folder} is not a run folder itself, but {what}: {listed}{more}")
    raise UserError(f"{folder} is not a run folder: it holds {names[0]!r} and no {RUN_FILE}")


def runs_inside(folder: Path) -> list[Path]:
    """The runs in a folder's folders, the newest first; as far as a short look goes.

    Args:
        folder: where to look.
    """
    found: list[tuple[float, Path]] = []
    waiting = [(folder, 0)]
    visited = 0
    while waiting and visited < _VISITED:
        here, depth = waiting.pop()
        try:
            with os.scandir(here) as entries:
                for entry in entries:
                    visited += 1
                    if entry.name == RUN_FILE and here != folder:
                        found.append((entry.stat().st_mtime, here))
                    elif (
                        depth < _DEPTH
                        and not entry.name.startswith(".")
                        and entry.is_dir(follow_symlinks=False)
                    ):
                        waiting.append((Path(entry.path), depth + 1))
        except OSError:  # not ours to read, or gone: then it is no run that could be watched
            continue
    return [path for _, path in sorted(found, key=lambda one: (-one[0], str(one[1])))]


def _before_a_run(name: str) -> bool:
    """Whether a file is one that a writer leaves before the run has begun."""
    return name == "writer.lock" or (name.startswith(".") and name.endswith(".tmp"))


def _hint(path: Path) -> str:
    if path.suffix == ".py":
        return f"; to run and watch a script: gradwise watch -- python {path}"
    return ""
