"""AdaRem: the factor's bounds, its fading, and where it is plain descent."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from optim_helpers import Probe, by, close, each_route, noise, normal, paths, walk

from gradwise.optim import AdaRem
from reference.strategies import FEW

START = [normal(3, 2, seed=7), normal(5, seed=8)]
SHAPES = ((3, 2), (5,))


def sgd(lr: float = 0.1, weight_decay: float = 0.0):
    return lambda p: torch.optim.SGD(p, lr=lr, weight_decay=weight_decay, foreach=False)


@each_route
@FEW
@given(
    path=paths(steps=(1, 8)),
    beta=st.sampled_from([0.0, 0.5, 0.9]),
    lam=st.sampled_from([0.0, 0.5, 0.999, 1.0]),
)
def test_factor_is_within_its_bounds(route, path, beta, lam):
    probe = Probe(AdaRem, route, beta=beta, lam=lam)
    for t, g in enumerate(path, 1):
        taken, room = probe.take(g), lam ** (t - 1)
        assert (taken[g == 0] == 0).all()
        a = taken[g != 0] / g[g != 0]
        assert (a >= 1 - room - 1e-12).all()
        assert (a <= 1 + room + 1e-12).all()
        assert (taken * g >= 0).all()  # never against the gradient's sign


@each_route
def test_factor_reaches_both_sides(route):
    probe = Probe(AdaRem, route, lam=1.0)
    factors = [probe.take(g) / g for (g,) in noise(12, (50,))]
    later = torch.stack(factors[1:])
    assert later.min() < 0.1
    assert later.max() > 1.9


@each_route
class TestIsSGD:
    def test_without_lambda(self, route):
        path = noise(6, *SHAPES)
        mine, _ = walk(
            lambda p: AdaRem(p, lr=0.1, lam=0.0, weight_decay=0.1, **by(route)), START, path
        )
        theirs, _ = walk(sgd(weight_decay=0.1), START, path)
        for a, b in zip(mine, theirs, strict=True):
            close(a, b, 1e-14)

    def test_at_the_first_step(self, route):
        grad = normal(3, 2)
        close(Probe(AdaRem, route, lam=1.0).take(grad), grad, 1e-15)

    def test_at_last(self, route):
        probe = Probe(AdaRem, route, lam=0.5)
        distances = []
        for (g,) in noise(45, (20,)):
            distances.append(float((probe.take(g) / g - 1).abs().max()))
        assert distances[1] > 0.1
        assert distances[-1] < 2.0**-43
        for t, distance in enumerate(distances, 1):
            assert distance <= 0.5 ** (t - 1) * (1 + 1e-9) + 1e-15

    def test_while_nothing_has_been_remembered(self, route):
        probe = Probe(AdaRem, route, lam=1.0)
        for _ in range(3):
            probe.take(torch.zeros(4, dtype=torch.float64))
        grad = normal(4)
        close(probe.take(grad), grad, 1e-15)


@each_route
@pytest.mark.parametrize("factor", [2.0**-20, 1e4])
def test_scale_of_the_gradient_does_not_matter(route, factor):
    plain, scaled = (Probe(AdaRem, route, eps=1e-30) for _ in range(2))
    for (g,) in noise(8, (3, 2)):
        close(scaled.take(factor * g), factor * plain.take(g), 1e-12)


@each_route
def test_eps_breaks_the_invariance(route):
    plain, scaled = (Probe(AdaRem, route, eps=0.1) for _ in range(2))
    for (g,) in noise(3, (3, 2)):
        a, b = 1e-2 * plain.take(g), scaled.take(1e-2 * g)
    assert ((a - b) / g).abs().max() > 1e-3


@each_route
def test_constant_gradient_doubles_the_rate(route):
    grad = 0.3 * normal(4, 5).sign()
    probe = Probe(AdaRem, route, lam=1.0, eps=1e-12)
    close(probe.take(grad), grad)
    for _ in range(10):
        close(probe.take(grad), 2 * grad, 1e-9)


@each_route
def test_alternating_gradient_stops(route):
    grad = 0.3 * normal(4).sign()
    probe = Probe(AdaRem, route, beta=0.0, lam=1.0, eps=1e-12)
    probe.take(grad)
    for t in range(1, 6):
        assert probe.take((-1) ** t * grad).abs().max() < 1e-9


@each_route
def test_largest_is_of_the_tensor(route):
    """(5.1): a large momentum elsewhere in the tensor, and only there, makes a factor small."""
    probe = Probe(AdaRem, route, lam=1.0)
    grads = [torch.tensor([1.0, 100.0]), torch.tensor([1.0, 1.0])]
    probe.take_all(grads)
    first, second = probe.take_all(grads)
    assert first.tolist() == pytest.approx([1.01, 200.0], rel=1e-5)
    assert second.tolist() == pytest.approx([2.0, 2.0], rel=1e-5)


@each_route
def test_factor_looks_at_the_momentum_before(route):
    probe = Probe(AdaRem, route, beta=0.5, lam=1.0, eps=1e-12)
    probe.take(torch.tensor([4.0, -2.0], dtype=torch.float64))
    taken = probe.take(torch.tensor([-3.0, -3.0], dtype=torch.float64))
    assert taken.tolist() == pytest.approx([0.0, -4.5], abs=1e-9)  # b = (-1, 1/2)
    assert probe.state["exp_avg"].tolist() == pytest.approx([-0.5, -2.0], rel=1e-12)


@each_route
class TestDecay:
    def test_alone_without_a_gradient(self, route):
        start = [torch.full((3,), 4.0, dtype=torch.float64)]
        path = [[torch.zeros(3, dtype=torch.float64)]] * 3
        params, states = walk(
            lambda p: AdaRem(p, lr=0.1, weight_decay=0.5, **by(route)), start, path
        )
        assert params[0].tolist() == pytest.approx([4 * 0.95**3] * 3, rel=1e-12)
        assert not states[0]["exp_avg"].any()  # the momentum is of gradients only

    def test_is_not_multiplied(self, route):
        start = [torch.full((3,), 4.0, dtype=torch.float64)]
        path = [[torch.full((3,), 2.0, dtype=torch.float64)]] * 2
        params, _ = walk(
            lambda p: AdaRem(p, lr=0.1, lam=1.0, weight_decay=0.5, eps=1e-12, **by(route)),
            start,
            path,
        )
        first = 4 - 0.1 * (2 + 2)
        second = first - 0.1 * (4 + 0.5 * first)
        assert params[0].tolist() == pytest.approx([second] * 3, rel=1e-9)
