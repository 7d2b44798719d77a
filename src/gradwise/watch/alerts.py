"""What the rules have to say, and the file in the run folder that keeps it: `alerts.jsonl`.

One JSON object a line, only ever appended to. An alert is a line when it begins,

    {"event": "began", "rule": "exploding", "step": 120, "layer": null, "value": 153.0,
     "message": "...", "advice": "...", "severity": "error"}

and another one when it is over, which names the first by its rule, step and layer:

    {"event": "ended", "rule": "exploding", "step": 120, "layer": null, "ended": 410}

A value that JSON has no number for is the text "NaN", "Infinity" or "-Infinity".
"""

import json
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

from gradwise.errors import UserError
from gradwise.watch.store.files import replace_file, write_all

__all__ = ["ALERTS_FILE", "Alert", "AlertJournal", "GradientAlert", "read_alerts"]

ALERTS_FILE = "alerts.jsonl"
SEVERITIES = ("warning", "error")

_LONGEST_LINE = 2**16  # bytes; what is longer was not written here
_MOST_WAITING = 1000  # lines that wait for the disk
_STEPS = range(2**63)
_NAMED = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_Key = tuple[str, int, str | None]


@dataclass(frozen=True)
class Alert:
    """Something about the gradients that a person should know.

    Attributes:
        rule: name of the rule that spoke up, for instance "exploding".
        step: the step at which it began.
        layer: the layer it is about; None where it is about the whole, or about many layers.
        value: what was seen, in the unit that the message names.
        message: one sentence with numbers: what happened, and where.
        advice: what it means and what people usually do about it.
        severity: "warning" or "error".
        ended: the step at which it was over; None while it lasts.
    """

    rule: str
    step: int
    layer: str | None
    value: float
    message: str
    advice: str
    severity: str
    ended: int | None = None

    @property
    def key(self) -> tuple[str, int, str | None]:
        """What tells an alert from all others of its run."""
        return self.rule, self.step, self.layer


class GradientAlert(RuntimeError):
    """Raised in the training loop by a rule whose action is "raise".

    Args:
        alert: what was found; also the attribute of this name.
    """

    def __init__(self, alert: Alert) -> None:
        super().__init__(f"step {alert.step}, {alert.rule}: {alert.message} {alert.advice}")
        self.alert = alert

    def __reduce__(self) -> tuple[type["GradientAlert"], tuple[Alert]]:
        return type(self), (self.alert,)  # so that it comes out of a worker process whole


def read_alerts(run_folder: str | Path) -> list[Alert]:
    """The alerts of a run, in the order in which they were found.

    Lines that are torn, damaged or of another kind are passed over. What is read may be shown in
    a terminal: control characters in it become spaces.

    Args:
        run_folder: the run folder; one without alerts gives an empty list.

    Raises:
        UserError: where the file is there and cannot be read.

    Examples:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> with AlertJournal(folder) as journal:
        ...     journal.write(Alert("dead", 40, "conv1.weight", 1.0, "No gradient.", "", "warning"))
        >>> [(alert.rule, alert.step, alert.ended) for alert in read_alerts(folder)]
        [('dead', 40, None)]
    """
    path = Path(run_folder) / ALERTS_FILE
    try:
        with path.open("rb") as file:
            alerts = _told(event for line in _lines(file) if (event := _event(line)) is not None)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    return [_shown(alert) for alert in alerts.values()]


