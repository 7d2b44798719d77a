"""Small data, models and paired runs for the tests of stability."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from gradwise.analysis.stability import (
    Stability,
    half_squared_error,
    paired_runs,
)

Data = tuple[Tensor, Tensor]
N, D = 8, 3


def samples(count: int, seed: int) -> Data:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, D, generator=generator, dtype=torch.float64)
    return x, x.sum(1) + torch.randn(count, generator=generator, dtype=torch.float64)


DATA, FRESH, TEST = samples(N, 1), samples(4, 2), samples(50, 3)


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(D, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w


class Noisy(nn.Module):
    """Dropout and batch norm, and noise in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(D, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 1)
        ).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)[:, 0] + 0.01 * torch.randn(len(x), dtype=torch.float64)


def sgd(lr: float) -> Callable[[nn.Module], Optimizer]:
    return lambda model: SGD(model.parameters(), lr=lr)


def pairs(**changes: Any) -> Stability:
    given: dict[str, Any] = {
        "make_model": Linear,
        "loss_fn": half_squared_error,
        "data": DATA,
        "replacements": FRESH,
        "make_optimizer": sgd(0.1),
        "steps": [0, 5, 12],
        "batch_size": None,
    }
    return paired_runs(**{**given, **changes})
