"""The digits that ship with scikit-learn."""

import numpy as np
import torch
from sklearn.datasets import load_digits

from gradwise.lab.data import load


def test_digits_are_all_there_once_with_their_labels():
    dataset = load("digits")
    pixels, labels = load_digits(return_X_y=True)
    wanted = sorted(
        (int(label), tuple(int(p) for p in np.rint(row * 255 / 16)))
        for row, label in zip(pixels, labels, strict=True)
    )
    x = torch.cat([dataset.train_x, dataset.test_x]).flatten(1)
    y = torch.cat([dataset.train_y, dataset.test_y])
    got = sorted((int(label), tuple(row.tolist())) for row, label in zip(x, y, strict=True))
    assert got == wanted


def test_the_split_is_fixed_and_stratified():
    dataset = load("digits")
    assert dataset.train_x.shape == (1437, 1, 8, 8)
    assert dataset.test_x.shape == (360, 1, 8, 8)
    # Every run on every machine compares on the same rows: a change here is a change of the data.
    assert dataset.fingerprint.startswith("3950eab4fd97")
    train = torch.bincount(dataset.train_y).double()
    test = torch.bincount(dataset.test_y).double()
    share = 360 / 1797
    assert (test - (train + test) * share).abs().max() < 1


def test_a_prefix_is_a_fair_sample():
    dataset = load("digits").subset(200, 100)
    assert torch.bincount(dataset.train_y, minlength=10).min() >= 10
    assert torch.bincount(dataset.test_y, minlength=10).min() >= 4


def test_grey_levels_use_the_whole_range_and_digits_are_not_mirrored():
    dataset = load("digits")
    assert dataset.train_x.unique().numel() == 17
    assert (int(dataset.train_x.min()), int(dataset.train_x.max())) == (0, 255)
    assert (dataset.crop_padding, dataset.flip) == (1, False)
    assert dataset.class_names == tuple("0123456789")
