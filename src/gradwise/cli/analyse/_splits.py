"""Which samples of the data train, which replace them, and which ones test."""

from __future__ import annotations

import torch
from torch import Tensor

from gradwise.cli.analyse._problem import Problem
from gradwise.errors import UserError

Pair = tuple[Tensor, Tensor]
SHARE = 5  # one sample in so many is held back for the test where there is no other set


def places(steps: int, points: int) -> list[int]:
    """0 and so many steps that grow by a factor, the last one among them.

    Args:
        steps: the last one.
        points: how many besides 0, at most.
    """
    grown = [round(steps ** (k / max(points - 1, 1))) for k in range(points)]
    return sorted({0, steps, *(grown if points > 1 else [])})


def split(problem: Problem, replace: int, seed: int) -> tuple[Pair, Pair, Pair, list[int]]:
    """Training samples, replacements, test samples, and which ones are replaced.

    Args:
        problem: whose other set gives replacements and test, where there is one.
        replace: how many samples.
        seed: of the choice.

    Raises:
        UserError: where there are too few samples.
    """
    stream = torch.Generator().manual_seed(seed)
    data, other = problem.tensors(), problem.other
    rest = data if other is None else other
    order = torch.randperm(len(rest[0]), generator=stream)
    held = len(order) if other is not None else replace + max(1, (len(order) - replace) // SHARE)
    if held <= replace or (other is None and held >= len(order)):
        raise UserError(
            f"expected more samples to replace {replace} with and to test on, got {len(order)}"
        )
    pool, test = order[:replace], order[replace:held]
    if other is None:
        kept = order[held:].sort().values
        data = (data[0][kept], data[1][kept])
    if len(data[0]) < replace:
        raise UserError(f"expected replace <= {len(data[0])}, the samples, got replace={replace}")
    chosen = torch.randperm(len(data[0]), generator=stream)[:replace].sort().values
    return (
        data,
        (rest[0][pool], rest[1][pool]),
        (rest[0][test], rest[1][test]),
        chosen.tolist(),
    )
