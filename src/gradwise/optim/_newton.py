"""Inverses of positive definite matrices by Newton's iteration, begun where the last one ended.

The iteration is nothing but matrix products, so it runs at full speed wherever those do, and a good
first guess makes it short: the factors of a network change little from one refresh to the next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Below this the residual squares itself with every step; if it then does not even halve, what is
# left is rounding.
_QUADRATIC = 0.5
_FAR = 1000.0  # residual of a first guess that is no better than none


@dataclass(frozen=True)
class Inverse:
    """What the iteration came to.

    Attributes:
        matrix: [g, n, n], the symmetric part of the last iterate.
        iterations: updates made, two matrix products each.
        residual: the largest Frobenius norm of `I - M X` among the g, before symmetrising.
        fresh: whether it began without a first guess, or the guess was of no use.
    """

    matrix: Tensor
    iterations: int
    residual: float
    fresh: bool


def fresh_start(matrix: Tensor) -> Tensor:
    """`M^T / (||M||_1 ||M||_inf)`, from where the iteration converges for every regular M.

    Args:
        matrix: [..., n, n].

    Examples:
        >>> import torch
        >>> fresh_start(torch.tensor([[2.0, 0.0], [0.0, 4.0]]))
        tensor([[0.1250, 0.0000],
                [0.0000, 0.2500]])
    """
    sums = matrix.abs()
    columns = sums.sum(-2).amax(-1)[..., None, None]
    rows = sums.sum(-1).amax(-1)[..., None, None]
    return matrix.mT / columns / rows  # one after the other: the product may overflow


def residual(matrix: Tensor, iterate: Tensor) -> Tensor:
    """`I - M X`, [..., n, n]: what is missing, and what the next step squares."""
    product = torch.matmul(matrix, iterate).neg_()
    product.diagonal(dim1=-2, dim2=-1).add_(1.0)
    return product


def inverses(
    matrices: Sequence[Tensor],
    starts: Sequence[Tensor | None],
    *,
    tol: float = 1e-3,
    max_iterations: int = 60,
) -> list[Inverse]:
    r"""Invert matrices by `X <- X (2I - M X)`, all at once.

    The residual `R = I - M X` obeys `R_{k+1} = R_k^2`, hence `||R_k|| <= ||R_0||^(2^k)`. A first
    guess X, positive definite, is used as it is where `||R||_F < 1`. Where it is not contractive
    `X / (1 + ||R||_F)` is: the eigenvalues of M X are positive and at most `1 + ||R||_F`, so they
    come to lie in (0, 1]. A guess that is far off (or that is not positive definite, and so does
    not converge) is dropped, and the iteration begins at `fresh_start`.

    It ends at `||R||_F <= tol`, at the rounding floor (where R no longer falls though it should
    square itself) or after `max_iterations`. After the first update the eigenvalues of M X are in
    (0, 1] and rise: an inverse that was ended early is too small in the directions where M is
    small, which acts like more damping, never like less.

    The host reads the residuals of all matrices together, once an iteration.

    Args:
        matrices: symmetric positive definite, [g, n, n] each, in the type to compute in.
        starts: first guesses of the same shapes; None for none.
        tol: bound of the residual, > 0.
        max_iterations: updates at most.

    Returns:
        One result a batch of matrices, in their order.

    Examples:
        >>> import torch
        >>> (found,) = inverses([torch.tensor([[[4.0]]])], [None], tol=1e-6)
        >>> found.matrix, found.iterations
        (tensor([[[0.2500]]]), 0)
        >>> (again,) = inverses([torch.tensor([[[5.0]]])], [found.matrix], tol=1e-6)
        >>> again.matrix, again.iterations, again.fresh
        (tensor([[[0.2000]]]), 4, False)
    """
    jobs = [_Job(matrix, start) for matrix, start in zip(matrices, starts, strict=True)]
    active = jobs
    while active:
        norms = [job.measure() for job in active]
        values = torch.stack([norm.to(norms[0]) for norm in norms]).tolist()
        active = [
            job
            for job, value in zip(active, values, strict=True)
            if job.advance(value, tol, max_iterations)
        ]
    return [job.result() for job in jobs]


class _Job:
    """One batch of matrices on its way."""

    def __init__(self, matrix: Tensor, start: Tensor | None) -> None:
        self.matrix = matrix
        self.guessed = start is not None  # and whether that is any good is not known yet
        self.fresh = start is None
        self.iterate = fresh_start(matrix) if start is None else start
        self.previous = self.iterate
        self.value = math.inf
        self.iterations = 0

    def measure(self) -> Tensor:
        """0-d: the largest norm of the residuals."""
        self.rest = residual(self.matrix, self.iterate)
        self.norms = torch.linalg.matrix_norm(self.rest)
        largest: Tensor = self.norms.amax()
        return largest

    def advance(self, value: float, tol: float, max_iterations: int) -> bool:
        """Go one step on, given the norm that `measure` found; whether there is more to do."""
        if self.guessed:
            self.guessed = False
            if not value < 1:
                self._pull_in(value)
                return True
        if self.value < _QUADRATIC and not value < self.value / 2:
            if value < self.value:
                self.value = value
            else:
                self.iterate = self.previous
            return False
        if value <= tol:
            self.value = value
            return False
        if math.isnan(value) or self.iterations == max_iterations:
            if self.fresh:
                self.value = value
                return False
            self._begin_anew()  # the guess was not positive definite
            return True
        self.value, self.previous = value, self.iterate
        self.iterate = torch.baddbmm(self.iterate, self.iterate, self.rest)
        self.iterations += 1
        return True

    def _pull_in(self, value: float) -> None:
        if not value < _FAR:
            self._begin_anew()
            return
        # Eigenvalues of M X are at most 1 + ||R||; where that may be 2 or more, they are divided.
        reach = torch.where(self.norms < 1, 1.0, 1.0 + self.norms)
        self.iterate = self.iterate / reach[:, None, None]

    def _begin_anew(self) -> None:
        self.fresh = True
        self.iterate = self.previous = fresh_start(self.matrix)
        self.value, self.iterations = math.inf, 0

    def result(self) -> Inverse:
        matrix = (self.iterate + self.iterate.mT) / 2
        return Inverse(matrix, self.iterations, self.value, self.fresh)
