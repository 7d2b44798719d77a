"""The noise scale on the host: its value, its interval, and what it says where there is none."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradwise.errors import UserError
from gradwise.watch.noise import LEAST, NoiseScale
from reference import noise as oracle

SIZES = st.floats(0.01, 100.0)


def draws(
    n: int, seed: int, *, signal: float = 4.0, b: int = 8, passes: int = 8, dim: int = 40
) -> list[tuple[float, float]]:
    """Squared norms of n steps with tr(Sigma) = 100 and a gradient of that squared norm."""
    rng = np.random.default_rng(seed)
    mean = np.full(dim, math.sqrt(signal / dim))
    micro = mean + rng.normal(size=(n, passes, dim)) * math.sqrt(100 / dim / b)
    small = (micro**2).sum(2).mean(1)
    big = (micro.mean(1) ** 2).sum(1)
    return list(zip(small.tolist(), big.tolist(), strict=True))


def fed(scale: NoiseScale, pairs: list[tuple[float, float]], ratio: float = 8.0) -> NoiseScale:
    for small, big in pairs:
        scale.add(small, big, ratio)
    return scale


def test_value_is_the_ratio_of_averages() -> None:
    pairs = [(s, b, ratio) for (s, b), ratio in zip(draws(40, 1), [8.0, 4.0] * 20, strict=True)]
    scale = NoiseScale(8, decay=0.9)
    for small, big, ratio in pairs:
        scale.add(small, big, ratio)
    noises = [oracle.solve(small, big, 8, 8 * ratio) for small, big, ratio in pairs]
    trace = oracle.average([n.trace for n in noises], 0.9)
    signal = oracle.average([n.signal for n in noises], 0.9)
    assert scale.value == pytest.approx(trace / signal, rel=1e-12)
    assert scale.samples == 40


def test_it_comes_to_the_truth() -> None:
    # 2000 steps with decay .999: about 1500 of them count
    scale = fed(NoiseScale(8, decay=0.999), draws(2000, 2))
    assert scale.value == pytest.approx(25.0, rel=0.05)
    assert scale.interval is not None
    low, high = scale.interval
    assert low < 25.0 < high < 1.2 * low


@given(
    sizes=st.lists(st.tuples(SIZES, st.floats(0.9, 6.0)), min_size=LEAST, max_size=25),
    decay=st.sampled_from([0.5, 0.9, 0.99]),
)
def test_interval_is_what_fits_the_samples(sizes: list[tuple[float, float]], decay: float) -> None:
    pairs = [(big * factor, big) for big, factor in sizes]
    scale = fed(NoiseScale(decay=decay), pairs, 4.0)
    noises = np.array([oracle.solve(small, big, 1, 4) for small, big in pairs])
    if scale.value is None:
        assert scale.interval is None
        assert scale.sentence
        return
    assert scale.interval is not None
    low, high = scale.interval
    assert low <= scale.value * (1 + 1e-9)
    assert scale.value <= high * (1 + 1e-9)
    slack = 1e-6 * (high + 1)
    for ratio, inside in [(low - slack, False), (low + slack, True), (high + slack, False)]:
        if ratio > 0 and high - low > 4 * slack:
            assert oracle.compatible(*noises.T, decay, ratio) == inside


def test_interval_covers_the_truth() -> None:
    covered = n = 0
    for seed in range(400):
        scale = fed(NoiseScale(8, decay=0.99), draws(40, 1000 + seed, signal=16.0))
        if scale.interval is not None:
            n += 1
            covered += scale.interval[0] <= 100 / 16 <= scale.interval[1]
    assert n > 390
    assert 0.91 < covered / n < 0.98


@given(factor=st.floats(1e-12, 1e12))
def test_a_loss_scale_cancels(factor: float) -> None:
    pairs = draws(30, 3)
    plain = fed(NoiseScale(8), pairs)
    scaled = fed(NoiseScale(8), [(small * factor, big * factor) for small, big in pairs])
    assert scaled.value == pytest.approx(plain.value, rel=1e-9)
    assert scaled.interval == pytest.approx(plain.interval, rel=1e-6)


def test_units() -> None:
    pairs = draws(30, 3)
    samples, passes = fed(NoiseScale(8), pairs), fed(NoiseScale(), pairs)
    assert (samples.unit, passes.unit) == ("samples", "backward passes")
    assert samples.value is not None
    assert samples.value == pytest.approx(8 * passes.value)
    assert "samples (95 %: " in str(samples)
    assert "backward passes (95 %: " in str(passes)


def test_no_noise_is_zero() -> None:
    scale = fed(NoiseScale(), [(4.0, 4.0 + 1e-12 * (k % 2)) for k in range(20)])
    assert scale.value == pytest.approx(0.0, abs=1e-10)
    assert scale.interval is not None
    assert 0.0 <= scale.interval[0] <= scale.interval[1] < 1e-9


class TestWhereThereIsNone:
    def test_nothing_measured(self) -> None:
        scale = NoiseScale()
        assert scale.value is scale.interval is None
        assert scale.sentence is not None
        assert "accumulate gradients over micro-batches or train with" in scale.sentence
        assert str(scale).startswith("no gradient noise scale: the gradient noise scale needs two")
        scale.reason = "the moon is in the way"
        assert scale.sentence == "the moon is in the way"

    def test_too_few(self) -> None:
        scale = fed(NoiseScale(8), draws(LEAST - 1, 5, signal=400.0))
        assert scale.value is None
        assert scale.sentence == (
            "the gradient noise scale is known after 10 measured steps, 9 so far"
        )
        fed(scale, draws(1, 6, signal=400.0))
        assert scale.value is not None
        assert scale.sentence is None

    def test_drowned(self) -> None:
        # The truth is 10,000 samples with batches of 8 and 64: what can be said is a lower bound.
        bounds = []
        for seed in range(40):
            scale = fed(NoiseScale(8), draws(100, 50 + seed, signal=0.01))
            if scale.value is None:
                assert scale.sentence is not None
                assert scale.sentence.startswith("the noise drowns the gradient")
                if "above about" in scale.sentence:
                    assert scale.sentence.endswith(" samples")
                    bounds.append(float(scale.sentence.split()[-2].replace(",", "")))
        assert len(bounds) > 30
        assert sum(bound <= 10_000 for bound in bounds) >= 0.9 * len(bounds)
        assert np.median(bounds) > 200  # and it is one that helps

    def test_nothing_can_be_told(self) -> None:
        scale = fed(NoiseScale(), [(1.0, 1.5), (1.0, 0.0)] * 10, 2.0)
        assert scale.value is None
        assert scale.sentence == (
            "the noise drowns the gradient: 20 measured steps do not tell yet"
        )

    def test_batches_that_are_not_independent(self) -> None:
        # Two halves of all there is, whose sum is always the same: |G|^2 comes out below 0.
        pairs = [(1.0 + 0.1 * (k % 3), 0.01) for k in range(30)]
        scale = fed(NoiseScale(), pairs, 2.0)
        assert scale.value is None
        assert scale.sentence is not None
        assert "not independent draws" in scale.sentence

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_not_finite(self, bad: float) -> None:
        pairs = draws(20, 8, signal=400.0)
        scale = fed(NoiseScale(8), [(bad, 1.0), (1.0, bad)])
        assert scale.sentence == "in none of 2 measured steps was the gradient finite"
        assert fed(scale, pairs).value == fed(NoiseScale(8), pairs).value

    def test_not_zeroed(self) -> None:
        scale = NoiseScale()
        scale.add(1.0, 2.0, math.nan)
        assert scale.samples == 0
        assert scale.sentence is not None
        assert "optimizer.zero_grad()" in scale.sentence


def test_column() -> None:
    pairs = draws(30, 9, signal=400.0)
    nan = math.nan
    rows = [row for small, big in pairs for row in ((nan, nan, nan), (small, big, 8.0))]
    rows[3] = (nan, nan, 8.0)  # measured, and overflown
    scale, twin = NoiseScale(8), NoiseScale(8)
    column = scale.column(*(np.array(c) for c in zip(*rows, strict=True)))
    expected = []
    for k, row in enumerate(rows):
        if k % 2:
            twin.add(*row)
        expected.append(twin.value if k % 2 and twin.value is not None else nan)
    np.testing.assert_array_equal(column, expected)
    assert np.isfinite(column).sum() > 15
    assert scale.samples == 29


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NoiseScale(0), "expected batch_size >= 1, got batch_size=0"),
        (lambda: NoiseScale(decay=1.0), "expected 0 < decay < 1, got decay=1.0"),
        (lambda: NoiseScale().add(1.0, 1.0, 1.0), "expected ratio > 1, got ratio=1.0"),
    ],
)
def test_mistakes(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(UserError, match=message):
        make()
