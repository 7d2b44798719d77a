"""The oracles against numbers worked out by hand, and against numpy where it has the same thing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from reference import moments as om
from reference import transforms as ot

W1 = np.array([[0.1, -0.2, 0.3], [0.4, 0.0, -0.6]])
W2 = np.array([[1e-3, 2e-3], [-1e-3, 4e-3]])


def vector(length: float) -> list[np.ndarray]:
    """One gradient of the given length."""
    return [np.array([0.6 * length, 0.8 * length])]


def lengths(method: ot.ClipNorm | ot.AutoClip | ot.ZClip, norms: list[float]) -> list[float]:
    """The lengths that a clipping method leaves of a sequence of lengths."""
    return [ot.total_norm(out) for out in ot.run(method, [vector(n) for n in norms])]


class TestMoments:
    def test_by_hand(self):
        s = om.describe([1.0, 2.0, 3.0, 4.0])
        assert (s.count, s.mean, s.m2, s.min, s.max) == (4, 2.5, 5.0, 1.0, 4.0)
        assert s.var == 1.25
        assert s.norm == pytest.approx(math.sqrt(30), rel=1e-15)
        assert om.describe([-5.0, 2.0]).max_abs == 5.0

    def test_empty(self):
        s = om.describe([])
        assert (s.count, s.mean, s.m2, s.var, s.norm, s.max_abs) == (0, 0.0, 0.0, 0.0, 0.0, 0.0)

    def test_complex_counts_as_pairs(self):
        s = om.describe(om.reals(np.array([[1 + 2j], [3 - 4j]])))
        assert (s.count, s.mean, s.m2) == (4, 0.5, 29.0)
        assert s.norm == pytest.approx(np.linalg.norm([1 + 2j, 3 - 4j]), rel=1e-15)

    def test_rows(self):
        assert [len(r) for r in om.row_segments([W1, np.ones(3), None, np.ones((3, 0))])] == [
            2,
            1,
            1,
            3,
        ]
        assert om.row_segments([W1])[0][0].mean == pytest.approx(0.2 / 3, rel=1e-15)

    def test_merge_is_the_whole(self):
        whole, parts = om.describe(om.reals(W1)), om.merge(om.row_segments([W1])[0])
        assert parts.mean == pytest.approx(whole.mean, rel=1e-12, abs=1e-17)
        assert parts.m2 == pytest.approx(whole.m2, rel=1e-14)
        assert (parts.count, parts.min, parts.max) == (6, -0.6, 0.4)

    def test_large_mean(self):
        s = om.describe([1e8 + d for d in (-1.0, 0.0, 1.0)])
        assert (s.mean, s.m2) == (1e8, 2.0)

    def test_pooled_is_numpy(self):
        x = np.concatenate([W1.reshape(-1), W2.reshape(-1)])
        s = om.pooled([W1, None, W2])
        assert s.std == pytest.approx(x.std(), rel=1e-14)
        assert s.std == pytest.approx(0.2569082326, abs=5e-11)

    def test_nonfinite(self):
        assert om.nonfinite([1.0, math.nan, math.inf, -math.inf]) == 3

    def test_zeros(self):
        assert om.describe([0.0, -0.0, 5e-324, -1.0]).zeros == 2
        assert om.zeros([math.nan, math.inf, 0.0]) == 1
        assert om.merge(om.row_segments([W1])[0]).zeros == om.describe(om.reals(W1)).zeros == 1
        assert om.describe(om.reals(np.array([0 + 2j, 0j]))).zeros == 3
        assert om.describe([]).zeros == 0

    def test_affine_on_both_parts(self):
        assert om.affine(np.array([3 + 5j]), 2.0, 1.0)[0] == 4 + 8j


class TestAutoscale:
    def test_worked_example(self):
        assert ot.Autoscale().sigma([W1, W2]) == pytest.approx(0.2569071817, abs=5e-11)
        (z,), _ = ot.ZNorm().step([W2], {})
        expected = [-0.27735, 0.27735, -1.38675, 1.38675]
        assert z.reshape(-1) == pytest.approx(expected, abs=2e-5)

    def test_first_step_centres(self):
        (a, b), state = ot.Autoscale().step([W1, W2], ot.Autoscale().init())
        np.testing.assert_allclose(a, W1, atol=1e-16)  # W1 has mean zero
        np.testing.assert_allclose(b, W2 - 1.5e-3, atol=1e-18)
        assert state["m"] == pytest.approx(math.log(0.2569071817), abs=1e-9)

    def test_eligible(self):
        shapes = [(), (3,), (1, 1), (0, 4), (2, 1), (1, 2), (2, 2, 2)]
        assert [ot.eligible(np.ones(s)) for s in shapes] == [False] * 4 + [True] * 3
        assert not ot.eligible(None)

    @pytest.mark.parametrize(
        ("rule", "expected"),
        [
            # sigmas e, e^3, e^-1 with ln = 1, 3, -1; m_1 = 1, m_2 = 1 + 2/sqrt(2)
            ("trend", [1.0, math.exp(-2), 1.0]),
            ("follow", [1.0, math.exp(-2), math.exp(2 + math.sqrt(2))]),
            ("envelope", [1.0, 1.0, math.exp(-4)]),
            ("ratio", [1.0, math.exp(2), math.exp(-2)]),
            ("damped", [1 / (1 + math.exp(k)) for k in (1, 3, -1)]),
            ("log", [0.0, 0.0, math.log10(math.e)]),
            ("inverse", [1 / (math.exp(k) + 1e-8) for k in (1, 3, -1)]),
            ("center", [1.0, 1.0, 1.0]),
        ],
    )
    def test_rules_by_hand(self, rule: str, expected: list[float]):
        got = ot.alphas(rule, [math.exp(k) for k in (1, 3, -1)])
        assert got == pytest.approx(expected, rel=1e-14)

    def test_third_trend_by_hand(self):
        # m_3 = m_2 + (-1 - m_2) / sqrt(3), m_2 = 1 + sqrt(2); sigma_4 = e^4
        m2 = 1 + math.sqrt(2)
        m3 = m2 + (-1 - m2) / math.sqrt(3)
        got = ot.alphas("trend", [math.exp(k) for k in (1, 3, -1, 4)])
        assert got[3] == pytest.approx(math.exp(m3 - 4), rel=1e-14)

    @pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
    @pytest.mark.parametrize("rule", ["trend", "follow", "envelope", "ratio", "inverse"])
    def test_bad_sigma_is_as_if_never_seen(self, rule: str, bad: float):
        with_bad = ot.alphas(rule, [bad, 2.0, bad, 3.0])
        assert with_bad[::2] == [1.0, 1.0]
        assert with_bad[1::2] == ot.alphas(rule, [2.0, 3.0])

    def test_a_step_with_nan_passes(self):
        bad = W1.copy()
        bad[0, 0] = math.nan
        (a, b), state = ot.Autoscale().step([bad, W2], {"t": 0})
        np.testing.assert_array_equal(a, bad)
        np.testing.assert_array_equal(b, W2)
        assert state == {"t": 0}


class TestCenterAndZNorm:
    def test_rows_by_hand(self):
        (out,), _ = ot.Center("row").step([np.array([[1.0, 3.0], [10.0, 20.0]])], {})
        np.testing.assert_array_equal(out, [[-1.0, 1.0], [-5.0, 5.0]])

    def test_tensor_by_hand(self):
        (out, bias), _ = ot.Center().step([np.array([[1.0, 3.0], [10.0, 20.0]]), np.ones(2)], {})
        np.testing.assert_array_equal(out, [[-7.5, -5.5], [1.5, 11.5]])
        np.testing.assert_array_equal(bias, [1.0, 1.0])

    def test_global_by_hand(self):
        # 1, 3 and 5, 7 together: mean 4, population variance 5
        grads = [np.array([[1.0, 3.0]]), np.array([9.0]), np.array([[5.0], [7.0]])]
        (a, b, c), _ = ot.ZNorm("global", eps=0.0).step(grads, {})
        np.testing.assert_allclose(a, np.array([[-3.0, -1.0]]) / math.sqrt(5), rtol=1e-15)
        np.testing.assert_array_equal(b, [9.0])
        np.testing.assert_allclose(c, np.array([[1.0], [3.0]]) / math.sqrt(5), rtol=1e-15)

    def test_constant_tensor_gives_zero(self):
        (out,), _ = ot.ZNorm().step([np.full((2, 2), 3.0)], {})
        np.testing.assert_array_equal(out, np.zeros((2, 2)))


class TestClipping:
    def test_norm(self):
        assert lengths(ot.ClipNorm(2.0), [1.0, 10.0]) == pytest.approx([1.0, 2.0], rel=1e-6)

    @pytest.mark.parametrize("p", [0, 10, 37.5, 50, 100])
    def test_percentile_is_numpy(self, p: float):
        history = [4.0, 1.0, 3.0, 2.0, 9.0, 7.0]
        assert ot.percentile(history, p) == pytest.approx(np.percentile(history, p), rel=1e-15)
        assert ot.percentile([5.0], p) == 5.0

    def test_autoclip_by_hand(self):
        # histories 4; 4,1; 4,1,3; 4,1,3,2 and the 10th percentiles 4; 1.3; 1.4; 1.3
        got = lengths(ot.AutoClip(10), [4.0, 1.0, 3.0, 2.0])
        assert got == pytest.approx([4.0, 1.0, 1.4, 1.3], rel=1e-5)

    def test_zclip_by_hand(self):
        # warm-up 1, 3: mean 2, std 1. N=7: z=5, c = 2 + 2.5/(5/2.5) = 3.25
        method = ot.ZClip(warmup=2, alpha=0.5, max_norm=10.0, eps=0.0)
        got = lengths(method, [1.0, 3.0, 7.0, 4.0])
        # then mean = (2 + 3.25)/2 = 2.625, var = (1 + 0.625^2)/2; N=4: z = 1.65, untouched
        assert got == pytest.approx([1.0, 3.0, 3.25, 4.0], rel=1e-5)
        state = method.init()
        for n in (1.0, 3.0, 7.0):
            _, state = method.step(vector(n), state)
        assert state["mean"] == pytest.approx(2.625, rel=1e-12)
        assert state["var"] == pytest.approx((1 + 0.625**2) / 2, rel=1e-12)

    def test_zclip_warmup_and_ceiling(self):
        got = lengths(ot.ZClip(warmup=2, max_norm=1.0), [0.5, 8.0, 3.0])
        assert got == pytest.approx([0.5, 1.0, 1.0], rel=1e-5)

    def test_agc_by_hand(self):
        w = np.array([[3.0, 4.0], [0.0, 0.0], [30.0, 40.0]])
        g = np.array([[0.6, 0.8], [3.0, 4.0], [0.0, 0.1]])
        (out, bias), _ = ot.AGC(0.01).step([g, np.array([0.0, 2.0])], {}, [w, np.array([1.0, 0.0])])
        # limits .05, 1e-5, .5 for lengths 1, 5, .1
        expected = [[0.03, 0.04], [0.6e-5, 0.8e-5], [0.0, 0.1]]
        np.testing.assert_allclose(out, expected, rtol=1e-14)
        np.testing.assert_allclose(bias, [0.0, 0.01], rtol=1e-14)

    def test_chain_is_one_after_the_other(self):
        chain = ot.Chain(ot.Center("tensor"), ot.ClipNorm(1.0))
        ((out,),) = ot.run(chain, [[np.array([[1.0, 7.0]])]])
        np.testing.assert_allclose(out, np.array([[-1.0, 1.0]]) / math.sqrt(2), rtol=1e-6)
