"""Taking a run folder: a new one, or one that goes on from a checkpoint."""

import os
import re
from pathlib import Path

from gradwise.errors import UserError
from gradwise.watch.store.files import fsync_folder, is_draft, remove
from gradwise.watch.store.grid import TableSpec
from gradwise.watch.store.lock import LOCK_NAME, FolderLock
from gradwise.watch.store.merge import cut
from gradwise.watch.store.parts import list_parts
from gradwise.watch.store.pyramid import level_spec
from gradwise.watch.store.runfile import RUN_FILE, RunFile, read_run_file
from gradwise.watch.store.shelf import Shelf

__all__ = ["claim", "continued", "cut_back", "same_layers"]


def _contents(root: Path) -> list[str]:
    """What lies in a folder, except what a writer leaves there before it has begun."""
    try:
        names = os.listdir(root)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{root} cannot be a run folder: {error.strerror or error}") from None
    return sorted(name for name in names if name != LOCK_NAME and not is_draft(name))


def _refuse(root: Path, found: list[str]) -> UserError:
    """Say what is in a folder that was to be new."""
    if RUN_FILE not in found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        return UserError(
            f"expected a new or empty run folder, got {root} with {', '.join(found[:3])}{more}"
        )
    info = read_run_file(root)
    parts = [part for spec in info.tables.values() for part in list_parts(root / spec.folder)]
    last = max((part.last for part in parts), default=None)
    recorded = "no recorded step" if last is None else f"steps up to {last}"
    return UserError(
        f"expected a new or empty run folder, got {root} which holds a run of {len(info.layers)} "
        f"layers with {recorded}: continue it with resume_from, or name another folder"
    )


def claim(root: Path, *, resume: bool) -> FolderLock:
    """Make a run folder ours, without touching anything that lies in it.

    Args:
        root: the run folder.
        resume: whether there is a run in it to go on with; otherwise it must be new or empty.

    Raises:
        UserError: where it is somebody else's, being written, of a newer format or unwritable.
    """
    found = _contents(root)
    if resume:
        read_run_file(root)  # says what is wrong before a lock file is left behind
    elif found and RUN_FILE not in found:
        raise _refuse(root, found)
    try:
        if not root.is_dir():
            root.mkdir(parents=True, exist_ok=True)
            fsync_folder(root.parent)
        lock = FolderLock(root)
    except OSError as error:
        raise UserError(
            f"cannot write to the run folder {root}: {error.strerror or error}"
        ) from None
    # Only now, with the lock, is what we see ours alone to judge.
    found = _contents(root)
    if found and not resume:
        lock.release()
        raise _refuse(root, found)
    for path in root.glob(".*.tmp"):
        remove(path)
    return lock


def same_layers(root: Path, info: RunFile, layers: tuple[str, ...]) -> None:
    """Check that a run goes on with the layers it began with.

    Args:
        root: the run folder, for the error.
        info: what the run holds.
        layers: the layers' names now.

    Raises:
        UserError: naming the first that differ.
    """
    if info.layers == layers:
        return
    gone = [name for name in info.layers if name not in set(layers)]
    new = [name for name in layers if name not in set(info.layers)]
    told = []
    for word, names in (("without", gone), ("with the new", new)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            told.append(f"{word} {', '.join(map(repr, names[:3]))}{more}")
    if not told:
        at = next(
            i for i, pair in enumerate(zip(info.layers, layers, strict=True)) if len({*pair}) > 1
        )
        told = [f"in another order: {layers[at]!r} where {info.layers[at]!r} was"]
    raise UserError(f"expected the layers of the run in {root}, got layers {' and '.join(told)}")


def continued(root: Path, info: RunFile, step: int) -> None:
    """Turn what a writer was told about a run into what the run holds from now on.

    Args:
        root: the run folder.
        info: what the writer was told; changed in place.
        step: the step it resumes from.

    Raises:
        UserError: where the run has other layers or other histogram edges.
    """
    old = read_run_file(root)
    same_layers(root, old, info.layers)
    edges = info.histogram_edges
    if old.histogram_edges and edges and old.histogram_edges != edges:
        raise UserError(
            f"expected the histogram_edges of the run in {root}, {list(old.histogram_edges)}, "
            f"got {list(edges)}"
        )
    info.histogram_edges = old.histogram_edges or edges
    info.layer_metrics = tuple(dict.fromkeys([*old.layer_metrics, *info.layer_metrics]))
    info.step_metrics = tuple(dict.fromkeys([*old.step_metrics, *info.step_metrics]))
    info.units = old.units | info.units
    info.meta = old.meta | info.meta
    info.created = old.created
    info.resumed = (*old.resumed, step)


def cut_back(root: Path, tables: dict[str, TableSpec], step: int) -> dict[str, Shelf]:
    """Drop the records of a step and of all that follow, newest first, pyramids and all.

    Dying half-way leaves a folder that is as good as before, only shorter: doing it again
    finishes it.

    Args:
        root: the run folder.
        tables: the tables of records.
        step: the first step to drop.

    Returns:
        The tables as they are then.

    Raises:
        OSError: where a part cannot be written or deleted.
    """
    shelves = {}
    for name, spec in tables.items():
        level = re.compile(rf"{re.escape(spec.folder)}-([0-9]{{1,2}})")
        pyramids = root / "pyramids"
        for entry in sorted(os.listdir(pyramids)) if pyramids.is_dir() else []:
            match = level.fullmatch(entry)
            if match is not None:
                cut(Shelf(root, level_spec(spec, int(match[1]))), step)
        shelves[name] = Shelf(root, spec)
        cut(shelves[name], step)
    return shelves
