"""Small training loops with micro-batches, and what a probe should find in them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gradwise.watch.probes.noise import NoiseProbe

Sample = dict[str, Tensor | float]


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)


def micro_batch(number: int, like: Tensor, n: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 + number)
    data = torch.randn(n, 7, generator=generator).to(like.device, like.dtype)
    return data[:, :4], data[:, 4:]


def loss_of(model: nn.Module, number: int) -> Tensor:
    x, y = micro_batch(number, next(model.parameters()))
    return (model(x) - y).square().mean()


def vector(grads: Iterable[Tensor | None]) -> np.ndarray:
    """Gradients as one vector in float64."""
    parts = [np.zeros(0) if g is None else g.detach().double().numpy().ravel() for g in grads]
    return np.concatenate(parts)


def expected(micro: list[np.ndarray], scale: float = 1.0) -> tuple[float, float, float]:
    """Small, big and ratio by their definition, for losses multiplied by a scale."""
    small = float(np.mean([(g**2).sum() for g in micro]))
    big = float((np.mean(micro, axis=0) ** 2).sum())
    return small * scale**2, big * scale**2, float(len(micro))


def numbers(found: Sample) -> tuple[float, float, float]:
    assert set(found) == {"noise_small", "noise_big", "noise_ratio"}
    small, big, ratio = (float(found[f"noise_{key}"]) for key in ("small", "big", "ratio"))
    return small, big, ratio


@dataclass
class Loop:
    """Steps as a training script makes them, told to a probe as an attachment would."""

    model: nn.Module
    probe: NoiseProbe
    passes: int = 3
    divided: bool = True
    optimizer: torch.optim.Optimizer = field(init=False)
    zero: Callable[[], None] = field(init=False)
    between: Callable[[int], None] = field(default=lambda m: None)
    before_step: Callable[[], None] = field(default=lambda: None)
    done: int = 0

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05)
        self.zero = self.optimizer.zero_grad

    def step(self, passes: int | None = None) -> Sample:
        passes = self.passes if passes is None else passes
        self.zero()
        for m in range(passes):
            loss = loss_of(self.model, 100 * self.done + m)
            (loss / passes if self.divided else loss).backward()
            self.between(m)
        self.before_step()
        self.probe.gradients([p.grad for p in self.model.parameters()])
        self.optimizer.step()
        self.done += 1
        return self.probe.end()

    def true(self, passes: int | None = None) -> list[np.ndarray]:
        """The gradients of the micro-batches that the next step will see."""
        params = list(self.model.parameters())
        losses = (loss_of(self.model, 100 * self.done + m) for m in range(passes or self.passes))
        return [vector(torch.autograd.grad(loss, params)) for loss in losses]


def looped(passes: int = 3, *, every: int = 1, divided: bool = True) -> Loop:
    """A loop after its first step, which is never measured."""
    model = network()
    loop = Loop(model, NoiseProbe(list(model.parameters()), every=every), passes, divided)
    assert loop.step() == {}
    return loop


def agrees(found: Sample, truth: tuple[float, float, float], rel: float = 1e-12) -> bool:
    return numbers(found) == pytest.approx(truth, rel=rel)
