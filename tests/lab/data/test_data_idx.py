"""MNIST and Fashion-MNIST as idx files."""

import gzip
import struct

import numpy as np
import pytest

from gradwise.errors import UserError
from gradwise.lab.data import load

TRAIN = "train-images-idx3-ubyte"


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize(
    ("name", "below", "treatment"),
    [
        ("fashion-mnist", "FashionMNIST/raw", (4, True)),
        ("fashion-mnist", "fashion-mnist", (4, True)),
        ("mnist", "MNIST/raw", (2, False)),
        ("mnist", "", (2, False)),
    ],
)
def test_idx_files_are_read(forms, mnist, tmp_path, packed, name, below, treatment):
    forms.files(tmp_path / below, forms.idx_files(mnist, packed))
    dataset = load(name, tmp_path)
    mnist.assert_equals(dataset)
    assert (dataset.crop_padding, dataset.flip) == treatment
    assert len(dataset.class_names) == 10


def test_some_files_may_be_unpacked_and_others_not(forms, mnist, tmp_path):
    files = forms.idx_files(mnist, packed=True)
    files[TRAIN] = gzip.decompress(files.pop(f"{TRAIN}.gz"))
    mnist.assert_equals(load("mnist", forms.files(tmp_path, files)))


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"\0\0\x08\x01" + struct.pack(">3I", 20, 28, 28), "idx header 00000803 in .* 00000801"),
        (b"\0\0\x0d\x03" + struct.pack(">3I", 20, 28, 28), "got 00000d03"),
        (b"PK\x03\x04" + struct.pack(">3I", 20, 28, 28), "got 504b0304"),
        (b"\0\0\x08\x03" + struct.pack(">3I", 20, 28, 27), r"shape \(28, 28\) in .* \(28, 27\)"),
        (b"\0\0\x08\x03" + struct.pack(">3I", 0, 28, 28), "got 0 of shape"),
        (b"\0\0\x08\x03" + struct.pack(">3I", 2**32 - 1, 28, 28), f"got {2**32 - 1} of shape"),
        (b"\0\0\x08\x03" + struct.pack(">3I", 199_999, 28, 28), "expected 156799232 bytes, got"),
        (b"\0\0\x08\x03" + struct.pack(">3I", 21, 28, 28), "claims more than it holds"),
        (b"\0\0\x08\x03" + struct.pack(">3I", 19, 28, 28), "claims less than it holds"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_header_that_does_not_fit_is_refused(forms, mnist, tmp_path, packed, header, message):
    files = forms.idx_files(mnist, packed=False)
    data = header + files[TRAIN][16:]
    forms.files(tmp_path, files)
    if packed:
        (tmp_path / TRAIN).unlink()
        (tmp_path / f"{TRAIN}.gz").write_bytes(gzip.compress(data))
    else:
        (tmp_path / TRAIN).write_bytes(data)
    with pytest.raises(UserError, match=message):
        load("mnist", tmp_path)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_a_file_cut_anywhere_is_one_sentence(forms, mnist, tmp_path, packed):
    forms.files(tmp_path, forms.idx_files(mnist, packed))
    path = tmp_path / (f"{TRAIN}.gz" if packed else TRAIN)
    whole = path.read_bytes()
    for length in (0, 3, 11, 17, len(whole) // 2, len(whole) - 4, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=f"{path.name}.*(truncated|claims more)"):
            load("mnist", tmp_path)


def test_a_wrong_checksum_is_noticed(forms, mnist, tmp_path):
    files = forms.idx_files(mnist, packed=True)
    damaged = bytearray(files[f"{TRAIN}.gz"])
    damaged[-6] ^= 1
    with pytest.raises(UserError, match="truncated or damaged"):
        load("mnist", forms.files(tmp_path, {**files, f"{TRAIN}.gz": bytes(damaged)}))


def test_a_gzip_bomb_is_not_unfolded(forms, mnist, tmp_path):
    """A header that claims little before a long run of zeros: only what it claims is read."""
    files = forms.idx_files(mnist, packed=True)
    bomb = gzip.compress(forms.idx_bytes(mnist.train_x[:, 0]) + bytes(2**26))
    assert len(bomb) < 2**20
    with pytest.raises(UserError, match="claims less than it holds"):
        load("mnist", forms.files(tmp_path, {**files, f"{TRAIN}.gz": bomb}))


def test_labels_are_counted_and_checked(forms, mnist, tmp_path):
    files = forms.idx_files(mnist, packed=False)
    name = "t10k-labels-idx1-ubyte"
    forms.files(tmp_path / "a", {**files, name: forms.idx_bytes(np.zeros(7))})
    with pytest.raises(UserError, match=f"as many labels in .*{name} as images .* 7 and 8"):
        load("mnist", tmp_path / "a")
    labels = mnist.test_y.copy()
    labels[5] = 12
    forms.files(tmp_path / "b", {**files, name: forms.idx_bytes(labels)})
    with pytest.raises(UserError, match=f"labels 0 to 9 in .*{name}, got 12 in row 5"):
        load("mnist", tmp_path / "b")


def test_a_missing_file_is_named(forms, mnist, tmp_path):
    files = forms.idx_files(mnist, packed=True)
    del files["t10k-labels-idx1-ubyte.gz"]
    with pytest.raises(UserError, match=r"expected t10k-labels-idx1-ubyte.gz beside"):
        load("fashion-mnist", forms.files(tmp_path, files))
