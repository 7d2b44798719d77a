"""`Dataset` refuses what does not fit, and its derived fields are what they say."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradwise.errors import UserError
from gradwise.lab.data import from_arrays


def images(rows=6, channels=3, size=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (rows, channels, size, size), generator=generator)
    return x.to(torch.uint8)


def small(**changes):
    x, y = images(), torch.tensor([0, 1, 2, 0, 1, 2])
    return from_arrays("toy", x, y, x[:3].clone(), y[:3].clone(), **changes)


def test_statistics_of_bytes_are_those_of_pixels_scaled_to_one():
    x = images(50, 3, 8)
    toy = from_arrays("toy", x, torch.arange(50) % 2, x[:2], torch.tensor([0, 1]))
    pixels = x.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(toy.mean.numpy(), pixels.mean((0, 2, 3)), rtol=1e-7)
    np.testing.assert_allclose(toy.std.numpy(), pixels.std((0, 2, 3)), rtol=1e-6)


@given(
    rows=st.integers(1, 9000),
    shape=st.sampled_from([(3,), (2, 5), (1, 2, 2)]),
    offset=st.sampled_from([0.0, -3.0, 1e4]),
)
def test_statistics_of_floats_equal_those_of_numpy_in_double(rows, shape, offset):
    x = torch.randn(rows, *shape) + offset
    toy = from_arrays("toy", x, torch.zeros(rows).long(), x[:1], torch.tensor([1]))
    axes = (0, *range(2, x.ndim))
    exact = x.numpy().astype(np.float64)
    np.testing.assert_allclose(toy.mean.numpy(), exact.mean(axes), rtol=1e-6, atol=1e-6)
    wanted = exact.std(axes)
    wanted[wanted == 0] = 1
    np.testing.assert_allclose(toy.std.numpy(), wanted, rtol=1e-5)


@pytest.mark.parametrize("rows", [3, 4999])
@pytest.mark.parametrize("value", [0.1, 1e30, 1e-40, 0.0, -7.3])
def test_a_constant_channel_of_floats_has_std_one(value, rows):
    x = torch.full((rows, 2), value)
    x[:, 1] = torch.arange(rows) % 3
    toy = from_arrays("toy", x, torch.zeros(rows).long(), x[:1], torch.tensor([1]))
    assert toy.std[0] == 1
    assert toy.std[1] == pytest.approx((2 / 3) ** 0.5, rel=1e-3)


@pytest.mark.parametrize("value", [0, 1, 77, 254, 255])
@pytest.mark.parametrize("size", [1, 3, 7])
def test_a_constant_channel_of_bytes_has_std_one(value, size):
    x = images(size=size)
    x[:, 1] = value
    toy = from_arrays("toy", x, torch.tensor([0, 1, 2, 0, 1, 2]), x, torch.tensor([0] * 6))
    assert toy.std[1] == 1
    assert toy.mean[1] == pytest.approx(value / 255)


def test_fingerprint_changes_with_contents_type_shape_and_order():
    toy = small()
    assert small().fingerprint == toy.fingerprint
    assert len(toy.fingerprint) == 64
    x, y = toy.train_x, toy.train_y
    changed = x.clone()
    changed[5, 2, 3, 3] ^= 1
    others = [
        from_arrays("toy", changed, y, toy.test_x, toy.test_y),
        from_arrays("toy", x.flip(0), y, toy.test_x, toy.test_y),
        from_arrays("toy", x, y.flip(0), toy.test_x, toy.test_y),
        from_arrays("toy", x.reshape(6, 3, 2, 8), y, toy.test_x.reshape(3, 3, 2, 8), toy.test_y),
        from_arrays("toy", x.float(), y, toy.test_x.float(), toy.test_y),
    ]
    assert len({toy.fingerprint, *(other.fingerprint for other in others)}) == 6


def test_fingerprint_does_not_depend_on_memory_layout_or_name():
    toy = small()
    x = toy.train_x.contiguous(memory_format=torch.channels_last)
    other = from_arrays("other", x, toy.train_y, toy.test_x, toy.test_y)
    assert other.fingerprint == toy.fingerprint


def test_subset_takes_the_first_rows_and_derives_anew():
    toy = small()
    part = toy.subset(4, 2)
    assert torch.equal(part.train_x, toy.train_x[:4])
    assert torch.equal(part.train_y, toy.train_y[:4])
    assert torch.equal(part.test_x, toy.test_x[:2])
    assert torch.equal(part.test_y, toy.test_y[:2])
    fresh = from_arrays(
        "toy", toy.train_x[:4], toy.train_y[:4], toy.test_x[:2], toy.test_y[:2], num_classes=3
    )
    assert part.fingerprint == fresh.fingerprint != toy.fingerprint
    assert torch.equal(part.mean, fresh.mean)
    assert torch.equal(part.std, fresh.std)
    assert part.num_classes == 3


def test_subset_of_the_test_alone_keeps_the_statistics_and_of_everything_is_itself():
    toy = small()
    assert toy.subset(None, 1).mean is toy.mean
    assert toy.subset() is toy
    assert toy.subset(6, 3) is toy


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ((0, None), "expected 1 <= limit_train <= 6 for toy, got limit_train=0"),
        ((-3, None), "got limit_train=-3"),
        ((7, None), "expected 1 <= limit_train <= 6 for toy, got limit_train=7"),
        ((None, 4), "expected 1 <= limit_test <= 3 for toy, got limit_test=4"),
    ],
)
def test_limits_out_of_range_are_refused(limits, message):
    with pytest.raises(UserError, match=message):
        small().subset(*limits)


def test_in_shape_and_repr_are_short():
    toy = small()
    assert toy.in_shape == (3, 4, 4)
    assert repr(toy) == "Dataset('toy', 6 train, 3 test, shape (3, 4, 4), 3 classes)"


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("train_x", images().short(), "train_x of toy to be uint8 or float32, got int16"),
        ("train_x", images().double(), "train_x of toy to be uint8 or float32, got float64"),
        ("train_x", images()[:, 0], r"uint8 images \[N, C, H, W\] in train_x of toy"),
        ("train_x", images(6, 9, 3), r"channels before height and width in train_x of toy"),
        ("train_x", torch.zeros(6), "train_x of toy to have at least 2 axes"),
        ("train_x", images(5), "one label a row in toy"),
        ("train_x", images(6, 1), r"same shape of a row, got \(1, 4, 4\) and \(3, 4, 4\)"),
        ("test_x", images(3).float(), "same dtype of a row, got uint8 and float32"),
        ("train_x", images().float().to_sparse(), "train_x of toy to be a dense tensor"),
        ("test_x", torch.zeros(3, 3, 0, 4, dtype=torch.uint8), "at least one row and value"),
        ("train_y", torch.zeros(6, dtype=torch.int32), "train_y of toy to be int64, got int32"),
        ("train_y", torch.zeros(6, 1).long(), "one label a row"),
        ("train_y", torch.tensor([0, 1, 2, 3, 1, 2]), "labels 0 to 2 in .* got 3 in row 3"),
        ("test_y", torch.tensor([0, -1, 2]), "labels 0 to 2 in test_y of toy, got -1 in row 1"),
    ],
)
def test_parts_that_do_not_fit_are_refused(part, value, message):
    toy = small()
    parts = {name: getattr(toy, name) for name in ("train_x", "train_y", "test_x", "test_y")}
    with pytest.raises(UserError, match=message):
        from_arrays("toy", **{**parts, part: value}, num_classes=3)
    with pytest.raises(UserError, match=message):
        replace(toy, **{part: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 1}, "at least 2 classes in toy, got num_classes=1"),
        ({"crop_padding": -1}, "crop_padding >= 0 for toy, got -1"),
        ({"class_names": ("a", "b")}, "3 class names for toy or none, got 2"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        small(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": torch.zeros(2)}, r"mean of toy to be float32 of shape \(3,\)"),
        ({"std": torch.ones(3).double()}, "std of toy to be float32"),
        ({"std": torch.tensor([1.0, 0.0, 1.0])}, "std of toy above 0"),
        ({"mean": torch.tensor([1.0, float("nan"), 1.0])}, "finite values in mean of toy"),
    ],
)
def test_statistics_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        replace(small(), **changes)


@pytest.mark.parametrize("changes", [{"crop_padding": 2}, {"flip": True}])
def test_rows_that_are_no_images_cannot_be_cropped_or_flipped(changes):
    x, y = torch.randn(4, 5), torch.tensor([0, 1, 0, 1])
    with pytest.raises(UserError, match="expected images"):
        from_arrays("toy", x, y, x, y, **changes)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_floats_that_are_not_finite_are_refused_with_their_row(bad):
    x, y = torch.randn(4, 5), torch.tensor([0, 1, 0, 1])
    test = x.clone()
    test[2, 3] = bad
    with pytest.raises(UserError, match="test_x of toy, got NaN or infinity in row 2"):
        from_arrays("toy", x, y, test, y)
