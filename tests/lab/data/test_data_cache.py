"""The cache: fast, shared, replaced when the files change, and never a reason to fail."""

import multiprocessing
import os
import time

import numpy as np
import pytest
import torch

from gradwise.errors import UserError
from gradwise.lab.data import cache, load


@pytest.fixture
def source(forms, cifar10, tmp_path):
    """A folder with CIFAR-10 in its binary version."""
    return forms.files(tmp_path / "source", forms.cifar10_records(cifar10))


def cached_files(home):
    return sorted(path for path in home.rglob("*") if path.is_file())


def rewrite(forms, source, content, **times):
    for name, data in forms.cifar10_records(content).items():
        before = (source / name).stat()
        (source / name).write_bytes(data)
        os.utime(source / name, ns=(before.st_atime_ns, before.st_mtime_ns + times.get("later", 0)))


def test_the_second_time_data_comes_from_the_cache(forms, cifar10, source, cache_home):
    first = load("cifar10", source)
    assert len(cached_files(cache_home)) == 1
    # Other contents under the same sizes and times show that the files are not read again.
    rewrite(forms, source, forms.content(seed=1))
    second = load("cifar10", source)
    cifar10.assert_equals(second)
    for field in ("fingerprint", "class_names", "crop_padding", "flip", "num_classes", "name"):
        assert getattr(second, field) == getattr(first, field), field
    assert torch.equal(second.mean, first.mean)
    assert torch.equal(second.std, first.std)


def test_without_the_cache_files_are_read_and_nothing_is_kept(forms, source, cache_home):
    load("cifar10", source, cache=False)
    assert not cache_home.exists()
    load("cifar10", source)
    other = forms.content(seed=1)
    rewrite(forms, source, other)
    other.assert_equals(load("cifar10", source, cache=False))


def test_files_that_changed_replace_what_was_kept(forms, source, cache_home):
    load("cifar10", source)
    (before,) = cached_files(cache_home)
    other = forms.content(seed=1)
    rewrite(forms, source, other, later=1)
    other.assert_equals(load("cifar10", source))
    (after,) = cached_files(cache_home)
    assert after != before


def test_other_files_and_other_sets_are_kept_apart(forms, source, tmp_path, cache_home):
    other = forms.content(seed=1)
    elsewhere = forms.files(tmp_path / "elsewhere", forms.cifar10_records(other))
    hundred = forms.content(classes=100)
    forms.files(tmp_path / "hundred", forms.cifar100_records(hundred))
    for _ in range(2):
        load("cifar10", source)
        other.assert_equals(load("cifar10", elsewhere))
        hundred.assert_equals(load("cifar100", tmp_path / "hundred"))
        load("digits")
    assert len(cached_files(cache_home)) == 4


def test_a_link_to_the_folder_is_the_folder(source, tmp_path, cache_home):
    load("cifar10", source)
    (tmp_path / "link").symlink_to(source)
    load("cifar10", tmp_path / "link")
    assert len(cached_files(cache_home)) == 1


def damage_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_text(path):
    path.write_text("not a cache")


def damage_other(path):
    torch.save({"train_x": 3}, path)


def damage_labels(path):
    content = torch.load(path, weights_only=True)
    content["train_y"] = content["train_y"] + 100
    torch.save(content, path)


def damage_shape(path):
    content = torch.load(path, weights_only=True)
    for part in ("train_x", "test_x"):
        content[part] = content[part][:, :, :16].contiguous()
    torch.save(content, path)


def damage_folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage",
    [damage_half, damage_text, damage_other, damage_labels, damage_shape, damage_folder],
)
def test_a_broken_cache_is_rebuilt_silently(cifar10, source, cache_home, damage):
    load("cifar10", source)
    (path,) = cached_files(cache_home)
    damage(path)
    cifar10.assert_equals(load("cifar10", source))
    if damage is not damage_folder:
        torch.load(path, weights_only=True)["fingerprint"]
        cifar10.assert_equals(load("cifar10", source))


def test_a_cache_with_code_in_it_is_rebuilt_and_does_not_run(cifar10, source, cache_home, tmp_path):
    load("cifar10", source)
    (path,) = cached_files(cache_home)
    marker = tmp_path / "it-ran"

    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch '{marker}'",)

    torch.save({"train_x": Hostile()}, path)
    cifar10.assert_equals(load("cifar10", source))
    assert not marker.exists()
    torch.save({"train_x": Hostile()}, path)
    torch.load(path, weights_only=False)
    assert marker.exists()


