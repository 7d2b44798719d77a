"""`run.json`: what a run folder holds, and the first thing anybody reads of it."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from gradwise.errors import UserError
from gradwise.watch.store.files import replace_file
from gradwise.watch.store.grid import BIN_KEYS, RECORD_KEYS, TableSpec
from gradwise.watch.store.units import unit_of

__all__ = [
    "FORMAT",
    "RUN_FILE",
    "VERSION",
    "RunFile",
    "check_edges",
    "check_meta",
    "check_names",
    "now",
    "read_run_file",
]

RUN_FILE = "run.json"
FORMAT = "gradwise-run"
VERSION = 1

_RESERVED = {*RECORD_KEYS, *BIN_KEYS, "layer"}


@dataclass
class RunFile:
    """The content of `run.json`.

    Attributes:
        layers: the layers' names, in the order of the rows of each step.
        layer_metrics: columns of the `layers` table.
        step_metrics: columns of the `steps` table that were announced; others may have come since.
        histogram_edges: the edges between the bins of the `histograms` table; empty for none.
        units: the unit of each metric that has a known one.
        meta: whatever the caller wants to keep with the run.
        created: when the run began, ISO 8601.
        resumed: the step of each resumption.
        closed: when the writer closed the run in good order, ISO 8601; None while it is being
            written and after a crash.
    """

    layers: tuple[str, ...]
    layer_metrics: tuple[str, ...]
    step_metrics: tuple[str, ...]
    histogram_edges: tuple[float, ...] = ()
    units: dict[str, str] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    created: str = field(default_factory=lambda: now())
    resumed: tuple[int, ...] = ()
    closed: str | None = None

    @property
    def tables(self) -> dict[str, TableSpec]:
        """The tables of records that the run has, by name."""
        specs = {}
        if self.layers and self.layer_metrics:
            specs["layers"] = TableSpec("layers", RECORD_KEYS, self.layers, "float32")
        specs["steps"] = TableSpec("steps", RECORD_KEYS, None, "float64")
        if self.layers and self.histogram_edges:
            # Before the others: they make a step count, so it must be there by then.
            specs = {
                "histograms": TableSpec("histograms", RECORD_KEYS, self.layers, "int64")
            } | specs
        return specs

    @property
    def histogram_bins(self) -> tuple[str, ...]:
        """The columns of the `histograms` table: one more than there are edges."""
        count = len(self.histogram_edges)
        digits = len(str(count))
        return tuple(f"bin_{i:0{digits}d}" for i in range(count + 1)) if count else ()

    def write(self, root: Path) -> None:
        """Put it in place, whole.

        Args:
            root: the run folder.

        Raises:
            OSError: where it cannot be written; what was there is then untouched.
        """
        names = dict.fromkeys([*self.layer_metrics, *self.step_metrics])
        known = {name: unit_of(name) for name in names if unit_of(name)}
        content = {
            "format": FORMAT,
            "version": VERSION,
            "created": self.created,
            "closed": self.closed,
            "resumed": list(self.resumed),
            "layers": list(self.layers),
            "layer_metrics": list(self.layer_metrics),
            "step_metrics": list(self.step_metrics),
            "histogram_edges": list(self.histogram_edges),
            "units": known | self.units,
            "meta": self.meta,
        }
        replace_file(root / RUN_FILE, json.dumps(content, indent=1).encode())


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def check_names(argument: str, names: Sequence[str], *, columns: bool) -> tuple[str, ...]:
    """Names of layers or metrics as a tuple, if they can be told apart and written.

    Args:
        argument: what the caller called them, for the error.
        names: the names.
        columns: whether they become columns, which may not be called like the fixed ones.

    Raises:
        UserError: where a name occurs twice, is reserved, empty, or not text.

    Examples:
        >>> check_names("step_metrics", ["loss", "loss"], columns=True)
        Traceback (most recent call last):
        gradwise.errors.UserError: expected different names in step_metrics, got 'loss' twice
    """
    seen = set()
    for name in names:
        if not isinstance(name, str):
            raise UserError(f"expected text in {argument}, got {name!r}")
        if name in seen:
            raise UserError(f"expected different names in {argument}, got {name!r} twice")
        if columns and (name in _RESERVED or not name):
            raise UserError(f"expected {argument} other than {sorted(_RESERVED)}, got {name!r}")
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UserError(f"expected Unicode text in {argument}, got {name!r}") from None
        seen.add(name)
    return tuple(names)


def check_edges(edges: Sequence[float]) -> tuple[float, ...]:
    """The edges of histogram bins as a tuple, if they ascend.

    Args:
        edges: finite and strictly ascending.

    Raises:
        UserError: where they are not.

    Examples:
        >>> check_edges([1e-8, 1e-4, 1])
        (1e-08, 0.0001, 1.0)
    """
    numbers = tuple(float(edge) for edge in edges)
    if not all(math.isfinite(edge) for edge in numbers):
        raise UserError(f"expected finite histogram_edges, got {list(numbers)}")
    for low, high in pairwise(numbers):
        if not low < high:
            raise UserError(
                f"expected histogram_edges that ascend strictly, got {low:g} before {high:g}"
            )
    return numbers


def check_meta(meta: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `meta` as it will come back from the file.

    Args:
        meta: plain values: text, numbers, booleans, None, lists, and dicts with text keys.

    Raises:
        UserError: where it holds anything that JSON cannot.
    """
    try:
        copy = json.loads(json.dumps(dict(meta), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(
            f"expected plain JSON values in meta, got one that is not: {error}"
        ) from None
    assert isinstance(copy, dict)
    return copy


def _strings(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def read_run_file(root: Path) -> RunFile:
    """Read `run.json` and check that it is one.

    Args:
        root: the run folder.

    Raises:
        UserError: where there is no run, where it cannot be read, or where a newer gradwise
            wrote it.
    """
    path = root / RUN_FILE
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        what = "there is no such folder" if not os.path.lexists(root) else f"it has no {RUN_FILE}"
        raise UserError(f"{root} is not a run folder: {what}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        raise UserError(f"{path} is damaged: it is not JSON") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{root} is not a run folder: its {RUN_FILE} is of another kind")
    version = content.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise UserError(f"{path} is damaged: expected a version >= 1, got {version!r}")
    if version > VERSION:
        raise UserError(
            f"{root} was written by a newer gradwise: expected format version <= {VERSION}, "
            f"got {version}; update gradwise to read it"
        )
    return _parse(path, content)


def _parse(path: Path, content: dict[str, Any]) -> RunFile:
    for key in ("layers", "layer_metrics", "step_metrics"):
        if not _strings(content.get(key)):
            raise UserError(f"{path} is damaged: expected a list of text in {key!r}")
    units, meta = content.get("units", {}), content.get("meta", {})
    resumed, closed = content.get("resumed", []), content.get("closed")
    if not isinstance(units, dict) or not _strings(list(units.values())):
        raise UserError(f"{path} is damaged: expected text for each of 'units'")
    if not isinstance(meta, dict) or not isinstance(resumed, list):
        raise UserError(f"{path} is damaged: expected an object in 'meta' and a list in 'resumed'")
    try:
        return RunFile(
            layers=check_names("layers", content["layers"], columns=False),
            layer_metrics=check_names("layer_metrics", content["layer_metrics"], columns=True),
            step_metrics=check_names("step_metrics", content["step_metrics"], columns=True),
            histogram_edges=check_edges(content.get("histogram_edges", [])),
            units=units,
            meta=meta,
            created=str(content.get("created", "")),
            resumed=tuple(int(step) for step in resumed),
            closed=None if closed is None else str(closed),
        )
    except (TypeError, ValueError) as error:  # a UserError is a ValueError
        raise UserError(f"{path} is damaged: {error}") from None
