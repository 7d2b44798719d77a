"""Ranks of matrices and of Jacobians, (12.5)."""

from __future__ import annotations

import json
import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from gradwise.analysis.sparsity import jacobian_rank, numerical_rank
from gradwise.errors import UserError


@given(st.integers(0, 6), st.integers(6, 12), st.integers(6, 12), st.integers(0, 999))
def test_rank_of_a_product(r: int, n: int, p: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(n, 6, generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(p, 6, generator=generator, dtype=torch.float64))[0]
    matrix = left[:, :r] @ right[:, :r].T if r else torch.zeros(n, p)
    assert numerical_rank(matrix) == r
    assert numerical_rank(1e-30 * matrix) == r


def test_the_threshold_is_relative_and_strict() -> None:
    matrix = torch.diag(torch.tensor([8.0, 4.0, 2.0, 1.0]))
    assert [numerical_rank(matrix, rtol=r) for r in (0.1, 0.25, 0.3, 0.5)] == [4, 2, 2, 1]
    for wrong in (torch.ones(3), torch.full((2, 2), math.nan)):
        with pytest.raises(UserError, match="finite matrix"):
            numerical_rank(wrong)
    with pytest.raises(UserError, match="0 < rtol < 1"):
        numerical_rank(matrix, rtol=0.0)


class Diagonal(nn.Module):
    """f(x) = <u * v, x>."""

    def __init__(self, u: Tensor, v: Tensor) -> None:
        super().__init__()
        self.u, self.v = nn.Parameter(u), nn.Parameter(v)

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.u * self.v)


@pytest.mark.parametrize("n", [3, 9, 10, 11, 25, 31])
def test_a_diagonal_network(n: int) -> None:
    """Its matrix is [X v, X u]; fewer and more rows than the 10 parameters."""
    u, v = torch.tensor([1.0, 0.5, 0.0, 2.0, 0.0]), torch.tensor([0.3, 0.0, 0.0, 1.0, 0.7])
    x = torch.randn(n, 5)
    matrix = torch.cat([x * v, x * u], 1).double()
    found = jacobian_rank(Diagonal(u, v), (x, torch.zeros(n)), points=n, chunk_size=4)
    assert (found.rows, found.parameters) == (n, 10)
    assert found.rank == min(n, 4) == numerical_rank(matrix, rtol=1e-4)  # columns of 4 inputs
    expected = torch.linalg.svdvals(matrix)
    torch.testing.assert_close(found.singular_values, expected, atol=1e-5, rtol=1e-5)
    json.dumps(found.to_dict(), allow_nan=False)


def test_several_outputs_are_several_rows() -> None:
    model = nn.Linear(3, 2)
    found = jacobian_rank(model, (torch.randn(10, 3), torch.zeros(10)))
    # as many points as there are parameters, of one sample two rows: identity x [x, 1]
    assert (found.rows, found.parameters, found.rank) == (16, 8, 8)


def test_a_model_with_samples_of_low_rank() -> None:
    inputs = torch.randn(30, 2) @ torch.randn(2, 12)
    model, seen = nn.Linear(12, 1, bias=False), []
    batches = [(inputs[:20], 0), (inputs[20:], 0)]
    found = jacobian_rank(model, batches, points=25, progress=lambda *a: seen.append(a))
    assert (found.rank, found.rows, seen[-1], len(seen)) == (2, 25, (25, 25), 25)


def test_mistakes_of_the_jacobian() -> None:
    model, x = nn.Linear(2, 1), torch.ones(3, 2)
    with pytest.raises(UserError, match="points >= 1"):
        jacobian_rank(model, (x, x), points=0)
    with pytest.raises(UserError, match="rtol"):
        jacobian_rank(model, (x, x), rtol=1e-8)
    with pytest.raises(UserError, match="inputs to be a tensor, got list"):
        jacobian_rank(model, [([x], x)])
    with pytest.raises(UserError, match="finite gradients"):
        jacobian_rank(model, (x * math.nan, x))

    class Constant(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(UserError, match="got constants"):
        jacobian_rank(Constant(2, 1), (x, x))
