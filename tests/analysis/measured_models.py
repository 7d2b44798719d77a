"""Small models and data to measure on, and what an analysis must leave as it was."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Quadratic(nn.Module):
    """Outputs theta^T H theta / 2 for each sample, whatever it is."""

    def __init__(self, hessian: Tensor, at: Tensor) -> None:
        super().__init__()
        self.register_buffer("hessian", hessian.double())
        self.theta = nn.Parameter(at.double())

    def forward(self, inputs: Tensor) -> Tensor:
        return (self.theta @ self.hessian @ self.theta / 2).expand(len(inputs))


def as_loss(outputs: Tensor, _: Tensor) -> Tensor:
    return outputs.mean()


ONE = (torch.zeros(1, 1), torch.zeros(1))


class Wandering(nn.Module):
    """Has everything that a forward pass may change."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, 1)
        )
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("replaced", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        self.replaced = self.replaced + 1
        torch.rand(1), random.random(), np.random.rand()
        return self.net(inputs)


def regression(n: int = 24, d: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return (
        torch.randn(n, d, generator=generator, dtype=torch.float64),
        torch.randn(n, 1, generator=generator, dtype=torch.float64),
    )


def per_sample(model: nn.Module, data: tuple[Tensor, Tensor]) -> np.ndarray:
    """The gradient of each sample's squared error, [n, p], one backward pass each."""
    rows = []
    for x, y in zip(*data, strict=True):
        loss = nn.functional.mse_loss(model(x[None]), y[None])
        grads = torch.autograd.grad(loss, list(model.parameters()))
        rows.append(torch.cat([g.flatten() for g in grads]).double().numpy())
    return np.array(rows)


def shuffled(data: tuple[Tensor, Tensor], batch_size: int) -> DataLoader:
    return DataLoader(
        TensorDataset(*data),
        batch_size=batch_size,
        shuffle=True,
        generator=torch.Generator().manual_seed(3),
    )


@contextmanager
def untouched(model: nn.Module, loader: DataLoader | None = None) -> Iterator[None]:
    """Fails where the block changes anything of the model or of a random stream."""

    def state() -> list[object]:
        return [
            {k: v.clone() for k, v in model.state_dict().items()},
            [m.training for m in model.modules()],
            [p.requires_grad for p in model.parameters()],
            [None if p.grad is None else p.grad.clone() for p in model.parameters()],
            torch.get_rng_state(),
            None if loader is None else loader.generator.get_state(),
            [np.asarray(x).tolist() for x in np.random.get_state()[1:]],
            torch.is_grad_enabled(),
        ]

    ids = [id(x) for x in (*model.parameters(), *model.buffers())]
    before = state()
    yield
    for was, now in zip(before, state(), strict=True):
        torch.testing.assert_close(now, was, rtol=0, atol=0)
    assert [id(x) for x in (*model.parameters(), *model.buffers())] == ids


def linear(d: int = 4) -> nn.Module:
    return nn.Linear(d, 1, bias=False, dtype=torch.float64)


def matrix(eigenvalues: list[float], seed: int = 0) -> tuple[Tensor, Tensor]:
    """A symmetric matrix with these eigenvalues, and its eigenvectors as columns."""
    generator = torch.Generator().manual_seed(seed)
    n = len(eigenvalues)
    basis = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]
    return basis @ torch.diag(torch.tensor(eigenvalues).double()) @ basis.T, basis


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).double()
