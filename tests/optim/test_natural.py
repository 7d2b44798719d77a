"""RENG and RING against their equations."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from natural_helpers import EXACT, batch, both, half_squares, joint, network, taken
from torch import nn

from gradwise.optim._natural import RENG, RING
from reference import natural as oracle


@both
@settings(max_examples=12)
@given(
    rho=st.sampled_from([0.0, 0.05, 0.7]),
    damping=st.sampled_from([1e-3, 0.1, 3.0]),
    momentum=st.sampled_from([0.0, 0.9]),
    weight_decay=st.sampled_from([0.0, 0.1]),
    decay=st.sampled_from([0.0, 0.5, 0.95]),
    every=st.integers(1, 3),
    seed=st.integers(0, 100),
)
def test_steps_are_those_of_the_oracle(
    cls, rho, damping, momentum, weight_decay, decay, every, seed
):
    options = {
        "lr": 0.02,
        "rho": rho,
        "damping": damping,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "factor_decay": decay,
        "factor_every": every,
    }
    model = network([3, 4, 2], seed)
    optimizer = cls(model, **options, **EXACT)
    reference = oracle.Natural(joint(model), cls is RING, **options)
    for t in range(5):
        x, y = batch(7, 3, 2, seed=100 * seed + t)
        loss = optimizer.step(half_squares(model, x, y))
        assert float(loss) == pytest.approx(oracle.loss(reference.weights, x.numpy(), y.numpy()))
        reference.step(x.numpy(), y.numpy())
        for mine, theirs in zip(joint(model), reference.weights, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-6, atol=1e-8)


@both
def test_rho_0_is_the_damped_natural_gradient_where_the_fisher_matrix_is_a_product(cls):
    # Every a with every d: a a^T and d d^T are uncorrelated over the batch, so F = S (x) A.
    torch.manual_seed(0)
    a, d = torch.randn(4, 3).double(), torch.randn(5, 2).double()
    x, c = a.repeat_interleave(5, 0), d.repeat(4, 1)
    layer = nn.Linear(3, 2, bias=False).double()
    step = taken(
        cls(layer, lr=1.0, rho=0.0, damping=1e-12, **EXACT), lambda: (layer(x) * c).sum() / len(x)
    )
    dense = oracle.fisher(x.numpy(), c.numpy())
    mean = (c.T @ x / len(x)).numpy().reshape(-1)
    expected = np.linalg.solve(dense, mean)
    np.testing.assert_allclose(step.numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize("damping", [1e-3, 0.5])
@both
def test_all_layers_at_rho_0_against_dense_solves(cls, damping):
    model = network([3, 5, 4, 2])
    x, y = batch(11, 3, 2)
    weights = joint(model)
    optimizer = cls(model, lr=1.0, rho=0.0, damping=damping, **EXACT)
    optimizer.step(half_squares(model, x, y))
    a, d = oracle.samples(weights, x.numpy(), y.numpy())
    g = oracle.gradients(weights, x.numpy(), y.numpy())
    for i, (before, after) in enumerate(zip(weights, joint(model), strict=True)):
        expected = oracle.preconditioned(g[i], *oracle.factors(a[i], d[i]), damping)
        np.testing.assert_allclose(before - after, expected, rtol=1e-7, atol=1e-9)


def test_with_fisher_identity_reng_is_gradient_descent_on_the_regularised_loss():
    model = network([2, 3, 1])
    x, y = batch(6, 2, 1)
    closure = half_squares(model, x, y)
    params = list(model.parameters())
    rho, h = 0.3, 1e-5

    @torch.enable_grad()
    def regularised() -> float:
        grads = torch.autograd.grad(closure(), params)
        return (closure() + rho / 2 * sum(g.square().sum() for g in grads)).item()

    expected = []
    for p in params:
        for place in np.ndindex(*p.shape):
            with torch.no_grad():
                p[place] += h
                up = regularised()
                p[place] -= 2 * h
                down = regularised()
                p[place] += h
            expected.append((up - down) / (2 * h))
    step = taken(RENG(params, lr=1.0, rho=rho, fisher="identity"), closure)
    torch.testing.assert_close(step, torch.tensor(expected).double(), rtol=1e-6, atol=1e-8)


@given(rho=st.floats(0.0, 2.0), seed=st.integers(0, 1000))
def test_on_a_quadratic_both_are_exact(rho, seed):
    torch.manual_seed(seed)
    root = torch.randn(4, 4).double()
    q, b = root @ root.T, torch.randn(4).double()
    start = torch.randn(4).double()
    expected = (q @ start - b) + rho * q @ (q @ start - b)
    steps = []
    for cls in (RENG, RING):
        theta = nn.Parameter(start.clone())

        def closure(theta=theta):
            return theta @ q @ theta / 2 - b @ theta

        optimizer = cls([theta], lr=1.0, rho=rho, fisher="identity")
        steps.append(taken(optimizer, closure))
        torch.testing.assert_close(theta.grad, expected, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(steps[0], steps[1], rtol=1e-9, atol=1e-9)


def test_ring_differs_from_reng_by_the_square_of_rho():
    x, y = batch(8, 3, 2)
    errors = []
    for rho in (0.08, 0.04, 0.02, 0.01):
        steps = []
        for cls in (RENG, RING):
            model = network([3, 4, 2])
            optimizer = cls(model, lr=1.0, rho=rho, fisher="identity")
            steps.append(taken(optimizer, half_squares(model, x, y)))
        errors.append(float((steps[0] - steps[1]).norm()))
    assert errors[-1] > 1e-9
    for coarse, fine in itertools.pairwise(errors):
        assert 3.5 < coarse / fine < 4.5


@both
def test_hardly_damped_it_does_not_see_a_linear_reparameterisation_of_the_input(cls):
    x, y = batch(40, 3, 2)
    mixing = torch.tensor([[2.0, 0.3, 0.0], [0.0, 0.1, 0.5], [1.0, 0.0, 3.0]]).double()

    def end(matrix: torch.Tensor, **options: Any) -> torch.Tensor:
        layer = nn.Linear(3, 2).double()
        with torch.no_grad():
            start = torch.tensor([[1.0, -1.0, 0.5], [0.2, 0.4, -2.0]]).double()
            layer.weight.copy_(start @ matrix.inverse())
            layer.bias.fill_(0.1)
        seen = x @ matrix.T
        optimizer = cls(layer, lr=0.1, rho=0.0, **options, **EXACT)
        for _ in range(3):
            optimizer.step(half_squares(layer, seen, y))
        return layer(seen)

    plain, mixed = torch.eye(3).double(), mixing
    torch.testing.assert_close(
        end(plain, damping=1e-16), end(mixed, damping=1e-16), rtol=1e-5, atol=1e-6
    )
    # Gradient descent, and what is damped much, do see it.
    for options in ({"fisher": "identity"}, {"damping": 1.0}):
        assert not torch.allclose(end(plain, **options), end(mixed, **options), atol=1e-2)


@both
def test_maximising_is_minimising_the_negative(cls):
    ends = []
    for sign, maximize in ((1.0, False), (-1.0, True)):
        model = network([3, 4, 1])
        optimizer = cls(model, lr=0.05, rho=0.3, momentum=0.5, weight_decay=0.1, maximize=maximize)
        for t in range(4):
            closure = half_squares(model, *batch(6, 3, 1, seed=t))
            optimizer.step(lambda closure=closure, sign=sign: sign * closure())
        ends.append(model)
    for p, q in zip(ends[0].parameters(), ends[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-12)


@both
def test_the_sum_of_the_losses_with_reduction_sum_has_the_same_factors(cls):
    x, y = batch(9, 3, 2)
    states = []
    for factor, reduction in ((1.0, "mean"), (9.0, "sum")):
        model = network([3, 4, 2])
        optimizer = cls(model, reduction=reduction)
        closure = half_squares(model, x, y)
        optimizer.step(lambda closure=closure, factor=factor: factor * closure())
        states.append([optimizer.state[p] for p in model.parameters() if p.dim() == 2])
    for one, other in zip(*states, strict=True):
        for key in ("factor_in", "factor_out"):
            torch.testing.assert_close(one[key], other[key], rtol=1e-12, atol=0)


@both
def test_it_learns_digits_faster_than_sgd(cls):
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.tensor(digits.data / 16, dtype=torch.float32)[:1500]
    y = torch.tensor(digits.target)[:1500]

    def end(make) -> float:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
        optimizer, generator = make(model), torch.Generator().manual_seed(0)
        for _ in range(60):
            chosen = torch.randint(0, 1500, (128,), generator=generator)
            loss = nn.functional.cross_entropy

            def closure(chosen=chosen, loss=loss):
                return loss(model(x[chosen]), y[chosen])

            if isinstance(optimizer, cls):
                optimizer.step(closure)
            else:
                optimizer.zero_grad()
                closure().backward()
                optimizer.step()
        with torch.no_grad():
            return float(nn.functional.cross_entropy(model(x), y))

    mine = [end(lambda m, lr=lr: cls(m, lr)) for lr in (0.01, 0.02)]
    rivals = [end(lambda m, lr=lr: torch.optim.SGD(m.parameters(), lr)) for lr in (0.3, 0.6, 1.0)]
    assert min(mine) < 0.6 * min(rivals)