class AlertJournal:
    """Writes alerts into a run folder; the disk never makes it fail.

    What could not be written is counted, waits (up to 1000 lines) and is tried again with the
    next line. The file appears with the first alert.

    Args:
        folder: the run folder.
        resume_from: the step that comes next, where a run goes on from a checkpoint: what began
            at that step or later is dropped, what ended there lasts again. None keeps all.

    Attributes:
        errors: how many times the disk refused something.
        lasting: alerts of the run so far that have not ended, where it is resumed.
    """

    def __init__(self, folder: str | Path, resume_from: int | None = None) -> None:
        self.path = Path(folder) / ALERTS_FILE
        self.errors = 0
        self.lasting: tuple[Alert, ...] = ()
        self._waiting: list[bytes] = []
        self._whole = False  # whether the file is known to end with a whole line
        if resume_from is not None:
            try:
                self._cut_back(resume_from)
            except OSError:
                self.errors += 1

    def write(self, alert: Alert) -> None:
        """Note that an alert began, and its end too where it has one.

        Args:
            alert: what was found.
        """
        began = {"event": "began"} | {
            name: getattr(alert, name)
            for name in ("rule", "step", "layer", "value", "message", "advice", "severity")
        }
        if not math.isfinite(alert.value):
            began["value"] = next(
                name for name, value in _NAMED.items() if str(value) == str(float(alert.value))
            )
        self._append(began)
        if alert.ended is not None:
            self.end(alert)

    def end(self, alert: Alert) -> None:
        """Note that an alert is over.

        Args:
            alert: with `ended`, the step; without, nothing is noted.
        """
        if alert.ended is not None:
            keys = {name: getattr(alert, name) for name in ("rule", "step", "layer", "ended")}
            self._append({"event": "ended"} | keys)

    def close(self) -> None:
        """Try once more what waits; calling it again does nothing new."""
        if self._waiting:
            self._flush()

    def __enter__(self) -> "AlertJournal":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _append(self, event: dict[str, Any]) -> None:
        self._waiting.append(json.dumps(event, allow_nan=False).encode() + b"\n")
        self._flush()
        del self._waiting[:-_MOST_WAITING]

    def _flush(self) -> None:
        """Append what waits, and have it on the disk before it counts as written."""
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            try:
                size = os.fstat(fd).st_size
                if not self._whole and size:  # a crash, or a full disk, may have torn a line
                    os.lseek(fd, size - 1, os.SEEK_SET)
                    if os.read(fd, 1) != b"\n":
                        write_all(fd, b"\n")
                self._whole = False
                write_all(fd, b"".join(self._waiting))
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError:
            self.errors += 1
        else:
            self._whole = True
            self._waiting.clear()

    def _cut_back(self, step: int) -> None:
        """Drop what happened at a step and later, leaving lines of other kinds as they are."""
        try:
            with self.path.open("rb") as file:
                lines = list(_lines(file))
        except FileNotFoundError:
            return
        kept, events = [], []
        for line in lines:
            event = _event(line)
            if event is not None:
                alert, ended = event
                if (alert.step if ended is None else ended) >= step:
                    continue
                events.append(event)
            kept.append(line if line.endswith(b"\n") else line + b"\n")
        self.lasting = tuple(alert for alert in _told(events).values() if alert.ended is None)
        if len(kept) < len(lines):
            replace_file(self.path, b"".join(kept))


_Event = tuple[Alert, int | None]  # what began; or, with a step, which one ended


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file, without those that are far too long."""
    while line := file.readline(_LONGEST_LINE):
        if len(line) < _LONGEST_LINE or line.endswith(b"\n"):
            yield line
            continue
        while (rest := file.readline(_LONGEST_LINE)) and not rest.endswith(b"\n"):
            pass


def _event(line: bytes) -> _Event | None:
    """What a line says; None where it is none of ours."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    rule, step, layer = found.get("rule"), found.get("step"), found.get("layer")
    if not isinstance(rule, str) or not _is_step(step):
        return None
    if not (layer is None or isinstance(layer, str)):
        return None
    if found.get("event") == "ended":
        ended = found.get("ended")
        if not _is_step(ended) or ended < step:
            return None
        return Alert(rule, step, layer, math.nan, "", "", SEVERITIES[0]), ended
    value = _number(found.get("value"))
    message, advice, severity = (found.get(name) for name in ("message", "advice", "severity"))
    if found.get("event") != "began" or value is None or severity not in SEVERITIES:
        return None
    if not isinstance(message, str) or not isinstance(advice, str):
        return None
    return Alert(rule, step, layer, value, message, advice, severity), None


def _told(events: Iterable[_Event]) -> dict[_Key, Alert]:
    """The alerts that the events tell of, each with its end."""
    alerts: dict[_Key, Alert] = {}
    for alert, ended in events:
        if ended is None:
            alerts.setdefault(alert.key, alert)
        elif alert.key in alerts and alerts[alert.key].ended is None:
            alerts[alert.key] = replace(alerts[alert.key], ended=ended)
    return alerts


def _is_step(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value in _STEPS


def _number(value: object) -> float | None:
    """A number as a float, also one that JSON can only name."""
    if isinstance(value, str):
        return _NAMED.get(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def _shown(alert: Alert) -> Alert:
    """The alert as a terminal may show it."""
    layer = None if alert.layer is None else _printable(alert.layer)
    told = _printable(alert.message), _printable(alert.advice)
    return replace(alert, rule=_printable(alert.rule), layer=layer, message=told[0], advice=told[1])


def _printable(text: str) -> str:
    """The text on one line, without anything that a terminal would obey."""
    known = text.encode("utf-8", "replace").decode()
    return "".join(c if c.isprintable() else " " for c in known)
