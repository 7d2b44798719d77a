"""Diagonal linear networks: runs against the oracle, effective alpha, end points."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor

from gradwise.analysis._diagonal_runs import INDEX_BLOCK, NOISE_BLOCK
from gradwise.analysis.implicit_bias import (
    DiagonalRuns,
    PlantedProblem,
    diagonal_flow,
    effective_alpha,
    hyperbolic_entropy,
    kkt_residual,
    planted_problem,
    train_diagonal,
)
from reference import diagonal as oracle

SMALL = planted_problem(n=4, d=7, r=2, seed=3)
X, Y = SMALL.inputs.numpy(), SMALL.targets.numpy()


def drawn(n: int, batch: int, steps: int, seed: int) -> list[list[int]]:
    """The samples of a run, blocks of INDEX_BLOCK steps from its seed's generator."""
    generator = torch.Generator().manual_seed(seed)
    blocks = 1 + steps // INDEX_BLOCK
    parts = [torch.randint(n, (INDEX_BLOCK, batch), generator=generator) for _ in range(blocks)]
    indices: list[list[int]] = torch.cat(parts)[:steps].tolist()
    return indices


def close(a: Tensor, b: np.ndarray, rtol: float = 1e-9) -> None:
    np.testing.assert_allclose(a.numpy(), b, rtol=rtol, atol=1e-14)


@pytest.mark.parametrize("batch", [1, 3, None])
@pytest.mark.parametrize("steps", [0, 1, 40, INDEX_BLOCK + 3])
def test_runs_equal_the_oracle(batch: int | None, steps: int) -> None:
    gammas = torch.tensor([0.02, 0.1])
    runs = train_diagonal(
        SMALL.data, alpha=0.3, gamma=gammas, steps=steps, batch_size=batch, seeds=[5, 6]
    )
    for k, (gamma, seed) in enumerate(zip(gammas.double().tolist(), [5, 6], strict=True)):
        batches = [[*range(4)]] * steps if batch is None else drawn(4, batch, steps, seed)
        plus, minus, integral = oracle.train(X, Y, 0.3, gamma, batches)
        close(runs.plus[k], plus)
        close(runs.minus[k], minus)
        close(runs.beta[k], plus**2 - minus**2, rtol=1e-7)
        assert runs.loss_integral[k].item() == pytest.approx(integral, rel=1e-9)
        assert runs.losses[-1, k].item() == pytest.approx(oracle.loss(X, Y, plus, minus), rel=1e-7)


def test_a_step_follows_the_gradient_of_the_loss() -> None:
    w = torch.full((2, 7), 0.3, dtype=torch.float64, requires_grad=True)
    loss = (SMALL.inputs @ (w[0] ** 2 - w[1] ** 2) - SMALL.targets).square().sum() / (4 * 4)
    (grad,) = torch.autograd.grad(loss, w)
    runs = train_diagonal(SMALL.data, alpha=0.3, gamma=0.1, steps=1, batch_size=None)
    torch.testing.assert_close(torch.cat([runs.plus, runs.minus]), (w - 0.1 * grad).detach())
    assert runs.losses[0].item() == pytest.approx(loss.item())


def test_the_mean_of_all_sgd_steps_is_the_step_of_all_samples() -> None:
    seeds = range(40)
    runs = train_diagonal(SMALL.data, alpha=0.3, gamma=0.1, steps=1, seeds=seeds)
    which = {drawn(4, 1, 1, seed)[0][0]: seed for seed in seeds}
    assert len(which) == 4
    mean = runs.plus[list(which.values())].mean(0)
    full = train_diagonal(SMALL.data, alpha=0.3, gamma=0.1, steps=1, batch_size=None)
    torch.testing.assert_close(mean, full.plus[0])


@given(st.integers(0, 2**31), st.floats(0.01, 1), st.floats(0.001, 0.1), st.integers(1, 30))
def test_a_step_shrinks_the_product_by_its_square(
    seed: int, alpha: float, gamma: float, steps: int
) -> None:
    before, after = (
        train_diagonal(SMALL.data, alpha=alpha, gamma=gamma, steps=t, seeds=[seed])
        for t in (steps - 1, steps)
    )
    (i,) = drawn(4, 1, steps, seed)[-1]
    r = SMALL.inputs[i] @ before.beta[0] - SMALL.targets[i]
    factor = 1 - (gamma * r * SMALL.inputs[i]) ** 2
    torch.testing.assert_close(after.plus * after.minus, before.plus * before.minus * factor)
    if bool((factor.abs() <= 1).all()):
        assert bool((after.effective_alpha <= before.effective_alpha * (1 + 1e-12)).all())


