"""Claims about several cases at once, such as step sizes or sizes of data sets."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gradwise.reproduce.claims import INCONCLUSIVE, NOT_REPRODUCED, REPRODUCED, Judged, overall

__all__ = ["Several", "each", "is_number"]

_TOLD = 4  # cases; more than that are counted
_ORDER = {NOT_REPRODUCED: 0, INCONCLUSIVE: 1, REPRODUCED: 2}


class Several:
    """A claim about several cases: it holds where it holds in all of them.

    Args:
        judged: by case; None where no seed gave a number.

    Examples:
        >>> from gradwise.reproduce.claims import judge_greater
        >>> found = Several({"a": judge_greater([1.0, 2.0, 3.0]), "b": judge_greater([5.0, -3.0])})
        >>> found.verdict
        'inconclusive at this scale'
    """

    def __init__(self, judged: Mapping[str, Judged | None]) -> None:
        self.judged = dict(judged)

    @property
    def verdict(self) -> str:
        """Not reproduced where one case says so, reproduced where all do."""
        return overall(INCONCLUSIVE if j is None else j.verdict for j in self.judged.values())

    def words(self, unit: str = "", scale: float = 1.0, digits: int = 3) -> str:
        """The numbers of the cases, those that bear the claim out least first.

        Args:
            unit: written behind a mean.
            scale: what numbers are multiplied with.
            digits: significant ones.
        """
        if not self.judged:
            return "nothing, as there is no such case"
        order = sorted(self.judged, key=lambda case: _rank(self.judged[case]))
        told = []
        for case in order:
            judged = self.judged[case]
            numbers = "no numbers" if judged is None else judged.words(unit, scale, digits)
            told.append(f"{case}: {numbers}")
        bearing = sum(j is not None and j.verdict == REPRODUCED for j in self.judged.values())
        more = f"; and so on, {bearing} of {len(told)} cases bear it out"
        return "; ".join(told[:_TOLD]) + (more if len(told) > _TOLD else "")


def _rank(judged: Judged | None) -> int:
    return _ORDER[INCONCLUSIVE if judged is None else judged.verdict]


def each(
    items: Iterable[Any],
    value: Callable[[Any], float | None],
    judge: Callable[[list[float]], Judged],
) -> Judged | None:
    """Judge one number an item; what is missing or not finite is left out.

    Args:
        items: results of seeds.
        value: the number of one; may also raise TypeError, ValueError or ZeroDivisionError where
            a run that diverged holds None, or a logarithm has no argument.
        judge: of the numbers.

    Returns:
        None where there is no number.

    Examples:
        >>> from gradwise.reproduce.claims import judge_greater
        >>> each([{"x": 1.0}, {"x": None}], lambda run: run["x"] + 1, judge_greater).n
        1
    """
    found = []
    for item in items:
        try:
            number = value(item)
        except (TypeError, ValueError, ZeroDivisionError):
            continue
        if is_number(number):
            found.append(float(number))  # type: ignore[arg-type]  # it is one
    return judge(found) if found else None


def is_number(value: object) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
