"""What a run was and how far it came, as names and values."""

import shlex
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gradwise.report.values import number, text
from gradwise.report.watched.charts import has_effect, rate
from gradwise.report.watched.record import Record
from gradwise.report.words import duration, plain, plural

__all__ = [
    "command_of",
    "fact_rows",
    "length_of",
    "machine_rows",
    "made_of",
    "noise_notes",
    "seconds_of",
    "state_of",
]

_RECENT = 120  # seconds since the last sign of life for which a run counts as going on

_APART = {
    "kind",
    "command",
    "versions",
    "host",
    "noise",
    "run",
    "per",
    "every",
    "transform",
}  # shown elsewhere, or nowhere


def state_of(record: Record, now: float | None = None) -> str:
    """What became of a run: "closed", "being written", "not closed" or "empty".

    Args:
        record: the run.
        now: the time, in seconds since 1970; None for that of the clock.
    """
    if record.info.closed is not None:
        return "closed" if len(record.steps.first_step) else "empty"
    latest = 0.0
    for table in ("", "steps", "layers"):
        try:
            latest = max(latest, (record.run.path / table).stat().st_mtime)
        except OSError:
            continue
    return (
        "being written"
        if (time.time() if now is None else now) - latest < _RECENT
        else "not closed"
    )


_LAYERS = {"parameter": "(parameters)", "module": "(modules)"}

_STATES = {
    "closed": "closed in good order",
    "empty": "closed before the first step",
    "being written": "being written when this page was made",
    "not closed": "ended without closing: it crashed, was killed, or lost its disk",
}


def length_of(record: Record) -> str:
    """How many steps a run has, in words.

    Args:
        record: the run.
    """
    steps = record.steps
    if not len(steps.first_step):
        return "no steps"
    return plural_of(int(steps.last_step[-1]) + 1 - int(steps.first_step[0]))


def plural_of(steps: int) -> str:
    """A number of steps, with commas.

    Args:
        steps: how many.

    Examples:
        >>> plural_of(1), plural_of(12000)
        ('1 step', '12,000 steps')
    """
    return f"{steps:,} step{'' if steps == 1 else 's'}"


def seconds_of(record: Record) -> float | None:
    """From the first step to the last, pauses included; None where the time was not recorded.

    Args:
        record: the run.
    """
    if "time" not in record.steps.names:
        return None
    at = record.steps.names.index("time")
    ends = record.steps.min[:, at], record.steps.max[:, at]
    there = np.isfinite(ends[0])
    return float(ends[1][there][-1] - ends[0][there][0]) if there.any() else None


def made_of(record: Record) -> dict[str, str]:
    """What was trained, as far as the run says: its optimizer, model and transform.

    Args:
        record: the run.
    """
    meta = record.run.meta
    found = {name: text(meta[name]) for name in ("optimizer", "model") if meta.get(name)}
    transform = meta.get("transform")
    if transform and transform not in ("chain()", "none"):
        found["transform"] = text(transform)
    return found


def fact_rows(records: Sequence[Record]) -> list[tuple[str, list[str]]]:
    """Facts by name, a value for each run; "–" where a run does not say.

    Args:
        records: the runs.
    """
    found = [_facts(record) for record in records]
    names = dict.fromkeys(name for one in found for name in one)
    return [(name, [one.get(name, "–") for one in found]) for name in names]


def _facts(record: Record) -> dict[str, str]:
    meta, steps = record.run.meta, record.steps
    found = made_of(record)
    found["recorded"] = length_of(record)
    if len(steps.first_step):
        first, last = int(steps.first_step[0]), int(steps.last_step[-1])
        found["recorded"] += f", {first:,} to {last:,}"
    count = len(record.run.layer_names)
    found["layers"] = (
        f"{count:,} {_LAYERS.get(text(meta.get('per')), '')}" if count else "none recorded"
    )
    if isinstance(meta.get("every"), int) and meta["every"] > 1:
        found["recorded"] += f", every {meta['every']}"
    found["began"] = record.info.created.replace("T", " ").replace("+00:00", " UTC")
    found["took"] = duration(seconds_of(record))
    speed = rate(record)
    if speed is not None and np.isfinite(speed).any():
        found["speed"] = f"{plain(float(np.nanmedian(speed)))} steps/s"
    found["end"] = _STATES[state_of(record)]
    if record.info.resumed:
        found["resumed at"] = text([f"step {step:,}" for step in record.info.resumed])
    if has_effect(record) is False and "applied_norm" in steps.names:
        found["gradients"] = "applied as they were measured"
    skipped = _last(record, "skipped")
    if skipped:
        found["left alone"] = (
            f"{plural(round(skipped), 'step')} with gradients that were not finite"
        )
    backwards = _last(record, "backwards")
    if backwards and backwards > 1:
        found["backward passes"] = f"{backwards:g} a step at the end"
    noise = _last(record, "noise_scale")
    if noise is not None:
        found["noise scale"] = f"{plain(noise)} samples when last measured"
    for name, value in meta.items():
        if name not in _APART and name not in found and value is not None:
            found[_short(name.replace("_", " "), 80)] = _short(text(value), 400)
    return found


def _short(words: str, most: int) -> str:
    return words if len(words) <= most else words[: most - 1] + "…"


def _last(record: Record, name: str) -> float | None:
    """The last recorded value of a step metric."""
    if name not in record.steps.names:
        return None
    values = record.steps.mean[:, record.steps.names.index(name)]
    there = values[np.isfinite(values)]
    return number(float(there[-1])) if len(there) else None


def machine_rows(records: Sequence[Record]) -> list[tuple[str, list[str]]]:
    """The host, the run's number and the versions, a value for each run.

    Args:
        records: the runs.
    """
    found = []
    for record in records:
        meta: Mapping[str, Any] = record.run.meta
        versions = meta.get("versions")
        rows = {name: text(meta[name]) for name in ("host", "run") if meta.get(name)}
        if isinstance(versions, dict):
            rows |= {name: text(value) for name, value in versions.items()}
        found.append(rows)
    names = dict.fromkeys(name for one in found for name in one)
    return [(name, [one.get(name, "–") for one in found]) for name in names]


def command_of(record: Record) -> str:
    """The command that began a run, where that is known.

    Args:
        record: the run.
    """
    command = record.run.meta.get("command")
    if isinstance(command, list) and all(isinstance(word, str) for word in command):
        return shlex.join(command)
    return command if isinstance(command, str) else ""


def noise_notes(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Why a run has no gradient noise scale: its name and the sentence.

    Args:
        records: the runs.
    """
    found = []
    for record in records:
        reason = record.run.meta.get("noise")
        if isinstance(reason, str) and reason and _last(record, "noise_scale") is None:
            found.append((record.name, reason))
    return found
