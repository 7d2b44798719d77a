"""Small image sets, and writers that put them on disk in each of the usual forms."""

import gzip
import io
import pickle
import struct
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def cache_home(tmp_path, monkeypatch):
    """Every test has a cache of its own."""
    home = tmp_path / "cache-home"
    monkeypatch.setenv("GRADWISE_CACHE", str(home))
    return home


@dataclass
class Content:
    """A set in memory, as the loader should give it back."""

    train_x: np.ndarray
    train_y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray

    def assert_equals(self, dataset) -> None:
        for part in ("train_x", "train_y", "test_x", "test_y"):
            got, wanted = getattr(dataset, part).numpy(), getattr(self, part)
            assert got.dtype == wanted.dtype, part
            np.testing.assert_array_equal(got, wanted, err_msg=part)


def make_content(shape=(3, 32, 32), classes=10, train=20, test=8, seed=0) -> Content:
    rng = np.random.default_rng(seed)
    return Content(
        rng.integers(0, 256, (train, *shape), dtype=np.uint8),
        rng.integers(0, classes, train),
        rng.integers(0, 256, (test, *shape), dtype=np.uint8),
        rng.integers(0, classes, test),
    )


@pytest.fixture
def cifar10() -> Content:
    return make_content()


@pytest.fixture
def cifar100() -> Content:
    return make_content(classes=100)


@pytest.fixture
def mnist() -> Content:
    return make_content(shape=(1, 28, 28))


def python2_pickle(value) -> bytes:
    """Pickle as Python 2 did in protocol 2: text and bytes are both its `str`."""
    memo = iter(range(10**6))

    def put() -> bytes:
        return b"r" + struct.pack("<I", next(memo))

    def emit(item) -> bytes:
        if isinstance(item, str | bytes):
            data = item.encode("latin-1") if isinstance(item, str) else item
            short = len(data) < 256
            head = b"U" + bytes([len(data)]) if short else b"T" + struct.pack("<i", len(data))
            return head + data + put()
        if item is None:
            return b"N"
        if isinstance(item, int | np.integer):
            if 0 <= item < 256:
                return b"K" + bytes([item])
            return b"J" + struct.pack("<i", int(item))
        if isinstance(item, list):
            return b"]" + put() + b"(" + b"".join(map(emit, item)) + b"e"
        if isinstance(item, tuple):
            return b"(" + b"".join(map(emit, item)) + b"t" + put()
        if isinstance(item, dict):
            pairs = b"".join(emit(key) + emit(inner) for key, inner in item.items())
            return b"}" + put() + b"(" + pairs + b"u"
        assert isinstance(item, np.ndarray)
        assert item.dtype == np.uint8
        dtype = b"cnumpy\ndtype\n" + emit(("u1", 0, 1)) + b"R"
        dtype += emit((3, "|", None, None, None, -1, -1, 0)) + b"b"
        array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + emit((0,))
        array += emit("b") + b"tR(" + emit(1) + emit(item.shape) + dtype + b"\x89"
        return array + emit(item.tobytes()) + b"tb"

    return b"\x80\x02" + emit(value) + b"."


def python3_pickle(protocol: int) -> Callable[[object], bytes]:
    return lambda value: pickle.dumps(value, protocol=protocol)


def cifar10_batches(content: Content, dump=python2_pickle, bytes_keys=False) -> dict[str, bytes]:
    key = (lambda text: text.encode()) if bytes_keys else (lambda text: text)
    files = {}
    for number, rows in enumerate(np.array_split(np.arange(len(content.train_x)), 5), start=1):
        files[f"data_batch_{number}"] = dump(
            {
                key("batch_label"): key(f"training batch {number} of 5"),
                key("labels"): [int(label) for label in content.train_y[rows]],
                key("data"): content.train_x[rows].reshape(len(rows), -1),
                key("filenames"): [key(f"image_{row}.png") for row in rows],
            }
        )
    files["test_batch"] = dump(
        {
            key("labels"): [int(label) for label in content.test_y],
            key("data"): content.test_x.reshape(len(content.test_x), -1),
        }
    )
    names = [key(f"kind {number}") for number in range(10)]
    files["batches.meta"] = dump({key("label_names"): names, key("num_vis"): 3072})
    return files


