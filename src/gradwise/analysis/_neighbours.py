"""Neighbouring data sets, and what else makes two runs a pair: indices and random streams."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from gradwise.analysis._passes import Source
from gradwise.errors import UserError

Dataset = tuple[Tensor, Tensor]


def neighbour(data: Dataset, index: int, sample: Dataset) -> Dataset:
    """S^(i): a copy of the data set with sample i replaced, and all others where they were.

    Args:
        data: (inputs (n, ...), targets (n, ...)).
        index: i, 0 <= i < n.
        sample: (input (...), target (...)).

    Raises:
        UserError: where the index is out of its bounds or the sample has another shape.

    Examples:
        >>> data = (torch.zeros(3, 2), torch.tensor([0, 1, 2]))
        >>> inputs, targets = neighbour(data, 1, (torch.ones(2), torch.tensor(7)))
        >>> inputs[1], targets
        (tensor([1., 1.]), tensor([0, 7, 2]))
    """
    if not 0 <= index < len(data[0]):
        raise UserError(f"expected 0 <= index < {len(data[0])}, got index={index}")
    changed = []
    for whole, row in zip(data, sample, strict=True):
        if row.shape != whole.shape[1:]:
            raise UserError(
                f"expected a sample of shape {tuple(whole.shape[1:])}, got {tuple(row.shape)}"
            )
        copy = whole.detach().clone()
        copy[index] = row.to(copy)
        changed.append(copy)
    return changed[0], changed[1]


def index_sequence(n: int, steps: int, batch_size: int, seed: int) -> Tensor:
    """Which samples each step takes: uniform, with replacement (14.2), (steps, batch_size), int64.

    It depends on nothing else, so that runs on neighbours see the same places in the same order;
    a longer sequence begins like a shorter one.

    Args:
        n: samples, >= 1.
        steps: >= 0.
        batch_size: >= 1.
        seed: of its own generator.

    Raises:
        UserError: where an argument is out of its bounds.

    Examples:
        >>> index_sequence(10, 3, 2, seed=0).shape
        torch.Size([3, 2])
    """
    if n < 1 or steps < 0 or batch_size < 1:
        raise UserError(
            f"expected n >= 1, steps >= 0 and batch_size >= 1, got n={n}, steps={steps} and "
            f"batch_size={batch_size}"
        )
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(n, (steps, batch_size), generator=generator)


def as_pair(data: Iterable[Any], name: str) -> Dataset:
    """The data as two tensors; batches are joined."""
    source = Source(data, torch.device("cpu"), 1)
    if source.tensors is not None:
        return source.tensors
    parts = [(x, y) for x, y, _ in source]
    if any(not isinstance(z, Tensor) for part in parts for z in part):
        raise UserError(f"expected {name} to hold tensors, got {type(parts[0][0]).__name__}")
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """All common random streams start from the seed inside, and go on as before afterwards."""
    python = random.getstate()
    numpy: Any = sys.modules.get("numpy")
    legacy = numpy.random.get_state() if numpy is not None else None
    devices = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(seed)
        random.seed(seed)
        if numpy is not None:
            numpy.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(python)
            if legacy is not None:
                numpy.random.set_state(legacy)


def rising(steps: int | Sequence[int]) -> list[int]:
    """The steps to compare at, checked.

    Raises:
        UserError: where there is none, one is negative, or they do not rise.
    """
    at = [steps] if isinstance(steps, int) else list(steps)
    if not at or at[0] < 0 or any(b <= a for a, b in pairwise(at)):
        raise UserError(f"expected steps >= 0 in rising order, got steps={steps}")
    return at