def test_a_cache_folder_that_cannot_be_made_means_no_cache(cifar10, source, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("GRADWISE_CACHE", str(tmp_path / "file" / "cache"))
    for _ in range(2):
        cifar10.assert_equals(load("cifar10", source))
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_full_disk_means_no_cache_and_leaves_nothing(cifar10, source, cache_home):
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python turns the signal at this limit into the error that a full disk gives.
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        cifar10.assert_equals(load("cifar10", source))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert cached_files(cache_home) == []
    load("cifar10", source)
    assert len(cached_files(cache_home)) == 1


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_write_that_fails_late_keeps_what_was_there(
    forms, source, cache_home, monkeypatch, failing
):
    load("cifar10", source)
    before = cached_files(cache_home)
    other = forms.content(seed=1)
    rewrite(forms, source, other, later=1)

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    other.assert_equals(load("cifar10", source))
    assert cached_files(cache_home) == before


def test_files_that_change_while_they_are_read_are_not_kept(forms, source, cache_home, monkeypatch):
    content = forms.content(seed=1)
    real = np.frombuffer
    changed = []

    def while_reading(*args, **options):
        if not changed:
            changed.append(True)
            rewrite(forms, source, content, later=1)
        return real(*args, **options)

    monkeypatch.setattr(np, "frombuffer", while_reading)
    load("cifar10", source)
    assert changed
    assert not cache_home.exists()


def test_writing_to_mapped_data_changes_neither_file_nor_others(cifar10, source):
    load("cifar10", source)
    mine, other = load("cifar10", source), load("cifar10", source)
    mine.train_x.zero_()
    mine.train_y.zero_()
    cifar10.assert_equals(other)
    cifar10.assert_equals(load("cifar10", source))


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="needs Linux's memory maps")
def test_cached_data_is_mapped_from_its_file(source, cache_home):
    load("cifar10", source)
    (path,) = cached_files(cache_home)
    dataset = load("cifar10", source)
    with open("/proc/self/maps") as maps:
        regions = [line.split()[0].split("-") for line in maps if str(path) in line]
    address = dataset.train_x.data_ptr()
    assert any(int(low, 16) <= address < int(high, 16) for low, high in regions)


def test_a_corrupt_source_is_not_kept(source, cache_home):
    with (source / "data_batch_1.bin").open("r+b") as file:
        file.write(b"\xff")
    with pytest.raises(UserError, match="got 255 in row 0"):
        load("cifar10", source)
    assert not cache_home.exists()


def test_leftovers_of_killed_writers_are_swept_and_fresh_ones_spared(source, cache_home):
    folder = cache_home / "data"
    folder.mkdir(parents=True)
    old, fresh = folder / ".cifar10-old.tmp", folder / ".cifar10-fresh.tmp"
    for path in (old, fresh):
        path.write_text("half")
    long_ago = time.time() - 7200
    os.utime(old, (long_ago, long_ago))
    load("cifar10", source)
    assert fresh.exists()
    assert not old.exists()


def _load_in_process(source, start, results):
    start.wait()
    results.put(load("cifar10", source).fingerprint)


def test_processes_that_start_together_agree(source, cache_home):
    context = multiprocessing.get_context("spawn")
    start, results = context.Event(), context.Queue()
    workers = [
        context.Process(target=_load_in_process, args=(source, start, results)) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    start.set()
    fingerprints = {results.get(timeout=120) for _ in workers}
    for worker in workers:
        worker.join()
    assert fingerprints == {load("cifar10", source).fingerprint}
    assert len(cached_files(cache_home)) == 1


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({"GRADWISE_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a/data"),
        ({"XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/gradwise/data"),
        ({"GRADWISE_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "/c"}, "/c/.cache/gradwise/data"),
        ({"GRADWISE_CACHE": "~/x", "HOME": "/c"}, "/c/x/data"),
    ],
)
def test_where_the_cache_lies(monkeypatch, variables, wanted):
    for name in ("GRADWISE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(cache.cache_folder()) == wanted
