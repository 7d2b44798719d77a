"""Diagonal linear networks: runs against the oracle, potential, effective alpha, end points."""

from __future__ import annotations

import json
import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from gradwise.analysis._diagonal_runs import INDEX_BLOCK, NOISE_BLOCK
from gradwise.analysis.implicit_bias import (
    DiagonalRuns,
    PlantedProblem,
    diagonal_flow,
    effective_alpha,
    hyperbolic_entropy,
    hyperbolic_entropy_gradient,
    kkt_residual,
    planted_problem,
    train_diagonal,
)
from gradwise.errors import UserError
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


# The potential


@given(
    st.lists(st.floats(-100, 100), min_size=1, max_size=5),
    st.floats(0.01, 30),
)
def test_potential_and_gradient_equal_the_formula(beta: list[float], alpha: float) -> None:
    b = torch.tensor(beta, dtype=torch.float64, requires_grad=True)
    value = hyperbolic_entropy(b, alpha)
    expected = oracle.potential(beta, [alpha] * len(beta))
    scale = 1 + sum(map(abs, beta)) + alpha**2 * len(beta)
    assert value.item() == pytest.approx(expected, abs=1e-13 * scale)
    shifted = hyperbolic_entropy(b, alpha, from_zero=True)
    zero = oracle.potential([0.0] * len(beta), [alpha] * len(beta))
    assert shifted.item() == pytest.approx(expected - zero, abs=1e-12 * scale)
    formula = hyperbolic_entropy_gradient(b, alpha)
    close(formula.detach(), np.array([math.asinh(x / (2 * alpha**2)) / 4 for x in beta]), 1e-12)
    for phi in (value, shifted):
        (grad,) = torch.autograd.grad(phi, b)
        torch.testing.assert_close(grad, formula.detach(), rtol=1e-9, atol=1e-12)


@given(st.floats(1e-3, 1e3), st.floats(1e-2, 10), st.integers(0, 2**31))
def test_potential_scales_with_its_alpha_and_is_convex(c: float, alpha: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        hyperbolic_entropy(c**2 * a, c * alpha), c**2 * hyperbolic_entropy(a, alpha)
    )
    ends = (hyperbolic_entropy(a, alpha) + hyperbolic_entropy(b, alpha)) / 2
    assert hyperbolic_entropy((a + b) / 2, alpha) < ends
    torch.testing.assert_close(hyperbolic_entropy(-a, alpha), hyperbolic_entropy(a, alpha))


@pytest.mark.parametrize("alpha", [1e-8, 1e-100, 1e-200, 1e-300])
def test_small_alpha_is_the_l1_norm(alpha: float) -> None:
    beta = torch.tensor([3.0, 0.0, -4.0, 1e-3], dtype=torch.float64)
    l1 = beta.abs().sum()
    # arcsinh(z) = ln 2z: the next order is exact enough to be compared with all digits
    rest = (beta.abs() * (beta.abs().clamp(min=1e-9).log() - 1)).sum() / 4
    for from_zero in (False, True):
        value = hyperbolic_entropy(beta, alpha, from_zero=from_zero)
        torch.testing.assert_close(value, 0.5 * math.log(1 / alpha) * l1 + rest, rtol=1e-12, atol=0)
    b = beta.clone().requires_grad_()
    (grad,) = torch.autograd.grad(hyperbolic_entropy(b, alpha), b)
    torch.testing.assert_close(grad, hyperbolic_entropy_gradient(beta, alpha))
    assert grad[1] == 0


@pytest.mark.parametrize("alpha", [1e2, 1e4, 1e8, 1e100])
def test_large_alpha_is_the_l2_norm(alpha: float) -> None:
    beta = torch.tensor([3.0, 0.0, -4.0], dtype=torch.float64)
    value = hyperbolic_entropy(beta, alpha, from_zero=True)
    expected = torch.tensor(25 / 16, dtype=torch.float64) / alpha / alpha
    torch.testing.assert_close(value, expected, rtol=1e-7, atol=0)
    torch.testing.assert_close(
        hyperbolic_entropy_gradient(beta, alpha), beta / 8 / alpha / alpha, rtol=1e-7, atol=0
    )


def test_the_branches_meet_and_the_gradient_rises_everywhere() -> None:
    beta = torch.logspace(-12, 12, 2000, dtype=torch.float64)
    grad = hyperbolic_entropy_gradient(beta, 0.02)
    assert bool((grad.diff() > 0).all())
    close(grad, np.arcsinh(beta.numpy() / (2 * 0.02**2)) / 4, rtol=1e-13)


