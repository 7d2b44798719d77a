"""What trainings on the Poisson problem over a grid say together."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from gradwise.reproduce.experiments._poisson_grid import DENSE, Option

__all__ = ["Trials"]


def _sound(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and value >= 0


class Trials:
    """The trials of all cells, by arm, option and seed.

    Args:
        settings: with `seeds`.
        results: by cell name, `{arm}-seed={seed}`.
    """

    def __init__(self, settings: Mapping[str, Any], results: Mapping[str, Any]) -> None:
        self.seeds: list[int] = list(settings["seeds"])
        self.of: dict[str, dict[Option, dict[int, dict[str, Any]]]] = {}
        for name, result in results.items():
            arm, _, seed = name.rpartition("-seed=")
            for one in result["trials"]:
                options = self.of.setdefault(arm, {})
                options.setdefault((one["value"], one["rho"]), {})[int(seed)] = one

    def number(self, arm: str, option: Option, seed: int, budget: str, key: str) -> float:
        """What one trial ended with; infinity where it was unstable or is missing."""
        one = self.of.get(arm, {}).get(option, {}).get(seed)
        if one is None or not self.stable(one):
            return math.inf
        value = one["held_out"] if key == "held_out" else one["at"][budget][key]
        return float(value) if _sound(value) else math.inf

    @staticmethod
    def stable(one: Mapping[str, Any], within: int | None = None) -> bool:
        """Whether the loss stayed below `STABLE` times the first, to the end or for some steps."""
        left = one["unstable_at"]
        if within is not None:
            return left is None or left > within
        return left is None and all(_sound(end["error"]) for end in one["at"].values())

    def best(self, arm: str, budget: str, key: str) -> Option | None:
        """The option with the fewest unstable seeds, of these that with the lowest median.

        Args:
            arm: as cells are named.
            budget: when to look.
            key: "loss" or "held_out"; the exact solution decides nothing.

        Returns:
            None where no seed was stable with any.
        """
        ranks: dict[Option, tuple[int, float]] = {}
        for option in self.of.get(arm, {}):
            found = [self.number(arm, option, seed, budget, key) for seed in self.seeds]
            ranks[option] = (sum(map(math.isinf, found)), statistics.median(found))
        if not ranks:
            return None
        first = min(ranks, key=lambda option: ranks[option])
        return first if ranks[first][0] < len(self.seeds) else None

    def gains(self, arm: str, other: str, budget: str, by: str, key: str) -> list[float]:
        """Seed by seed, log10 of what the other has over what the arm has, each at its best.

        Args:
            arm: is better where the numbers are positive.
            other: what it is compared with.
            budget: when to look.
            by: what decides which option is best.
            key: what is compared. Seeds at which either is unstable are left out.
        """
        best = self.best(arm, budget, by), self.best(other, budget, by)
        if best[0] is None or best[1] is None:
            return []
        found = []
        for seed in self.seeds:
            a = self.number(arm, best[0], seed, budget, key)
            b = self.number(other, best[1], seed, budget, key)
            if 0 < a < math.inf and 0 < b < math.inf:
                found.append(math.log10(b / a))
        return found

    def reach(
        self, arm: str, seed: int, rho: float, bold: bool = True, within: int | None = None
    ) -> tuple[int, list[float]]:
        """Up to where all of a grid's values are stable.

        Args:
            arm: as cells are named.
            seed: of the weights.
            rho: of the options to look at.
            bold: whether large values are the bold ones; else small ones.
            within: the number of steps that are looked at; None for all.

        Returns:
            How many values are stable from the mildest on, and the values from the mildest to the
            boldest; none where trials are missing.
        """
        options = self.of.get(arm, {})
        values = sorted((v for v, r in options if r == rho), reverse=not bold)
        if any(seed not in options[v, rho] for v in values):
            return 0, []
        stable = [self.stable(options[value, rho][seed], within) for value in values]
        return (stable.index(False) if False in stable else len(stable)), values

    def bolder(
        self,
        arm: str,
        other: str,
        rho: float = 0.0,
        *,
        bold: bool = True,
        within: int | None = None,
    ) -> tuple[list[float], int]:
        """Seed by seed, how many decades bolder an arm's boldest stable value is than the other's.

        One place below the grid stands for what is not stable even there. Where both are stable
        on the whole grid, or on none of it, the seed tells nothing.

        Args:
            arm: which may be the bolder.
            other: with rho = 0, on the same grid.
            rho: of the arm.
            bold: whether large values are the bold ones; else small ones.
            within: the number of steps that are looked at; None for all.

        Returns:
            The decades, of the seeds that tell something, and how many seeds do not.
        """
        found = []
        for seed in self.seeds:
            a, values = self.reach(arm, seed, rho, bold, within)
            b, others = self.reach(other, seed, 0.0, bold, within)
            if len(values) < 2 or values != others or (a == b and a in (0, len(values))):
                continue
            decades = [math.log10(value) for value in values]
            decades.insert(0, 2 * decades[0] - decades[1])
            found.append((decades[a] - decades[b]) * (1 if bold else -1))
        return found, len(self.seeds) - len(found)

    def along(
        self, arm: str, option: Option, axis: str, places: Sequence[float], key: str
    ) -> list[list[float]]:
        """Courses on common places, one row a stable seed, as log10; NaN before the first note.

        Args:
            arm: as cells are named.
            option: whose courses.
            axis: "steps", "evaluations" or "seconds".
            places: on the axis, rising; beyond a course's end there is NaN.
            key: "loss" or "error".
        """
        rows = []
        for seed in self.seeds:
            one = self.of[arm][option].get(seed)
            if one is None or not self.stable(one):
                continue
            x, y = one["course"][axis], one["course"][key]
            row = []
            for place in places:
                seen = sum(at <= place for at in x)
                shown = seen > 0 and place <= x[-1] * DENSE and _sound(y[seen - 1])
                row.append(math.log10(max(y[seen - 1], 1e-300)) if shown else math.nan)
            rows.append(row)
        return rows
