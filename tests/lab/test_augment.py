"""Augmentation against a loop over samples, its bounds and laws, and what it must not do."""

import dataclasses
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode

from gradwise.errors import UserError
from gradwise.lab.augment import SETTINGS, Augment, _cutout

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make(setting="standard", **changes):
    arguments = {"mean": MEAN, "std": STD, "crop_padding": 4, "flip": True, "num_classes": 10}
    return Augment(setting=setting, **(arguments | changes))


def batch(size=16, side=32, channels=3, dtype=torch.uint8, seed=1):
    g = generator(seed)
    x = torch.randint(1, 256, (size, channels, side, side), generator=g, dtype=torch.uint8)
    y = torch.randint(10, (size,), generator=g)
    return (x if dtype == torch.uint8 else x.to(dtype) / 255), y


def normalised(image):
    """One image [C, H, W] in uint8 to normalised float64, a channel at a time."""
    planes = [(plane.double() / 255 - m) / s for plane, m, s in zip(image, MEAN, STD, strict=True)]
    return torch.stack(planes)


def window(image, padding, top, left, flip):
    """Pad, cut and flip one image by plain slicing."""
    channels, height, width = image.shape
    canvas = torch.zeros(channels, height + 2 * padding, width + 2 * padding, dtype=image.dtype)
    canvas[:, padding : padding + height, padding : padding + width] = image
    cut = canvas[:, top : top + height, left : left + width]
    return cut.flip(2) if flip else cut


