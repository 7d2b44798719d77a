"""How fine the pictures of runs may be so that the page stays small, whatever the runs."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["BUDGET", "Plan", "chosen_layers", "plan"]

BUDGET = 3_800_000
"""What the layers' values may take in the page, about, in bytes."""

_BASE64 = 4 / 3
_ROW = 24 * _BASE64  # the scale of a packed row


@dataclass(frozen=True)
class Plan:
    """How the layers' values are kept in the page.

    Attributes:
        points: the most bins of a metric over time.
        size: bytes a value, see `encode.pack`.
        coarse: the smallest and the largest value are kept over so many bins together.
        most: what that may take in the page, about, in bytes.
    """

    points: int
    size: int
    coarse: int
    most: int = BUDGET

    def cost(self, records: int) -> float:
        """Bytes that one metric of one layer takes in the page.

        Args:
            records: the records there are.
        """
        bins = min(self.points, records)
        return (bins + 2 * -(-bins // self.coarse)) * self.size * _BASE64 + _ROW


LADDER = (
    Plan(600, 2, 1, BUDGET // 2),
    Plan(600, 1, 1),
    Plan(384, 1, 4),
    Plan(192, 1, 4),
    Plan(96, 1, 4),
)
"""From the finest to the coarsest. Long runs have a level of their pyramid with 384 bins or some
more, which is why that is a step of the ladder."""


def plan(runs: Sequence[tuple[int, int]], layers: int) -> tuple[Plan, int]:
    """The finest way that fits, and how many layers it has room for.

    Args:
        runs: of each run its number of records and of layer metrics.
        layers: number of layers.

    Examples:
        >>> plan([(5000, 8)], 62)[0].points, plan([(100_000, 9)], 500)[0].points
        (600, 384)
        >>> plan([(100_000, 9)], 5000)[1]
        1884
    """
    found = LADDER[-1]
    for found in LADDER:
        if layers * _layer(found, runs) <= found.most:
            return found, layers
    return found, max(1, int(BUDGET / _layer(found, runs)))


def _layer(found: Plan, runs: Sequence[tuple[int, int]]) -> float:
    return sum(metrics * found.cost(records) for records, metrics in runs)


def chosen_layers(names: Sequence[str], room: int, first: Sequence[str]) -> list[str]:
    """The layers that a page shows where there is no room for all, in their own order.

    Args:
        names: all layers.
        room: how many may be shown, at least 1.
        first: those that must not be missing, the most important first.

    Examples:
        >>> chosen_layers(list("abcdefgh"), 4, ["g"])
        ['a', 'c', 'e', 'g']
    """
    if len(names) <= room:
        return list(names)
    known = set(names)
    kept = [name for name in dict.fromkeys(first) if name in known][:room]
    rest = [name for name in names if name not in set(kept)]
    free = room - len(kept)
    kept += [rest[at * len(rest) // free] for at in range(free)]
    wanted = set(kept)
    return [name for name in names if name in wanted]
