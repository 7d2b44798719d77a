"""Training of diagonal linear networks, and the flow that it follows: what users call."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from gradwise.analysis._diagonal_runs import (
    DiagonalRuns,
    Flow,
    Gradient,
    State,
    Stochastic,
    follow,
)
from gradwise.analysis._passes import Progress, Source
from gradwise.errors import UserError


def train_diagonal(
    data: Iterable[Any],
    *,
    alpha: float | Tensor,
    gamma: float | Tensor,
    steps: int,
    batch_size: int | None = 1,
    seeds: Sequence[int] = (0,),
    record_every: int | None = None,
    progress: Progress | None = None,
) -> DiagonalRuns:
    """Train diagonal linear networks from w+ = w- = alpha, one run a seed, all of them at once.

    With r_i = <beta, x_i> - y_i and a batch B of b samples, drawn uniformly with replacement,

        L(w) = (1/4n) sum_i r_i^2,  w+- <- w+- -+ gamma (1/b) sum_{i in B} r_i x_i * w+-    (13.2)

    of Pesme, Pillaud-Vivien and Flammarion, NeurIPS 2021, arXiv 2106.09524 [R], [D]; they have
    b = 1. A step multiplies w+ w- by 1 - (gamma r x)^2, coordinate by coordinate [D].

    Args:
        data: (inputs (n, d), targets (n,)), or batches of them; made float64.
        alpha: w+ and w- at the start, > 0; a tensor broadcasts against (R, d).
        gamma: step size, > 0, in units of 1 / (targets times squared inputs); or one a run, (R,).
        steps: how many, >= 0.
        batch_size: b >= 1; None for gradient descent on all samples, where seeds play no part.
        seeds: one a run; runs of one seed see the same samples in the same order.
        record_every: steps between records; only the start and the end where None.
        progress: is told the steps done and all.

    Raises:
        UserError: where an argument is out of its bounds, shapes do not fit, or a run diverges.

    Examples:
        >>> from gradwise.analysis.implicit_bias import planted_problem, train_diagonal
        >>> problem = planted_problem(n=20, d=40, r=2, seed=0)
        >>> sgd = train_diagonal(problem.data, alpha=0.1, gamma=0.05, steps=4000, seeds=range(3))
        >>> gd = train_diagonal(
        ...     problem.data, alpha=0.1, gamma=0.05, steps=4000, batch_size=None)
        >>> far = (gd.beta - problem.solution).norm()
        >>> ((sgd.beta - problem.solution).norm(dim=1) < far).tolist()
        [True, True, True]
    """
    inputs, targets = regression(data)
    start, rate = _per_run(alpha, gamma, len(seeds), inputs)
    if not bool((rate > 0).all()):
        raise UserError(f"expected 0 < gamma < inf, got gamma={rate.min().item()}")
    if batch_size is None:
        state: State = Gradient(start, rate, inputs)
        return follow(state, inputs, targets, steps, rate, 0 * rate, record_every, progress)
    if batch_size < 1:
        raise UserError(f"expected batch_size >= 1 or None, got batch_size={batch_size}")
    state = Stochastic(start, rate, inputs, batch_size, seeds)
    noise = rate / batch_size
    return follow(state, inputs, targets, steps, rate, noise, record_every, progress)


def diagonal_flow(
    data: Iterable[Any],
    *,
    alpha: float | Tensor,
    gamma: float | Tensor,
    dt: float,
    steps: int,
    seeds: Sequence[int] = (0,),
    record_every: int | None = None,
    progress: Progress | None = None,
) -> DiagonalRuns:
    """The stochastic gradient flow that SGD of step size gamma follows; gradient flow at gamma=0.

        dw+- = -grad L dt +- 2 sqrt(gamma L / n) w+- * (X^T dB),  B in R^n, Ito           (13.3)

    of Pesme, Pillaud-Vivien and Flammarion, NeurIPS 2021, arXiv 2106.09524 [R], [D]. This library
    takes the Euler-Maruyama steps on ln w+- instead of w+-, with Ito's correction, so that w+-
    stay positive, and w+ w- and the span of ln(w+ / w-) are those of the flow at any dt [D]: hence
    `effective_alpha` equals `predicted_alpha` to rounding.

    Args:
        data: (inputs (n, d), targets (n,)), or batches of them; made float64.
        alpha: w+ and w- at the start, > 0; a tensor broadcasts against (R, d).
        gamma: scale of the noise, >= 0, in units of the step size; or one a run, (R,).
        dt: time step, > 0; gamma is what SGD takes, smaller is closer to the flow.
        steps: how many, >= 0.
        seeds: of the noise, one a run.
        record_every: steps between records; only the start and the end where None.
        progress: is told the steps done and all.

    Raises:
        UserError: where an argument is out of its bounds, shapes do not fit, or a run diverges.

    Examples:
        >>> from gradwise.analysis.implicit_bias import diagonal_flow, planted_problem
        >>> problem = planted_problem(n=20, d=40, r=2, seed=0)
        >>> flow = diagonal_flow(problem.data, alpha=0.1, gamma=0.0, dt=0.02, steps=1000)
        >>> bool(flow.effective_alpha.allclose(flow.alpha, rtol=1e-12))
        True
    """
    inputs, targets = regression(data)
    start, scale = _per_run(alpha, gamma, len(seeds), inputs)
    if not bool((scale >= 0).all()):
        raise UserError(f"expected 0 <= gamma < inf, got gamma={scale.min().item()}")
    if not 0 < dt < math.inf:
        raise UserError(f"expected 0 < dt < inf, got dt={dt}")
    state = Flow(start, scale, inputs, float(dt), seeds)
    time = torch.full_like(scale, float(dt))
    return follow(state, inputs, targets, steps, time, scale, record_every, progress)


def regression(data: Iterable[Any]) -> tuple[Tensor, Tensor]:
    """Inputs (n, d) and targets (n,) in float64, where the pair lies; batches come to the CPU.

    Raises:
        UserError: where the shapes are others, there is no sample or input, or they are not real
            and finite.
    """
    source = Source(data, torch.device("cpu"), 1)
    pairs = [(x, y) for x, y, _ in source] if source.tensors is None else [source.tensors]
    if any(not isinstance(z, Tensor) or z.is_complex() for pair in pairs for z in pair):
        raise UserError("expected inputs and targets to be tensors of real numbers")
    if any(x.ndim != 2 or x.shape[1] == 0 or y.shape != x.shape[:1] for x, y in pairs):
        raise UserError(
            "expected inputs (n, d) and targets (n,) with d >= 1, got "
            f"{tuple(pairs[0][0].shape)} and {tuple(pairs[0][1].shape)}"
        )
    inputs = torch.cat([x.detach().double() for x, _ in pairs])
    targets = torch.cat([y.detach().double() for _, y in pairs])
    if not bool(inputs.isfinite().all()) or not bool(targets.isfinite().all()):
        raise UserError("expected finite inputs and targets, got NaN or infinite entries")
    return inputs, targets


def positive(value: float | Tensor, name: str, like: Tensor) -> Tensor:
    """A float64 tensor on the device of `like`, all of it > 0 and finite."""
    tensor = torch.as_tensor(value, dtype=torch.float64, device=like.device).detach()
    if not bool((tensor > 0).all()) or not bool(tensor.isfinite().all()):
        raise UserError(f"expected 0 < {name} < inf, got {name}={value}")
    return tensor


def _per_run(
    alpha: float | Tensor, gamma: float | Tensor, runs: int, inputs: Tensor
) -> tuple[Tensor, Tensor]:
    """Alpha as (R, d) and gamma as (R,), checked."""
    if runs == 0:
        raise UserError("expected at least one seed, got none")
    shape = torch.Size([runs, inputs.shape[1]])
    start = positive(alpha, "alpha", inputs)
    if start.ndim > 2 or any(
        a not in (1, b) for a, b in zip(start.shape[::-1], shape[::-1], strict=False)
    ):
        raise UserError(
            f"expected alpha to broadcast against (runs, d)={tuple(shape)}, "
            f"got shape {tuple(start.shape)}"
        )
    rate = torch.as_tensor(gamma, dtype=torch.float64, device=inputs.device).detach()
    if rate.shape not in ((), (1,), (runs,)) or not bool(rate.isfinite().all()):
        raise UserError(f"expected gamma to be finite, one number or {runs}, got gamma={gamma}")
    return start.expand(shape).clone(), rate.expand(runs).clone()
