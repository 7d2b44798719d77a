"""What all oracles of optimizers share: counting, ``maximize``, weight decay, pairs of reals."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np

Array = np.ndarray
State = dict[str, Any]
Shape = tuple[int, ...]


def pairs(x: Array, like: Array) -> Array:
    """Real numbers: a trailing axis of 2 where ``like`` is complex, else ``x`` in float64."""
    if np.iscomplexobj(like):
        z = np.asarray(x, dtype=np.complex128)
        return np.stack([z.real, z.imag], axis=-1)
    return np.asarray(x, dtype=np.float64)


def unpair(x: Array, like: Array) -> Array:
    """The way back from ``pairs``."""
    return np.asarray(x[..., 0] + 1j * x[..., 1] if np.iscomplexobj(like) else x)


def dot(a: Array, b: Array) -> float:
    """Sum of the products, added exactly."""
    return math.fsum((a * b).reshape(-1).tolist())


class Method:
    """Counting, the sign of ``maximize``, weight decay and pairs of reals, common to all.

    ``coupled``: the decay is part of the gradient that a method sees. ``decoupled``: parameters
    shrink by ``1 - lr * weight_decay`` before the update. A method with a decay of its own sets
    both aside by ``own_decay``.
    """

    buffers: ClassVar[tuple[str, ...]] = ()
    own_decay: ClassVar[bool] = False

    def __init__(
        self,
        lr: float,
        *,
        weight_decay: float = 0.0,
        decoupled: bool = False,
        maximize: bool = False,
    ) -> None:
        self.lr, self.weight_decay = lr, weight_decay
        self.decoupled, self.maximize = decoupled, maximize

    def init(self, shapes: list[Shape]) -> list[State]:
        return [{"step": 0, **{name: np.zeros(s) for name in self.buffers}} for s in shapes]

    def update(self, p: Array, g: Array, s: State) -> Array:
        """The new parameter; ``s`` is a fresh dict to be filled with the new state."""
        raise NotImplementedError

    def updates(self, live: list[tuple[Array, Array, State]]) -> list[Array]:
        """All tensors of a step: one by one, unless the method looks across tensors."""
        return [self.update(p, g, s) for p, g, s in live]

    def step(
        self, params: list[Array], grads: list[Array | None], state: list[State]
    ) -> tuple[list[Array], list[State]]:
        live = []
        for p, g, s in zip(params, grads, state, strict=True):
            if g is None:
                continue
            x, d = pairs(p, p), pairs(g, p)
            if self.maximize:
                d = -d
            if not self.own_decay and self.weight_decay:
                if self.decoupled:
                    x = x * (1 - self.lr * self.weight_decay)
                else:
                    d = d + self.weight_decay * x
            real = {name: pairs(s[name], p) for name in self.buffers if s.get(name) is not None}
            live.append((x, d, {**s, **real, "step": s["step"] + 1}))
        after = iter(zip(self.updates(live), live, strict=True))
        new_params, new_state = [], []
        for p, g, s in zip(params, grads, state, strict=True):
            if g is None:
                new_params.append(p)
                new_state.append(s)
                continue
            x, (_, _, filled) = next(after)
            new_params.append(unpair(x, p))
            shaped = {name: unpair(filled[name], p) for name in self.buffers if name in filled}
            new_state.append({**filled, **shaped})
        return new_params, new_state


def run(
    method: Method, params: list[Array], steps: list[list[Array | None]]
) -> tuple[list[Array], list[State]]:
    """Parameters and states after all steps from a fresh start."""
    state = method.init([p.shape for p in params])
    for grads in steps:
        params, state = method.step(params, grads, state)
    return params, state
