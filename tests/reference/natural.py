"""Oracles for natural gradients: a tanh network written out, dense Fisher matrices, plain solves.

Nothing here knows of hooks, of Newton's iteration or of preconditioning from two sides: the network
is differentiated by hand, the Fisher matrix of a layer is a dense `kron(S, A)`, and gradients are
flattened row by row and solved for. Numpy in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from reference.moments import Array

Weights = list[Array]  # one [out, in + 1] a layer, the bias as the last column


def forward(weights: Weights, x: Array) -> tuple[list[Array], Array]:
    """Inputs of every layer with a 1 appended, [n, in + 1] each, and the last layer's output."""
    inputs, h = [], x
    for i, w in enumerate(weights):
        a = np.concatenate([h, np.ones((len(h), 1))], axis=1)
        inputs.append(a)
        h = a @ w.T
        if i < len(weights) - 1:
            h = np.tanh(h)
    return inputs, h


def loss(weights: Weights, x: Array, y: Array) -> float:
    """Mean over samples of half the squared error."""
    return float(np.sum((forward(weights, x)[1] - y) ** 2) / (2 * len(x)))


def samples(weights: Weights, x: Array, y: Array) -> tuple[list[Array], list[Array]]:
    """For every layer its inputs a, and d: gradients of single samples' losses, [n, out] each."""
    inputs, out = forward(weights, x)
    d, found = out - y, []
    for i in range(len(weights) - 1, -1, -1):
        found.append(d)
        if i:
            d = (d @ weights[i][:, :-1]) * (1 - inputs[i][:, :-1] ** 2)
    return inputs, found[::-1]


def gradients(weights: Weights, x: Array, y: Array) -> Weights:
    """Of the mean loss."""
    a, d = samples(weights, x, y)
    return [dl.T @ al / len(x) for al, dl in zip(a, d, strict=True)]


def moved(weights: Weights, by: Weights, factor: float) -> Weights:
    """`weights + factor * by`."""
    return [w + factor * b for w, b in zip(weights, by, strict=True)]


def hessian_vector(weights: Weights, x: Array, y: Array, v: Weights) -> Weights:
    """H v, by central differences of the gradient."""
    h = 1e-5 / max(1e-12, math.sqrt(sum(float(np.sum(b**2)) for b in v)))
    up, down = (gradients(moved(weights, v, s * h), x, y) for s in (1, -1))
    return [(u - d) / (2 * h) for u, d in zip(up, down, strict=True)]


def factors(a: Array, d: Array) -> tuple[Array, Array]:
    """A = E[a a^T] and S = E[d d^T]."""
    return (
        sum(np.outer(row, row) for row in a) / len(a),
        sum(np.outer(row, row) for row in d) / len(d),
    )


def fisher(a: Array, d: Array) -> Array:
    """The empirical Fisher matrix of one layer: E[vec(d a^T) vec(d a^T)^T], rows first."""
    flat = [np.outer(dn, an).reshape(-1) for an, dn in zip(a, d, strict=True)]
    return sum(np.outer(g, g) for g in flat) / len(flat)


def preconditioned(g: Array, a: Array, s: Array, damping: float) -> Array:
    """(6.5): the solution v of `kron(S + sqrt(lam) I, A + sqrt(lam) I) v = vec(G)`."""
    root = math.sqrt(damping)
    dense = np.kron(s + root * np.eye(len(s)), a + root * np.eye(len(a)))
    return np.linalg.solve(dense, g.reshape(-1)).reshape(g.shape)


def average(history: Sequence[Array], decay: float) -> Array:
    """The exponential average with its start corrected, from all values so far."""
    t = len(history)
    weights = [(1 - decay) * decay ** (t - 1 - i) for i in range(t)]
    return sum(w * h for w, h in zip(weights, history, strict=True)) / (1 - decay**t)


def patches(x: Array, kernel: tuple[int, int], stride: int, padding: int, dilation: int) -> Array:
    """[N T, C kh kw]: what a convolution multiplies its weight with, position by position."""
    n, c, h, w = x.shape
    big = np.zeros((n, c, h + 2 * padding, w + 2 * padding))
    big[:, :, padding : padding + h, padding : padding + w] = x
    span = [dilation * (k - 1) + 1 for k in kernel]
    rows = []
    for image in big:
        for i in range(0, big.shape[2] - span[0] + 1, stride):
            for j in range(0, big.shape[3] - span[1] + 1, stride):
                cut = image[:, i : i + span[0] : dilation, j : j + span[1] : dilation]
                rows.append(cut.reshape(-1))
    return np.array(rows)


class Natural:
    """RENG (`implicit=False`) or RING on the tanh network, (6.2) to (6.5), step by step."""

    def __init__(self, weights: Weights, implicit: bool, **options: Any) -> None:
        self.weights = [w.copy() for w in weights]
        self.implicit = implicit
        self.options = options
        self.t = 0
        self.history: list[list[tuple[Array, Array]]] = [[] for _ in weights]
        self.buffers: Weights | None = None

    def regularised(self, x: Array, y: Array) -> Weights:
        """(6.2) or (6.4)."""
        g, rho = gradients(self.weights, x, y), self.options["rho"]
        if self.implicit:
            return gradients(moved(self.weights, g, rho), x, y)
        return moved(g, hessian_vector(self.weights, x, y, g), rho) if rho else g

    def step(self, x: Array, y: Array) -> None:
        """One update."""
        o = self.options
        if self.t % o["factor_every"] == 0:
            a, d = samples(self.weights, x, y)
            for past, al, dl in zip(self.history, a, d, strict=True):
                past.append(factors(al, dl))
        directions = []
        for g, past in zip(self.regularised(x, y), self.history, strict=True):
            a_bar = average([a for a, _ in past], o["factor_decay"])
            s_bar = average([s for _, s in past], o["factor_decay"])
            # Factors are those of the last refresh, however many steps ago that was.
            directions.append(preconditioned(g, a_bar, s_bar, o["damping"]))
        if self.buffers is None:
            self.buffers = directions
        else:
            self.buffers = moved(directions, self.buffers, o["momentum"])
        shrunk = [w * (1 - o["lr"] * o["weight_decay"]) for w in self.weights]
        self.weights = moved(shrunk, self.buffers, -o["lr"])
        self.t += 1
