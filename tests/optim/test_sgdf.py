"""SGDF: every limit in which it is something known, and what its gain promises."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from optim_helpers import Probe, by, close, each_route, noise, normal, paths, walk

from gradwise.optim import SGDF
from reference.strategies import FEW

START = [normal(3, 2, seed=7), normal(5, seed=8)]
SHAPES = ((3, 2), (5,))


def sgd(lr: float = 0.5):
    return lambda params: torch.optim.SGD(params, lr=lr, foreach=False)


def corrected(probe: Probe, t: int, beta1: float) -> torch.Tensor:
    return probe.state["exp_avg"] / (1 - beta1**t)


@each_route
class TestIsSGD:
    def test_without_averaging(self, route):
        path = noise(6, *SHAPES)
        mine, _ = walk(lambda p: SGDF(p, lr=0.5, betas=(0.0, 0.999), **by(route)), START, path)
        theirs, _ = walk(sgd(), START, path)
        for a, b in zip(mine, theirs, strict=True):
            close(a, b, 1e-14)

    def test_with_gamma_to_0(self, route):
        path = noise(6, *SHAPES)
        theirs, _ = walk(sgd(), START, path)
        errors = []
        for gamma in (1e-3, 1e-6, 1e-9):
            mine, _ = walk(lambda p, g=gamma: SGDF(p, lr=0.5, gamma=g, **by(route)), START, path)
            errors.append(float((mine[0] - theirs[0]).abs().max()))
        # K**gamma = 1 + gamma ln K + ..: the distance falls as gamma does.
        assert 0 < errors[2] < 1e-7
        assert errors[0] / errors[1] == pytest.approx(1e3, rel=0.05)
        assert errors[1] / errors[2] == pytest.approx(1e3, rel=0.05)

    @pytest.mark.parametrize("variance_factor", [True, False])
    def test_on_a_constant_gradient(self, route, variance_factor):
        grad = normal(3, 2, seed=1)
        probe = Probe(SGDF, route, variance_factor=variance_factor)
        for _ in range(50):
            close(probe.take(grad), grad, 1e-12)

    def test_at_the_first_step(self, route):
        for scale in (1e-6, 1.0, 1e6):
            grad = scale * normal(3, 2, seed=1)
            close(Probe(SGDF, route).take(grad), grad, 1e-14)


@each_route
def test_gamma_to_infinity_is_the_corrected_average(route):
    path = noise(6, (5,))
    probe = Probe(SGDF, route, gamma=1e12)
    m = torch.zeros(5, dtype=torch.float64)
    for t, (g,) in enumerate(path, 1):
        m = 0.9 * m + 0.1 * g
        # K**gamma r is largest where r^2 is s / (2 gamma): about 1e-6 of s.
        close(probe.take(g), m / (1 - 0.9**t), rtol=0.0, atol=1e-5)
    assert (m / (1 - 0.9**6) - path[-1][0]).abs().min() > 1e-2  # which is not the gradient


@each_route
@FEW
@given(
    path=paths(steps=(2, 8)),
    beta1=st.sampled_from([0.5, 0.9, 0.99]),
    gamma=st.sampled_from([0.1, 0.5, 1.0, 3.0]),
    variance_factor=st.booleans(),
)
def test_lies_between_average_and_gradient(route, path, beta1, gamma, variance_factor):
    probe = Probe(SGDF, route, betas=(beta1, 0.99), gamma=gamma, variance_factor=variance_factor)
    for t, g in enumerate(path, 1):
        ghat = probe.take(g)
        mhat = corrected(probe, t, beta1)
        slack = 1e-12 * torch.maximum(mhat.abs(), g.abs())
        assert (ghat >= torch.minimum(mhat, g) - slack).all()
        assert (ghat <= torch.maximum(mhat, g) + slack).all()


@each_route
def test_gain_is_below_1(route):
    probe = Probe(SGDF, route, gamma=1.0)
    for t, (g,) in enumerate(noise(20, (200,)), 1):
        ghat = probe.take(g)
        mhat = corrected(probe, t, 0.9)
        if t == 1:
            continue
        gain = (ghat - mhat) / (g - mhat)
        assert (gain > 0).all()
        assert (gain < 1).all()
        assert gain.std() > 1e-3  # a gain for each value, not one for all


@each_route
@pytest.mark.parametrize("factor", [2.0**-20, 1e3])
def test_scales_with_the_gradient(route, factor):
    plain, scaled = Probe(SGDF, route, eps=1e-30), Probe(SGDF, route, eps=1e-30)
    for (g,) in noise(6, (3, 2)):
        close(scaled.take(factor * g), factor * plain.take(g), 1e-11)


@each_route
def test_eps_breaks_the_scaling(route):
    plain, scaled = Probe(SGDF, route, eps=1.0), Probe(SGDF, route, eps=1.0)
    for (g,) in noise(3, (3, 2)):
        a, b = 1e-2 * plain.take(g), scaled.take(1e-2 * g)
    assert (a - b).abs().max() > 1e-4


@each_route
def test_no_gradient_for_ever(route):
    probe = Probe(SGDF, route)
    for _ in range(5):
        assert torch.equal(probe.take(torch.zeros(4)).abs(), torch.zeros(4))


@each_route
def test_factor_is_the_variance_of_the_average(route):
    """With gamma 1 and no eps, K / (1 - K) = shat / r^2: the factor is a ratio of odds."""
    beta1, beta2, eps = 0.8, 0.9, 1e-30
    with_factor = Probe(SGDF, route, betas=(beta1, beta2), eps=eps, gamma=1.0)
    without = Probe(SGDF, route, betas=(beta1, beta2), eps=eps, gamma=1.0, variance_factor=False)
    for t, (g,) in enumerate(noise(6, (50,)), 1):
        odds = []
        for probe in (with_factor, without):
            ghat = probe.take(g)
            mhat = corrected(probe, t, beta1)
            gain = (ghat - mhat) / (g - mhat)
            odds.append(gain / (1 - gain))
        if t > 1:
            # m_t is a weighted sum: its variance is that of g times the sum of squared weights.
            weights = [(1 - beta1) * beta1**k for k in range(t)]
            expected = math.fsum(w * w for w in weights)
            close(odds[0] / odds[1], torch.full_like(g, expected), 1e-7)


@each_route
def test_decay(route):
    start, grad = [torch.full((2,), 4.0)], [[torch.ones(2)]]
    coupled, _ = walk(lambda p: SGDF(p, lr=0.5, weight_decay=0.1, **by(route)), start, grad)
    assert coupled[0].tolist() == pytest.approx([4 - 0.5 * 1.4] * 2, rel=1e-6)
    shrunk, _ = walk(
        lambda p: SGDF(p, lr=0.5, weight_decay=0.1, decoupled_weight_decay=True, **by(route)),
        start,
        grad,
    )
    assert shrunk[0].tolist() == pytest.approx([4 * 0.95 - 0.5] * 2, rel=1e-6)
