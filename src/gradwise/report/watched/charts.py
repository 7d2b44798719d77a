"""The charts of what runs recorded once a step: which there are, and what is on them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from gradwise.report.encode import pack
from gradwise.report.watched.record import Record
from gradwise.report.words import join

__all__ = ["MOST_OTHERS", "charts_payload", "has_effect", "rate"]

MOST_OTHERS = 40
"""At most so many charts of what the user logged, or the transforms did."""

_STRETCHES = 300  # of these a run has about so many, for the speed

_PAIRS = (
    ("norm", "Gradient norm", True),
    ("std", "Std of all gradients pooled", True),
    ("max_abs", "Largest magnitude in any gradient", True),
    ("mean", "Mean of all gradients pooled", False),
)
_OWN = {
    "alpha", "skipped", "backwards", "noise_scale", "time", "grad_var", "applied_var",
    *(f"{side}_{name}" for side in ("grad", "applied") for name, _, _ in _PAIRS),
}  # fmt: skip

Triple = npt.NDArray[np.float64]


@dataclass
class _Series:
    """The curves of a run that are on any chart."""

    rows: list[Triple] = field(default_factory=list)

    def add(self, low: Triple, mean: Triple, high: Triple) -> int:
        """Take a curve in and say where it is."""
        self.rows.append(np.concatenate([mean, low, high]))
        return len(self.rows) - 1

    def payload(self, record: Record) -> dict[str, Any]:
        width = 3 * len(record.steps.first_step)
        rows = np.stack(self.rows) if self.rows else np.empty((0, width))
        return {
            "first": record.steps.first_step.tolist(),
            "last": record.steps.last_step.tolist(),
            "values": pack(rows),
        }


def charts_payload(records: Sequence[Record]) -> dict[str, Any]:
    """Charts of the step metrics as the page's script reads them.

    Args:
        records: the runs.

    Returns:
        `global` (charts; a line says in `at` which curve of its run it is), `series` (by run
        its bins and packed curves: means, minima and maxima side by side), and `left_out`, the
        number of metrics for which there was no room.
    """
    made = _Charts(records)
    names = dict.fromkeys(name for one in records for name in one.steps.names)
    others = [name for name in names if name not in _OWN and _group(name) != "lr"]
    losses = [name for name in others if "loss" in name.lower()]
    rest = [name for name in others if name not in losses]
    found = [made.single(name, _titled(name)) for name in losses[:MOST_OTHERS]]
    found += [made.pair(*pair) for pair in _PAIRS]
    found += [
        made.single(
            "alpha",
            "Multiplier alpha",
            note=_without_alpha(records),
            log=False,
            flat=any(made.effect),
        ),
        made.groups("lr", "Learning rate"),
        made.single("noise_scale", "Gradient noise scale", unit="samples", log=True),
        made.rates(),
        made.single("skipped", "Steps left alone so far", flat=False),
        made.single("backwards", "Backward passes a step", flat=False),
    ]
    room = max(0, MOST_OTHERS - len(losses))
    found += [made.single(name, _titled(name)) for name in rest[:room]]
    return {
        "global": [chart for chart in found if chart is not None],
        "series": [one.payload(record) for one, record in zip(made.series, records, strict=True)],
        "left_out": max(0, len(others) - MOST_OTHERS),
    }


class _Charts:
    """Makes charts, and keeps the curves that are on them."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = records
        self.series = [_Series() for _ in records]
        self.effect = [has_effect(record) for record in records]

    def single(
        self,
        name: str,
        title: str,
        *,
        unit: str = "",
        note: str = "",
        log: bool | None = None,
        flat: bool = True,
    ) -> dict[str, Any] | None:
        """One metric, a line a run; None where no run has it or, unless `flat`, it is constant."""
        lines = [self._line(method, name) for method in range(len(self.records))]
        return self._chart(name, title, lines, unit=unit, note=note, log=log, flat=flat)

    def pair(self, name: str, title: str, positive: bool) -> dict[str, Any] | None:
        """A metric before and after the transforms, where there are any."""
        lines = []
        for method, effect in enumerate(self.effect):
            lines.append(self._line(method, f"grad_{name}", "before" if effect else ""))
            if effect:
                lines.append(self._line(method, f"applied_{name}", "after"))
        return self._chart(f"grad_{name}", title, lines, square=name == "std", log=positive)

    def alpha(self) -> dict[str, Any] | None:
        """The factor by which gradients were scaled; not where none was."""
        note = _without_alpha(self.records)
        flat = any(self.effect)
        return self.single("alpha", "Multiplier alpha", note=note, log=False, flat=flat)

    def groups(self, prefix: str, title: str) -> dict[str, Any] | None:
        """A metric of which there is one a parameter group, as `lr`, `lr/1`."""
        lines = []
        for method, record in enumerate(self.records):
            names = [name for name in record.steps.names if _group(name) == prefix]
            for at, name in enumerate(names):
                label = "" if len(names) == 1 else f"group {name.partition('/')[2] or '0'}"
                lines.append(self._line(method, name, label, dash=at % 4))
        return self._chart(prefix, title, lines, log=False)

    def rates(self) -> dict[str, Any] | None:
        """How many steps a second were taken."""
        lines: list[dict[str, Any] | None] = []
        for method, record in enumerate(self.records):
            found = rate(record)
            if found is not None and np.isfinite(found).any():
                none = np.full_like(found, np.nan)
                at = self.series[method].add(none, found, none)
                lines.append({"method": method, "at": at, "label": "", "dash": 0})
        return self._chart("rate", "Speed", lines, unit="steps/s", log=False)

    def _line(
        self, method: int, name: str, label: str = "", dash: int | None = None
    ) -> dict[str, Any] | None:
        steps = self.records[method].steps
        if name not in steps.names:
            return None
        at = steps.names.index(name)
        low, mean, high = (
            np.asarray(one[:, at], np.float64) for one in (steps.min, steps.mean, steps.max)
        )
        if not steps.count[:, at].any():
            return None
        place = self.series[method].add(low, mean, high)
        dashed = (1 if label == "after" else 0) if dash is None else dash
        return {"method": method, "at": place, "label": label, "dash": dashed}

    def _chart(
        self,
        key: str,
        title: str,
        lines: Iterable[dict[str, Any] | None],
        *,
        unit: str = "",
        note: str = "",
        log: bool | None = None,
        square: bool = False,
        flat: bool = True,
    ) -> dict[str, Any] | None:
        found = [line for line in lines if line is not None]
        rows = [self.series[line["method"]].rows[line["at"]] for line in found]
        finite = np.concatenate([row[np.isfinite(row)] for row in rows] or [np.empty(0)])
        if not found or (not flat and (not len(finite) or finite.min() == finite.max())):
            return None
        positive = bool(len(finite)) and bool(finite.min() >= 0) and bool((finite > 0).any())
        if len(self.records) == 1:
            for line in found:  # one run, one colour a line
                line["color"] = {"after": 2}.get(line["label"], 1)
        return {
            "key": key,
            "title": title,
            "unit": unit,
            "note": note or ("" if len(finite) else "No value is finite."),
            "log": positive and (_is_wide(finite) if log is None else log),
            "toggle": positive,
            "square": square,
            "lines": found,
        }


