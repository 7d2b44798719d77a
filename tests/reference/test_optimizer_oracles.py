"""The optimizers' oracles against numbers worked out by hand, and against torch's optimizers."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch

from reference import optimizers as oo
from reference.stepping import Method, State, pairs, run

ZERO = np.zeros(())


def path(method: Method, *grads: float, start: float = 0.0) -> list[float]:
    """Where one number stands after each gradient."""
    params, state, places = [np.array(start)], method.init([()]), []
    for g in grads:
        params, state = method.step(params, [np.array(g)], state)
        places.append(float(params[0]))
    return places


def last(method: Method, *grads: Any) -> tuple[np.ndarray, State]:
    """Parameter (from zero) and state of one tensor after the gradients."""
    arrays = [np.array(g) for g in grads]
    params, state = run(method, [np.zeros_like(arrays[0])], [[g] for g in arrays])
    return params[0], state[0]


class TestByHand:
    def test_sgd_momentum(self):
        # buffer 2, then .5 * 2 + .75 * 4 = 4: places -2 * .5, then -1 - 4 * .5
        assert path(oo.SGD(0.5, momentum=0.5, dampening=0.25), 2, 4) == [-1.0, -3.0]

    def test_sgd_nesterov(self):
        # 2 + .5 * 2 = 3; buffer .5 * 2 + 4 = 5, so 4 + 2.5 = 6.5
        assert path(oo.SGD(1.0, momentum=0.5, nesterov=True), 2, 4) == [-3.0, -9.5]

    def test_adamw(self):
        # t=1: 4 * (1 - .1 * .5) = 3.8, mhat 2, vhat 4: 2 / (2 + 2) = .5, times .1
        assert path(oo.AdamW(0.1, (0.5, 0.75), 2.0, 0.5), 2, start=4) == pytest.approx([3.75])

    def test_adamw_amsgrad_keeps_the_largest(self):
        # v: 8, 4: the largest stays 8; t=2: m = 1, mhat 4/3, vhat 8 / .75
        places = path(oo.AdamW(1.0, (0.5, 0.5), 0.0, 0.0, amsgrad=True), 4, 0)
        assert places == pytest.approx([-1.0, -1 - (4 / 3) / math.sqrt(8 / 0.75)])

    def test_sgdf_as_of_2023(self):
        # t=2: m 1.5, s 1.125, mhat 2, residual -1, shat 1.5, K .6, ghat 2 - .6
        method = oo.SGDF(1.0, (0.5, 0.5), 0.0, gamma=1.0, variance_factor=False)
        assert path(method, 4, 1) == pytest.approx([-4.0, -5.4])

    def test_sgdf_as_of_2026(self):
        # factor .5 * (1 - .5**4) / 1.5 = .3125: shat .46875, K = .46875 / 1.46875
        ghat = 2 - math.sqrt(0.46875 / 1.46875)
        assert path(oo.SGDF(1.0, (0.5, 0.5), 0.0), 4, 1) == pytest.approx([-4.0, -4 - ghat])

    def test_sgdf_eps_is_not_divided_by_the_factor(self):
        # (3.4) with eps 1: K = .46875 / 2.46875
        ghat = 2 - 0.46875 / 2.46875
        method = oo.SGDF(1.0, (0.5, 0.5), 1.0, gamma=1.0)
        assert path(method, 4, 1) == pytest.approx([-4.0, -4 - ghat])

    def test_hgm(self):
        # Same gradient twice: cosine 0, then 1; s = .5, so exp(2 ln 2 * .5) = 2
        method = oo.HGM(0.1, (0.5, 0.5), 1e-300, beta_s=0.5, gamma=2 * math.log(2))
        p, s = last(method, [3.0, 4.0], [3.0, 4.0])
        assert p == pytest.approx([-0.3, -0.3])
        assert s["alignment"] == pytest.approx(0.5)

    def test_hgm_eps_joins_the_product_of_the_lengths(self):
        # m_1 = 1, g_2 = 2: 2 / (2 * 1 + 2)
        _, s = last(oo.HGM(0.1, (0.5, 0.5), 2.0, beta_s=0.0), 2.0, 2.0)
        assert s["alignment"] == pytest.approx(0.5)

    def test_hgm_scopes(self):
        steps = [[np.array(3.0), np.array(4.0)], [np.array(3.0), np.array(-4.0)]]
        found = {}
        for scope in ("tensor", "global"):
            method = oo.HGM(0.1, (0.5, 0.5), 1e-300, beta_s=0.0, scope=scope)
            _, state = run(method, [ZERO, ZERO], steps)
            found[scope] = [s["alignment"] for s in state]
        assert found["tensor"] == pytest.approx([1.0, -1.0])
        assert found["global"] == pytest.approx([-7 / 25, -7 / 25])  # (9 - 16) / 25

    def test_hgm_decay_stays_out_of_the_cosine(self):
        method = oo.HGM(0.1, (0.5, 0.5), 1e-300, beta_s=0.0, weight_decay=0.5)
        params, state = run(method, [np.array([4.0])], [[np.array([2.0])]] * 2)
        first = 4 * 0.95 - 0.1
        assert state[0]["alignment"] == pytest.approx(1.0)
        assert params[0] == pytest.approx([first * 0.95 - 0.1 * math.exp(0.5)])

    def test_adamomentum(self):
        # m 2, v = .25 * 4 + .25, mhat 4, vhat 5
        method = oo.AdaMomentum(1.0, (0.5, 0.75), 0.25)
        assert path(method, 4) == pytest.approx([-4 / math.sqrt(5)])
        _, s = last(method, 4.0, 0.0)  # m 1, v = .75 * 1.25 + .25 + .25
        assert s["exp_avg_sq"] == pytest.approx(1.4375)

    def test_adarem(self):
        # m = (1, -2); b = (-1, +2) / 3; a = 1 + b / 2
        p, s = last(oo.AdaRem(1.0, 0.5, 0.5, eps=1.0), [2.0, -4.0], [-3.0, -3.0])
        assert p == pytest.approx([-2 + 3 * 5 / 6, 4 + 3 * 4 / 3])
        assert s["exp_avg"] == pytest.approx([-1.0, -2.5])

    def test_adarem_decay_is_not_multiplied(self):
        # t=2: g 2, b = 1 / (1 + 1), a = 1.5 at lam 1; decay .5 of the place before the step
        places = path(oo.AdaRem(0.1, 0.5, 1.0, eps=1.0, weight_decay=0.5), 2, 2, start=4)
        assert places == pytest.approx([3.6, 3.6 - 0.1 * (3 + 1.8)])

    def test_adagrad_ota(self):
        # 4**1.5 = 8, 8**(2/3) = 4; then 8 + 8 = 16
        method = oo.AdaGradOTA(1.0, eps=1.0)
        assert path(method, 4, -4) == pytest.approx([-0.8, -0.8 + 4 / (16 ** (2 / 3) + 1)])

    def test_adagrad_ota_accumulates_the_average(self):
        # delta 4, then 2
        _, s = last(oo.AdaGradOTA(1.0, beta1=0.5), 8.0, 0.0)
        assert s["exp_avg_pow"] == pytest.approx(8 + 2**1.5)

    def test_adam_ota(self):
        # delta 4, v = .5 * 8
        method = oo.AdamOTA(1.0, betas=(0.5, 0.5), eps=1.0)
        assert path(method, 8) == pytest.approx([-4 / (4 ** (2 / 3) + 1)])


METHODS = [
    lambda **k: oo.SGD(0.1, momentum=0.9, **k),
    lambda **k: oo.AdamW(0.1, **k),
    lambda **k: oo.HGM(0.1, **k),
    lambda **k: oo.HGM(0.1, scope="global", **k),
    lambda **k: oo.SGDF(0.1, **k),
    lambda **k: oo.AdaMomentum(0.1, **k),
    lambda **k: oo.AdaRem(0.1, **k),
    lambda **k: oo.AdaGradOTA(0.1, **k),
    lambda **k: oo.AdamOTA(0.1, **k),
]


def random_steps(rng: np.random.Generator, count: int = 4) -> list[list[np.ndarray]]:
    return [[rng.normal(size=(3, 2)), rng.normal(size=5)] for _ in range(count)]


@pytest.mark.parametrize("make", METHODS)
class TestCommon:
    def test_complex_is_a_pair_of_reals(self, make):
        rng = np.random.default_rng(0)
        start = rng.normal(size=(4, 2))
        steps = [[rng.normal(size=(4, 2))] for _ in range(4)]
        whole, state = run(make(weight_decay=0.1), [start], steps)
        folded, folded_state = run(
            make(weight_decay=0.1),
            [start[:, 0] + 1j * start[:, 1]],
            [[g[:, 0] + 1j * g[:, 1]] for (g,) in steps],
        )
        assert pairs(folded[0], folded[0]) == pytest.approx(whole[0], rel=1e-14)
        for name, value in state[0].items():
            other = folded_state[0][name]
            other = pairs(other, other) if np.ndim(value) else other
            assert other == pytest.approx(value, rel=1e-14)

    def test_maximize_mirrors(self, make):
        steps = random_steps(np.random.default_rng(1))
        zeros = [np.zeros_like(g) for g in steps[0]]
        down, _ = run(make(weight_decay=0.1), zeros, steps)
        up, _ = run(make(weight_decay=0.1, maximize=True), zeros, steps)
        for a, b in zip(down, up, strict=True):
            assert np.array_equal(a, -b)

    def test_nothing_is_written_and_none_leaves_alone(self, make):
        method, rng = make(weight_decay=0.1), np.random.default_rng(2)
        params = [np.ones((3, 2)), np.ones(5)]
        state = method.init([p.shape for p in params])
        before = copy.deepcopy(state)
        first = random_steps(rng, 1)[0]
        params1, state1 = method.step(params, first, state)
        assert np.array_equal(params[0], np.ones((3, 2)))
        for old, kept in zip(before, state, strict=True):
            assert all(np.array_equal(old[name], kept[name]) for name in old)
        params2, state2 = method.step(params1, [None, first[1]], state1)
        assert params2[0] is params1[0]
        assert state2[0] is state1[0]
        assert (state2[0]["step"], state2[1]["step"]) == (1, 2)
        assert not np.array_equal(params2[1], params1[1])

    def test_empty(self, make):
        params, state = run(make(), [np.zeros((0, 3))], [[np.zeros((0, 3))]] * 2)
        assert params[0].shape == (0, 3)
        assert state[0]["step"] == 2

    def test_decay(self, make):
        rng = np.random.default_rng(3)
        p, g = rng.normal(size=4), rng.normal(size=4)
        if make().own_decay:
            decayed, _ = run(make(weight_decay=0.3), [p], [[g]])
            plain, _ = run(make(), [p], [[g]])
            assert decayed[0] == pytest.approx(plain[0] - 0.1 * 0.3 * p, rel=1e-14)
            return
        coupled, _ = run(make(weight_decay=0.3, decoupled=False), [p], [[g]])
        plain, _ = run(make(weight_decay=0.0), [p], [[g + 0.3 * p]])
        assert coupled[0] == pytest.approx(plain[0], rel=1e-14)
        shrunk, _ = run(make(weight_decay=0.3, decoupled=True), [p], [[g]])
        plain, _ = run(make(weight_decay=0.0), [p * (1 - 0.1 * 0.3)], [[g]])
        assert shrunk[0] == pytest.approx(plain[0], rel=1e-14)


TORCH = {
    "sgd": (oo.SGD(0.1, weight_decay=0.1), torch.optim.SGD, {"lr": 0.1, "weight_decay": 0.1}),
    "momentum": (
        oo.SGD(0.1, 0.9, 0.2, weight_decay=0.1, maximize=True),
        torch.optim.SGD,
        {"lr": 0.1, "momentum": 0.9, "dampening": 0.2, "weight_decay": 0.1, "maximize": True},
    ),
    "nesterov": (
        oo.SGD(0.1, 0.9, nesterov=True),
        torch.optim.SGD,
        {"lr": 0.1, "momentum": 0.9, "nesterov": True},
    ),
    "adamw": (oo.AdamW(0.01), torch.optim.AdamW, {"lr": 0.01}),
    "amsgrad": (
        oo.AdamW(0.01, (0.8, 0.5), 1e-3, 0.2, amsgrad=True, maximize=True),
        torch.optim.AdamW,
        {"lr": 0.01, "betas": (0.8, 0.5), "eps": 1e-3, "weight_decay": 0.2}
        | {"amsgrad": True, "maximize": True},
    ),
    "adam": (
        oo.AdamW(0.01, weight_decay=0.2, decoupled=False),
        torch.optim.Adam,
        {"lr": 0.01, "weight_decay": 0.2},
    ),
    # An accumulator of squares with eps outside the root.
    "adagrad": (
        oo.AdaGradOTA(0.1, alpha=2.0, eps=1e-3, weight_decay=0.1),
        torch.optim.Adagrad,
        {"lr": 0.1, "eps": 1e-3, "weight_decay": 0.1},
    ),
    "hgm without a rate": (oo.HGM(0.01, gamma=0.0), torch.optim.Adam, {"lr": 0.01}),
}


@pytest.mark.parametrize("name", TORCH)
@pytest.mark.parametrize("complex_", [False, True])
def test_against_torch(name: str, complex_: bool):
    method, cls, options = TORCH[name]
    rng = np.random.default_rng(4)

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        x = rng.normal(size=shape)
        return x + 1j * rng.normal(size=shape) if complex_ else x

    start = [draw((3, 2)), draw((5,)), draw(())]
    steps = [[draw((3, 2)), None if i == 1 else draw((5,)), draw(())] for i in range(5)]
    tensors = [torch.tensor(p, requires_grad=True) for p in start]
    theirs = cls(tensors, foreach=False, **options)
    for grads in steps:
        for p, g in zip(tensors, grads, strict=True):
            p.grad = None if g is None else torch.tensor(g)
        theirs.step()
    params, state = run(method, start, steps)
    for mine, p, s in zip(params, tensors, state, strict=True):
        np.testing.assert_allclose(mine, p.detach().numpy(), rtol=1e-12, atol=1e-14)
        for key in ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            if isinstance(theirs.state[p].get(key), torch.Tensor):
                np.testing.assert_allclose(s[key], theirs.state[p][key].numpy(), rtol=1e-12)
