"""Weights over experts: optimistic Adapt-ML-Prod with clipping, equations (9.5) to (9.7)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradwise.errors import UserError


class AdaptMLProd:
    """Optimistic Adapt-ML-Prod over N experts whose losses may be of any size.

    With the weights p of a round, an expert's instantaneous regret is r_i = <p, l> - l_i for its
    loss l_i, and m_i the guess of r_i that the weights were made with.

        B_t     = max_{s<=t,i} |r_{s,i} - m_{s,i}|
        rbar    = m + (r - m) B_{t-1} / B_t                                             (9.5)
        eta_t,i = min(1 / (2 B_t), sqrt(ln N / (1 + sum_{s<=t} (rbar_{s,i} - m_{s,i})^2)))  (9.6)
        W_t,i   = (W_{t-1,i} exp(eta_{t-1,i} rbar_i - eta_{t-1,i}^2 (rbar_i - m_i)^2))
                  ^ (eta_t,i / eta_{t-1,i})
        p_{t+1,i} ~ eta_t,i W_t,i exp(eta_t,i m_{t+1,i})                                (9.7)

    C.-Y. Wei, Y.-T. Hong, C.-J. Lu, Tracking the Best Expert in Non-stationary Stochastic
    Environments, NeurIPS 2016, with the clipping of A. Cutkosky, Artificial Constraints and Hints
    for Unbounded Online Learning, COLT 2019. Tag [X]: it stands in for the Lipschitz-adaptive
    meta-algorithm of Xie, Zhao, Zhou (NeurIPS 2024, arXiv 2408.09074), whose own form is another.

    A round in which B grows from 0, the first one that surprises, moves no weight (B_{t-1} = 0).
    Logarithms of W are kept, all in float64 on the host: N is small.

    Args:
        count: N >= 1. A single expert has weight 1 forever.

    Raises:
        UserError: where count < 1.

    Examples:
        >>> meta = AdaptMLProd(2)
        >>> for _ in range(50):
        ...     weights, guesses = meta.weights()
        ...     loss = sum(p * l for p, l in zip(weights, [0.0, 1.0]))
        ...     meta.update([loss - 0.0, loss - 1.0], guesses)
        >>> weights[0] > 0.99
        True
    """

    def __init__(self, count: int) -> None:
        if count < 1:
            raise UserError(f"expected at least 1 expert, got count={count}")
        self.count = count
        self._log_weights = [0.0] * count
        self._squares = [0.0] * count
        self._bound = 0.0

    @property
    def rates(self) -> list[float]:
        """[N] eta of (9.6) for the coming round."""
        largest = 1 / (2 * self._bound) if self._bound > 0 else math.inf
        return [min(largest, math.sqrt(math.log(self.count) / (1 + s))) for s in self._squares]

    def weights(self, losses: Sequence[float] | None = None) -> tuple[list[float], list[float]]:
        """The coming round's weights, and the guesses m they were made with.

        The guess m_i = <p, z> - z_i for guessed losses z needs the weights that it makes. They
        meet where p(a), made with m_i = a - z_i, has the mean <p(a), z> = a; that lies between the
        smallest and the largest z and is found by bisection.

        Args:
            losses: [N] guessed losses z; None guesses nothing, so that m = 0.

        Returns:
            Weights of sum 1 and guesses of weighted sum 0, [N] each.
        """
        if self.count == 1:
            return [1.0], [0.0]
        rates = self.rates
        base = [math.log(e) + w for e, w in zip(rates, self._log_weights, strict=True)]
        if losses is None:
            return _softmax(base), [0.0] * self.count

        def tilted(mean: float) -> tuple[list[float], float]:
            logits = [b + e * (mean - z) for b, e, z in zip(base, rates, losses, strict=True)]
            p = _softmax(logits)
            return p, math.fsum(q * z for q, z in zip(p, losses, strict=True))

        low, high = min(losses), max(losses)
        for _ in range(100):  # halvings: more than float64 has digits, unless the mean is near 0
            middle = low + (high - low) / 2
            if not low < middle < high:
                break
            if tilted(middle)[1] >= middle:
                low = middle
            else:
                high = middle
        p, mean = tilted(low)
        return p, [mean - z for z in losses]

    def update(self, regrets: Sequence[float], guesses: Sequence[float]) -> None:
        """Take in a round.

        Args:
            regrets: [N] r_i = <p, l> - l_i.
            guesses: [N] m_i, as `weights` gave them.
        """
        if self.count == 1:
            return  # ln 1 = 0 would make every rate 0
        surprises = [r - m for r, m in zip(regrets, guesses, strict=True)]
        before, rates = self._bound, self.rates
        self._bound = max(before, *(abs(s) for s in surprises))
        shrink = before / self._bound if self._bound > 0 else 1.0
        clipped = [s * shrink for s in surprises]
        self._squares = [q + s * s for q, s in zip(self._squares, clipped, strict=True)]
        grown = [
            w + e * (m + s) - (e * s) ** 2
            for w, e, m, s in zip(self._log_weights, rates, guesses, clipped, strict=True)
        ]
        ratios = [new / old for new, old in zip(self.rates, rates, strict=True)]
        self._log_weights = [w * ratio for w, ratio in zip(grown, ratios, strict=True)]

    def state_dict(self) -> dict[str, Tensor]:
        """`log_weights` [N], `squares` [N] and `bound`, float64."""
        return {
            "log_weights": torch.tensor(self._log_weights, dtype=torch.float64),
            "squares": torch.tensor(self._squares, dtype=torch.float64),
            "bound": torch.tensor(self._bound, dtype=torch.float64),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take up where `state_dict` was called.

        Raises:
            UserError: where an entry is missing, has another size or is not finite.
        """
        taken = {}
        for name, size in (("log_weights", self.count), ("squares", self.count), ("bound", 1)):
            value = state_dict.get(name)
            if not isinstance(value, Tensor) or value.numel() != size:
                raise UserError(f"expected {name} of {size} values in the state of the weights")
            taken[name] = value.to(torch.float64).reshape(-1).tolist()
            if not all(map(math.isfinite, taken[name])):
                raise UserError(f"expected finite {name} in the state of the weights")
        self._log_weights, self._squares = taken["log_weights"], taken["squares"]
        self._bound = taken["bound"][0]


def _softmax(logits: Sequence[float]) -> list[float]:
    top = max(logits)
    parts = [math.exp(x - top) for x in logits]
    total = math.fsum(parts)
    return [x / total for x in parts]