def _is_wide(finite: Triple) -> bool:
    """Whether positive values reach over so many decades that a linear axis would hide most."""
    return bool(finite.min() > 0 and finite.max() > 100 * finite.min())


def has_effect(record: Record) -> bool:
    """Whether the transforms of a run changed its gradients at any step.

    Args:
        record: the run.
    """
    steps = record.steps
    if "grad_norm" not in steps.names or "applied_norm" not in steps.names:
        return False
    before, after = (
        steps.mean[:, steps.names.index(f"{side}_norm")] for side in ("grad", "applied")
    )
    both = np.isfinite(before) & np.isfinite(after)
    before, after = before[both], after[both]
    return bool((np.abs(before - after) > 1e-6 * np.abs(before)).any())


def rate(record: Record) -> Triple | None:
    """Steps a second around each bin [P]; None where the run did not record the time.

    Args:
        record: the run.
    """
    steps = record.steps
    if "time" not in steps.names or len(steps.first_step) < 2:
        return None
    begin = steps.min[:, steps.names.index("time")]
    known = np.flatnonzero(np.isfinite(begin))
    if len(known) < 2:
        return None
    # Over stretches of about the same length: single steps differ too much to be read.
    first = steps.first_step[known]
    width = (int(first[-1]) - int(first[0])) / _STRETCHES
    ends = np.minimum(np.searchsorted(first, first + max(width, 1)), len(first) - 1)
    starts = np.minimum(np.arange(len(first)), np.searchsorted(first, first[ends] - max(width, 1)))
    number = (first[ends] - first[starts]).astype(np.float64)
    seconds = begin[known][ends] - begin[known][starts]
    found = np.full(len(begin), np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        found[known] = np.where((seconds > 0) & (number > 0), number / seconds, np.nan)
    return found


def _group(name: str) -> str:
    return name.partition("/")[0]


def _titled(name: str) -> str:
    return {"loss": "Loss"}.get(name, name)


def _without_alpha(records: Sequence[Record]) -> str:
    """Which runs have no common factor."""
    absent = []
    for record in records:
        names = record.steps.names
        known = "alpha" in names and record.steps.count[:, names.index("alpha")].any()
        if not known and has_effect(record):
            absent.append(record.name)
    if not absent or len(absent) == len(records):
        return ""
    return f"No curve for {join(absent)}: there is no single factor that all layers share."