def test_gradient_flow_keeps_the_product_and_ends_where_small_steps_end() -> None:
    flow = diagonal_flow(SMALL.data, alpha=0.3, gamma=0.0, dt=0.001, steps=4000)
    torch.testing.assert_close(flow.plus * flow.minus, flow.alpha**2, rtol=1e-12, atol=0)
    steps = train_diagonal(SMALL.data, alpha=0.3, gamma=0.001, steps=4000, batch_size=None)
    torch.testing.assert_close(steps.beta, flow.beta, rtol=0.01, atol=1e-3)
    assert bool((flow.noise == 0).all())
    assert bool((steps.noise == 0).all())  # and so both predict alpha as it was
    assert torch.equal(flow.predicted_alpha, flow.alpha)


def test_the_flow_is_the_limit_of_its_equation_as_it_stands() -> None:
    """Steps on w and on ln w agree better the smaller they are, as Ito's correction is there."""

    def gap(dt: float) -> float:
        steps, seeds, worst = round(1 / dt), range(4), []
        runs = diagonal_flow(SMALL.data, alpha=0.3, gamma=0.3, dt=dt, steps=steps, seeds=seeds)
        for seed in seeds:
            generator = torch.Generator().manual_seed(seed)
            blocks = -(-steps // NOISE_BLOCK)
            draws = [
                torch.randn(NOISE_BLOCK, 4, generator=generator, dtype=torch.float64)
                for _ in range(blocks)
            ]
            db = torch.cat(draws)[:steps].numpy() * math.sqrt(dt)
            plus, minus = oracle.flow(X, Y, 0.3, 0.3, dt, db)
            worst.append(np.abs(np.log(runs.plus[seed].numpy() / plus)).max())
            worst.append(np.abs(np.log(runs.minus[seed].numpy() / minus)).max())
        return float(np.mean(worst))

    coarse, fine = gap(1 / 64), gap(1 / 2048)
    assert fine < 0.02
    assert fine < coarse / 3  # sqrt(32) = 5.7 at strong order 1/2


def test_the_flow_has_the_noise_of_sgd_where_all_residuals_are_equally_large() -> None:
    x = torch.tensor([[1.0, 2.0], [1.0, 2.0]], dtype=torch.float64)
    data = (x, torch.tensor([1.0, -1.0]))  # the gradient at beta = 0 is 0, all of a step is noise
    seeds, gamma = range(4000), 0.01
    flow = diagonal_flow(data, alpha=1.0, gamma=gamma, dt=gamma, steps=1, seeds=seeds)
    sgd = train_diagonal(data, alpha=1.0, gamma=gamma, steps=1, seeds=seeds)
    for runs in (flow, sgd):
        ratio = (runs.plus / runs.minus).log() / 2
        covariance = ratio.T @ ratio / len(seeds)
        expected = gamma**2 * torch.tensor([[1.0, 2.0], [2.0, 4.0]], dtype=torch.float64)
        torch.testing.assert_close(covariance, expected, rtol=0.08, atol=0)


def test_the_flow_shrinks_alpha_as_predicted() -> None:
    problem = planted_problem(10, 20, 2, seed=1)
    alpha = torch.tensor([[0.1], [0.5], [0.5]])
    runs = diagonal_flow(problem.data, alpha=alpha, gamma=0.05, dt=0.02, steps=2000, seeds=range(3))
    torch.testing.assert_close(runs.effective_alpha, runs.predicted_alpha, rtol=1e-10, atol=0)
    assert bool((runs.effective_alpha < runs.alpha).all())
    by_hand = effective_alpha(problem.inputs, alpha, 0.05, runs.loss_integral)
    torch.testing.assert_close(by_hand, runs.predicted_alpha)
    # and so the KKT condition holds with it on the way, not only at the end
    assert bool((kkt_residual(problem.inputs, runs.beta, runs.effective_alpha) < 1e-9).all())
    assert bool((kkt_residual(problem.inputs, runs.beta, runs.alpha) > 1e-3).all())


@given(st.floats(0, 2), st.floats(0, 2), st.floats(0, 3), st.floats(1e-3, 10))
def test_effective_alpha_falls_with_the_noise_and_the_integral(
    gamma: float, more: float, integral: float, alpha: float
) -> None:
    x = torch.tensor([[1.0, 0.5, 0.0], [3.0, 0.5, 0.0]])
    less = effective_alpha(x, alpha, gamma + more, integral)
    got = effective_alpha(x, alpha, gamma, integral)
    expected = [alpha * math.exp(-2 * gamma * m * integral) for m in (5.0, 0.25, 0.0)]
    close(got, np.array(expected))
    assert bool((less <= got).all())
    assert bool((got <= alpha).all())


def test_gradient_descent_ends_at_the_smallest_potential() -> None:
    problem = planted_problem(10, 25, 2, seed=2)
    x, y = (t.numpy() for t in problem.data)
    for alpha in (0.3, 2.0):
        gd = train_diagonal(
            problem.data, alpha=alpha, gamma=0.02 if alpha < 1 else 0.002, steps=8000,
            batch_size=None,
        )  # fmt: skip
        assert gd.losses[-1].item() < 1e-12
        best = oracle.interpolator(x, y, np.full(25, alpha))
        np.testing.assert_allclose(gd.beta[0].numpy(), best, atol=2e-3)
        assert kkt_residual(problem.inputs, gd.beta, alpha).item() < 1e-3
        found = torch.from_numpy(best)
        assert kkt_residual(problem.inputs, found, alpha).item() < 1e-9
        assert oracle.potential(best.tolist(), [alpha] * 25) == pytest.approx(
            hyperbolic_entropy(found, alpha).item()
        )


def test_sgd_ends_at_the_smallest_potential_of_its_effective_alpha() -> None:
    problem = planted_problem(10, 25, 2, seed=2)
    x, y = (t.numpy() for t in problem.data)
    sgd = train_diagonal(problem.data, alpha=0.3, gamma=0.05, steps=8000, seeds=[0])
    assert sgd.losses[-1].item() < 1e-12
    with_own = oracle.interpolator(x, y, sgd.effective_alpha[0].numpy())
    with_start = oracle.interpolator(x, y, sgd.alpha[0].numpy())
    off_own = np.linalg.norm(sgd.beta[0].numpy() - with_own)
    off_start = np.linalg.norm(sgd.beta[0].numpy() - with_start)
    assert off_own < off_start / 5
    assert off_own < 0.01


def grid(problem: PlantedProblem, steps: int, seeds: int) -> tuple[DiagonalRuns, DiagonalRuns]:
    """GD and SGD of each alpha, gamma and seed; alphas .1 and .01, in each gammas .02 and .05."""
    alphas = torch.tensor([0.1, 0.1, 0.01, 0.01]).double()[:, None]
    gammas = torch.tensor([0.02, 0.05, 0.02, 0.05]).double()
    gd = train_diagonal(
        problem.data, alpha=alphas, gamma=gammas, steps=steps, batch_size=None, seeds=[0] * 4
    )
    sgd = train_diagonal(
        problem.data,
        alpha=alphas.repeat_interleave(seeds, 0),
        gamma=gammas.repeat_interleave(seeds),
        steps=steps,
        seeds=[*range(seeds)] * 4,
    )
    return gd, sgd


def check_the_claims(steps: int, seeds: int) -> None:
    problem = planted_problem(n=40, d=100, r=5, seed=0)
    gd, sgd = grid(problem, steps, seeds)
    far_gd = (gd.beta - problem.solution).norm(dim=1)
    far_sgd = (sgd.beta - problem.solution).norm(dim=1).reshape(4, seeds)
    assert bool((far_sgd < far_gd[:, None]).all())  # in every comparison
    assert bool((far_sgd[1::2].mean(1) < far_sgd[::2].mean(1)).all())  # and falls with gamma
    measured, predicted = (
        (a / sgd.alpha).median(1).values.reshape(4, seeds).mean(1)
        for a in (sgd.effective_alpha, sgd.predicted_alpha)
    )
    torch.testing.assert_close(measured, predicted, rtol=0.02, atol=0)
    residual_gd = kkt_residual(problem.inputs, gd.beta, gd.effective_alpha)
    own, start = (
        kkt_residual(problem.inputs, sgd.beta, a).reshape(4, seeds).mean(1)
        for a in (sgd.effective_alpha, sgd.alpha)
    )
    assert bool((own < start / 8).all())  # a tenfold discrimination
    assert bool((residual_gd < 1e-4).all())


def test_sgd_recovers_better_than_gd_and_the_better_the_larger_the_step() -> None:
    check_the_claims(steps=12_000, seeds=3)


@pytest.mark.slow
def test_the_experiment_at_length() -> None:
    check_the_claims(steps=60_000, seeds=5)


def test_batches_have_a_share_of_the_noise() -> None:
    problem = planted_problem(n=40, d=100, r=5, seed=0)
    logs = {}
    for batch in (1, 4):
        runs = train_diagonal(
            problem.data, alpha=0.1, gamma=0.05, steps=4000, batch_size=batch, seeds=range(4)
        )
        measured, predicted = (
            (a / runs.alpha).log().mean().item()
            for a in (runs.effective_alpha, runs.predicted_alpha)
        )
        assert predicted == pytest.approx(measured, rel=0.1)
        logs[batch] = measured
    assert logs[1] / logs[4] == pytest.approx(4, rel=0.2)
