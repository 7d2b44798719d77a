"""Oracles for the optimizers: each method straight from its equations, in float64 numpy.

A method is built with its hyperparameters; ``init(shapes)`` gives one state dict a tensor and
``step(params, grads, state)`` returns new parameters and new states, the old ones untouched.
Numbers in parentheses are those of the equations that the library's docstrings quote. A complex
array is worked on as pairs of real numbers. A tensor whose gradient is None keeps its parameter
and its state, its step count included.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from reference.stepping import Array, Method, Shape, State, dot


class SGD(Method):
    """torch's: the buffer starts as the first gradient, undamped; Nesterov looks one step ahead."""

    buffers = ("momentum_buffer",)

    def __init__(
        self,
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(lr, **common)
        self.momentum, self.dampening, self.nesterov = momentum, dampening, nesterov

    def init(self, shapes: list[Shape]) -> list[State]:
        return [{"step": 0} for _ in shapes]  # torch has no buffer before the first gradient

    def update(self, p: Array, g: Array, s: State) -> Array:
        if self.momentum:
            old = s.get("momentum_buffer")
            new = g if old is None else self.momentum * old + (1 - self.dampening) * g
            s["momentum_buffer"] = new
            g = g + self.momentum * new if self.nesterov else new
        return p - self.lr * g


class AdamW(Method):
    """torch's: eps outside the root; ``amsgrad`` keeps the largest uncorrected second moment."""

    buffers = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        decoupled: bool = True,
        **common: Any,
    ) -> None:
        super().__init__(lr, weight_decay=weight_decay, decoupled=decoupled, **common)
        self.betas, self.eps, self.amsgrad = betas, eps, amsgrad

    def update(self, p: Array, g: Array, s: State) -> Array:
        (b1, b2), t = self.betas, s["step"]
        s["exp_avg"] = m = b1 * s["exp_avg"] + (1 - b1) * g
        s["exp_avg_sq"] = v = b2 * s["exp_avg_sq"] + (1 - b2) * g**2
        s["max_exp_avg_sq"] = top = np.maximum(s["max_exp_avg_sq"], v)
        second = (top if self.amsgrad else v) / (1 - b2**t)
        return p - self.lr * (m / (1 - b1**t)) / (np.sqrt(second) + self.eps)


class HGM(Method):
    """(2.1) to (2.5). The cosine looks at the momentum before this gradient entered it."""

    buffers = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        beta_s: float = 0.9,
        gamma: float = 0.5,
        scope: str = "tensor",
        decoupled: bool = True,
        **common: Any,
    ) -> None:
        super().__init__(lr, decoupled=decoupled, **common)
        self.betas, self.eps, self.beta_s, self.gamma = betas, eps, beta_s, gamma
        self.scope = scope

    def init(self, shapes: list[Shape]) -> list[State]:
        return [{**s, "alignment": 0.0} for s in super().init(shapes)]

    def cosine(self, some: list[tuple[Array, Array, State]]) -> float:
        """(2.1), the tensors given taken as one long vector."""
        gm = math.fsum(dot(g, s["exp_avg"]) for _, g, s in some)
        gg = math.fsum(dot(g, g) for _, g, _ in some)
        mm = math.fsum(dot(s["exp_avg"], s["exp_avg"]) for _, _, s in some)
        return gm / (math.sqrt(gg) * math.sqrt(mm) + self.eps)

    def updates(self, live: list[tuple[Array, Array, State]]) -> list[Array]:
        if self.scope == "global":
            cosines = [self.cosine(live)] * len(live)
        else:
            cosines = [self.cosine([one]) for one in live]
        return [self.aligned(*one, c) for one, c in zip(live, cosines, strict=True)]

    def aligned(self, p: Array, g: Array, s: State, c: float) -> Array:
        (b1, b2), t = self.betas, s["step"]
        s["alignment"] = self.beta_s * s["alignment"] + (1 - self.beta_s) * c  # (2.2)
        s["exp_avg"] = m = b1 * s["exp_avg"] + (1 - b1) * g  # (2.3)
        s["exp_avg_sq"] = v = b2 * s["exp_avg_sq"] + (1 - b2) * g**2
        eta = self.lr * math.exp(self.gamma * s["alignment"])  # (2.4)
        return p - eta * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + self.eps)  # (2.5)


