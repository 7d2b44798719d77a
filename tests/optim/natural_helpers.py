"""Networks and batches for the tests of natural gradients."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradwise.optim._natural import RENG, RING

both = pytest.mark.parametrize("cls", [RENG, RING])
EXACT: dict[str, Any] = {"newton_tol": 1e-11}


def network(sizes: Sequence[int], seed: int = 0) -> nn.Sequential:
    """A tanh network in float64."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inner, outer in itertools.pairwise(sizes):
        layers += [nn.Linear(inner, outer), nn.Tanh()]
    return nn.Sequential(*layers[:-1]).double()


def batch(n: int, inner: int, outer: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Inputs and targets, standard normal, float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, inner, generator=generator, dtype=torch.float64)
    return x, torch.randn(n, outer, generator=generator, dtype=torch.float64)


def half_squares(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Callable[[], Tensor]:
    """The closure of the mean over samples of half the squared error."""
    return lambda: (model(x) - y).square().sum() / (2 * len(x))


def joint(model: nn.Module) -> list[np.ndarray]:
    """Every linear layer's weight with its bias as the last column, as the oracle has them."""
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    return [torch.cat([m.weight, m.bias[:, None]], 1).detach().numpy().copy() for m in layers]


def vector(params: Sequence[Tensor]) -> Tensor:
    """All values one after the other."""
    return torch.cat([p.detach().reshape(-1) for p in params])


def taken(optimizer: torch.optim.Optimizer, closure: Callable[[], Tensor]) -> Tensor:
    """What one step takes off the parameters."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    before = vector(params).clone()
    optimizer.step(closure)  # type: ignore[arg-type]
    return before - vector(params)
