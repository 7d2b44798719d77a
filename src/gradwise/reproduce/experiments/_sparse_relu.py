"""A ReLU network on twelve points of a line, as in the authors' notebook.

Steps of so few numbers are fastest in plain numpy on the CPU, whatever the device is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from gradwise.analysis.schedules import WarmupThenDecay
from gradwise.analysis.sparsity import feature_sparsity, jacobian_rank

# The authors' points [V].
POINTS = np.arange(-5.5, 6.0) / 4 + 0.07
VALUES = 0.345 + np.array([-2, 1.5, 0, 0, 2, 1, 0, -1, 0, 1, 2, -1])
GRID = 200  # points where the function is drawn
SIMILAR = 0.99  # the authors' threshold of correlation for small networks [V]
CHECK = 500  # steps between looks for divergence


def fit(
    width: int,
    *,
    rate: float,
    peak: float,
    decay_at: float,
    steps: int,
    records: int,
    seed: int,
) -> dict[str, Any] | None:
    """Train by SGD with one sample a step on mean (f(x) - y)^2, warming up linearly, then decaying.

    f(x) = sum_k a_k relu(w_k x + b_k) + c, from w = +-2.5, b ~ 2.5 N(0, 1), a ~ 4 N(0, 1), c = 0:
    the authors' scheme [V] at scale 1 [X].

    Args:
        width: neurons.
        rate: base learning rate.
        peak: k of `WarmupThenDecay`.
        decay_at: q of it.
        steps: how many.
        records: about how many points of the course to keep.
        seed: of the start and of the samples drawn.

    Returns:
        Training loss, sparsity and singular values of the features and the rank of the Jacobian
        at the end, the function, and the course of loss and active share; None where it diverged.
    """
    generator = np.random.default_rng(seed)
    w = 2.5 * (2.0 * generator.integers(2, size=width) - 1)
    b, a, c = 2.5 * generator.standard_normal(width), 4 * generator.standard_normal(width), 0.0
    order = generator.integers(len(POINTS), size=steps)
    factor = WarmupThenDecay(steps, decay_at=decay_at, warmup=1.0, peak=peak)
    every = max(steps // records, 1)
    at: list[int] = []
    losses: list[float] = []
    actives: list[float] = []
    with np.errstate(all="ignore"):  # a run may diverge
        for step in range(steps + 1):
            if step % every == 0 or step == steps:
                hidden = np.maximum(np.outer(POINTS, w) + b, 0)
                at.append(step)
                losses.append(float(np.mean((hidden @ a + c - VALUES) ** 2)))
                actives.append(float((hidden > 0).mean()))
            if step % CHECK == 0 and not np.abs(a).max() < 1e8:
                return None
            if step < steps:
                x, y = POINTS[order[step]], VALUES[order[step]]
                inner = w * x + b
                out = np.maximum(inner, 0)
                push = 2 * rate * factor(step) * (a @ out + c - y)
                back = push * a * (inner > 0)
                a, c = a - push * out, c - push
                w, b = w - back * x, b - back
    if not np.isfinite(losses[-1]):
        return None
    model = _module(w, b, a, c)
    data = torch.from_numpy(POINTS)[:, None], torch.zeros(len(POINTS))
    features = feature_sparsity(model, data, "1", threshold=SIMILAR)["1"]
    grid = np.linspace(POINTS[0] - 0.05, POINTS[-1] + 0.05, GRID)
    points = torch.from_numpy(np.linspace(POINTS[0], POINTS[-1], 3 * width + 1))[:, None]
    return {
        "train_loss": losses[-1],
        "active": features.active,
        "distinct_active": features.distinct_active,
        "singular_sum": float(features.singular_values.sum()),
        "rank": jacobian_rank(model, (points, torch.zeros(len(points)))).rank,
        "grid": grid.tolist(),
        "function": (np.maximum(np.outer(grid, w) + b, 0) @ a + c).tolist(),
        "at": at,
        "losses": losses,
        "actives": actives,
    }


def _module(w: Any, b: Any, a: Any, c: float) -> nn.Sequential:
    """The same network in torch, for the analyses."""
    model = nn.Sequential(nn.Linear(1, len(w)), nn.ReLU(), nn.Linear(len(w), 1)).double()
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), (w[:, None], b, a[None], [c]), strict=True):
            parameter.copy_(torch.as_tensor(value))
    return model