def test_kkt_residual_is_a_share_of_the_length_and_minds_rank() -> None:
    x = torch.tensor([[1.0, 1.0, 0.0], [2.0, 2.0, 0.0]])  # rank 1
    alpha = torch.tensor([0.1, 0.2, 0.3]).double()
    v = torch.tensor([[1.0, 1.0, 0.0], [1.0, -1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]).double()
    beta = 2 * alpha**2 * v.sinh()
    expected = torch.tensor([0.0, 1.0, 1 / math.sqrt(3), 0.0]).double()
    torch.testing.assert_close(kkt_residual(x, beta, alpha), expected)


# Recording, and what a run depends on


def test_records_are_points_of_the_run_and_longer_runs_begin_like_shorter_ones() -> None:
    kwargs = {"alpha": 0.3, "gamma": 0.05, "seeds": [1, 2]}
    long = train_diagonal(SMALL.data, steps=25, record_every=10, **kwargs)
    assert long.steps == (0, 10, 20, 25)
    assert long.betas.shape == (4, 2, 7)
    assert long.losses.shape == (4, 2)
    assert bool((long.betas[0] == 0).all())
    short = train_diagonal(SMALL.data, steps=20, **kwargs)
    assert short.steps == (0, 20)
    assert torch.equal(short.beta, long.betas[2])
    flow = diagonal_flow(SMALL.data, dt=0.1, steps=25, record_every=5, **kwargs)
    assert flow.steps == (0, 5, 10, 15, 20, 25)
    assert torch.equal(diagonal_flow(SMALL.data, dt=0.1, steps=15, **kwargs).beta, flow.betas[3])


def test_a_run_depends_on_its_seed_alone() -> None:
    several = train_diagonal(SMALL.data, alpha=0.3, gamma=0.05, steps=50, seeds=[4, 7, 4])
    alone = train_diagonal(SMALL.data, alpha=0.3, gamma=0.05, steps=50, seeds=[7])
    torch.testing.assert_close(several.beta[1:2], alone.beta, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(several.beta[0], several.beta[2], rtol=1e-9, atol=1e-12)
    assert not several.beta[0].allclose(several.beta[1], rtol=1e-3)


def test_batches_are_taken_together_and_random_streams_left_alone() -> None:
    state = torch.get_rng_state()
    whole = train_diagonal(SMALL.data, alpha=0.3, gamma=0.05, steps=20)
    diagonal_flow(SMALL.data, alpha=0.3, gamma=0.05, dt=0.05, steps=20)
    planted_problem(3, 4, 2, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    loader = DataLoader(TensorDataset(*SMALL.data), batch_size=3)
    parts = train_diagonal(loader, alpha=0.3, gamma=0.05, steps=20)
    assert torch.equal(whole.beta, parts.beta)
    assert whole.beta.dtype == torch.float64


def test_progress_and_plain_values() -> None:
    calls: list[tuple[int, int]] = []
    runs = train_diagonal(
        SMALL.data, alpha=0.3, gamma=0.01, steps=2500, progress=lambda *a: calls.append(a)
    )
    assert calls == [(1024, 2500), (2048, 2500), (2500, 2500)]
    plain = json.loads(json.dumps(runs.to_dict()))
    assert plain["beta"] == runs.beta.tolist()
    assert plain["steps"] == [0, 2500]
    assert set(plain) >= {"predicted_alpha", "effective_alpha", "loss_integral", "losses"}
    assert json.loads(json.dumps(SMALL.to_dict()))["solution"] == SMALL.solution.tolist()


@given(st.integers(1, 6), st.integers(1, 9), st.data())
def test_planted_problems(n: int, d: int, data: st.DataObject) -> None:
    r = data.draw(st.integers(1, d))
    problem = planted_problem(n, d, r, seed=data.draw(st.integers(0, 99)))
    assert problem.solution.count_nonzero() == r
    assert problem.solution.norm().item() == pytest.approx(1)
    torch.testing.assert_close(problem.inputs @ problem.solution, problem.targets)


def test_mistakes_are_told() -> None:
    x, y = SMALL.data
    ok = {"alpha": 0.1, "gamma": 0.05, "steps": 3}
    wrong: list[tuple[dict[str, object], str]] = [
        ({"alpha": 0.0}, "0 < alpha"),
        ({"alpha": torch.tensor([0.1, -0.1])}, "0 < alpha"),
        ({"alpha": torch.ones(3)}, "broadcast"),
        ({"alpha": torch.ones(2, 7)}, "broadcast"),
        ({"gamma": 0.0}, "0 < gamma"),
        ({"gamma": math.nan}, "gamma to be finite"),
        ({"gamma": torch.ones(3)}, "gamma to be finite, one number or 1"),
        ({"steps": -1}, "steps >= 0"),
        ({"batch_size": 0}, "batch_size >= 1"),
        ({"seeds": []}, "at least one seed"),
        ({"record_every": 0}, "record_every >= 1"),
        ({"gamma": 50.0, "steps": 200}, "converge"),
        ({"data": (x, y[:, None])}, r"\(n, d\)"),
        ({"data": (x, y[:2])}, "as many targets"),
        ({"data": (x, y * math.inf)}, "finite inputs"),
        ({"data": (x.to(torch.complex128), y)}, "real numbers"),
        ({"data": iter([(x, y)])}, "iterated again"),
    ]
    for change, message in wrong:
        with pytest.raises(UserError, match=message):
            train_diagonal(**{"data": SMALL.data, **ok, **change})  # type: ignore[arg-type]
    for change, message in [({"dt": 0.0}, "0 < dt"), ({"gamma": -1.0}, "0 <= gamma")]:
        with pytest.raises(UserError, match=message):
            diagonal_flow(**{"data": SMALL.data, **ok, "dt": 0.1, **change})  # type: ignore[arg-type]
    for n, d, r in [(0, 3, 1), (3, 0, 1), (3, 3, 0), (3, 3, 4)]:
        with pytest.raises(UserError, match=r"expected .*got"):
            planted_problem(n, d, r, seed=0)
    beta = torch.ones(7)
    for call in (
        lambda: hyperbolic_entropy(torch.tensor(1.0), 0.1),
        lambda: hyperbolic_entropy(beta, -0.1),
        lambda: hyperbolic_entropy_gradient(beta * math.nan, 0.1),
        lambda: kkt_residual(x, torch.ones(3), 0.1),
        lambda: kkt_residual(y, beta, 0.1),
        lambda: kkt_residual(x * math.nan, beta, 0.1),
        lambda: effective_alpha(x, 0.1, -1.0, 1.0),
        lambda: effective_alpha(x, 0.1, 1.0, math.nan),
    ):
        with pytest.raises(UserError, match=r"^expected .*"):
            call()
