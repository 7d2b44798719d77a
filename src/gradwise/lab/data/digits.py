"""Handwritten digits that ship with scikit-learn: real data with nothing to download."""

from importlib.metadata import version

import numpy as np

from gradwise.lab.data.forms import Raw, Split

# 1797 images in all; the customary fifth is for the test.
_TEST_ROWS = 360
_CLASSES = 10


def digits_version() -> str:
    """The version of scikit-learn whose copy of the digits is read."""
    return version("scikit-learn")


def read_digits() -> Raw:
    """Read the digits and split them, always in the same way.

    The split takes the same share of every class for the test, and the rows of both halves are
    in a fixed random order. The 17 grey levels 0..16 are stretched to 0..255.

    Returns:
        1437 training and 360 test images of 8x8 pixels.
    """
    # scikit-learn takes longer to import than its digits take to read.
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    labels = labels.astype(np.int64)
    images = np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    # This generator's stream is frozen by numpy's policy, unlike that of the newer ones.
    order = np.random.RandomState(0).permutation(len(labels))
    share = np.bincount(labels, minlength=_CLASSES) * (_TEST_ROWS / len(labels))
    quota = np.floor(share).astype(np.int64)
    largest_remainders = np.argsort(quota - share, kind="stable")
    quota[largest_remainders[: _TEST_ROWS - quota.sum()]] += 1
    by_class = [order[labels[order] == label] for label in range(_CLASSES)]
    is_test = np.zeros(len(labels), dtype=bool)
    for rows, count in zip(by_class, quota, strict=True):
        is_test[rows[:count]] = True
    train, test = order[~is_test[order]], order[is_test[order]]
    return Raw(
        Split(images[train], labels[train]),
        Split(images[test], labels[test]),
        tuple("0123456789"),
    )
