"""Oracle for the online learners, in numpy, from equations (9.1) to (9.7) alone.

Points are 1-d float64 arrays; a round is a function that maps a point to the gradient there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

Array = np.ndarray
Gradient = Callable[[Array], Array]


def ball(radius: float, center: Array) -> Callable[[Array], Array]:
    """Projection on the ball."""

    def project(x: Array) -> Array:
        distance = math.sqrt(sum(float(d) ** 2 for d in x - center))
        return x.copy() if distance <= radius else center + radius * (x - center) / distance

    return project


def box(low: Array, high: Array) -> Callable[[Array], Array]:
    """Projection on the box."""
    return lambda x: np.minimum(np.maximum(x, low), high)


class OMD:
    """One base learner. `ell` is a function here; None drops the smoothness."""

    def __init__(
        self,
        project: Callable[[Array], Array],
        diameter: float,
        start: Array,
        ell: Callable[[float], float] | None = None,
        c: float = 4.0,
        lam: float | None = None,
        hint: str = "lookahead",
        delta: float = 1.0,
        bound: float = 0.0,
    ) -> None:
        self.project, self.diameter = project, diameter
        self.ell, self.c, self.lam, self.kind = ell, c, lam, hint
        self.under_the_root = [delta, 4 * bound**2]
        self.t = 1
        self.anchor = project(start)
        self.hint = np.zeros_like(start)
        # f_0 = 0: its gradient is 0 everywhere
        self.lhats = [] if ell is None else [ell(0.0)]
        self.eta = self._eta(math.inf)

    def _eta(self, last: float) -> float:
        """eta of round self.t: (9.3) or (9.4)."""
        if self.lam is None:
            curved = self.diameter / math.sqrt(math.fsum(self.under_the_root))
        else:
            curved = 2 / (self.lam * self.t)
        return min([last, curved, *(1 / (self.c * lhat) for lhat in self.lhats if lhat > 0)])

    @property
    def x(self) -> Array:
        """(9.1)."""
        return self.project(self.anchor - self.eta * self.hint)

    def play(self, grad: Gradient) -> None:
        """(9.2), then the next step size and hint."""
        g = grad(self.x)
        self.under_the_root.append(float(np.sum((g - self.hint) ** 2)))
        self.anchor = self.project(self.anchor - self.eta * g)
        ahead = grad(self.anchor)
        if self.ell is not None:
            self.lhats.append(self.ell(2 * math.sqrt(float(np.sum(ahead**2)))))
        self.t += 1
        self.eta = self._eta(self.eta)
        self.hint = {"lookahead": ahead, "last": g, "none": np.zeros_like(g)}[self.kind]


class Universal:
    """The two layers. The whole history of surprises is kept, and every sum taken anew."""

    def __init__(self, learners: Sequence[OMD], hinted: bool = True) -> None:
        self.learners = list(learners)
        self.n = len(learners)
        self.hinted = hinted
        self.bounds = [0.0]  # B_0, B_1, ...
        self.surprises: list[Array] = []  # rbar - m of every round
        self.log_weights = np.zeros(self.n)  # ln W
        self.last: Array | None = None
        self._mix()

    def _eta(self) -> Array:
        """(9.6)."""
        sums = np.sum(np.array(self.surprises).reshape(-1, self.n) ** 2, axis=0)
        eta = np.sqrt(math.log(self.n) / (1 + sums))
        return eta if self.bounds[-1] == 0 else np.minimum(eta, 1 / (2 * self.bounds[-1]))

    def _mix(self) -> None:
        """p of (9.7) and the hints m = <last, x - x_i>, which need each other."""
        self.points = np.stack([learner.x for learner in self.learners])
        self.p, self.m = np.ones(1), np.zeros(1)
        if self.n > 1:
            z = np.zeros(self.n) if self.last is None else self.points @ self.last

            def weights(a: float) -> Array:
                logits = np.log(self._eta()) + self.log_weights + self._eta() * (a - z)
                e = np.exp(logits - logits.max())
                return e / e.sum()

            low, high = float(z.min()), float(z.max())
            for _ in range(100):
                middle = (low + high) / 2
                low, high = (middle, high) if weights(middle) @ z >= middle else (low, middle)
            self.p = weights(low)
            self.m = self.p @ z - z
        self.x = self.p @ self.points

    def play(self, grad: Gradient) -> None:
        """One round."""
        g = grad(self.x)
        r = np.array([float(g @ (self.x - x)) for x in self.points])  # (9.5)
        for learner in self.learners:
            learner.play(grad)
        if self.n > 1:
            eta = self._eta()
            before = self.bounds[-1]
            now = max(before, float(np.abs(r - self.m).max()))
            clipped = (r - self.m) * (before / now if now > 0 else 1.0)
            self.bounds.append(now)
            self.surprises.append(clipped)
            grown = self.log_weights + eta * (self.m + clipped) - eta**2 * clipped**2
            self.log_weights = grown * (self._eta() / eta)
        self.last = g if self.hinted else None
        self._mix()
