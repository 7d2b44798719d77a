"""Claims about several pairs of methods or conditions at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gradwise.reproduce.claims import INCONCLUSIVE, Judged, judge_greater, overall

__all__ = ["All"]


def _judged(values: list[float]) -> Judged:
    if any(values):
        return judge_greater(values)
    return Judged(INCONCLUSIVE, 0.0, None, len(values))


class All:
    """A claim about several pairs: it holds where it holds for all of them.

    Args:
        values: by pair, one value a seed, above 0 where the claim holds. Where all of them are
            exactly 0, as differences below the resolution of a grid are, nothing is settled.

    Examples:
        >>> every = All({"a": [1.0, 1.1, 1.2], "b": [0.0, 0.0]})
        >>> every.verdict, every.judged["a"].verdict
        ('inconclusive at this scale', 'reproduced')
    """

    def __init__(self, values: Mapping[str, Sequence[float]]) -> None:
        self.judged: dict[str, Judged | None] = {
            name: _judged(list(found)) if found else None for name, found in values.items()
        }

    @property
    def verdict(self) -> str:
        """Not reproduced where one pair says so, reproduced where all do."""
        return overall(INCONCLUSIVE if j is None else j.verdict for j in self.judged.values())

    def words(self, unit: str = "", scale: float = 1.0) -> str:
        """Every pair with its number.

        Args:
            unit: written behind each mean.
            scale: what the numbers are multiplied with.
        """
        return "; ".join(
            f"{name} {'no run that tells' if j is None else j.words(unit, scale)}"
            for name, j in self.judged.items()
        )