class NoHostSync(TorchDispatchMode):
    """Raises where the host would wait for a number from the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        waits = ("_local_scalar_dense", "nonzero", "masked_select", "equal.default", "_unique2")
        if any(name in str(func) for name in waits):
            raise AssertionError(f"{func} makes the host wait")
        return func(*args, **(kwargs or {}))


# --- against a loop -------------------------------------------------------------------------


def test_standard_equals_a_loop_over_samples():
    x, y = batch(64)
    out, target = make("standard")(x, y, generator(7))
    # The documented draws, in order: places of the crops, then flips.
    g = generator(7)
    top, left = torch.randint(9, (2, 64), generator=g)
    flips = torch.rand(64, 1, 1, 1, generator=g) < 0.5
    for i in range(64):
        cut = window(x[i], 4, int(top[i]), int(left[i]), bool(flips[i]))
        torch.testing.assert_close(out[i].double(), normalised(cut), rtol=1e-5, atol=1e-6)
    assert target is y


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("padding", [0, 1, 3])
def test_every_sample_is_one_of_the_possible_windows(padding, flip):
    """Without knowing the draws: each output is a window of its own image, and all occur."""
    x, y = batch(400, side=6)
    x[:] = x[:1]
    out, _ = make("standard", crop_padding=padding, flip=flip)(x, y, generator(3))
    places = range(2 * padding + 1)
    candidates = torch.stack(
        [
            normalised(window(x[0], padding, top, left, mirrored))
            for mirrored in ((False, True) if flip else (False,))
            for top in places
            for left in places
        ]
    ).float()
    distance = (out.contiguous()[:, None] - candidates[None]).abs().flatten(2).amax(2)
    assert (distance.amin(1) < 1e-5).all()
    counts = distance.argmin(1).bincount(minlength=len(candidates))
    if len(candidates) > 1:
        # Uniform over the windows: a chi-squared test that a right sampler fails 1 in 1e6 times.
        assert stats.chisquare(counts.numpy()).pvalue > 1e-6


def test_half_of_the_images_are_flipped():
    x = torch.zeros(10_000, 1, 1, 2)
    x[..., 1] = 1
    y = torch.zeros(10_000, dtype=torch.int64)
    out, _ = Augment([0.0], [1.0], flip=True)(x, y, generator())
    assert 0.48 < out[:, 0, 0, 0].mean() < 0.52  # four standard deviations either way


def test_padding_is_black_before_normalising():
    x = torch.full((200, 3, 4, 4), 255, dtype=torch.uint8)
    out, _ = make("standard", crop_padding=4)(x, torch.zeros(200, dtype=torch.int64), generator())
    black = torch.tensor([-m / s for m, s in zip(MEAN, STD, strict=True)])
    white = torch.tensor([(1 - m) / s for m, s in zip(MEAN, STD, strict=True)])
    for channel in range(3):
        values = out[:, channel].unique()
        expected = torch.stack((black[channel], white[channel]))
        torch.testing.assert_close(values, expected)


def test_none_and_evaluation_only_normalise():
    x, y = batch()
    augment = make("none")
    out, target = augment(x, y, generator())
    expected = torch.stack([normalised(image) for image in x])
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-6)
    assert target is y
    for setting in SETTINGS:
        assert torch.equal(make(setting).prepare_eval(x), out)


def test_floats_are_taken_as_they_are():
    x, y = batch()
    for dtype in (torch.float32, torch.float64):
        out, _ = make("standard")(x.to(dtype) / 255, y, generator(2))
        expected, _ = make("standard")(x, y, generator(2))
        assert out.dtype == torch.float32
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)


def test_strong_equals_a_loop_over_samples():
    x, y = batch(32)
    out, target = make("strong")(x, y, generator(11))
    g = generator(11)
    top, left = torch.randint(9, (2, 32), generator=g)
    flips = torch.rand(32, 1, 1, 1, generator=g) < 0.5
    rows = torch.randint(32, (32, 1), generator=g)
    columns = torch.randint(32, (32, 1), generator=g)
    u = torch.rand((), generator=g).item()
    partner = torch.rand(32, generator=g).argsort()
    keep = float(stats.beta.ppf(u, 0.2, 0.2))
    images, labels = [], []
    for i in range(32):
        image = normalised(window(x[i], 4, int(top[i]), int(left[i]), bool(flips[i])))
        row, column = int(rows[i]), int(columns[i])
        image[:, max(0, row - 4) : row + 4, max(0, column - 4) : column + 4] = 0
        images.append(image)
        labels.append([float(k == y[i]) for k in range(10)])
    labels = torch.tensor(labels, dtype=torch.float64)
    for i in range(32):
        j = int(partner[i])
        mixed = keep * images[i] + (1 - keep) * images[j]
        torch.testing.assert_close(out[i].double(), mixed, rtol=1e-4, atol=1e-5)
        soft = keep * labels[i] + (1 - keep) * labels[j]
        torch.testing.assert_close(target[i].double(), soft, rtol=1e-4, atol=1e-5)


# --- laws -----------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", SETTINGS)
def test_equal_generators_give_equal_batches(setting):
    x, y = batch()
    torch.manual_seed(0)
    first = make(setting)(x, y, generator(5))
    global_state = torch.get_rng_state()
    second = make(setting)(x, y, generator(5))
    assert all(map(torch.equal, first, second))
    # Nothing came from, or went to, the global generator.
    assert torch.equal(global_state, torch.get_rng_state())
    other = make(setting)(x, y, generator(6))
    assert torch.equal(first[0], other[0]) == (setting == "none")


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_what_came_in_is_left_alone(setting, dtype):
    x, y = batch(dtype=dtype)
    before = x.clone(), y.clone()
    make(setting, mean=(0.0,) * 3, std=(1.0,) * 3)(x, y, generator())
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])


@pytest.mark.parametrize("setting", SETTINGS)
def test_nothing_makes_the_host_wait(setting):
    x, y = batch()
    augment = make(setting)
    with NoHostSync():
        augment(x, y, generator())
        augment.prepare_eval(x)


def test_the_guard_against_waiting_works():
    with NoHostSync(), pytest.raises(AssertionError, match="host wait"):
        torch.ones(()).item()


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_images_come_out_in_channels_last(setting, layout):
    x, y = batch()
    expected, _ = make(setting)(x, y, generator())
    out, _ = make(setting)(x.contiguous(memory_format=layout), y, generator())
    assert out.dtype == torch.float32
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(out, expected)


@given(
    size=st.integers(0, 9),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    channels=st.integers(1, 4),
    padding=st.integers(0, 5),
    flip=st.booleans(),
    setting=st.sampled_from(SETTINGS),
    seed=st.integers(0, 2**32),
)
def test_bounds_for_any_shape(size, height, width, channels, padding, flip, setting, seed):
    augment = Augment([0.5] * channels, [0.5] * channels, padding, flip, setting, 5)
    g = generator(seed)
    x = torch.randint(256, (size, channels, height, width), generator=g, dtype=torch.uint8)
    y = torch.randint(5, (size,), generator=g)
    out, target = augment(x, y, g)
    assert out.shape == x.shape
    assert (out.abs() <= 1 + 1e-5).all()
    if setting != "strong":
        assert torch.equal(target, y)
        return
    assert target.shape == (size, 5)
    assert target.dtype == torch.float32
    assert ((target >= 0) & (target <= 1)).all()
    torch.testing.assert_close(target.sum(1), torch.ones(size))


def test_mixup_mixes_images_and_targets_with_the_same_weights():
    """Sample i is the constant image i: its value after mixup is the mixture of indices."""
    size = 10
    x = torch.arange(size, dtype=torch.float32).view(size, 1).expand(size, 6).contiguous()
    y = torch.arange(size)
    augment = Augment([0.0] * 6, [1.0] * 6, setting="strong", num_classes=size)
    for seed in range(50):
        out, target = augment(x, y, generator(seed))
        expected = target @ torch.arange(size, dtype=torch.float32)
        torch.testing.assert_close(out, expected[:, None].expand(size, 6))
        # The partners are a permutation: every label keeps a total weight of one.
        torch.testing.assert_close(target.sum(0), torch.ones(size))
        # Own label first: the diagonal carries one weight for the whole batch.
        own = target.diagonal()[target.diagonal() < 1]
        assert own.numel() == 0 or torch.allclose(own, own[0])


def test_mixup_weights_follow_the_beta_distribution():
    x, y = torch.zeros(2, 1), torch.tensor([0, 1])
    augment = Augment([0.0], [1.0], setting="strong", num_classes=2)
    g = generator(4)
    weights = []
    while len(weights) < 1000:
        _, target = augment(x, y, g)
        own = target[0, 0].item()
        # Half of all permutations of two leave them in place and tell nothing of the weight.
        if own < 1 or target[1, 1].item() < 1:
            weights.append(own)
    # Weights within rounding of one were lost above: compare inside of both ends.
    inner = np.array([w for w in weights if 1e-6 < w < 1 - 1e-6])
    law = stats.beta(0.2, 0.2)
    low, high = law.cdf(1e-6), law.cdf(1 - 1e-6)
    test = stats.kstest(inner, lambda w: (law.cdf(w) - low) / (high - low))
    assert test.pvalue > 1e-4


@pytest.mark.parametrize(("side", "square"), [(32, 8), (8, 2), (3, 1), (28, 7)])
def test_cutout_hides_a_square_of_a_quarter_of_the_side(side, square):
    out = _cutout(torch.ones(2000, 2, side, side), generator())
    assert set(out.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(out[:, 0], out[:, 1])
    gone = out[:, 0] == 0
    rows, columns = gone.any(2).sum(1), gone.any(1).sum(1)
    # A rectangle in every image: whole, or cut off at the border by at most half.
    assert torch.equal(rows * columns, gone.sum((1, 2)))
    for extent in (rows, columns):
        assert extent.max() == square
        assert extent.min() == square - square // 2
    # The centre is uniform over the image, so every pixel is hidden sometimes.
    assert gone.any(0).all()


def test_cutout_shows_the_mean_colour():
    """Both classes look the same, so mixup changes nothing and the squares are all there is."""
    x = torch.full((50, 3, 16, 16), 255, dtype=torch.uint8)
    y = torch.zeros(50, dtype=torch.int64)
    augment = make("strong", crop_padding=0, flip=False)
    for seed in range(20):
        out, target = augment(x, y, generator(seed))
        keep = out[:, 0] * STD[0] / (1 - MEAN[0])  # 1 where white, 0 where hidden in both partners
        assert keep.min() > -1e-6
        assert keep.max() < 1 + 1e-6
        assert (keep < 0.999).any(0).any()
        torch.testing.assert_close(target[:, 0], torch.ones(50))


def test_samples_that_are_no_images():
    x = torch.randn(6, 20)
    y = torch.arange(6)
    mean, std = x.mean(0), x.std(0)
    for setting in ("none", "standard"):
        augment = Augment(mean, std, setting=setting)
        out, _ = augment(x, y, generator())
        torch.testing.assert_close(out, (x - mean) / std, rtol=1e-5, atol=1e-6)
    out, target = Augment(mean, std, setting="strong", num_classes=6)(x, y, generator(1))
    torch.testing.assert_close(out, target @ ((x - mean) / std), rtol=1e-4, atol=1e-5)


def test_label_smoothing_belongs_to_the_strong_setting():
    assert [make(s).label_smoothing for s in SETTINGS] == [0.0, 0.0, 0.1]
    x, y = batch()
    augment = make("strong")
    _, target = augment(x, y, generator())
    logits = torch.randn(16, 10)
    loss = torch.nn.functional.cross_entropy(
        logits, target, label_smoothing=augment.label_smoothing
    )
    smooth = 0.9 * target + 0.1 / 10
    torch.testing.assert_close(loss, -(smooth * logits.log_softmax(1)).sum(1).mean())


# --- the object -----------------------------------------------------------------------------


def test_it_is_a_value():
    first, second = make(mean=torch.tensor(MEAN)), make(mean=torch.tensor(MEAN))
    assert first.mean == pytest.approx(MEAN)
    first.prepare_eval(batch()[0])
    assert first == second
    assert hash(first) == hash(second)
    assert dataclasses.replace(first, setting="none").setting == "none"
    copy = pickle.loads(pickle.dumps(first))
    x, y = batch()
    assert torch.equal(copy(x, y, generator())[0], second(x, y, generator())[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"setting": "strnog"}, "got setting='strnog': did you mean 'strong'"),
        ({"crop_padding": -1}, "crop_padding >= 0, got crop_padding=-1"),
        ({"std": (0.1, 0.0, 0.1)}, "expected std above 0"),
        ({"std": (0.1, 0.1)}, "got 3 and 2"),
        ({"mean": (), "std": ()}, "got 0 and 0"),
        ({"mean": (0.1, math.nan, 0.1)}, "expected finite numbers in mean"),
        ({"std": (0.1, math.inf, 0.1)}, "expected finite numbers in std"),
        ({"mean": torch.tensor(0.5)}, r"expected mean of shape \[C\], got \[\]"),
        ({"setting": "strong", "num_classes": None}, "got num_classes=None"),
        ({"setting": "strong", "num_classes": 1}, "num_classes >= 2"),
    ],
)
def test_mistakes_in_the_settings(changes, message):
    with pytest.raises(UserError, match=message):
        make(**changes)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(4, 1, 8, 8), torch.zeros(4).long(), r"\[B, 3, ...\], got \[4, 1, 8, 8\]"),
        (torch.zeros(3), torch.zeros(3).long(), r"got \[3\]"),
        (torch.zeros(4, 3, 8, 8).long(), torch.zeros(4).long(), "got torch.int64"),
        (torch.zeros(4, 3, 8, 8), torch.zeros(5).long(), r"labels of shape \[4\] .* got \[5\]"),
        (torch.zeros(4, 3, 8, 8), torch.zeros(4), "got .* and torch.float32"),
        (torch.zeros(4, 3), torch.zeros(4).long(), "images .* to crop and flip"),
    ],
)
def test_mistakes_in_the_batch(x, y, message):
    with pytest.raises(UserError, match=message):
        make()(x, y, generator())


def test_generator_must_be_where_the_data_is():
    x = torch.zeros(4, 3, 8, 8, device="meta")
    y = torch.zeros(4, dtype=torch.int64, device="meta")
    with pytest.raises(UserError, match="generator on meta, where the data is, got one on cpu"):
        make()(x, y, generator())
