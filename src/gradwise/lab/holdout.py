"""Rows held out of the training set, to choose learning rates by instead of the test set."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from gradwise.errors import UserError
from gradwise.lab.data import Dataset
from gradwise.lab.data.facts import channel_statistics, fingerprint
from gradwise.lab.seeding import derived_seed


def held_out_rows(rows: int, share: float) -> int:
    """How many of the training rows are held out: the share of them, rounded, but at least one.

    Args:
        rows: in the training set.
        share: above 0 and below 1.

    Examples:
        >>> held_out_rows(1437, 0.1), held_out_rows(3, 0.1)
        (144, 1)
    """
    return max(1, round(rows * share))


def hold_out(dataset: Dataset, share: float) -> tuple[Dataset, Tensor, Tensor]:
    """Take rows out of the training set, the same ones whatever is trained with whatever seed.

    They are the last of a shuffled training set, whose order a fixed seed decides: rows of a file
    may be sorted by class. Mean and standard deviation are those of the rows that stay, as if the
    others had never been there.

    Args:
        dataset: with at least 3 training rows.
        share: of its training rows, above 0 and below 1.

    Returns:
        The data set without them, which keeps the order of its rows, and the rows held out
        `[N, ...]` with their labels `[N]`.

    Raises:
        UserError: where fewer than two rows would stay to train on.

    Examples:
        >>> from gradwise.lab.data import load
        >>> kept, rows, labels = hold_out(load("digits", cache=False), 0.1)
        >>> len(kept.train_x), len(rows), len(labels)
        (1293, 144, 144)
    """
    rows = len(dataset.train_y)
    count = held_out_rows(rows, share)
    if rows - count < 2:
        raise UserError(
            f"expected at least 2 training rows besides the {count} held out to choose a learning "
            f"rate by, got {rows} in all"
        )
    generator = torch.Generator().manual_seed(derived_seed("validation"))
    order = torch.randperm(rows, generator=generator)
    held, kept = order[-count:].sort().values, order[:-count].sort().values
    train_x, train_y = dataset.train_x[kept], dataset.train_y[kept]
    mean, std = channel_statistics(train_x)
    rest = replace(
        dataset,
        train_x=train_x,
        train_y=train_y,
        mean=mean,
        std=std,
        fingerprint=fingerprint(train_x, train_y, dataset.test_x, dataset.test_y),
    )
    return rest, dataset.train_x[held], dataset.train_y[held]
