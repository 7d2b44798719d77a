"""What games played online say together: judgements over several games, tables and pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from gradwise.report.article import Picture, Table
from gradwise.report.drawing import axes, band, svg
from gradwise.reproduce.claims import (
    INCONCLUSIVE,
    NOT_REPRODUCED,
    REPRODUCED,
    Judged,
    judge_equal,
    judge_greater,
    overall,
)

LEARNERS = {
    "convex": "optimistic, convex",
    "strongly": "optimistic, strongly convex",
    "universal": "universal",
    "no hint": "convex, without hint",
    "ogd": "projected gradient descent",
}
VARIED = ("alternating", "independent", "fading")  # worlds whose variation grows with T
SLOW = ("static", "drifting")  # and whose does not

Values = dict[str, list[float]]  # by learner, one value a number of rounds
Value = Callable[[Values, list[float]], float]  # of a game's regrets and variations
Key = tuple[str, str]  # a family, and a world or learner


def rounds_of(settings: dict[str, Any], world: str) -> list[int]:
    """How long the games of a world are."""
    found: list[int] = settings["slow_rounds" if world in SLOW else "rounds"]
    return found


class Data:
    """Results by family, world and seed, of what is finite."""

    def __init__(self, settings: dict[str, Any], results: dict[str, dict[str, Any]]) -> None:
        self.settings, self.results = settings, results
        self.left_out: set[str] = set()

    def games(self, family: str) -> list[dict[str, Any]]:
        """One a seed, the worlds of a family."""
        names = [f"{family}-seed={seed}" for seed in self.settings["seeds"]]
        return [self.results[name] for name in names if name in self.results]

    def each(self, family: str, world: str, value: Value) -> list[float]:
        """A number for each seed, from its regrets by learner and its variations."""
        found = []
        for worlds in self.games(family):
            if world not in worlds:
                continue
            regrets, variation = worlds[world]["regret"], worlds[world]["variation"]
            numbers = [x for row in [*regrets.values(), variation] for x in row]
            if all(isinstance(x, int | float) and math.isfinite(x) for x in numbers):
                found.append(value(regrets, variation))
            else:
                self.left_out.add(f"{family} {world}")
        return found

    def numbers(self, family: str, world: str, name: str) -> list[list[float]]:
        """One row a seed: the regrets of a learner, or the variation."""
        rows: list[list[float]] = []

        def take(regrets: Values, variation: list[float]) -> float:
            rows.append(variation if name == "variation" else regrets[name])
            return 0.0

        self.each(family, world, take)
        return rows


class Games:
    """A claim about several games: it holds where it holds in all of them.

    Args:
        judged: by game; None where no seed of it came to an end.
    """

    def __init__(self, judged: dict[Key, Judged | None]) -> None:
        self.judged = judged

    def __or__(self, other: Games) -> Games:
        return Games(self.judged | other.judged)

    @property
    def verdict(self) -> str:
        """Not reproduced where one game says so, reproduced where all do."""
        return overall(INCONCLUSIVE if j is None else j.verdict for j in self.judged.values())

    def words(self, which: str) -> str:
        """The game that bears the claim out least, and how many games there are.

        Args:
            which: "largest", "smallest" or "farthest from 0", what the least is.
        """
        found = {key: j for key, j in self.judged.items() if j is not None}
        if not found:
            return "nothing, as no game came to an end"
        order = {NOT_REPRODUCED: 0, INCONCLUSIVE: 1, REPRODUCED: 2}
        size = {"largest": lambda x: -x, "smallest": lambda x: x, "farthest from 0": _nearness}
        worst = min(
            found, key=lambda key: (order[found[key].verdict], size[which](found[key].mean))
        )
        lost = len(self.judged) - len(found)
        return (
            f"{found[worst].words()} in the game where the claim holds least ({', '.join(worst)}), "
            f"of {len(found)} games{f', {lost} lost' if lost else ''}"
        )


def _nearness(x: float) -> float:
    return -abs(x)


def below(values: Sequence[float], bound: float) -> Judged | None:
    """Judge that the mean is below a bound; None where there is no value."""
    if not values:
        return None
    found = judge_greater([-x for x in values], than=-bound)
    interval = None if found.ci95 is None else (-found.ci95[1], -found.ci95[0])
    return Judged(found.verdict, -found.mean, interval, found.n)


def greater(values: Sequence[float]) -> Judged | None:
    """Judge that the mean is above 0; None where there is no value."""
    return judge_greater(values) if values else None


def equal(values: Sequence[float], within: float) -> Judged | None:
    """Judge that the mean is 0 but for +-within; None where there is no value."""
    return judge_equal(values, within=within) if values else None


def tables(data: Data, families: Sequence[str]) -> tuple[Table, ...]:
    """Mean regrets of the longest games, one table a family."""
    made = []
    for family in families:
        rows = []
        for world in data.settings["worlds"]:
            columns = [data.numbers(family, world, name) for name in ("variation", *LEARNERS)]
            rounds = str(rounds_of(data.settings, world)[-1])
            rows.append(
                (world, rounds, *(_mean([row[-1] for row in column]) for column in columns))
            )
        made.append(
            Table(
                f"Regret on {family} functions in the longest games",
                ("functions", "rounds", "V_T", *LEARNERS.values()),
                tuple(rows),
                "Means over seeds, against the best fixed point in hindsight. Below 0 the method "
                "that moves is better than any point that stays.",
            )
        )
    return tuple(made)


def pictures(data: Data, families: Sequence[str]) -> tuple[Picture, ...]:
    """Regret over T with its bound, and the course of regret with and without a hint."""
    varied = [w for w in VARIED if w in data.settings["worlds"]]
    slow = [w for w in SLOW if w in data.settings["worlds"]]
    made = []
    if varied:
        with axes(
            len(families),
            len(varied),
            height=2.6 * len(families) + 0.4,
            squeeze=False,
            sharey="row",
        ) as (figure, grid):
            for row, family in enumerate(families):
                for axis, world in zip(grid[row], varied, strict=True):
                    _growth(axis, data, family, world)
                    axis.set_title(f"{family}, {world}")
                grid[row][0].set_ylabel("1 + regret")
            for axis in grid[-1]:
                axis.set_xlabel("rounds T")
            lines, names = grid[0][0].get_legend_handles_labels()
            figure.legend(lines, names, loc="outside lower center", ncols=3)
            made.append(
                Picture(
                    "online-rates",
                    "Regret over the number of rounds, where the variation grows with it. Dotted: "
                    "1 + sqrt(V_T). The promise is to grow no faster than that on linear "
                    "functions, and as log V_T on curved ones. Bands: 95 % intervals over seeds.",
                    "Lines of regret over rounds on logarithmic axes, one panel for each kind of "
                    "functions and of change.",
                    svg(figure),
                )
            )
    if slow:
        with axes(len(families), len(slow), height=2.6 * len(families), squeeze=False) as (
            figure,
            grid,
        ):
            for row, family in enumerate(families):
                for axis, world in zip(grid[row], slow, strict=True):
                    _course(axis, data, family, world)
                    axis.set_title(f"{family}, {world}")
                grid[row][0].set_ylabel("extra regret")
            for axis in grid[-1]:
                axis.set_xlabel("round")
            made.append(
                Picture(
                    "online-hints",
                    "What the convex method loses without its hint, during the longest games where "
                    "the gradients vary little: above 0 the hint has helped. Bands: 95 % "
                    "intervals over seeds.",
                    "Lines of the difference in regret without and with a hint over rounds, one "
                    "panel for each kind of functions and of change.",
                    svg(figure),
                )
            )
    return tuple(made)


def _growth(axis: Any, data: Data, family: str, world: str) -> None:
    for name in ("convex", "strongly", "universal", "ogd"):
        rows = data.numbers(family, world, name)
        if rows:
            lifted = [[1 + max(x, 0.0) for x in row] for row in rows]
            band(axis, data.settings["rounds"], lifted, LEARNERS[name], marker="o")
    bounds = [[1 + math.sqrt(x) for x in row] for row in data.numbers(family, world, "variation")]
    if bounds:
        mean = [math.fsum(column) / len(bounds) for column in zip(*bounds, strict=True)]
        axis.plot(data.settings["rounds"], mean, ":", color="#6b6b6b", label="1 + sqrt(V_T)")
    axis.set_xscale("log")
    axis.set_yscale("log")
    rounds = data.settings["rounds"]
    axis.set_xticks(rounds, [str(t) for t in rounds])
    axis.minorticks_off()


def _course(axis: Any, data: Data, family: str, world: str) -> None:
    games = [worlds[world] for worlds in data.games(family) if world in worlds]
    rows = []
    for game in games:
        pairs = zip(game["course"]["no hint"], game["course"]["convex"], strict=True)
        rows.append([math.nan if None in pair else pair[0] - pair[1] for pair in pairs])
    if rows:
        band(axis, games[0]["at"], rows, "without minus with a hint")
        low, high = axis.get_ylim()
        if high - low < 1e-6:  # rounding, not a difference
            axis.set_ylim(-0.01, 0.01)


def notes(data: Data) -> tuple[str, ...]:
    """What a reader has to know."""
    gaps = [
        gap
        for family in data.settings["families"]
        for worlds in data.games(family)
        for world in worlds.values()
        for gap in world["gap"]
        if gap is not None
    ]
    told = [
        "The paper is theory: methods have its updates with constants recalled or chosen here, and "
        "the weights of the universal method are a stand-in for its own (Optimistic Adapt-ML-Prod "
        "with clipping).",
        "V_T is exact: the supremum over the ball is found in closed form (linear) or as the "
        "largest value of a trigonometric polynomial (curved).",
        f"The best fixed point is certified: its total loss is at most "
        f"{max(gaps, default=math.nan):.1g} above the smallest one.",
        "Curved: |z|^4/4 + |z|^2/2, z = x - v_t, smooth in the generalised sense; linear: "
        "<v_t, x>, on which the strongly convex method is told a curvature that is not there.",
    ]
    if data.left_out:
        told.append(
            f"Left out for numbers that are not finite: {', '.join(sorted(data.left_out))}."
        )
    return tuple(told)


def _mean(values: Sequence[float]) -> str:
    return f"{math.fsum(values) / len(values):.4g}" if values else "—"
