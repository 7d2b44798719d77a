"""Problems whose gradient noise is known exactly: all per-sample gradients at a point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from reference import noise as oracle

BATCH = 16


@dataclass(frozen=True)
class Problem:
    """Data, a model at a point that does not move, and batches drawn with replacement."""

    x: Tensor
    y: Tensor
    build: Callable[[], nn.Module]

    def model(self) -> nn.Module:
        torch.manual_seed(3)
        return self.build()

    def loss(self, model: nn.Module, generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(self.x), (BATCH,), generator=generator)
        return (model(self.x[rows]) - self.y[rows]).square().mean()

    def noise(self) -> oracle.Noise:
        """tr(Sigma) and |G|^2 of the mean loss, from the gradient of every single sample."""
        model = self.model()
        params = list(model.parameters())
        rows = []
        for x, y in zip(self.x, self.y, strict=True):
            grads = torch.autograd.grad((model(x[None]) - y[None]).square().mean(), params)
            rows.append(torch.cat([g.reshape(-1) for g in grads]).double().numpy())
        return oracle.exact(np.stack(rows))


def regression() -> Problem:
    """Linear regression in ten dimensions, away from its solution."""
    generator = torch.Generator().manual_seed(21)
    x = torch.randn(512, 10, generator=generator)
    slopes = torch.linspace(-1, 1, 10)[:, None]
    y = x @ slopes + 0.5 * torch.randn(512, 1, generator=generator)
    return Problem(x, y, lambda: nn.Linear(10, 1))


def classifier() -> Problem:
    """A small network with two outputs on data that it does not know yet."""
    generator = torch.Generator().manual_seed(22)
    x = torch.randn(512, 6, generator=generator)
    y = torch.stack([(x[:, :3] ** 2).sum(1), x[:, 3] * x[:, 4]], 1)
    return Problem(x, y, lambda: nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 2)))
