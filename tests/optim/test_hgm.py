"""HGM: Adam where the alignment cannot act, and what the alignment does where it can."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from optim_helpers import Probe, by, close, each_route, noise, normal, paths, walk

from gradwise.optim import HGM, AdamW
from reference.strategies import FEW

START = [normal(3, 2, seed=7), normal(5, seed=8)]
SHAPES = ((3, 2), (5,))
LR, EPS = 0.01, 1e-8
NEVER_ACTS = [{"gamma": 0.0}, {"beta_s": 1.0}]


def adam_step(path: list[torch.Tensor], betas: tuple[float, float] = (0.9, 0.999)) -> torch.Tensor:
    """What Adam of rate 1 takes off at the last of these gradients."""
    (b1, b2), t = betas, len(path)
    m, v = torch.zeros_like(path[0]), torch.zeros_like(path[0])
    for g in path:
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    return m / (1 - b1**t) / ((v / (1 - b2**t)).sqrt() + EPS)


@each_route
@pytest.mark.parametrize("scope", ["tensor", "global"])
@pytest.mark.parametrize("off", NEVER_ACTS, ids=["gamma=0", "beta_s=1"])
class TestIsAdam:
    def test_of_torch(self, route, scope, off):
        path = noise(20, *SHAPES)
        mine, _ = walk(lambda p: HGM(p, lr=LR, scope=scope, **off, **by(route)), START, path)
        theirs, _ = walk(lambda p: torch.optim.Adam(p, lr=LR, foreach=False), START, path)
        for a, b in zip(mine, theirs, strict=True):
            close(a, b, 1e-13)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_bit_for_bit(self, route, scope, off, dtype):
        """Against the same route of AdamW without decay.

        The averages have every bit of Adam's. So has the kernel's update, which is Adam's with
        another rate. Elsewhere the rate is a tensor, as the host must not read the alignment; it is
        multiplied with at another place of the formula, and the last bit of a step may differ.
        """
        start = [x.to(dtype) for x in START]
        path = [[g.to(dtype) for g in grads] for grads in noise(10, *SHAPES)]
        mine, states = walk(lambda p: HGM(p, lr=LR, scope=scope, **off, **by(route)), start, path)
        theirs, others = walk(lambda p: AdamW(p, lr=LR, weight_decay=0, **by(route)), start, path)
        for state, other in zip(states, others, strict=True):
            assert torch.equal(state["exp_avg"], other["exp_avg"])
            assert torch.equal(state["exp_avg_sq"], other["exp_avg_sq"])
        for a, b in zip(mine, theirs, strict=True):
            if route == "kernel":
                assert torch.equal(a, b)
            else:  # ten steps, each rounded to what the parameter holds
                close(a, b, rtol=0.0, atol=10 * torch.finfo(dtype).eps)

    def test_alignment(self, route, scope, off):
        _, states = walk(
            lambda p: HGM(p, lr=LR, scope=scope, **off, **by(route)), START, noise(5, *SHAPES)
        )
        for state in states:
            assert (float(state["alignment"]) == 0.0) == ("beta_s" in off)


@each_route
def test_first_step_is_adams(route):
    grads = noise(1, *SHAPES)
    mine, states = walk(lambda p: HGM(p, lr=LR, gamma=5.0, **by(route)), START, grads)
    theirs, _ = walk(lambda p: torch.optim.Adam(p, lr=LR, foreach=False), START, grads)
    for a, b, state in zip(mine, theirs, states, strict=True):
        close(a, b, 1e-15)
        assert float(state["alignment"]) == 0.0


@each_route
@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_no_gradient_lets_the_alignment_decay(route, scope):
    probe = Probe(HGM, route, beta_s=0.8, scope=scope)
    grad = normal(4)
    for _ in range(3):
        probe.take(grad)
    before = float(probe.state["alignment"])
    for k in range(1, 6):
        taken = probe.take(torch.zeros_like(grad))
        assert taken.isfinite().all()
        assert float(probe.state["alignment"]) == pytest.approx(before * 0.8**k, rel=1e-6)


@each_route
def test_no_gradient_from_the_start(route):
    probe = Probe(HGM, route)
    for _ in range(4):
        assert torch.equal(probe.take(torch.zeros(4)).abs(), torch.zeros(4))
        assert float(probe.state["alignment"]) == 0.0


@each_route
@FEW
@given(
    path=paths(steps=(2, 8)),
    beta_s=st.sampled_from([0.0, 0.5, 0.9]),
    gamma=st.sampled_from([0.5, 2.0]),
    scope=st.sampled_from(["tensor", "global"]),
)
def test_rate_stays_within_its_bounds(route, path, beta_s, gamma, scope):
    probe = Probe(HGM, route, beta_s=beta_s, gamma=gamma, scope=scope)
    for t, g in enumerate(path, 1):
        taken, plain = probe.take(g).abs(), adam_step(path[:t]).abs()
        s = float(probe.state["alignment"])
        assert -1 - 1e-6 <= s <= 1 + 1e-6
        assert (taken <= math.exp(gamma) * plain * (1 + 1e-6)).all()
        assert (taken >= math.exp(-gamma) * plain * (1 - 1e-6)).all()
        close(taken, plain * math.exp(gamma * s), 1e-6)


@each_route
@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_constant_gradient(route, scope):
    probe = Probe(HGM, route, beta_s=0.8, gamma=0.7, scope=scope)
    grad = normal(3, 2)
    for t in range(1, 60):
        taken = probe.take(grad)
        s = float(probe.state["alignment"])
        assert s == pytest.approx(1 - 0.8 ** (t - 1), abs=1e-6)
    close(taken, math.exp(0.7) * grad.sign(), 1e-4)  # eta -> alpha e^gamma


@each_route
def test_alternating_gradient(route):
    probe = Probe(HGM, route)
    grad = normal(4)
    for t in range(1, 12):
        probe.take(grad if t % 2 else -grad)
        if t > 1:
            assert float(probe.state["alignment"]) < 0


@each_route
@pytest.mark.parametrize("factor", [1e-3, 2.0, 1e4])
def test_scale_of_the_gradient_does_not_matter(route, factor):
    plain, scaled = Probe(HGM, route, eps=1e-30), Probe(HGM, route, eps=1e-30)
    for (g,) in noise(8, (3, 2)):
        close(scaled.take(factor * g), plain.take(g), 1e-6)
        s = float(plain.state["alignment"])
        assert float(scaled.state["alignment"]) == pytest.approx(s, abs=1e-6)
    assert s != 0


@each_route
def test_cosine_by_hand(route):
    probe = Probe(HGM, route, betas=(0.5, 0.5), beta_s=0.0)
    probe.take(torch.tensor([3.0, 4.0]))
    probe.take(torch.tensor([4.0, 3.0]))
    # The momentum before this gradient: along (3, 4). With this one in it the cosine would be .99.
    assert float(probe.state["alignment"]) == pytest.approx(24 / 25, abs=1e-6)


@each_route
class TestScope:
    def test_global_is_one_long_vector(self, route):
        path = noise(6, (3, 2), (5,), (1,))
        apart, joined = Probe(HGM, route, scope="global"), Probe(HGM, route, scope="tensor")
        for grads in path:
            several = apart.take_all(grads)
            whole = joined.take(torch.cat([g.flatten() for g in grads]))
            close(torch.cat([x.flatten() for x in several]), whole, 1e-6)
            for p in apart.params:
                s = float(apart.optimizer.state[p]["alignment"])
                assert s == pytest.approx(float(joined.state["alignment"]), abs=1e-6)

    def test_tensor_is_each_for_itself(self, route):
        probe = Probe(HGM, route, beta_s=0.0)
        a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.0])
        probe.take_all([a, b])
        probe.take_all([a, -b])
        found = [float(probe.optimizer.state[p]["alignment"]) for p in probe.params]
        assert found == pytest.approx([1.0, -1.0], abs=1e-6)

    def test_global_spans_groups_and_skips_the_absent(self, route):
        tensors = [torch.nn.Parameter(torch.zeros(2)) for _ in range(3)]
        groups = [{"params": tensors[:2]}, {"params": tensors[2:], "lr": 0.5}]
        optimizer = HGM(groups, lr=1.0, beta_s=0.0, scope="global", **by(route))
        grads = [torch.tensor([3.0, 0.0]), torch.tensor([9.0, 9.0]), torch.tensor([4.0, 0.0])]
        for p, g in zip(tensors, grads, strict=True):
            p.grad = g
        optimizer.step()
        tensors[1].grad, tensors[2].grad = None, -grads[2]
        optimizer.step()
        for p in (tensors[0], tensors[2]):
            s = float(optimizer.state[p]["alignment"])
            assert s == pytest.approx((9 - 16) / 25, abs=1e-6)


@each_route
def test_decay_is_decoupled(route):
    start, path = [torch.full((2,), 4.0)], [[torch.full((2,), 2.0)]] * 2
    common = {"lr": 0.1, "beta_s": 0.0, "weight_decay": 0.5}
    params, states = walk(lambda p: HGM(p, **common, **by(route)), start, path)
    first = 4 * 0.95 - 0.1
    expected = first * 0.95 - 0.1 * math.exp(0.5)
    assert params[0].tolist() == pytest.approx([expected] * 2, rel=1e-6)
    assert float(states[0]["alignment"]) == pytest.approx(1.0, abs=1e-6)
