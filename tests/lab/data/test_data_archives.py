"""CIFAR straight out of its .tar.gz archives, which may be damaged or play tricks."""

import gzip
import io
import tarfile

import pytest

from gradwise.errors import UserError
from gradwise.lab.data import load, members


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_published_archive_is_read_without_unpacking(forms, tmp_path, name):
    content = forms.content(classes=10 if name == "cifar10" else 100)
    batches = getattr(forms, f"{name}_batches")(content)
    dashed = name.replace("cifar", "cifar-")
    below = "cifar-10-batches-py" if name == "cifar10" else "cifar-100-python"
    home = tmp_path / "home"
    forms.archive(home / f"{dashed}-python.tar.gz", batches, below)
    content.assert_equals(load(name, home))
    assert [path.name for path in home.rglob("*")] == [f"{dashed}-python.tar.gz"]


def test_an_archive_cut_anywhere_is_one_sentence(forms, cifar100, tmp_path):
    path = forms.archive(
        tmp_path / "cifar-100-python.tar.gz", forms.cifar100_batches(cifar100), "cifar-100-python"
    )
    whole = path.read_bytes()
    for length in (0, 1, 9, 100, len(whole) // 2, len(whole) - 9, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"truncated or damaged|found no cifar-100-python"):
            load("cifar100", tmp_path)


def test_a_flipped_bit_in_an_archive_is_noticed(forms, cifar100, tmp_path):
    path = forms.archive(
        tmp_path / "cifar-100-python.tar.gz", forms.cifar100_batches(cifar100), "cifar-100-python"
    )
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 4
    path.write_bytes(whole)
    with pytest.raises(UserError):
        load("cifar100", tmp_path)


def test_an_archive_that_unfolds_without_end_is_refused(forms, cifar100, tmp_path, monkeypatch):
    monkeypatch.setattr(members, "MAX_ARCHIVE", 2**20)
    files = {"big": bytes(2**22), **forms.cifar100_batches(cifar100)}
    path = forms.archive(tmp_path / "cifar-100-python.tar.gz", files, "cifar-100-python")
    assert path.stat().st_size < 2**20
    with pytest.raises(UserError, match="unfolds to more than 1048576 bytes"):
        load("cifar100", tmp_path)


def test_a_member_of_a_claimed_size_beyond_reason_is_refused(forms, cifar100, tmp_path):
    entry = tarfile.TarInfo("cifar-100-python/train")
    entry.size = 2**40
    with (tmp_path / "cifar-100-python.tar.gz").open("wb") as raw:
        raw.write(gzip.compress(entry.tobuf() + bytes(10240)))
    with pytest.raises(UserError, match=f"at most {members.MAX_MEMBER} bytes in .*got {2**40}"):
        load("cifar100", tmp_path)


@pytest.mark.parametrize("kind", ["link", "twice", "elsewhere"])
def test_archives_that_play_tricks_are_refused(forms, cifar100, tmp_path, kind):
    batches = forms.cifar100_batches(cifar100)
    secret = tmp_path / "secret"
    secret.write_bytes(batches["train"])
    path = tmp_path / "data" / "cifar-100-python.tar.gz"
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as archive:
        for name, data in batches.items():
            entry = tarfile.TarInfo(f"cifar-100-python/{name}")
            entry.size = len(data)
            if name == "train" and kind == "link":
                entry.type, entry.linkname, entry.size = tarfile.SYMTYPE, str(secret), 0
                data = b""
            if name == "train" and kind == "elsewhere":
                entry.name = "../../secret/train"
            archive.addfile(entry, io.BytesIO(data))
            if name == "train" and kind == "twice":
                archive.addfile(entry, io.BytesIO(data))
    message = {
        "link": "expected a plain file as cifar-100-python/train",
        "twice": "once, found it twice",
        "elsewhere": "found no cifar-100-python/train in",
    }[kind]
    with pytest.raises(UserError, match=message):
        load("cifar100", path.parent)