class SGDF(Method):
    """(3.1) to (3.6)."""

    buffers = ("exp_avg", "exp_avg_var")

    def __init__(
        self,
        lr: float = 0.5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        gamma: float = 0.5,
        variance_factor: bool = True,
        **common: Any,
    ) -> None:
        super().__init__(lr, **common)
        self.betas, self.eps, self.gamma = betas, eps, gamma
        self.variance_factor = variance_factor

    def filtered(self, g: Array, s: State) -> Array:
        (b1, b2), t = self.betas, s["step"]
        s["exp_avg"] = m = b1 * s["exp_avg"] + (1 - b1) * g  # (3.1)
        s["exp_avg_var"] = v = b2 * s["exp_avg_var"] + (1 - b2) * (g - m) ** 2  # (3.2)
        mhat, vhat = m / (1 - b1**t), v / (1 - b2**t)  # (3.3)
        if self.variance_factor:
            vhat = vhat * (1 - b1) * (1 - b1 ** (2 * t)) / (1 + b1)
        gain = vhat / (vhat + (g - mhat) ** 2 + self.eps)  # (3.4)
        return mhat + gain**self.gamma * (g - mhat)  # (3.5)

    def update(self, p: Array, g: Array, s: State) -> Array:
        return p - self.lr * self.filtered(g, s)  # (3.6)


class AdaMomentum(Method):
    """(4.1) to (4.4): the momentum is what is squared, and eps accumulates in the recursion."""

    buffers = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-16,
        decoupled: bool = True,
        **common: Any,
    ) -> None:
        super().__init__(lr, decoupled=decoupled, **common)
        self.betas, self.eps = betas, eps

    def update(self, p: Array, g: Array, s: State) -> Array:
        (b1, b2), t = self.betas, s["step"]
        s["exp_avg"] = m = b1 * s["exp_avg"] + (1 - b1) * g  # (4.1)
        s["exp_avg_sq"] = v = b2 * s["exp_avg_sq"] + (1 - b2) * m**2 + self.eps  # (4.2)
        mhat, vhat = m / (1 - b1**t), v / (1 - b2**t)  # (4.3)
        return p - self.lr * mhat / np.sqrt(vhat)  # (4.4)


class AdaRem(Method):
    """(5.1) to (5.4): the factor looks at the old momentum, and leaves the decay alone."""

    buffers = ("exp_avg",)
    own_decay = True

    def __init__(
        self,
        lr: float = 0.1,
        beta: float = 0.9,
        lam: float = 0.999,
        eps: float = 1e-8,
        **common: Any,
    ) -> None:
        super().__init__(lr, **common)
        self.beta, self.lam, self.eps = beta, lam, eps

    def update(self, p: Array, g: Array, s: State) -> Array:
        m, t = s["exp_avg"], s["step"]
        top = max((abs(x) for x in m.reshape(-1).tolist()), default=0.0)
        b = np.sign(g) * m / (top + self.eps)  # (5.1)
        a = 1 + self.lam ** (t - 1) * b  # (5.2)
        s["exp_avg"] = self.beta * m + (1 - self.beta) * g  # (5.4)
        return p - self.lr * (a * g + self.weight_decay * p)  # (5.3)


class AdaGradOTA(Method):
    """(8.3), (8.4a), (8.5): no bias correction, eps outside the root."""

    buffers = ("exp_avg", "exp_avg_pow")

    def __init__(
        self,
        lr: float,
        alpha: float = 1.5,
        beta1: float = 0.0,
        eps: float = 1e-4,
        **common: Any,
    ) -> None:
        super().__init__(lr, **common)
        self.alpha, self.beta1, self.eps = alpha, beta1, eps

    def accumulated(self, v: Array, power: Array) -> Array:
        return v + power  # (8.4a)

    def update(self, p: Array, g: Array, s: State) -> Array:
        s["exp_avg"] = delta = self.beta1 * s["exp_avg"] + (1 - self.beta1) * g  # (8.3)
        s["exp_avg_pow"] = v = self.accumulated(s["exp_avg_pow"], np.abs(delta) ** self.alpha)
        return p - self.lr * delta / (v ** (1 / self.alpha) + self.eps)  # (8.5)


class AdamOTA(AdaGradOTA):
    """(8.3), (8.4b), (8.5)."""

    def __init__(
        self,
        lr: float,
        alpha: float = 1.5,
        betas: tuple[float, float] = (0.9, 0.3),
        eps: float = 1e-4,
        **common: Any,
    ) -> None:
        super().__init__(lr, alpha, betas[0], eps, **common)
        self.beta2 = betas[1]

    def accumulated(self, v: Array, power: Array) -> Array:
        return self.beta2 * v + (1 - self.beta2) * power  # (8.4b)
