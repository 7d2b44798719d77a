"""How the entries of each gradient are spread over magnitudes: counts in bins of powers of two."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gradwise.backends import bins
from gradwise.errors import UserError
from gradwise.watch.probes.plain import checked_every, holds_values, home_of

LOWEST, HIGHEST = -126, 126  # exponents of normal float32 numbers


class Histograms:
    """Counts of gradient entries by sign and magnitude, at every k-th step.

    The edges are -2^high, ..., -2^low, 2^low, ..., 2^high. With E of them there are E + 1 bins:
    bin 0 holds what is below the first edge, bin i what is not below edge i - 1 and below edge i,
    the last one all else. So the middle bin is for zeros and what is too small to matter, the
    outer two are for what is too large; an infinity is in one of those two, and a NaN in no bin.
    Counts are exact for every type of gradient, with any loss scale.

    Args:
        every: steps between two samples; the first one is taken at once.
        low: exponent of the smallest edge.
        high: exponent of the largest edge.

    Attributes:
        edges: the E edges, ascending, as `RunWriter(histogram_edges=...)` takes them.

    Raises:
        UserError: where `every` is below 1 or the exponents are not -126 <= low <= high <= 126.

    Examples:
        >>> probe = Histograms(every=10, low=-1, high=1)
        >>> probe.edges
        (-2.0, -1.0, -0.5, 0.5, 1.0, 2.0)
        >>> probe.look([torch.tensor([-3.0, 0.0, -0.0, 0.6, 1.5]), None]).tolist()
        [[1, 0, 0, 2, 1, 1, 0], [0, 0, 0, 0, 0, 0, 0]]
        >>> probe.look([torch.tensor([1.0]), None]) is None
        True
    """

    def __init__(self, every: int = 100, *, low: int = -40, high: int = 8) -> None:
        if not LOWEST <= low <= high <= HIGHEST:
            raise UserError(
                f"expected {LOWEST} <= low <= high <= {HIGHEST}, got low={low} and high={high}"
            )
        self.every = checked_every(every)
        self.edges = bins.edges(low, high)
        self._low, self._high = low, high
        self._seen = 0

    @torch.no_grad()
    def look(self, grads: Sequence[Tensor | None], scale: Tensor | None = None) -> Tensor | None:
        """Count if it is time to.

        Args:
            grads: dense or sparse, real or complex (which counts as pairs of reals).
            scale: 0-d loss scale that they are multiplied by, which is divided out; None for 1.

        Returns:
            [P, E + 1] int64 on the device of the first gradient; rows of zeros where there is no
            gradient or none that lies in memory of its own (a DTensor). None between samples. On
            an accelerator nothing waits, but for sparse gradients, which have to be coalesced.
        """
        turn = self._seen % self.every == 0
        self._seen += 1
        if not turn:
            return None
        there = [None if g is None or not holds_values(type(g)) else g for g in grads]
        home = home_of([grad for grad in grads if grad is not None])
        return bins.histogram(there, self._low, self._high, scale, home)
