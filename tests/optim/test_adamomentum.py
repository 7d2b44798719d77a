"""AdaMomentum: eps in the recursion, the large first step, and its relatives."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from optim_helpers import Probe, by, close, each_route, noise, normal, paths, walk

from gradwise.optim import AdaMomentum
from reference.strategies import FEW

START = [normal(3, 2, seed=7), normal(5, seed=8)]
SHAPES = ((3, 2), (5,))


def adafamily(
    path: list[torch.Tensor], mu: float, c: float, betas: tuple[float, float]
) -> torch.Tensor:
    """AdaFamily's last step of rate 1 without eps: the square is of a blend of g and m."""
    (b1, b2), t = betas, len(path)
    m, v = torch.zeros_like(path[0]), torch.zeros_like(path[0])
    for g in path:
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * (c * ((1 - mu) * g - mu * m)) ** 2
    return m / (1 - b1**t) / (v / (1 - b2**t)).sqrt()


@each_route
@FEW
@given(
    path=paths(steps=(1, 8)),
    betas=st.tuples(st.sampled_from([0.0, 0.9]), st.sampled_from([0.5, 0.999])),
    eps=st.sampled_from([1e-8, 1e-3, 1.0]),
)
def test_eps_is_a_constant_floor(route, path, betas, eps):
    """(i): vhat is the corrected average of m^2, plus eps / (1 - b2), at every step."""
    b1, b2 = betas
    probe = Probe(AdaMomentum, route, betas=betas, eps=eps)
    m = average = torch.zeros_like(path[0])
    for t, g in enumerate(path, 1):
        taken = probe.take(g)
        m = b1 * m + (1 - b1) * g
        average = b2 * average + (1 - b2) * m**2
        vhat = probe.state["exp_avg_sq"] / (1 - b2**t)
        expected = average / (1 - b2**t) + eps / (1 - b2)
        close(vhat, expected, 1e-12)
        close(taken, m / (1 - b1**t) / expected.sqrt(), 1e-12, 1e-13)


@each_route
def test_floor_of_1e_8_is_1e_5(route):
    probe = Probe(AdaMomentum, route, eps=1e-8)
    for t in range(1, 30):
        probe.take(torch.zeros(3, dtype=torch.float64))
        vhat = probe.state["exp_avg_sq"] / (1 - 0.999**t)
        close(vhat, torch.full_like(vhat, 1e-5), 1e-9)


@each_route
@pytest.mark.parametrize("beta1", [0.0, 0.5, 0.9])
def test_first_step_is_large(route, beta1):
    """(ii): lr * sign(g) / (1 - b1), ten times Adam's with the default."""
    grad = normal(3, 2)
    taken = Probe(AdaMomentum, route, betas=(beta1, 0.999)).take(grad)
    close(taken, grad.sign() / (1 - beta1), 1e-9)
    adam = torch.nn.Parameter(torch.zeros_like(grad))
    adam.grad = grad
    torch.optim.Adam([adam], lr=1.0, betas=(beta1, 0.999), eps=1e-16).step()
    close(taken, -adam.detach() / (1 - beta1), 1e-9)


@each_route
class TestWithoutMomentum:
    """(iii): b1=0 is Adam with b1=0, eps joining in the recursion."""

    def test_eps_to_0(self, route):
        path = noise(8, *SHAPES)
        mine, _ = walk(
            lambda p: AdaMomentum(p, lr=0.01, betas=(0.0, 0.99), eps=1e-40, **by(route)),
            START,
            path,
        )
        theirs, _ = walk(
            lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.0, 0.99), eps=0.0, foreach=False),
            START,
            path,
        )
        for a, b in zip(mine, theirs, strict=True):
            close(a, b, 1e-13)

    def test_large_eps(self, route):
        b2, eps = 0.9, 0.1
        probe = Probe(AdaMomentum, route, betas=(0.0, b2), eps=eps)
        v = torch.zeros(5, dtype=torch.float64)
        for t, (g,) in enumerate(noise(8, (5,)), 1):
            v = b2 * v + (1 - b2) * g * g + eps
            close(probe.take(g), g / (v / (1 - b2**t)).sqrt(), 1e-13)


@each_route
def test_constant_gradient_becomes_its_sign(route):
    """(iv)."""
    grad = torch.tensor([1e-3, -2.0, 50.0, -0.3], dtype=torch.float64)
    probe = Probe(AdaMomentum, route, betas=(0.9, 0.95))
    sizes = [probe.take(grad) for _ in range(600)]
    close(sizes[-1], grad.sign(), 1e-8)
    # From above: the average of m^2 lags behind.
    assert (sizes[10].abs() > 1.1).all()


@each_route
@pytest.mark.parametrize("factor", [2.0**-10, 1e4])
def test_scale_of_the_gradient_does_not_matter(route, factor):
    """(v)."""
    plain, scaled = (Probe(AdaMomentum, route, eps=1e-40) for _ in range(2))
    for (g,) in noise(8, (3, 2)):
        close(scaled.take(factor * g), plain.take(g), 1e-12)


@each_route
def test_eps_breaks_the_invariance(route):
    plain, scaled = (Probe(AdaMomentum, route, eps=1e-3) for _ in range(2))
    for (g,) in noise(3, (3, 2)):
        a, b = plain.take(g), scaled.take(1e-2 * g)
    assert (a - b).abs().max() > 0.1


@each_route
def test_is_adafamily_at_1(route):
    """(vi): mu = 1, c = 1; at mu = 0 that family is Adam, which this is not."""
    path = [g for (g,) in noise(6, (5,))]
    probe = Probe(AdaMomentum, route, betas=(0.9, 0.99), eps=1e-40)
    for g in path:
        taken = probe.take(g)
    close(taken, adafamily(path, 1.0, 1.0, (0.9, 0.99)), 1e-12)
    adam, _ = walk(
        lambda p: torch.optim.Adam(p, lr=1.0, betas=(0.9, 0.99), eps=0.0), [path[0] * 0], [path[:1]]
    )
    close(-adam[0], adafamily(path[:1], 0.0, 1.0, (0.9, 0.99)), 1e-12)
    assert (taken - adafamily(path, 0.0, 1.0, (0.9, 0.99))).abs().max() > 0.1


@each_route
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_no_gradient(route, dtype):
    """(vii): 0 / sqrt(eps / (1 - b2)), not NaN, with an eps that float32 still holds."""
    probe = Probe(AdaMomentum, route)
    for t in range(1, 5):
        assert torch.equal(probe.take(torch.zeros(4, dtype=dtype)).abs(), torch.zeros(4).to(dtype))
        v = probe.state["exp_avg_sq"].double()
        floor = 1e-16 * math.fsum(0.999**k for k in range(t))
        close(v, torch.full_like(v, floor), 1e-5)


@each_route
def test_decay_is_decoupled_unless_told_otherwise(route):
    start, path = [torch.full((2,), 4.0)], [[torch.full((2,), 2.0)]]

    def make(**options):
        common = {"lr": 0.1, "betas": (0.5, 0.9), "weight_decay": 0.5}
        return lambda p: AdaMomentum(p, **common, **options, **by(route))

    decoupled, _ = walk(make(), start, path)
    assert decoupled[0].tolist() == pytest.approx([4 * 0.95 - 0.2] * 2, rel=1e-6)
    coupled, states = walk(make(decoupled_weight_decay=False), start, path)
    assert coupled[0].tolist() == pytest.approx([4 - 0.2] * 2, rel=1e-6)
    assert states[0]["exp_avg"].tolist() == pytest.approx([2.0] * 2, rel=1e-6)  # (2 + 2) / 2
