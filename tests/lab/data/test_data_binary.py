"""CIFAR in its binary version."""

import pytest

from gradwise.errors import UserError
from gradwise.lab.data import load


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "archive"])
@pytest.mark.parametrize(
    ("name", "below", "archive", "classes"),
    [
        ("cifar10", "cifar-10-batches-bin", "cifar-10-binary.tar.gz", 10),
        ("cifar100", "cifar-100-binary", "cifar-100-binary.tar.gz", 100),
    ],
)
def test_records_are_read(forms, tmp_path, name, below, archive, classes, packed):
    content = forms.content(classes=classes)
    files = getattr(forms, f"{name}_records")(content)
    if packed:
        forms.archive(tmp_path / archive, files, below)
    else:
        forms.files(tmp_path / below, files)
    dataset = load(name, tmp_path)
    content.assert_equals(dataset)
    assert len(dataset.class_names) == dataset.num_classes == classes


@pytest.mark.parametrize("cut", [1, 3072])
def test_half_a_record_is_noticed(forms, cifar10, tmp_path, cut):
    files = forms.cifar10_records(cifar10)
    files["data_batch_5.bin"] = files["data_batch_5.bin"][:-cut]
    with pytest.raises(UserError, match=r"records of 3073 bytes in .*data_batch_5.bin, got \d+"):
        load("cifar10", forms.files(tmp_path, files))


def test_an_empty_file_is_noticed(forms, cifar10, tmp_path):
    files = {**forms.cifar10_records(cifar10), "test_batch.bin": b""}
    with pytest.raises(UserError, match=r"test_batch.bin, got 0 bytes"):
        load("cifar10", forms.files(tmp_path, files))


def test_a_label_out_of_range_is_named_with_file_and_row(forms, cifar10, tmp_path):
    files = forms.cifar10_records(cifar10)
    batch = bytearray(files["data_batch_2.bin"])
    batch[3073 * 3] = 10
    files["data_batch_2.bin"] = bytes(batch)
    with pytest.raises(UserError, match=r"labels 0 to 9 in .*data_batch_2.bin, got 10 in row 3"):
        load("cifar10", forms.files(tmp_path, files))


def test_a_missing_file_is_named(forms, cifar100, tmp_path):
    files = forms.cifar100_records(cifar100)
    del files["test.bin"]
    with pytest.raises(UserError, match=r"expected test.bin beside train.bin"):
        load("cifar100", forms.files(tmp_path / "a", files))
    forms.archive(tmp_path / "b" / "cifar-100-binary.tar.gz", files, "cifar-100-binary")
    with pytest.raises(UserError, match=r"found no cifar-100-binary/test.bin in"):
        load("cifar100", tmp_path / "b")
