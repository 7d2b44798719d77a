"""The folder of a comparison: whose it is, what it was made with, and who is writing in it."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradwise.errors import UserError
from gradwise.lab.files import read_json, write_json
from gradwise.lab.locks import LOCK_NAME, try_lock

FORMAT = 1
_FULL_DISK = {errno.ENOSPC, errno.EDQUOT}  # nothing that another --out would have to be named for


@contextlib.contextmanager
def locked(out: Path, command: str = "compare", config: str = "config.json") -> Iterator[None]:
    """Hold a folder for this process; released when the process ends, however.

    Args:
        out: the folder; made where there is none.
        command: the one that makes such folders.
        config: the file that tells such a folder from others.

    Raises:
        UserError: where it holds something else, cannot be made or written, or another process
            holds it.
        OSError: where the disk is full.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        _refuse_foreign(out, command, config)  # before anything is left in it
        handle = (out / LOCK_NAME).open("ab")
    except OSError as error:
        if error.errno in _FULL_DISK:
            raise
        raise UserError(f"--out {out} cannot be written: {error.strerror or error}") from error
    with handle:
        if not try_lock(handle):
            raise UserError(f"--out {out} is being written by another gradwise {command}")
        yield


def _refuse_foreign(out: Path, command: str, config: str) -> None:
    names = sorted(path.name for path in out.iterdir())
    others = [name for name in names if name != LOCK_NAME and not name.endswith(".tmp")]
    if others and config not in names:
        raise UserError(
            f"--out {out} is not empty and no folder of gradwise {command} (it holds {others[0]!r})"
        )


def claim(out: Path, config: dict[str, Any]) -> None:
    """Write `config.json`, or check that the one there belongs to the same comparison.

    Methods and seeds may be added to a folder, and learning rates to a grid of them; every other
    setting decides the numbers of trials that are there already, so it has to be the same.

    Args:
        out: the folder, held with `locked`.
        config: with `settings`, `methods`, `seeds` and `dataset`.

    Raises:
        UserError: where the folder was made with other settings, by a newer gradwise, or its
            `config.json` is damaged. Nothing in it is changed then.
        OSError: where it cannot be written.
    """
    path = out / "config.json"
    if path.exists():
        before = read_json(path)
        if before.get("format") != FORMAT:
            raise UserError(
                f"--out {out} has format {before.get('format')!r}, this gradwise reads {FORMAT}"
            )
        differing, gone = _differences(path, before, config)
        if differing:
            raise UserError(
                f"--out {out} was made with other settings: {'; '.join(differing)}; "
                "choose another --out"
            )
        if gone:
            raise UserError(
                f"--out {out} holds more than that: {'; '.join(gone)}; name these too, or choose "
                "another --out"
            )
    write_json(path, {"format": FORMAT, **config})


def _differences(
    path: Path, before: dict[str, Any], now: dict[str, Any]
) -> tuple[list[str], list[str]]:
    """What differs from before, and what was there before and is not asked for now."""
    old, new = before.get("settings"), now["settings"]
    lists = {key: before.get(key) for key in ("methods", "seeds")}
    if not isinstance(old, dict) or not all(isinstance(items, list) for items in lists.values()):
        raise UserError(f"{path} is damaged: it lacks settings, methods or seeds")
    grids = [settings.get("lr") for settings in (old, new)]
    if all(isinstance(rates, list) for rates in grids):  # of which more may be asked for
        lists["lr"], old = grids[0], {**old, "lr": grids[1]}
    asked = {**now, "lr": grids[1]}
    differing = [
        f"{key} was {old.get(key)!r} and is now {new.get(key)!r}"
        for key in sorted(set(old) | set(new))
        # Where the files lie does not matter as long as they hold the same data.
        if key != "data_dir" and old.get(key) != new.get(key)
    ]
    if before.get("dataset") != now["dataset"] and not differing:
        differing.append("the data set's content is another")
    gone = []
    for key, items in lists.items():
        missing = [str(item) for item in items or () if item not in asked[key]]
        if missing:
            gone.append(f"{key} {', '.join(missing)}")
    return differing, gone
