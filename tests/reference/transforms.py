"""Oracles for *decide* and *apply*: each method straight from its equations, on whole arrays.

No oracle knows of moments, affine maps or composition: it takes the list of gradients and returns
the list of new ones. State is a plain dict; a step returns a new one. Gradients are float64 or
complex128 arrays, or None.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from reference.moments import Array, affine, describe, pooled, reals, rows

Grads = list[Array | None]
State = dict[str, Any]


def finite(g: Array) -> bool:
    """Whether every number is finite."""
    return all(math.isfinite(x) for x in reals(g))


def eligible(g: Array | None) -> bool:
    """(1.1): a gradient exists, it has at least two dimensions and at least two (real) values."""
    return g is not None and g.ndim >= 2 and len(reals(g)) >= 2


def norm(values: list[float]) -> float:
    """Euclidean length."""
    return math.sqrt(math.fsum(x * x for x in values))


def total_norm(grads: Grads) -> float:
    """Euclidean length of all gradients as one vector."""
    return norm([x for g in grads if g is not None for x in reals(g)])


def percentile(history: list[float], p: float) -> float:
    """The p-th percentile with linear interpolation between the two closest ranks."""
    ordered = sorted(history)
    rank = p / 100 * (len(ordered) - 1)
    low = math.floor(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (rank - low) * (ordered[high] - ordered[low])


def clipped(grads: Grads, limit: float) -> Grads:
    """``g * min(1, c / (N + 1e-6))`` with N over all gradients."""
    factor = min(1.0, limit / (total_norm(grads) + 1e-6))
    return [None if g is None else g * factor for g in grads]


class Autoscale:
    """(1.1) to (1.5); ``alpha(sigma, state)`` holds the table of rules."""

    EPS = 1e-8

    def __init__(self, rule: str = "trend") -> None:
        self.rule = rule

    def init(self) -> State:
        return {"t": 0}

    def sigma(self, grads: Grads) -> float:
        """(1.3): pooled population std after centring, over the eligible tensors."""
        inside = [describe(reals(g)) for g in grads if g is not None and eligible(g)]
        count = sum(s.count for s in inside)
        return math.sqrt(math.fsum(s.m2 for s in inside) / count) if count else 0.0

    def alpha(self, sigma: float, state: State) -> tuple[float, State]:
        """(1.4): the factor of this step and the state after it."""
        if sigma == 0 or not math.isfinite(sigma):
            return 1.0, state
        t = state["t"] + 1
        first = t == 1
        if self.rule in ("trend", "follow"):
            log = math.log(sigma)
            before = log if first else state["m"]
            ratio = 1.0 if first else math.exp(before) / sigma
            alpha = min(1.0, ratio) if self.rule == "trend" else ratio
            return alpha, {"t": t, "m": before + (log - before) / math.sqrt(t)}
        if self.rule == "envelope":
            top = sigma if first else max(state["top"], sigma)
            return sigma / top, {"t": t, "top": top}
        if self.rule == "ratio":
            start = sigma if first else state["start"]
            return sigma / start, {"t": t, "start": start}
        stateless = {
            "damped": lambda: 1 / (1 + sigma),
            "log": lambda: max(-math.log10(sigma), 0.0),
            "inverse": lambda: 1 / (sigma + self.EPS),
            "center": lambda: 1.0,
        }
        return stateless[self.rule](), {"t": t}

    def step(self, grads: Grads, state: State, params: Grads | None = None) -> tuple[Grads, State]:
        if not all(g is None or finite(g) for g in grads):
            return grads, state  # nothing can be said about such a step: it passes
        alpha, state = self.alpha(self.sigma(grads), state)
        return [None if g is None else self.mapped(g, alpha) for g in grads], state

    @staticmethod
    def mapped(g: Array, alpha: float) -> Array:
        """(1.5): centred where eligible, and the common factor."""
        return affine(g, alpha, describe(reals(g)).mean if eligible(g) else 0.0)


class Center:
    """(1.7) for ``per="row"``; (1.2) for ``per="tensor"``."""

    def __init__(self, per: str = "tensor") -> None:
        self.per = per

    def init(self) -> State:
        return {}

    def center(self, g: Array) -> Array:
        if self.per == "tensor":
            return affine(g, 1.0, describe(reals(g)).mean)
        return np.stack([affine(r, 1.0, describe(reals(r)).mean) for r in rows(g)])

    def step(self, grads: Grads, state: State, params: Grads | None = None) -> tuple[Grads, State]:
        return [self.center(g) if eligible(g) else g for g in grads], state


class ZNorm:
    """(1.6) a tensor, or with the mean and std of all eligible gradients as one vector."""

    def __init__(self, per: str = "tensor", eps: float = 1e-8) -> None:
        self.per, self.eps = per, eps

    def init(self) -> State:
        return {}

    def step(self, grads: Grads, state: State, params: Grads | None = None) -> tuple[Grads, State]:
        together = pooled([g for g in grads if eligible(g)])
        out: Grads = []
        for g in grads:
            if not eligible(g):
                out.append(g)
                continue
            s = describe(reals(g)) if self.per == "tensor" else together
            out.append(affine(g, 1 / (s.std + self.eps), s.mean))
        return out, state


class ClipNorm:
    """Clip the length of all gradients together to ``max_norm``."""

    def __init__(self, max_norm: float) -> None:
        self.max_norm = max_norm

    def init(self) -> State:
        return {}

    def step(self, grads: Grads, state: State, params: Grads | None = None) -> tuple[Grads, State]:
        return clipped(grads, self.max_norm), state


class AutoClip:
    """Clip to a percentile of every length seen so far, this one included."""

    def __init__(self, percentile: float = 10) -> None:
        self.percentile = percentile

    def init(self) -> State:
        return {"history": []}

    def step(self, grads: Grads, state: State, params: Grads | None = None) -> tuple[Grads, State]:
        history = [*state["history"], total_norm(grads)]
        return clipped(grads, percentile(history, self.percentile)), {"history": history}


class ZClip:
    """Clip spikes of the length by its z-score, with running mean and variance."""

    def __init__(
        self,
        warmup: int = 25,
        threshold: float = 2.5,
        alpha: float = 0.97,
        max_norm: float = 1.0,
        eps: float = 1e-6,
    ) -> None:
        self.warmup, self.threshold, self.alpha = warmup, threshold, alpha
        self.max_norm, self.eps = max_norm, eps

    def init(self) -> State:
        return {"norms": [], "mean": None, "var": None}

    def step(self, grads: Grads, state: State, params: Grads | None = None) -> tuple[Grads, State]:
        n = total_norm(grads)
        if len(state["norms"]) < self.warmup:
            norms = [*state["norms"], n]
            start = describe(norms) if len(norms) == self.warmup else None
            mean, var = (start.mean, start.var) if start else (None, None)
            return clipped(grads, self.max_norm), {"norms": norms, "mean": mean, "var": var}
        mean, var = state["mean"], state["var"]
        std = math.sqrt(var)
        z = (n - mean) / (std + self.eps)
        limit = math.inf
        if z > self.threshold:
            limit = mean + self.threshold * std / (z / self.threshold)
        seen = n if math.isinf(limit) else limit
        new_mean = self.alpha * mean + (1 - self.alpha) * seen
        new_var = self.alpha * var + (1 - self.alpha) * (seen - new_mean) ** 2
        out = clipped(grads, min(limit, self.max_norm))
        return out, {"norms": state["norms"], "mean": new_mean, "var": new_var}


class AGC:
    """Bound the length of each output row by ``clipping`` times the length of its weights."""

    def __init__(self, clipping: float = 0.01, eps: float = 1e-3) -> None:
        self.clipping, self.eps = clipping, eps

    def init(self) -> State:
        return {}

    def unit(self, g: Array, w: Array) -> Array:
        size, limit = norm(reals(g)), self.clipping * max(norm(reals(w)), self.eps)
        return g * (limit / size) if size > limit else g

    def step(self, grads: Grads, state: State, params: Grads | None = None) -> tuple[Grads, State]:
        assert params is not None, "AGC needs the weights"
        out: Grads = []
        for g, w in zip(grads, params, strict=True):
            if g is None or g.size == 0:
                out.append(g)
            elif g.ndim < 2:
                out.append(self.unit(g, w))
            else:
                out.append(np.stack([self.unit(a, b) for a, b in zip(g, w, strict=True)]))
        return out, state


class Chain:
    """One method after the other, each on what the one before it left."""

    def __init__(self, *links: Any) -> None:
        self.links = links

    def init(self) -> State:
        return {"links": [link.init() for link in self.links]}

    def step(self, grads: Grads, state: State, params: Grads | None = None) -> tuple[Grads, State]:
        states = []
        for link, inner in zip(self.links, state["links"], strict=True):
            grads, after = link.step(grads, inner, params)
            states.append(after)
        return grads, {"links": states}


def run(method: Any, steps: list[Grads], params: Grads | None = None) -> list[Grads]:
    """The outputs of a sequence of steps from a fresh state."""
    state, outputs = method.init(), []
    for grads in steps:
        out, state = method.step(grads, state, params)
        outputs.append(out)
    return outputs


def alphas(rule: str, sigmas: list[float]) -> list[float]:
    """The factors that a rule gives for a sequence of global stds."""
    method, factors = Autoscale(rule), []
    state = method.init()
    for sigma in sigmas:
        alpha, state = method.alpha(sigma, state)
        factors.append(alpha)
    return factors
