"""Problems for optimizers that take a closure: quadratics of known spectrum, a small network."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from gradwise.optim._implicit import ImplicitSGD

Closure = Callable[[], Tensor]


def closure_of(optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> Closure:
    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    return closure


def parameter(values: object, dtype: torch.dtype = torch.float64) -> nn.Parameter:
    return nn.Parameter(torch.as_tensor(values, dtype=dtype).clone())


def on_quadratic(
    a: np.ndarray, b: np.ndarray, theta: np.ndarray, **options: object
) -> tuple[nn.Parameter, ImplicitSGD, Closure]:
    """A parameter, the optimizer and the closure of ``theta A theta / 2 - b theta``."""
    weight = parameter(theta)
    optimizer = ImplicitSGD([weight], **options)
    matrix, vector = torch.from_numpy(a), torch.from_numpy(b)
    loss = lambda: weight @ matrix @ weight / 2 - vector @ weight  # noqa: E731  # one expression
    return weight, optimizer, closure_of(optimizer, loss)


def spectrum(seed: int, n: int, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """A random symmetric matrix with eigenvalues between two bounds, and a vector."""
    rng = np.random.default_rng(seed)
    turned, _ = np.linalg.qr(rng.normal(size=(n, n)))
    values = np.concatenate([[low, high], rng.uniform(low, high, n)])[:n]
    return turned @ np.diag(values) @ turned.T, rng.normal(size=n)


def network() -> tuple[nn.Module, Callable[[], Tensor]]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
    x = torch.randn(64, 6)
    y = x.sum(1, keepdim=True).sin()
    return model, lambda: (model(x) - y).square().mean()
