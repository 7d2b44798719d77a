"""ImplicitSGD: closed forms and limits of (7.1) and (7.2), a stiff problem, transforms."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import gradwise as gw
from gradwise.affine import Affine
from gradwise.errors import UserError
from gradwise.moments import Moments
from gradwise.optim._implicit import ImplicitSGD
from gradwise.transforms.base import State, Transform
from reference import implicit as oracle
from reference.closures import closure_of, network, on_quadratic, parameter, spectrum

EXACT = {"tol": 1e-13, "max_inner": 60}


# What the step is: the closed forms of section 7.


def test_the_stiff_quadratic_of_the_specification() -> None:
    a, b, theta = np.diag([1.0, 1000.0]), np.zeros(2), np.ones(2)
    weight, optimizer, closure = on_quadratic(a, b, theta, lr=0.5, **EXACT)
    want, plain = theta, theta
    for _ in range(3):
        optimizer.step(closure)
        want = oracle.quadratic(a, b, want, 0.5)
        plain = oracle.explicit(a, b, plain, 0.5)
    assert weight.tolist() == pytest.approx([0.296296296, 7.95e-9], rel=1e-3)
    assert weight.tolist() == pytest.approx(want.tolist(), rel=1e-9)
    assert plain.tolist() == pytest.approx([0.125, -1.2e8], rel=0.05)
    assert optimizer.converged
    assert optimizer.inner_iterations <= 6


def test_one_sample_least_squares_of_the_specification() -> None:
    x = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
    weight = parameter([0.3, -0.1, 0.2])
    optimizer = ImplicitSGD([weight], lr=0.5, **EXACT)
    optimizer.step(closure_of(optimizer, lambda: (x @ weight - 0.7).square() / 2))
    assert weight.tolist() == pytest.approx([0.4, 0.1, 0.1], abs=1e-15)
    assert optimizer.residual < 1e-15


@given(st.integers(0, 10**6), st.integers(1, 6), st.floats(-4, 4))
def test_one_sample_least_squares(seed: int, n: int, power: float) -> None:
    rng = np.random.default_rng(seed)
    x, theta, y, alpha = rng.normal(size=n), rng.normal(size=n), float(rng.normal()), 10.0**power
    weight, row = parameter(theta), torch.from_numpy(x)
    optimizer = ImplicitSGD([weight], lr=alpha, **EXACT)
    optimizer.step(closure_of(optimizer, lambda: (row @ weight - y).square() / 2))
    want = oracle.one_sample(x, y, theta, alpha)
    np.testing.assert_allclose(weight.detach().numpy(), want, rtol=0, atol=1e-9)


@given(st.integers(0, 10**6), st.integers(2, 7), st.floats(-3, 3), st.floats(0, 2))
def test_random_quadratics(seed: int, n: int, power: float, spread: float) -> None:
    a, b = spectrum(seed, n, 0.1, 0.1 * 10**spread)
    theta, alpha = np.random.default_rng(seed + 1).normal(size=n), 10.0**power
    weight, optimizer, closure = on_quadratic(a, b, theta, lr=alpha, tol=1e-10, max_inner=100)
    optimizer.step(closure)
    want = oracle.quadratic(a, b, theta, alpha)
    # The system's matrix is no smaller than 1, so the error is at most the residual.
    error = np.linalg.norm(weight.detach().numpy() - want)
    assert error <= optimizer.residual * (1 + 1e-3) + 1e-12 * (1 + np.linalg.norm(want))
    assert error <= 1e-6 * (1 + np.linalg.norm(theta))
    at_end = weight.detach().numpy()
    residual = np.linalg.norm(at_end - theta + alpha * (a @ at_end - b))
    assert optimizer.residual == pytest.approx(residual, rel=1e-3, abs=1e-11 * (1 + alpha * 10))


@given(st.integers(0, 10**6), st.integers(1, 5), st.floats(-3, 6), st.floats(-2, 4))
def test_contracts_at_every_learning_rate(
    seed: int, n: int, power: float, curvature: float
) -> None:
    a, _ = spectrum(seed, n, 0.01 * 10**curvature, 10**curvature)
    theta = np.random.default_rng(seed).normal(size=n)
    weight, optimizer, closure = on_quadratic(a, np.zeros(n), theta, lr=10.0**power, tol=1e-9)
    optimizer.step(closure)
    assert np.linalg.norm(weight.detach().numpy()) < np.linalg.norm(theta)


def test_small_learning_rates_show_the_expansion() -> None:
    # theta' = theta - alpha g + alpha^2 H g + O(alpha^3), on a loss that is not quadratic.
    start = torch.tensor([0.4, -0.3, 1.1], dtype=torch.float64)
    loss = lambda w: w.cosh().sum() + w.prod()  # noqa: E731  # used as a value
    at = start.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(at), at, create_graph=True)
    grad = slope.detach()
    (curved,) = torch.autograd.grad(slope @ grad, at)
    errors = []
    for alpha in (0.02, 0.01, 0.005):
        weight = parameter(start)
        optimizer = ImplicitSGD([weight], lr=alpha, tol=1e-15, max_inner=60)
        optimizer.step(closure_of(optimizer, lambda w=weight: loss(w)))
        second = start - alpha * grad + alpha**2 * curved
        errors.append((weight.detach() - second).norm().item())
    assert errors[0] / errors[1] == pytest.approx(8, rel=0.2)
    assert errors[1] / errors[2] == pytest.approx(8, rel=0.2)


def test_large_learning_rates_minimise_the_batch_loss() -> None:
    a, b = spectrum(3, 5, 0.5, 20.0)
    weight, optimizer, closure = on_quadratic(a, b, np.ones(5), lr=1e9, tol=0.0, max_inner=100)
    optimizer.step(closure)
    np.testing.assert_allclose(weight.detach().numpy(), np.linalg.solve(a, b), atol=1e-7)


@given(
    st.integers(0, 10**6), st.floats(-2, 3), st.integers(1, 5), st.sampled_from(["lbfgs", "adam"])
)
def test_the_proximal_objective_never_increases(
    seed: int, power: float, max_inner: int, inner: str
) -> None:
    # Also where the solver is cut short, and on a loss with many minima.
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(6, generator=generator, dtype=torch.float64)
    mix = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    weight, alpha = parameter(start), 10.0**power
    lr = {"inner_lr": 0.3} if inner == "adam" else {}
    optimizer = ImplicitSGD([weight], lr=alpha, inner=inner, max_inner=max_inner, **lr)
    loss = lambda: (3 * mix @ weight).sin().sum() + weight.square().sum() / 10  # noqa: E731
    before = optimizer.step(closure_of(optimizer, loss)).item()
    moved = (weight.detach() - start).numpy()
    assert oracle.proximal(loss().item(), moved, alpha) <= before + 1e-10
    assert optimizer.inner_iterations <= max_inner


@pytest.mark.parametrize("inner", ["lbfgs", "adam"])
def test_a_zero_gradient_is_a_fixed_point(inner: str) -> None:
    weight = parameter([1.0, -2.0])
    target = weight.detach().clone()
    optimizer = ImplicitSGD([weight], inner=inner)
    for _ in range(2):
        optimizer.step(closure_of(optimizer, lambda: (weight - target).square().sum()))
        assert torch.equal(weight, target)
    assert (optimizer.residual, optimizer.closure_calls, optimizer.inner_iterations) == (0.0, 1, 0)
    assert optimizer.converged


# What it is for.


@pytest.mark.parametrize(
    ("options", "close"),
    [({}, 1e-5), ({"inner": "adam", "inner_lr": 0.01, "max_inner": 150}, 1e-2)],
    ids=["lbfgs", "adam"],
)
def test_stiff_least_squares_where_sgd_diverges(options: dict[str, object], close: float) -> None:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64)  # noqa: E731
    rows, turned = torch.linalg.qr(draw(12, 5))[0], torch.linalg.qr(draw(5, 5))[0]
    design = rows @ torch.diag(torch.tensor([1.0, 3.0, 10.0, 30.0, 100.0]).double()) @ turned.T
    assert torch.linalg.cond(design.T @ design).item() == pytest.approx(1e4)
    solution = draw(5)
    target = design @ solution

    def far_off(make: Callable[[list[Tensor]], torch.optim.Optimizer], steps: int) -> float:
        weight = parameter(torch.zeros(5))
        optimizer = make([weight])
        closure = closure_of(optimizer, lambda: (design @ weight - target).square().sum() / 2)
        for _ in range(steps):
            optimizer.step(closure)
        return ((weight.detach() - solution).norm() / solution.norm()).item()

    assert far_off(lambda p: torch.optim.SGD(p, lr=0.5), 20) > 1e20
    assert far_off(lambda p: ImplicitSGD(p, lr=0.5, **options), 40) < close


def test_a_network_in_float32_solves_its_equation() -> None:
    model, loss = network()
    optimizer = ImplicitSGD(model.parameters(), lr=0.5)
    closure = closure_of(optimizer, loss)
    losses = []
    for _ in range(6):
        before = [p.detach().clone() for p in model.parameters()]
        losses.append(optimizer.step(closure).item())
        assert optimizer.converged
        closure()
        after = list(model.parameters())
        gaps = [p - b + 0.5 * p.grad for p, b in zip(after, before, strict=True)]
        size = math.sqrt(sum(b.square().sum().item() for b in before))
        residual = math.sqrt(sum(gap.square().sum().item() for gap in gaps))
        assert residual <= 1e-6 * (1 + size) * 1.1
        assert optimizer.residual == pytest.approx(residual, rel=0.2, abs=1e-7)
    assert losses == sorted(losses, reverse=True)


def test_adam_goes_on_from_its_averages_and_spends_all_iterations() -> None:
    # The same, written out: Adam on (7.2), its state kept from one outer step to the next.
    a, b = spectrum(1, 4, 0.5, 2.0)
    options = {"inner": "adam", "inner_lr": 1e-3, "max_inner": 7, "tol": 0.0}
    weight, optimizer, closure = on_quadratic(a, b, np.ones(4), lr=0.5, **options)
    twin = parameter(np.ones(4))
    adam = torch.optim.Adam([twin], lr=1e-3)
    for _ in range(3):
        optimizer.step(closure)
        assert (optimizer.inner_iterations, optimizer.closure_calls) == (7, 8)
        start = twin.detach().clone()
        for _ in range(7):
            slope = torch.from_numpy(a) @ twin.detach() - torch.from_numpy(b)
            twin.grad = twin.detach() - start + 0.5 * slope
            adam.step()
        torch.testing.assert_close(weight, twin, rtol=0, atol=1e-12)
    assert optimizer.state[weight]["step"].item() == 21
    torch.testing.assert_close(optimizer.state[weight]["exp_avg"], adam.state[twin]["exp_avg"])


# Where it has to be careful.


@pytest.mark.parametrize("options", [{}, {"inner": "adam", "inner_lr": 2.0}], ids=["lbfgs", "adam"])
@pytest.mark.parametrize("lr", [0.1, 10.0, 1e6])
def test_a_wall_that_a_long_step_would_cross(lr: float, options: dict[str, object]) -> None:
    weight = parameter([1.0], torch.float32)
    optimizer = ImplicitSGD([weight], lr=lr, **options)
    loss = lambda: (3 * weight - weight.log()).sum()  # noqa: E731  # NaN below 0
    closure = closure_of(optimizer, loss)
    losses = [optimizer.step(closure).item() for _ in range(5)]
    assert weight.isfinite().all()
    assert math.isfinite(loss().item())
    assert losses == sorted(losses, reverse=True)
    if not options:  # Adam's first stride leads into the wall, and there is no line search
        assert losses[-1] < losses[0]


@pytest.mark.parametrize("inner", ["lbfgs", "adam"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_changes_nothing(bad: float, inner: str) -> None:
    weight = parameter([1.0, 2.0])
    optimizer = ImplicitSGD([weight], inner=inner)
    loss = optimizer.step(closure_of(optimizer, lambda: weight.sum() * bad))
    assert not math.isfinite(loss.item())
    assert weight.tolist() == [1.0, 2.0]
    assert not math.isfinite(optimizer.residual)
    assert not optimizer.converged
    assert not optimizer.state
    optimizer.step(closure_of(optimizer, lambda: weight.square().sum()))  # and does not stay
    assert weight.abs().max() < 2
    assert math.isfinite(optimizer.residual)


@pytest.mark.parametrize("inner", ["lbfgs", "adam"])
def test_an_interrupted_step_leaves_no_trial_point_behind(inner: str) -> None:
    weight = parameter([1.0, 2.0])
    optimizer = ImplicitSGD([weight], inner=inner, max_inner=5)
    whole = closure_of(optimizer, lambda: (weight**4).sum())
    calls = []

    def closure() -> Tensor:
        calls.append(weight.tolist())
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole()

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert calls[-1] != [1.0, 2.0]
    assert weight.tolist() == [1.0, 2.0]


def test_the_tolerance_bounds_the_work() -> None:
    a, b = spectrum(5, 6, 0.1, 30.0)
    spent = []
    for tol in (1e-1, 1e-4, 1e-8):
        theta = np.ones(6)
        _, optimizer, closure = on_quadratic(a, b, theta, lr=1.0, tol=tol, max_inner=100)
        optimizer.step(closure)
        assert optimizer.converged
        assert optimizer.residual <= tol * (1 + math.sqrt(6))
        spent.append(optimizer.closure_calls)
    assert spent == sorted(set(spent))
    _, optimizer, closure = on_quadratic(a, b, theta, lr=1.0, max_inner=2)
    optimizer.step(closure)
    assert (optimizer.converged, optimizer.inner_iterations) == (False, 2)


def test_a_step_within_the_tolerance_is_still_made() -> None:
    # Or a small learning rate would never move anything.
    weight = parameter([1.0])
    optimizer = ImplicitSGD([weight], lr=1e-7)
    optimizer.step(closure_of(optimizer, lambda: weight.square().sum() / 2))
    assert weight.item() == pytest.approx(1 - 1e-7, abs=1e-13)


# Transforms: one decision a step, at theta_n.


class Fixed(Transform):
    """A map that is given, and a count of decisions."""

    def __init__(self, scale: list[float]) -> None:
        self.scale = scale
        self.decisions = 0

    def __call__(self, moments: Moments, state: State) -> tuple[Affine, State]:
        self.decisions += 1
        return Affine(scale=moments.mean.new_tensor(self.scale)), state


def test_clipping_scales_the_equation() -> None:
    a, b = spectrum(7, 4, 1.0, 9.0)
    theta = np.full(4, 2.0)
    norm = float(np.linalg.norm(a @ theta - b))
    clip = gw.transforms.ClipNorm(0.25 * norm)
    weight, optimizer, closure = on_quadratic(a, b, theta, lr=0.5, transform=clip, **EXACT)
    optimizer.step(closure)
    scale = 0.25 * norm / (norm + 1e-6)
    want = oracle.quadratic(a, b, theta, 0.5 * scale)
    np.testing.assert_allclose(weight.detach().numpy(), want, rtol=0, atol=1e-10)
    assert optimizer.converged


@pytest.mark.parametrize("per", ["tensor", "row"])
@pytest.mark.parametrize("maximize", [False, True])
def test_centring_shifts_the_equation(per: str, maximize: bool) -> None:
    a, b = spectrum(8, 6, 1.0, 9.0)
    theta, sign = np.linspace(-1.0, 2.0, 6), -1.0 if maximize else 1.0
    weight = parameter(theta.reshape(2, 3))
    matrix, vector = torch.from_numpy(a), torch.from_numpy(b)
    centre = gw.transforms.Center(per=per)
    optimizer = ImplicitSGD([weight], lr=0.5, maximize=maximize, transform=centre, **EXACT)

    def loss() -> Tensor:
        flat = weight.reshape(-1)
        return sign * (flat @ matrix @ flat / 2 - vector @ flat)

    optimizer.step(closure_of(optimizer, loss))
    grad = (a @ theta - b).reshape(2, 3)
    mean = grad.mean() if per == "tensor" else grad.mean(1, keepdims=True)
    shift = np.broadcast_to(mean, (2, 3)).reshape(-1)
    want = oracle.quadratic(a, b, theta, 0.5, shift)
    np.testing.assert_allclose(weight.detach().numpy().reshape(-1), want, rtol=0, atol=1e-10)


def test_a_chain_composes_and_the_gradient_stays_raw() -> None:
    a, b = spectrum(9, 6, 1.0, 9.0)
    theta = np.linspace(-1.0, 2.0, 6)
    weight = parameter(theta.reshape(2, 3))
    matrix, vector = torch.from_numpy(a), torch.from_numpy(b)
    both = [gw.transforms.Center(), gw.transforms.ClipNorm(1.0)]
    optimizer = ImplicitSGD([weight], lr=2.0, transform=both, **EXACT)

    def loss() -> Tensor:
        flat = weight.reshape(-1)
        return flat @ matrix @ flat / 2 - vector @ flat

    optimizer.step(closure_of(optimizer, loss))
    grad = a @ theta - b
    centred = grad - grad.mean()
    scale = min(1.0, 1.0 / (np.linalg.norm(centred) + 1e-6))
    assert scale < 1
    want = oracle.quadratic(a, b, theta, 2.0 * scale, grad.mean())
    np.testing.assert_allclose(weight.detach().numpy().reshape(-1), want, rtol=0, atol=1e-10)
    raw = a @ want - b  # at the solution, not mapped
    np.testing.assert_allclose(weight.grad.numpy().reshape(-1), raw, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"inner": "adam", "inner_lr": 0.1}], ids=["lbfgs", "adam"])
def test_one_decision_a_step_and_scale_zero_stays(options: dict[str, object]) -> None:
    still, moving = parameter([1.0, -0.3]), parameter([1.0, 2.0])
    fixed = Fixed([0.0, 0.5])
    optimizer = ImplicitSGD([still, moving], transform=fixed, **options)
    loss = lambda: (still.square().sum() + moving.square().sum()) / 2  # noqa: E731
    closure = closure_of(optimizer, loss)
    for step in (1, 2):
        optimizer.step(closure)
        assert fixed.decisions == step
        assert optimizer.closure_calls > 1
    assert still.tolist() == [1.0, -0.3]
    if not options:
        torch.testing.assert_close(moving.detach(), torch.tensor([1.0, 2.0]).double() / 1.25**2)
    fixed.scale = [1.0, 0.0]  # averages of Adam are not to move what stays
    kept = moving.tolist()
    optimizer.step(closure)
    assert moving.tolist() == kept
    assert still.tolist() != [1.0, -0.3]


def test_attach_is_the_same_as_transform() -> None:
    results = []
    for attached in (False, True):
        model, loss = network()
        transform = gw.transforms.Autoscale()
        own = {} if attached else {"transform": transform}
        optimizer = ImplicitSGD(model.parameters(), **own)
        attachment = gw.attach(optimizer, transform, model=model) if attached else None
        for _ in range(3):
            optimizer.step(closure_of(optimizer, loss))
        results.append(torch.cat([p.detach().reshape(-1) for p in model.parameters()]))
        if attachment is not None:
            assert attachment.skipped == 0
            assert attachment.numbers
    assert torch.equal(*results)


def test_negative_scales_are_refused() -> None:
    weight = parameter([1.0])
    optimizer = ImplicitSGD([weight], transform=Fixed([-2.0]))
    with pytest.raises(UserError, match="scale >= 0, got -2"):
        optimizer.step(closure_of(optimizer, lambda: weight.sum()))
    assert weight.item() == 1.0
