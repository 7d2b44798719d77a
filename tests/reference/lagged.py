"""Oracle for lagged transforms, from (1.9): own parts of this step, common factors of the last.

A link is two things: what it makes of one gradient from that gradient alone, and one factor for all
of them. A chain decides on its factors from all gradients of a step, link after link, as it would
without a lag; what it does to them is done with the factors of the step before, 1 at first.
"""

from __future__ import annotations

from typing import Any

from reference.moments import Array
from reference.transforms import (
    Autoscale,
    ClipNorm,
    Grads,
    State,
    ZNorm,
    finite,
    total_norm,
)


class AutoscaleLink:
    """Centring is a layer's own; alpha is common."""

    def __init__(self, rule: str = "trend") -> None:
        self.method = Autoscale(rule)

    def init(self) -> State:
        return self.method.init()

    def factor(self, grads: Grads, state: State) -> tuple[float, State]:
        return self.method.alpha(self.method.sigma(grads), state)

    def apply(self, g: Array, factor: float) -> Array:
        return self.method.mapped(g, factor)


class ClipLink:
    """Nothing is a layer's own."""

    def __init__(self, max_norm: float) -> None:
        self.max_norm = ClipNorm(max_norm).max_norm

    def init(self) -> State:
        return {}

    def factor(self, grads: Grads, state: State) -> tuple[float, State]:
        return min(1.0, self.max_norm / (total_norm(grads) + 1e-6)), state

    def apply(self, g: Array, factor: float) -> Array:
        return factor * g


class ZNormLink:
    """Everything is a layer's own."""

    def init(self) -> State:
        return {}

    def factor(self, grads: Grads, state: State) -> tuple[float, State]:
        return 1.0, state

    def apply(self, g: Array, factor: float) -> Array:
        (out,), _ = ZNorm().step([g], {})
        assert out is not None
        return out


class Lagged:
    """(1.9) for a chain of links."""

    def __init__(self, *links: Any) -> None:
        self.links = links

    def init(self) -> State:
        return {"factors": [1.0 for _ in self.links], "links": [x.init() for x in self.links]}

    def step(self, grads: Grads, state: State, params: Grads | None = None) -> tuple[Grads, State]:
        out = grads
        for link, factor in zip(self.links, state["factors"], strict=True):
            # A gradient that is not finite stays as it is; the others do not know of it yet.
            out = [None if g is None else link.apply(g, factor) if finite(g) else g for g in out]
        if not all(g is None or finite(g) for g in grads):
            return out, state
        factors, states = [], []
        for link, before in zip(self.links, state["links"], strict=True):
            factor, after = link.factor(grads, before)
            grads = [None if g is None else link.apply(g, factor) for g in grads]
            factors.append(factor)
            states.append(after)
        return out, {"factors": factors, "links": states}
