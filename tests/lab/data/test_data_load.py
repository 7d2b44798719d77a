"""Names, folders, and the real data where it is."""

import io
import os
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from gradwise.errors import UserError
from gradwise.lab.data import available, load


def test_every_available_name_is_known(tmp_path):
    assert available() == ("digits", "cifar10", "cifar100", "fashion-mnist", "mnist")
    for name in available()[1:]:
        with pytest.raises(UserError, match=f"found no files of {name} in {tmp_path}"):
            load(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("cifar-10", "cifar10"),
        ("CIFAR100", "cifar100"),
        ("fashion_mnist", "fashion-mnist"),
        ("digit", "digits"),
    ],
)
def test_an_unknown_name_gets_the_nearest(name, nearest):
    with pytest.raises(UserError, match=rf"got '{name}', did you mean {nearest}\?"):
        load(name)


@pytest.mark.parametrize("name", ["imagenet", "", "cifar10/../x"])
def test_a_name_near_nothing_gets_the_list(name):
    with pytest.raises(UserError, match=r"one of digits, cifar10, .* or module:function, got"):
        load(name)


def test_folders_that_are_missing_are_said_to_be(tmp_path):
    with pytest.raises(UserError, match=r"expected a folder \(data_dir\) .* cifar10, got none"):
        load("cifar10")
    with pytest.raises(UserError, match=f"found no folder {tmp_path}/gone to read cifar10 from"):
        load("cifar10", tmp_path / "gone")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"expected a folder .*, got the file {tmp_path}/file"):
        load("cifar10", tmp_path / "file")


def test_what_was_looked_for_is_said(tmp_path):
    with pytest.raises(UserError) as caught:
        load("cifar100", tmp_path)
    for text in ("cifar-100-python", "train.bin", "train-*.parquet", "cifar-100-python.tar.gz"):
        assert text in str(caught.value)
    assert "idx" not in str(caught.value)
    with pytest.raises(UserError, match="looked for idx files"):
        load("mnist", tmp_path)


def test_a_home_folder_is_expanded(forms, cifar10, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    forms.files(tmp_path / "sets", forms.cifar10_records(cifar10))
    cifar10.assert_equals(load("cifar10", "~/sets"))


def test_sets_side_by_side_are_told_apart(forms, cifar10, cifar100, mnist, tmp_path):
    forms.files(tmp_path / "cifar-10-batches-py", forms.cifar10_batches(cifar10))
    forms.parquet(tmp_path / "cifar100", cifar100, label="fine_label")
    forms.files(tmp_path / "FashionMNIST" / "raw", forms.idx_files(mnist, packed=True))
    cifar10.assert_equals(load("cifar10", tmp_path))
    cifar100.assert_equals(load("cifar100", tmp_path))
    mnist.assert_equals(load("fashion-mnist", tmp_path))
    with pytest.raises(UserError, match="found no files of mnist"):
        load("mnist", tmp_path)


def test_a_folder_named_after_the_set_comes_first(forms, cifar10, tmp_path):
    forms.files(tmp_path, forms.cifar10_records(forms.content(seed=1)))
    forms.files(tmp_path / "cifar10", forms.cifar10_records(cifar10))
    cifar10.assert_equals(load("cifar10", tmp_path))


def test_published_pixels_win_over_an_encoding_of_them(forms, cifar10, tmp_path):
    forms.parquet(tmp_path, forms.content(seed=1))
    forms.files(tmp_path, forms.cifar10_batches(cifar10))
    cifar10.assert_equals(load("cifar10", tmp_path))


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read everything")
def test_files_that_may_not_be_read_are_named(forms, cifar10, tmp_path):
    forms.files(tmp_path, forms.cifar10_records(cifar10))
    (tmp_path / "test_batch.bin").chmod(0)
    with pytest.raises(UserError, match=r"cannot read .*test_batch.bin: Permission denied"):
        load("cifar10", tmp_path)


def test_a_failing_disk_is_one_sentence(forms, cifar10, tmp_path, monkeypatch):
    forms.files(tmp_path, forms.cifar10_records(cifar10))

    def fail(path):
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr("pathlib.Path.read_bytes", fail)
    with pytest.raises(UserError, match=r"cannot read .*data_batch_1.bin: Input/output error"):
        load("cifar10", tmp_path)
    forms.parquet(tmp_path / "encoded", cifar10)
    monkeypatch.setattr("pathlib.Path.open", lambda path, mode: fail(path))
    with pytest.raises(UserError, match=r"cannot read .*Input/output error: .*train-00000"):
        load("cifar10", tmp_path / "encoded")


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r"digits needs sklearn.datasets, .* gradwise\[lab\]"):
        load("digits")


def test_cached_data_needs_no_slow_imports(forms, cifar10, tmp_path):
    """Every trial of a comparison is a process: none should wait for Arrow or scikit-learn."""
    forms.parquet(tmp_path / "sets", cifar10)
    program = (
        "import sys; from gradwise.lab.data import load; import gradwise.lab.data.cache as c\n"
        "load('digits'); load('cifar10', sys.argv[1])\n"
        "print([m for m in ('pyarrow', 'PIL', 'sklearn', 'scipy') if m in sys.modules])"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "sets")]
    seen = [
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        for _ in range(2)
    ]
    assert "sklearn" in seen[0]
    assert "pyarrow" in seen[0]
    assert seen[1] == "[]"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "below", "classes", "mean"),
    [
        ("cifar10", "", 10, (0.4914, 0.4822, 0.4465)),
        ("cifar100", "", 100, (0.5071, 0.4865, 0.4409)),
        ("cifar100", "cifar100-jpeg", 100, (0.5071, 0.4865, 0.4409)),
    ],
)
def test_real_cifar(real_data, name, below, classes, mean):
    folder = real_data / below
    if not folder.is_dir():
        pytest.skip(f"no {below} in {real_data}")
    dataset = load(name, folder)
    assert dataset.train_x.shape == (50_000, 3, 32, 32)
    assert dataset.test_x.shape == (10_000, 3, 32, 32)
    # Both sets are balanced to the image.
    for labels, rows in ((dataset.train_y, 50_000), (dataset.test_y, 10_000)):
        assert torch.bincount(labels).tolist() == [rows // classes] * classes
    torch.testing.assert_close(dataset.mean, torch.tensor(mean), atol=6e-4, rtol=0)
    file = sorted((real_data / (below or name)).glob("train-*.parquet"))[0]
    first = pq.ParquetFile(file).iter_batches(3, columns=["img"])
    for row, image in enumerate(next(first).column("img").to_pylist()):
        with Image.open(io.BytesIO(image["bytes"])) as decoded:
            wanted = np.asarray(decoded.convert("RGB")).transpose(2, 0, 1)
        np.testing.assert_array_equal(dataset.train_x[row].numpy(), wanted)
    again = load(name, folder)
    assert again.fingerprint == dataset.fingerprint
    assert torch.equal(again.train_x[-1], dataset.train_x[-1])
