"""The folder of a comparison: whose it is, what it was made with, and who is writing in it."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradwise.errors import UserError
from gradwise.lab.files import read_json, write_json

FORMAT = 1


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold a comparison's folder for this process; released when the process ends, however.

    Raises:
        UserError: where it cannot be made or written, or another process holds it.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle = (out / ".lock").open("a")
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror}") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"--out {out} is being written by another gradwise compare") from error
        yield


def claim(out: Path, config: dict[str, Any]) -> None:
    """Write `config.json`, or check that the one there belongs to the same comparison.

    Methods and seeds may be added to a folder; every other setting decides the numbers of trials
    that are there already, so it has to be the same.

    Raises:
        UserError: where the folder holds something else, or was made with other settings.
    """
    path = out / "config.json"
    if not path.exists():
        others = [
            p.name for p in out.iterdir() if p.name != ".lock" and not p.name.endswith(".tmp")
        ]
        if others:
            raise UserError(
                f"--out {out} is not empty and no comparison's folder (it holds {others[0]!r})"
            )
    else:
        before = read_json(path)
        if before.get("format") != FORMAT:
            raise UserError(
                f"--out {out} has format {before.get('format')!r}, this gradwise reads {FORMAT}"
            )
        differing = _differences(before, config)
        if differing:
            raise UserError(
                f"--out {out} was made with other settings: {'; '.join(differing)}; "
                "choose another --out"
            )
    write_json(path, {"format": FORMAT, **config})


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    told = []
    old, new = before.get("settings", {}), now["settings"]
    for key in sorted(set(old) | set(new)):
        # Where the files lie does not matter as long as they hold the same data.
        if key != "data_dir" and old.get(key) != new.get(key):
            told.append(f"{key} was {old.get(key)!r} and is now {new.get(key)!r}")
    if before.get("dataset") != now["dataset"]:
        told.append("the data set's content is another")
    for key in ("methods", "seeds"):
        gone = [item for item in before.get(key, []) if item not in now[key]]
        if gone:
            told.append(f"{key} had {', '.join(map(str, gone))} as well")
    return told
