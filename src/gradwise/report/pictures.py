"""The small pictures inside tables: where their marks go; the template draws them as SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gradwise.report.tables import Comparison, MethodRow
from gradwise.report.words import accuracy_points

__all__ = ["Bar", "Mark", "Strip", "bars", "nice_ticks", "strip"]

WIDTH = 210
"""Width of a strip in its own units, which are pixels where there is room."""

_MARGIN = 16  # room for the outermost tick labels
_EDGE = 7  # room for an arrow where something lies beyond


@dataclass(frozen=True)
class Mark:
    """One method's difference on the common scale, in units of the strip.

    Attributes:
        at: where the mean difference is; None where that is beyond the edges.
        low: where its interval begins; None without one.
        high: where it ends.
        seeds: where the differences of the single seeds are, as far as inside.
        label: the same in words.
        cut: "left" or "right" where something lies beyond the edges, or both.
    """

    at: float | None
    low: float | None
    high: float | None
    seeds: tuple[float, ...]
    label: str
    cut: tuple[str, ...]


@dataclass(frozen=True)
class Strip:
    """The scale that all marks share.

    Attributes:
        zero: where no difference is.
        ticks: positions and their labels, in percentage points.
        marks: by method.
    """

    zero: float
    ticks: tuple[tuple[float, str], ...]
    marks: dict[str, Mark]


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers between two bounds.

    Args:
        low: the lower bound.
        high: the upper bound, above `low`.
        count: how many are wanted, about.

    Examples:
        >>> nice_ticks(-1.3, 2.2), nice_ticks(0.0, 0.05)
        ([-1.0, 0.0, 1.0, 2.0], [0.0, 0.02, 0.04])
    """
    rough = (high - low) / count
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * size for factor in (1, 2, 5, 10) if factor * size >= rough * 0.999)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(at * step, digits) + 0.0 for at in range(first, last + 1)]


def strip(rows: Sequence[MethodRow]) -> Strip | None:
    """Place the differences of all compared methods on one scale.

    Methods whose trials did not all finish have no say in the scale, unless there are no others:
    a single diverged trial would make all other differences look like none.

    Args:
        rows: the rows of the methods.

    Returns:
        The strip, or None where there is no difference to show.
    """
    compared = [
        (row, row.comparison, row.comparison.difference)
        for row in rows
        if row.comparison is not None and row.comparison.difference is not None
    ]
    if not compared:
        return None
    leading = [entry for entry in compared if entry[0].complete] or compared
    shown = [0.0] + [value for _, one, difference in leading for value in _values(one, difference)]
    low, high = 100 * min(shown), 100 * max(shown)
    room = max((high - low) * 0.04, 0.01)
    low, high = low - room, high + room

    def place(share: float) -> float:
        at = _MARGIN + (100 * share - low) / (high - low) * (WIDTH - 2 * _MARGIN)
        return round(min(max(at, _EDGE), WIDTH - _EDGE), 1)

    marks = {}
    for row, one, difference in compared:
        words = f"{row.name}: {row.difference} points"
        if one.ci95 is not None:
            words += f", 95 % interval {row.difference_ci}"
        if one.pairs:
            words += f"; by seed {', '.join(accuracy_points(pair) for pair in one.pairs)}"
        marks[row.name] = Mark(
            at=place(difference) if low <= 100 * difference <= high else None,
            low=None if one.ci95 is None else place(one.ci95[0]),
            high=None if one.ci95 is None else place(one.ci95[1]),
            seeds=tuple(place(pair) for pair in one.pairs if low <= 100 * pair <= high),
            label=words,
            cut=tuple(
                side
                for side, beyond in (
                    ("left", 100 * min(_values(one, difference)) < low),
                    ("right", 100 * max(_values(one, difference)) > high),
                )
                if beyond
            ),
        )
    ticks = tuple((place(at / 100), _tick(at)) for at in nice_ticks(low, high))
    return Strip(place(0.0), ticks, marks)


def _values(one: Comparison, difference: float) -> list[float]:
    """Everything that is drawn of a comparison."""
    return [difference, *(one.ci95 or ()), *one.pairs]


def _tick(points: float) -> str:
    shown = f"{abs(points):g}"
    return shown if points == 0 else ("−" if points < 0 else "+") + shown


@dataclass(frozen=True)
class Bar:
    """One bar of a row of bars.

    Attributes:
        row: the method.
        share: its length, 100 for the longest.
        value: the value in words.
        ratio: the value against the baseline's, in words.
    """

    row: MethodRow
    share: float
    value: str
    ratio: str


def bars(rows: Sequence[MethodRow], cost: str) -> list[Bar]:
    """The bars of one cost, over the methods that have it.

    Args:
        rows: the rows of the methods.
        cost: "wall" or "memory".

    Raises:
        ValueError: for another cost.
    """
    if cost not in ("wall", "memory"):
        raise ValueError(f"expected cost 'wall' or 'memory', got {cost!r}")
    found = []
    for row in rows:
        size, value, ratio = (
            (row.wall_s, row.wall, row.wall_ratio)
            if cost == "wall"
            else (row.memory_bytes, row.memory, row.memory_ratio)
        )
        if size is not None and size >= 0:
            found.append((row, size, value, ratio))
    longest = max((size for _, size, _, _ in found), default=0.0) or 1.0
    return [Bar(row, round(100 * size / longest, 2), *rest) for row, size, *rest in found]
