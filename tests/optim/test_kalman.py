"""R-Kalman against its oracle: the filter, its regularisation, and what it is good for."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from gradwise.optim._kalman import RKalman
from reference import kalman as oracle

COVARIANCES = ["diagonal", "full"]
F64 = torch.float64


def linear_problem(m: int, d: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """H [m, d], y [m] and a start [d]."""
    g = torch.Generator().manual_seed(seed)
    shapes = ((m, d), (m,), (d,))
    h, y, start = (torch.randn(*s, generator=g, dtype=F64) for s in shapes)
    return h, y, start


def mean_of(optimizer: RKalman) -> np.ndarray:
    parts = [p.detach().reshape(-1) for g in optimizer.param_groups for p in g["params"]]
    return torch.cat(parts).double().numpy()


def belief_of(optimizer: RKalman) -> np.ndarray:
    """The diagonal [d] or the matrix [d, d]."""
    params = [p for g in optimizer.param_groups for p in g["params"]]
    if "covariance" in optimizer.state[params[0]]:
        return optimizer.state[params[0]]["covariance"].double().numpy()
    parts = [optimizer.state[p]["variance"].reshape(-1) for p in params]
    return torch.cat(parts).double().numpy()


def filtered(start: Tensor, batches: list[tuple[Tensor, Tensor]], **options: Any) -> RKalman:
    """The optimizer after one step a batch of (H, y) on f = H theta."""
    theta = start.clone().requires_grad_()
    optimizer = RKalman([theta], **options)
    for h, y in batches:
        optimizer.step(lambda h=h, y=y: y - h @ theta)
    return optimizer


@pytest.mark.parametrize("pieces", [1, 3, 12])
@pytest.mark.parametrize("noise", [1e-4, 0.3, 50.0])
def test_linear_and_full_is_bayesian_linear_regression(pieces: int, noise: float) -> None:
    h, y, start = linear_problem(12, 5)
    batches = list(zip(h.chunk(pieces), y.chunk(pieces), strict=True))
    options = {"observation_noise": noise, "initial_variance": 2.5, "covariance": "full"}
    optimizer = filtered(start, batches, rho=0.0, **options)
    prior = 2.5 * np.eye(5)
    mean, p = oracle.bayesian_regression(start.numpy(), prior, h.numpy(), y.numpy(), noise)
    # What inverting S rounds off is its condition, at most 1 + |H P H^T| / noise, times an ulp.
    condition = 1 + 2.5 * float(torch.linalg.matrix_norm(h, 2)) ** 2 / noise
    digits = 1e-12 + 5e-15 * condition
    np.testing.assert_allclose(mean_of(optimizer), mean, rtol=digits, atol=digits)
    np.testing.assert_allclose(belief_of(optimizer), p, rtol=digits, atol=digits * p.max())


def test_order_of_the_data_does_not_matter() -> None:
    h, y, start = linear_problem(9, 4)
    one_by_one = [(h[i : i + 1], y[i : i + 1]) for i in range(9)]
    options: dict[str, Any] = {"rho": 0.0, "covariance": "full", "observation_noise": 0.2}
    forth, back = (filtered(start, b, **options) for b in (one_by_one, one_by_one[::-1]))
    np.testing.assert_allclose(mean_of(forth), mean_of(back), rtol=1e-10)
    np.testing.assert_allclose(belief_of(forth), belief_of(back), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_without_rho_it_is_the_textbook_filter(covariance: str) -> None:
    h, y, start = linear_problem(3, 4)
    optimizer = filtered(start, [(h, y)], rho=0.0, observation_noise=0.5, covariance=covariance)
    e = (y - h @ start).numpy()
    mean, p = oracle.plain_update(start.numpy(), np.eye(4), h.numpy(), e, 0.5)
    np.testing.assert_allclose(mean_of(optimizer), mean, rtol=1e-12)
    expected = p if covariance == "full" else np.diag(p)
    np.testing.assert_allclose(belief_of(optimizer), expected, rtol=1e-11, atol=1e-14)


@given(
    covariance=st.sampled_from(COVARIANCES),
    samples=st.integers(1, 5),
    inputs=st.integers(1, 4),
    outputs=st.integers(1, 3),
    rho=st.sampled_from([0.0, 0.01, 0.3, 4.0]),
    lr=st.sampled_from([0.0, 0.3, 1.0, 1.7]),
    noise=st.floats(0.05, 20.0),
    variance=st.floats(0.05, 5.0),
    drift=st.sampled_from([0.0, 1e-3, 0.5]),
    chunk=st.sampled_from([None, 1, 2, 7]),
    seed=st.integers(0, 1000),
)
def test_equals_the_oracle_on_a_curved_model(
    covariance: str,
    samples: int,
    inputs: int,
    outputs: int,
    rho: float,
    lr: float,
    noise: float,
    variance: float,
    drift: float,
    chunk: int | None,
    seed: int,
) -> None:
    """f = tanh(x W^T + b), whose Jacobian the oracle writes out."""
    g = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(samples, n, generator=g, dtype=F64) for n in (inputs, outputs))
    model = nn.Linear(inputs, outputs).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=F64))
    optimizer = RKalman(
        model.parameters(),
        lr=lr,
        rho=rho,
        observation_noise=noise,
        initial_variance=variance,
        process_noise=drift,
        covariance=covariance,  # type: ignore[arg-type]  # of a list of both
        chunk_size=chunk,
    )
    mean = mean_of(optimizer)
    d = len(mean)
    p = variance * (np.eye(d) if covariance == "full" else np.ones(d))
    update = oracle.update if covariance == "full" else oracle.diagonal_update
    for _ in range(3):
        w, b = mean[: inputs * outputs].reshape(outputs, inputs), mean[inputs * outputs :]
        f = np.tanh(x.numpy() @ w.T + b)
        h = np.zeros((samples, outputs, d))
        for s in range(samples):
            for o in range(outputs):
                slope = 1 - f[s, o] ** 2
                h[s, o, o * inputs : (o + 1) * inputs] = slope * x[s].numpy()
                h[s, o, inputs * outputs + o] = slope
        e = (y.numpy() - f).reshape(-1)
        loss = optimizer.step(lambda: y - torch.tanh(model(x)))
        assert loss.item() == pytest.approx(e @ e / noise / 2 / len(e), rel=1e-9)
        mean, p = update(mean, p, h.reshape(-1, d), e, noise, rho, lr, drift)
        np.testing.assert_allclose(mean_of(optimizer), mean, rtol=1e-7, atol=1e-8)
        np.testing.assert_allclose(belief_of(optimizer), p, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("rho", [0.0, 0.05, 2.0])
def test_small_variance_descends_the_regularised_objective(covariance: str, rho: float) -> None:
    """As P -> 0 the step is -P grad l_G, with l_G by double back-propagation on a linear f."""
    h, y, start = linear_problem(4, 3)
    noise, tiny = 0.7, 1e-12
    theta = start.clone().requires_grad_()
    e = y - h @ theta
    (slope,) = torch.autograd.grad(e @ e / (2 * noise), theta, create_graph=True)
    objective = e @ e / (2 * noise) + rho / 2 * slope @ slope
    (expected,) = torch.autograd.grad(objective, theta)
    optimizer = filtered(
        torch.zeros(3, dtype=F64),  # so that the difference keeps its digits
        [(h, y - h @ start)],
        rho=rho,
        observation_noise=noise,
        initial_variance=tiny,
        covariance=covariance,
    )
    np.testing.assert_allclose(mean_of(optimizer) / tiny, -expected.numpy(), rtol=1e-6)


def test_groups_have_their_own_lr_variance_and_process_noise() -> None:
    h, y, start = linear_problem(3, 5)
    lr = np.array([1.0, 1.0, 0.25, 0.25, 0.25])
    drift = np.array([0.1, 0.1, 0.0, 0.0, 0.0])
    variance = np.array([1.0, 1.0, 3.0, 3.0, 3.0])
    for covariance in COVARIANCES:
        a, b = start[:2].clone().requires_grad_(), start[2:].clone().requires_grad_()
        groups = [
            {"params": [a], "process_noise": 0.1},
            {"params": [b], "lr": 0.25, "initial_variance": 3.0},
        ]
        optimizer = RKalman(groups, rho=0.2, covariance=covariance)
        optimizer.step(lambda a=a, b=b: y - h @ torch.cat([a, b]))
        e = (y - h @ start).numpy()
        update = oracle.update if covariance == "full" else oracle.diagonal_update
        p = np.diag(variance) if covariance == "full" else variance
        mean, p = update(start.numpy(), p, h.numpy(), e, 1.0, 0.2, lr, drift)
        np.testing.assert_allclose(mean_of(optimizer), mean, rtol=1e-10)
        np.testing.assert_allclose(belief_of(optimizer), p, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("noise", [1e-8, 1.0])
@pytest.mark.parametrize("lr", [0.5, 1.0, 2.5])
@pytest.mark.parametrize("rho", [0.0, 1.0])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_belief_stays_positive_in_float32(
    covariance: str, rho: float, lr: float, noise: float
) -> None:
    h, y, start = (t.float() for t in linear_problem(6, 4))
    options = {"rho": rho, "lr": lr, "observation_noise": noise, "covariance": covariance}
    p = belief_of(filtered(start, [(h, y)] * 6, **options))
    if covariance == "full":
        np.testing.assert_array_equal(p, p.T)
        values = np.linalg.eigvalsh(p)
        assert values.min() > -1e-6 * values.max()
        assert np.diag(p).min() > 0
    else:
        assert p.min() > 0
    if lr == 1.0:
        assert (p if p.ndim == 1 else np.diag(p)).max() < 1.0


def test_a_variance_that_is_used_up_stays_above_zero() -> None:
    """P H^T S^-1 H rounds to 1 for some of these, and 1 - 1 would end the filter."""
    for h in torch.linspace(0.1, 1.5, 40).view(-1, 1, 1):
        optimizer = filtered(torch.zeros(1), [(h, h[0])], observation_noise=1e-9, rho=0.0)
        assert belief_of(optimizer).min() > 0
        assert mean_of(optimizer) == pytest.approx(1.0, rel=1e-5)


def test_equal_rows_of_great_length_do_not_stop_the_filter() -> None:
    """A = H P H^T of rank one, 10^9 times the noise: in float32 no Cholesky factor by itself."""
    h = torch.randn(1, 4000).expand(64, -1) * 1000
    for rho in (0.0, 0.1):
        optimizer = filtered(torch.zeros(4000), [(h, torch.full((64,), 7.0))], rho=rho)
        np.testing.assert_allclose(h.double().numpy() @ mean_of(optimizer), 7.0, rtol=1e-2)


def test_process_noise_keeps_the_filter_awake() -> None:
    """With a target that jumps, the filter that forgets is at the new one, the other in between."""
    h, one = torch.ones(1, 1, dtype=F64), torch.ones(1, dtype=F64)
    batches = [(h, one)] * 200 + [(h, -one)] * 30
    still = mean_of(filtered(torch.zeros(1, dtype=F64), batches))
    awake = mean_of(filtered(torch.zeros(1, dtype=F64), batches, process_noise=0.1))
    assert still.item() > 0.5
    assert awake.item() < -0.9


def test_lr_zero_learns_nothing() -> None:
    h, y, start = linear_problem(3, 4)
    for covariance in COVARIANCES:
        optimizer = filtered(start, [(h, y)], lr=0.0, covariance=covariance)
        np.testing.assert_array_equal(mean_of(optimizer), start.numpy())
        p = belief_of(optimizer)
        np.testing.assert_array_equal(p, np.eye(4) if p.ndim == 2 else np.ones(4))


@pytest.mark.parametrize("size", [1, 2, 5, 7, 100])
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_chunks_change_nothing(covariance: str, size: int) -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    twin = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    twin.load_state_dict(model.state_dict())
    x, y = torch.randn(7, 2, dtype=F64), torch.randn(7, 1, dtype=F64)
    whole = RKalman(model.parameters(), covariance=covariance)  # type: ignore[arg-type]
    parts = RKalman(twin.parameters(), covariance=covariance, chunk_size=size)  # type: ignore[arg-type]
    for _ in range(2):
        whole.step(lambda: y - model(x))
        parts.step(lambda: y - twin(x))
    np.testing.assert_allclose(mean_of(parts), mean_of(whole), rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(belief_of(parts), belief_of(whole), rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize(("covariance", "times"), [("diagonal", 2.0), ("full", 3.0)])
def test_learns_a_sine_far_below_sgd(covariance: str, times: float) -> None:
    """Equal steps on equal batches; SGD with the best of its learning rates."""

    def final(seed: int, lr: float | None) -> float:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(1, 12), nn.Tanh(), nn.Linear(12, 1))
        x = torch.rand(256, 1) * 6 - 3
        y = torch.sin(2 * x) + 0.05 * torch.randn_like(x)
        sgd = torch.optim.SGD(model.parameters(), lr=lr or 0.0)
        kalman = RKalman(model.parameters(), observation_noise=0.1, covariance=covariance)  # type: ignore[arg-type]
        for _ in range(100):
            i = torch.randint(256, (16,))
            if lr is None:
                kalman.step(lambda i=i: y[i] - model(x[i]))
            else:
                sgd.zero_grad()
                ((y[i] - model(x[i])) ** 2 / 2).mean().backward()
                sgd.step()
        return float((y - model(x)).detach().square().mean())

    def median(lr: float | None) -> float:
        return float(np.median([final(seed, lr) for seed in range(3)]))

    assert median(None) * times < min(median(lr) for lr in (0.1, 0.3, 0.6))
