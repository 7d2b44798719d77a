"""States of diagonal linear networks, many at once, and the loop that follows them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from gradwise.analysis._passes import Progress
from gradwise.errors import UserError

# Draws are made in blocks of fixed length, so that a run of more steps begins like a shorter one,
# and a seed gives the same run whichever others are beside it.
INDEX_BLOCK = 1024
NOISE_BLOCK = 32
CHECK_EVERY = 1024  # steps between looks for a run that diverges


@dataclass(frozen=True)
class DiagonalRuns:
    """What runs of a diagonal linear network ended with, and what they passed; all float64.

    R runs, d coordinates, K records. Training advances the time s by gamma a step, a flow by dt.

    Attributes:
        plus: w+ at the end, (R, d).
        minus: w- at the end, (R, d).
        alpha: w+ = w- at the start, (R, d).
        noise: gamma / b of each run, (R,), in units of the step size; 0 without noise.
        loss_integral: int L(w_s) ds over the run, (R,), as the sum of L(w_t) times the time step.
        second_moment: diag(X^T X / n), (d,), in squared units of the inputs.
        steps: the K steps that were recorded, the first 0 and the last the end.
        losses: L of (13.2) there, (K, R), in squared units of the targets.
        betas: beta there, (K, R, d).
    """

    plus: Tensor
    minus: Tensor
    alpha: Tensor
    noise: Tensor
    loss_integral: Tensor
    second_moment: Tensor
    steps: tuple[int, ...]
    losses: Tensor
    betas: Tensor

    @property
    def beta(self) -> Tensor:
        """At the end, w+^2 - w-^2 (13.1), (R, d)."""
        return self.betas[-1]

    @property
    def effective_alpha(self) -> Tensor:
        """sqrt(|w+ w-|) at the end, (R, d): alpha without noise and at vanishing steps.

        As long as no step is so large that gamma |r x_j| > sqrt(2), it is at most alpha [D].
        """
        return self.plus.abs().sqrt() * self.minus.abs().sqrt()

    @property
    def predicted_alpha(self) -> Tensor:
        """(13.4) with this run's integral of the loss, (R, d); see `effective_alpha`."""
        rate = 2 * self.noise * self.loss_integral
        return self.alpha * torch.exp(-rate[:, None] * self.second_moment)

    def to_dict(self) -> dict[str, Any]:
        """The fields and the three properties as numbers and lists."""
        names = [f.name for f in fields(self)] + ["beta", "effective_alpha", "predicted_alpha"]
        values = {name: getattr(self, name) for name in names}
        return {k: v.tolist() if isinstance(v, Tensor) else list(v) for k, v in values.items()}


class State(ABC):
    """The weights of all runs, and how a step moves them."""

    @abstractmethod
    def weights(self) -> tuple[Tensor, Tensor]:
        """w+ and w-, (R, d) each."""

    @abstractmethod
    def advance(self, step: int, residual: Tensor, loss: Tensor) -> None:
        """One step, given the residuals (R, n) and losses (R,) before it."""


class Gradient(State):
    """Gradient descent on all samples."""

    def __init__(self, start: Tensor, rate: Tensor, inputs: Tensor) -> None:
        self.plus, self.minus = start.clone(), start.clone()
        self.rate, self.inputs = rate, inputs

    def weights(self) -> tuple[Tensor, Tensor]:
        """w+ and w-."""
        return self.plus, self.minus

    def advance(self, step: int, residual: Tensor, loss: Tensor) -> None:
        """(13.2)."""
        change = self.rate[:, None] * self._drive(step, residual)
        self.plus.addcmul_(self.plus, change, value=-1)
        self.minus.addcmul_(self.minus, change)

    def _drive(self, step: int, residual: Tensor) -> Tensor:
        return residual @ self.inputs / len(self.inputs)


