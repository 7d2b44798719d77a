"""Inverses by Newton's iteration: its bound, its starts, its end."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradwise.optim._newton import fresh_start, inverses, residual


def spd(n: int, seed: int, low: float = 0.05, high: float = 5.0, batch: int = 1) -> torch.Tensor:
    """Symmetric matrices with eigenvalues spread from low to high, float64."""
    generator = torch.Generator().manual_seed(seed)
    square = torch.randn(batch, n, n, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(square).Q
    return basis @ torch.diag(torch.linspace(high, low, n, dtype=torch.float64)) @ basis.mT


def norm(matrix: torch.Tensor, iterate: torch.Tensor) -> float:
    return float(torch.linalg.matrix_norm(residual(matrix, iterate), ord=2).amax())


@given(n=st.integers(1, 8), seed=st.integers(0, 1000), low=st.sampled_from([0.01, 0.3, 2.0]))
def test_the_residual_squares_itself(n, seed, low):
    matrix = spd(n, seed, low)
    x = fresh_start(matrix)
    first = norm(matrix, x)
    assert first < 1
    for k in range(1, 12):
        x = x + x @ residual(matrix, x)
        assert norm(matrix, x) <= first ** (2**k) + 1e-11


@given(n=st.integers(1, 12), seed=st.integers(0, 1000), batch=st.integers(1, 3))
def test_what_is_found_is_the_inverse(n, seed, batch):
    matrix = spd(n, seed, batch=batch)
    (found,) = inverses([matrix], [None], tol=1e-10)
    assert found.residual <= 1e-10
    assert found.fresh
    torch.testing.assert_close(found.matrix, torch.linalg.inv(matrix), rtol=1e-7, atol=1e-8)
    assert torch.equal(found.matrix, found.matrix.mT)


def test_the_tolerance_is_kept_and_not_overdone():
    matrix = spd(6, 0)
    (rough,) = inverses([matrix], [None], tol=0.3)
    (fine,) = inverses([matrix], [None], tol=1e-3)
    assert rough.iterations < fine.iterations
    for found, tol in ((rough, 0.3), (fine, 1e-3)):
        assert float(torch.linalg.matrix_norm(residual(matrix, found.matrix))) <= tol * (1 + 1e-9)
        (before,) = inverses([matrix], [None], tol=tol, max_iterations=found.iterations - 1)
        assert before.residual > tol


def test_a_warm_start_needs_fewer_iterations():
    old = spd(20, 0)
    new = old + 0.02 * spd(20, 1, 0.0)
    (before,) = inverses([old], [None])
    (warm,) = inverses([new], [before.matrix])
    (cold,) = inverses([new], [None])
    assert not warm.fresh
    assert warm.iterations <= 4 < 15 < cold.iterations
    torch.testing.assert_close(warm.matrix, cold.matrix, rtol=0, atol=1e-2)


def test_a_guess_that_does_not_contract_is_pulled_in():
    old = spd(10, 0)
    new = 4 * old + spd(10, 1)  # I - M X has an eigenvalue below -3
    (guess,) = inverses([old], [None], tol=1e-8)
    assert norm(new, guess.matrix) > 1
    (warm,) = inverses([new], [guess.matrix], tol=1e-8)
    (cold,) = inverses([new], [None], tol=1e-8)
    assert not warm.fresh
    assert warm.iterations < cold.iterations
    torch.testing.assert_close(warm.matrix, torch.linalg.inv(new), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "guess", [torch.zeros(1, 5, 5), -torch.eye(5)[None], torch.full((1, 5, 5), torch.nan), 1e9]
)
def test_a_guess_that_is_of_no_use_is_dropped(guess):
    matrix = spd(5, 3)
    start = torch.eye(5)[None] * guess if isinstance(guess, float) else guess
    (found,) = inverses([matrix], [start.double()], tol=1e-9)
    assert found.fresh
    torch.testing.assert_close(found.matrix, torch.linalg.inv(matrix), rtol=1e-7, atol=1e-7)


def test_only_the_matrices_of_a_batch_that_need_it_are_pulled_in():
    matrix = spd(6, 0, batch=2)
    (both,) = inverses([matrix], [None], tol=1e-9)
    start = both.matrix * torch.tensor([1.0, 5.0]).double()[:, None, None]
    (found,) = inverses([matrix], [start], tol=1e-9)
    assert not found.fresh
    torch.testing.assert_close(found.matrix, torch.linalg.inv(matrix), rtol=1e-7, atol=1e-7)


def test_ended_early_it_is_below_the_inverse():
    matrix = spd(8, 0, low=1e-4)
    exact = torch.linalg.inv(matrix)
    for iterations in (0, 3, 8, 15):
        (found,) = inverses([matrix], [None], max_iterations=iterations)
        assert found.iterations == iterations
        values = torch.linalg.eigvalsh(found.matrix)
        assert values.min() > 0
        assert torch.linalg.eigvalsh(exact - found.matrix).min() > -1e-8 * exact.norm()


def test_the_rounding_floor_ends_it():
    matrix = spd(30, 0, low=1e-4).float()
    (found,) = inverses([matrix], [None], tol=1e-12)
    assert found.iterations < 60
    assert 1e-12 < found.residual < 0.5


def test_large_and_small_scales():
    for scale in (1e-18, 1e18):  # the square of their norm is out of float32's range
        matrix = (spd(4, 0) * scale).float()
        (found,) = inverses([matrix], [None], tol=1e-4)
        assert found.residual <= 1e-4


def test_matrices_of_different_sizes_go_together():
    matrices = [spd(n, n) for n in (3, 1, 7)]
    together = inverses(matrices, [None] * 3, tol=1e-8)
    for matrix, found in zip(matrices, together, strict=True):
        (alone,) = inverses([matrix], [None], tol=1e-8)
        assert torch.equal(found.matrix, alone.matrix)
        assert found.iterations == alone.iterations
    assert inverses([], []) == []