def cifar100_batches(content: Content, dump=python2_pickle, bytes_keys=False) -> dict[str, bytes]:
    key = (lambda text: text.encode()) if bytes_keys else (lambda text: text)
    files = {}
    for name, x, y in (
        ("train", content.train_x, content.train_y),
        ("test", content.test_x, content.test_y),
    ):
        files[name] = dump(
            {
                key("filenames"): [key(f"image_{row}.png") for row in range(len(x))],
                key("fine_labels"): [int(label) for label in y],
                key("coarse_labels"): [int(label) // 5 for label in y],
                key("data"): x.reshape(len(x), -1),
            }
        )
    files["meta"] = dump({key("fine_label_names"): [key(f"kind {n}") for n in range(100)]})
    return files


def cifar10_records(content: Content) -> dict[str, bytes]:
    def records(x, y) -> bytes:
        return np.column_stack([y.astype(np.uint8), x.reshape(len(x), -1)]).tobytes()

    parts = np.array_split(np.arange(len(content.train_x)), 5)
    files = {
        f"data_batch_{number}.bin": records(content.train_x[rows], content.train_y[rows])
        for number, rows in enumerate(parts, start=1)
    }
    return {**files, "test_batch.bin": records(content.test_x, content.test_y)}


def cifar100_records(content: Content) -> dict[str, bytes]:
    def records(x, y) -> bytes:
        labels = [(y // 5).astype(np.uint8), y.astype(np.uint8)]
        return np.column_stack([*labels, x.reshape(len(x), -1)]).tobytes()

    return {
        "train.bin": records(content.train_x, content.train_y),
        "test.bin": records(content.test_x, content.test_y),
    }


def idx_bytes(array: np.ndarray) -> bytes:
    header = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def idx_files(content: Content, packed: bool) -> dict[str, bytes]:
    arrays = {
        "train-images-idx3-ubyte": content.train_x[:, 0],
        "train-labels-idx1-ubyte": content.train_y,
        "t10k-images-idx3-ubyte": content.test_x[:, 0],
        "t10k-labels-idx1-ubyte": content.test_y,
    }
    if packed:
        return {f"{name}.gz": gzip.compress(idx_bytes(a)) for name, a in arrays.items()}
    return {name: idx_bytes(array) for name, array in arrays.items()}


def encode(image: np.ndarray, kind: str = "PNG") -> bytes:
    """Encode `[C, H, W]` without loss (JPEG excepted)."""
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    stream = io.BytesIO()
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def parquet_table(x, y, kind="PNG", image="img", label="label", struct_column=True) -> pa.Table:
    encoded = [encode(row, kind) for row in x]
    rows = [{"bytes": data, "path": f"{n}"} for n, data in enumerate(encoded)]
    columns = {image: rows if struct_column else encoded, label: [int(value) for value in y]}
    if label == "fine_label":
        columns["coarse_label"] = [int(value) // 5 for value in y]
    return pa.table(columns)


def write_parquet(folder: Path, content: Content, **options) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, x, y in (
        ("train", content.train_x, content.train_y),
        ("test", content.test_x, content.test_y),
    ):
        table = parquet_table(x, y, **options)
        pq.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    return folder


def write_files(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def write_archive(path: Path, files: dict[str, bytes], below: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(f"{below}/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


class Forms:
    """The writers above, for tests to use through the fixture `forms`."""

    content = staticmethod(make_content)
    python2_pickle = staticmethod(python2_pickle)
    python3_pickle = staticmethod(python3_pickle)
    cifar10_batches = staticmethod(cifar10_batches)
    cifar100_batches = staticmethod(cifar100_batches)
    cifar10_records = staticmethod(cifar10_records)
    cifar100_records = staticmethod(cifar100_records)
    idx_bytes = staticmethod(idx_bytes)
    idx_files = staticmethod(idx_files)
    encode = staticmethod(encode)
    parquet_table = staticmethod(parquet_table)
    parquet = staticmethod(write_parquet)
    files = staticmethod(write_files)
    archive = staticmethod(write_archive)


@pytest.fixture(scope="session")
def forms() -> type[Forms]:
    return Forms