class Stochastic(Gradient):
    """The same on samples drawn with replacement."""

    def __init__(
        self, start: Tensor, rate: Tensor, inputs: Tensor, batch: int, seeds: Sequence[int]
    ) -> None:
        super().__init__(start, rate, inputs)
        self.batch, self.generators = batch, _generators(seeds)
        self.block = torch.empty(0)

    def _drive(self, step: int, residual: Tensor) -> Tensor:
        if step % INDEX_BLOCK == 0:
            size = (INDEX_BLOCK, self.batch)
            drawn = [torch.randint(len(self.inputs), size, generator=g) for g in self.generators]
            self.block = torch.stack(drawn, 1).to(residual.device)  # (block, R, b)
        chosen = self.block[step % INDEX_BLOCK]
        weights = residual.gather(1, chosen)[:, None]
        return torch.bmm(weights, self.inputs[chosen])[:, 0] / self.batch


class Flow(State):
    """q = ln sqrt(w+ w-) and s = ln sqrt(w+ / w-), so w+- = exp(q +- s).

    By Ito, dq = -2 gamma L diag(X^T X / n) dt, without noise, and
    ds = -X^T r / n dt + 2 sqrt(gamma L / n) X^T dB.
    """

    def __init__(
        self, start: Tensor, scale: Tensor, inputs: Tensor, dt: float, seeds: Sequence[int]
    ) -> None:
        self.q, self.s = start.log(), torch.zeros_like(start)
        self.scale, self.inputs, self.dt = scale, inputs, dt
        self.second_moment = inputs.square().mean(0)
        self.generators = _generators(seeds)
        self.block = torch.empty(0)

    def weights(self) -> tuple[Tensor, Tensor]:
        """w+ and w-."""
        return (self.q + self.s).exp(), (self.q - self.s).exp()

    def advance(self, step: int, residual: Tensor, loss: Tensor) -> None:
        """Euler and Maruyama's step."""
        n = len(self.inputs)
        if step % NOISE_BLOCK == 0:
            size = (NOISE_BLOCK, n)
            drawn = [torch.randn(size, generator=g, dtype=torch.float64) for g in self.generators]
            self.block = torch.stack(drawn, 1).to(residual.device)  # (block, R, n)
        heat = self.scale * loss
        spread = 2 * (heat * self.dt / n).sqrt()[:, None] * self.block[step % NOISE_BLOCK]
        self.s += (spread - residual * (self.dt / n)) @ self.inputs
        self.q -= (2 * self.dt * heat)[:, None] * self.second_moment


def _generators(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(int(seed)) for seed in seeds]


@torch.no_grad()
def follow(
    state: State,
    inputs: Tensor,
    targets: Tensor,
    steps: int,
    time: Tensor,
    noise: Tensor,
    record_every: int | None,
    progress: Progress | None,
) -> DiagonalRuns:
    """Advance the state, keep the records and the integral of the loss."""
    if steps < 0:
        raise UserError(f"expected steps >= 0, got steps={steps}")
    every = max(steps, 1) if record_every is None else record_every
    if every < 1:
        raise UserError(f"expected record_every >= 1, got record_every={record_every}")
    integral = torch.zeros_like(time)
    alpha = state.weights()[0].clone()
    recorded: list[int] = []
    losses, betas = [], []
    for step in range(steps + 1):
        plus, minus = state.weights()
        beta = plus * plus - minus * minus
        residual = torch.addmm(-targets, beta, inputs.T)
        loss = residual.square().mean(1) / 4
        last = step == steps
        if (last or step % CHECK_EVERY == 0) and not bool(loss.isfinite().all()):
            raise UserError(
                f"expected a step size at which all runs converge, got a loss of "
                f"{loss[~loss.isfinite()][0].item()} by step {step}"
            )
        if last or step % every == 0:
            recorded.append(step)
            losses.append(loss)
            betas.append(beta)
        if progress is not None and (last or step % CHECK_EVERY == 0) and step > 0:
            progress(step, steps)
        if not last:
            integral += loss * time
            state.advance(step, residual, loss)
    return DiagonalRuns(
        plus.clone(),
        minus.clone(),
        alpha,
        noise,
        integral,
        inputs.square().mean(0),
        tuple(recorded),
        torch.stack(losses),
        torch.stack(betas),
    )
