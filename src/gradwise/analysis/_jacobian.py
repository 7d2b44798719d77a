"""Ranks: of a matrix, and of the Jacobian of a model's outputs, equation (12.5)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradwise.analysis._frozen import device_of, frozen, trainable
from gradwise.analysis._passes import Progress, Source
from gradwise.errors import UserError

# Singular values come from squares: below about 1e-8 of the largest there is rounding alone.
LEAST_RTOL = 1e-7


@dataclass(frozen=True)
class JacobianRank:
    """Rank of the matrix of gradients of outputs, (12.5).

    Attributes:
        rank: #{s_i > rtol s_1}.
        rows: samples times outputs of one sample.
        parameters: columns, the trainable parameters' entries.
        singular_values: [min(rows, parameters)] float64, the largest first.
    """

    rank: int
    rows: int
    parameters: int
    singular_values: Tensor

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and a list."""
        return {**asdict(self), "singular_values": self.singular_values.tolist()}


def numerical_rank(matrix: Tensor, *, rtol: float = 1e-4) -> int:
    """#{s_i > rtol s_1} of a matrix's singular values s, (12.5); 0 for the zero matrix.

    Args:
        matrix: [n, p], real and finite; computed in float64.
        rtol: in (0, 1).

    Raises:
        UserError: where the matrix is none, or rtol is out of its bounds.

    Examples:
        >>> import torch
        >>> numerical_rank(torch.diag(torch.tensor([1.0, 1e-3, 1e-5])))
        2
    """
    if not 0 < rtol < 1:
        raise UserError(f"expected 0 < rtol < 1, got rtol={rtol}")
    if matrix.ndim != 2 or matrix.is_complex() or not bool(matrix.isfinite().all()):
        raise UserError(f"expected a real and finite matrix, got shape {tuple(matrix.shape)}")
    return rank_of(torch.linalg.svdvals(matrix.detach().to(torch.float64)), rtol)


def jacobian_rank(
    model: nn.Module,
    data: Iterable[Any],
    *,
    points: int | None = None,
    rtol: float = 1e-4,
    chunk_size: int = 256,
    progress: Progress | None = None,
) -> JacobianRank:
    """Rank of the per-sample gradients of a model's outputs w.r.t. its parameters, (12.5).

    Row (i, k) is the gradient of output k at sample i. For a scalar output that is the matrix of
    Andriushchenko et al. (ICML 2023, https://arxiv.org/abs/2210.05337) and of their code [V]; with
    more outputs, a row for each is this library's choice [X]. Evaluation mode; the model, its
    gradients, buffers and all random streams are left as they were.

    For small networks: one backward pass a row, and 8 min(rows, p) max(points', p) bytes or less,
    p parameters, points' the rows while they are fewer than p.

    Args:
        model: of tensors [n, ...] to tensors [n, ...], samples apart from each other.
        data: (inputs, targets) tensors or an iterable of such batches; targets are not used.
        points: at most so many samples, >= 1; None is as many as there are parameters, as in the
            paper.
        rtol: in [1e-7, 1).
        chunk_size: samples at once on the model's device where data are two tensors.
        progress: called with the samples done and `points`.

    Raises:
        UserError: where an argument is out of its bounds, inputs or outputs are not tensors with
            samples, or outputs do not depend on parameters or are not finite.

    Examples:
        A linear model's Jacobian is its inputs:

        >>> import torch
        >>> model = torch.nn.Linear(5, 1, bias=False)
        >>> inputs = torch.randn(20, 2) @ torch.randn(2, 5)
        >>> jacobian_rank(model, (inputs, torch.zeros(20)), points=20).rank
        2
    """
    params = list(trainable(model).values())
    p = sum(param.numel() for param in params)
    points = p if points is None else points
    if points < 1:
        raise UserError(f"expected points >= 1, got points={points}")
    checked_rtol(rtol)
    rows = _Rows(p)
    done = 0
    device = device_of(model)
    with frozen(model, data):
        for inputs, _, _ in Source(data, device, chunk_size):
            if not isinstance(inputs, Tensor):
                raise UserError(f"expected inputs to be a tensor, got {type(inputs).__name__}")
            for index in range(min(len(inputs), points - done)):
                for row in _gradients(model(inputs[index : index + 1]), params):
                    rows.add(row)
                done += 1
                if progress is not None:
                    progress(done, points)
            if done >= points:
                break
    singular = rows.singular_values()
    if not bool(singular.isfinite().all()):
        raise UserError("expected finite gradients of the outputs, got NaN or infinite ones")
    return JacobianRank(rank_of(singular, rtol), rows.count, p, singular)


class _Rows:
    """Rows of a [count, p] matrix: kept while they are fewer than p, then folded to [p, p]."""

    def __init__(self, p: int) -> None:
        self._p = p
        self._kept: list[Tensor] = []
        self._gram: Tensor | None = None
        self.count = 0

    def add(self, row: Tensor) -> None:
        self._kept.append(row)
        self.count += 1
        if len(self._kept) == self._p:
            matrix = torch.stack(self._kept).to(torch.float64)
            folded = matrix.T @ matrix
            self._gram = folded if self._gram is None else self._gram + folded
            self._kept = []

    def singular_values(self) -> Tensor:
        """[min(count, p)], the largest first."""
        if self._gram is None:
            matrix = torch.stack(self._kept).to(torch.float64)
            return spectrum(matrix @ matrix.T)
        if self._kept:
            matrix = torch.stack(self._kept).to(torch.float64)
            self._gram = self._gram + matrix.T @ matrix
            self._kept = []
        return spectrum(self._gram)


def spectrum(gram: Tensor) -> Tensor:
    """Singular values, the largest first, of a matrix whose Gram matrix [m, m] is given."""
    if not bool(gram.isfinite().all()):
        return torch.full_like(gram[0], torch.nan)
    squares: Tensor = torch.linalg.eigvalsh(gram)
    return squares.clamp(min=0).sqrt().flip(0)


def rank_of(singular: Tensor, rtol: float) -> int:
    """#{s_i > rtol s_1}, the largest first."""
    return int((singular > rtol * singular[:1]).sum())


def checked_rtol(rtol: float) -> float:
    """The same.

    Raises:
        UserError: where it is out of its bounds.
    """
    if not LEAST_RTOL <= rtol < 1:
        raise UserError(f"expected {LEAST_RTOL:g} <= rtol < 1, got rtol={rtol}")
    return rtol


def _gradients(output: object, params: list[nn.Parameter]) -> list[Tensor]:
    """The gradient of each output of one sample, flat, on the host."""
    if not isinstance(output, Tensor) or output.is_complex():
        raise UserError("expected the model's output to be a real tensor")
    if not output.requires_grad:
        raise UserError("expected outputs that depend on a trainable parameter, got constants")
    outputs, rows = output.reshape(-1), []
    for k, value in enumerate(outputs):
        grads = torch.autograd.grad(
            value, params, retain_graph=k + 1 < len(outputs), materialize_grads=True
        )
        rows.append(torch.cat([g.to_dense().reshape(-1) for g in grads]).cpu())
    return rows
