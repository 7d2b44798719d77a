"""What a paper says, what we measured, and whether the one bears out the other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gradwise.errors import UserError
from gradwise.lab.statistics import mean_ci
from gradwise.report.article import Picture, Table

__all__ = [
    "INCONCLUSIVE",
    "NOT_REPRODUCED",
    "REPRODUCED",
    "Claim",
    "Conclusion",
    "Judged",
    "judge_equal",
    "judge_greater",
    "overall",
]

REPRODUCED = "reproduced"
NOT_REPRODUCED = "not reproduced"
INCONCLUSIVE = "inconclusive at this scale"
_VERDICTS = (REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE)


def overall(verdicts: Iterable[str]) -> str:
    """The verdict on what has to hold in several cases.

    Args:
        verdicts: of the cases.

    Examples:
        >>> overall([REPRODUCED, INCONCLUSIVE]), overall([REPRODUCED, NOT_REPRODUCED])
        ('inconclusive at this scale', 'not reproduced')
    """
    found = set(verdicts)
    if NOT_REPRODUCED in found:
        return NOT_REPRODUCED
    return REPRODUCED if found == {REPRODUCED} else INCONCLUSIVE


@dataclass(frozen=True)
class Claim:
    """One thing that a paper says, and what came of it.

    Attributes:
        text: what it says, one sentence in our words.
        measured: our numbers with their interval, in words.
        verdict: `REPRODUCED`, `NOT_REPRODUCED` or `INCONCLUSIVE`.

    Raises:
        UserError: where the verdict is none of these.
    """

    text: str
    measured: str
    verdict: str

    def __post_init__(self) -> None:
        if self.verdict not in _VERDICTS:
            raise UserError(
                f"expected verdict to be one of {', '.join(_VERDICTS)}, got {self.verdict!r}"
            )


@dataclass(frozen=True)
class Conclusion:
    """What an experiment found.

    Attributes:
        claims: at least one; the first is the paper's main one.
        tables: our numbers.
        pictures: the paper's, drawn anew from our data.
        notes: what a reader has to know, a sentence each.

    Raises:
        UserError: where there is no claim.

    Examples:
        >>> Conclusion((Claim("a < b", "0.1 < 0.2", REPRODUCED),)).verdict
        'reproduced'
    """

    claims: tuple[Claim, ...]
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.claims:
            raise UserError("expected at least one claim, got none")

    @property
    def verdict(self) -> str:
        """Reproduced where every claim is; not where one is not; else inconclusive."""
        return overall(claim.verdict for claim in self.claims)


@dataclass(frozen=True)
class Judged:
    """A claim about a mean, judged by its 95 % interval.

    Attributes:
        verdict: as of a claim.
        mean: over the values.
        ci95: by Student's t; None for fewer than two values.
        n: how many values.
    """

    verdict: str
    mean: float
    ci95: tuple[float, float] | None
    n: int

    def words(self, unit: str = "", scale: float = 1.0, digits: int = 3) -> str:
        """The numbers in words.

        Args:
            unit: written behind the mean.
            scale: what the numbers are multiplied with, such as 100 for percent.
            digits: significant ones.

        Examples:
            >>> judge_greater([0.011, 0.012, 0.010]).words("points", scale=100)
            '1.1 points (95 % interval 0.852 to 1.35, n = 3)'
        """
        told = f"{scale * self.mean:.{digits}g}{f' {unit}' if unit else ''}"
        if self.ci95 is None:
            return f"{told} (no interval, n = {self.n})"
        low, high = (f"{scale * end:.{digits}g}" for end in self.ci95)
        return f"{told} (95 % interval {low} to {high}, n = {self.n})"


def judge_greater(
    differences: Sequence[float], *, than: float = 0.0, negligible: float = 0.0
) -> Judged:
    """Judge the claim that a mean is above a bound.

    Reproduced where the whole interval lies above `than`, not reproduced where all of it lies
    below `than + negligible`: then the effect, if there is one, is smaller than what would matter.

    Args:
        differences: one value a seed.
        than: the bound.
        negligible: >= 0, the largest effect that does not matter.

    Raises:
        UserError: where there is no value, one is not finite, or `negligible` is out of its bounds.

    Examples:
        >>> judge_greater([0.4, 0.5, 0.6]).verdict
        'reproduced'
        >>> judge_greater([-0.4, 0.5, 0.6]).verdict
        'inconclusive at this scale'
        >>> judge_greater([-0.001, 0.002, 0.003], negligible=0.1).verdict  # less than would matter
        'not reproduced'
    """
    if not 0 <= negligible < math.inf:
        raise UserError(f"expected a finite negligible >= 0, got negligible={negligible}")
    mean, interval = mean_ci(differences)
    verdict = INCONCLUSIVE
    if interval is not None:
        if interval[0] > than:
            verdict = REPRODUCED
        elif interval[1] < than + negligible or interval[1] <= than:
            verdict = NOT_REPRODUCED
    return Judged(verdict, mean, interval, len(differences))


def judge_equal(differences: Sequence[float], *, within: float) -> Judged:
    """Judge the claim that a mean is zero but for what does not matter.

    Reproduced where the whole interval lies inside +-`within`, not reproduced where all of it lies
    outside.

    Args:
        differences: one value a seed.
        within: > 0.

    Raises:
        UserError: where there is no value, one is not finite, or `within` is out of its bounds.

    Examples:
        >>> judge_equal([0.01, -0.02, 0.01], within=0.1).verdict
        'reproduced'
        >>> judge_equal([0.31, 0.32, 0.33], within=0.1).verdict
        'not reproduced'
    """
    if not 0 < within < math.inf:
        raise UserError(f"expected a finite within > 0, got within={within}")
    mean, interval = mean_ci(differences)
    verdict = INCONCLUSIVE
    if interval is not None:
        if -within < interval[0] and interval[1] < within:
            verdict = REPRODUCED
        elif interval[0] >= within or interval[1] <= -within:
            verdict = NOT_REPRODUCED
    return Judged(verdict, mean, interval, len(differences))
