"""Image sets as Parquet files."""

import io
import json
import struct
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gradwise.errors import UserError
from gradwise.lab.data import load


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("struct_column", [True, False], ids=["struct", "binary"])
def test_lossless_images_come_back_exactly(forms, cifar10, tmp_path, kind, struct_column):
    forms.parquet(tmp_path, cifar10, kind=kind, struct_column=struct_column)
    dataset = load("cifar10", tmp_path)
    cifar10.assert_equals(dataset)
    assert dataset.class_names[9] == "truck"


def test_jpeg_is_decoded_as_pillow_does(forms, cifar10, tmp_path):
    forms.parquet(tmp_path, cifar10, kind="JPEG", image="image")
    dataset = load("cifar10", tmp_path)
    for row in (0, 7, 19):
        with Image.open(io.BytesIO(forms.encode(cifar10.train_x[row], "JPEG"))) as image:
            wanted = np.asarray(image).transpose(2, 0, 1)
        np.testing.assert_array_equal(dataset.train_x[row].numpy(), wanted)


def test_cifar100_takes_the_fine_labels(forms, cifar100, tmp_path):
    forms.parquet(tmp_path, cifar100, label="fine_label")
    dataset = load("cifar100", tmp_path)
    cifar100.assert_equals(dataset)
    assert dataset.class_names[:2] == ("apple", "aquarium_fish")
    assert len(set(dataset.class_names)) == 100


def test_grey_images_are_read(forms, mnist, tmp_path):
    forms.parquet(tmp_path / "fashion_mnist", mnist, image="image")
    mnist.assert_equals(load("fashion-mnist", tmp_path))


@pytest.mark.parametrize(
    "below", ["", "cifar10", "plain_text", "cifar10/plain_text", "data", "cifar-10/data"]
)
def test_the_usual_folders_are_searched(forms, cifar10, tmp_path, below):
    forms.parquet(tmp_path / below, cifar10)
    cifar10.assert_equals(load("cifar10", tmp_path))


@pytest.mark.parametrize("layout", ["folders", "single"])
def test_other_usual_names_are_known(forms, cifar10, tmp_path, layout):
    forms.parquet(tmp_path, cifar10)
    for split in ("train", "test"):
        path = tmp_path / f"{split}-00000-of-00001.parquet"
        if layout == "folders":
            (tmp_path / split).mkdir()
            path.rename(tmp_path / split / "0000.parquet")
        else:
            path.rename(tmp_path / f"{split}.parquet")
    cifar10.assert_equals(load("cifar10", tmp_path))


def test_shards_are_joined_in_order_and_chunks_too(forms, tmp_path):
    content = forms.content(train=700, test=5)
    forms.parquet(tmp_path, content)
    table = pq.read_table(tmp_path / "train-00000-of-00001.parquet")
    (tmp_path / "train-00000-of-00001.parquet").unlink()
    for number, (first, rows) in enumerate([(0, 300), (300, 1), (301, 399)]):
        shard = table.slice(first, rows)
        path = tmp_path / f"train-{number:05}-of-00003.parquet"
        pq.write_table(shard, path, row_group_size=170)
    content.assert_equals(load("cifar10", tmp_path))
    path.unlink()
    with pytest.raises(UserError, match=r"expected 3 files like train-00000-of-00003.*got 2"):
        load("cifar10", tmp_path)


def test_a_missing_split_is_named(forms, cifar10, tmp_path):
    forms.parquet(tmp_path, cifar10)
    (tmp_path / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(UserError, match=r"expected test-\*.parquet beside train-00000-of-00001"):
        load("cifar10", tmp_path)


def test_names_in_the_schema_win_if_they_fit(forms, cifar10, tmp_path):
    forms.parquet(tmp_path, cifar10)
    path = tmp_path / "train-00000-of-00001.parquet"
    table = pq.read_table(path)

    def names_after(note: object) -> tuple[str, ...]:
        pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(note)}), path)
        return load("cifar10", tmp_path, cache=False).class_names

    names = [f"kind {number}" for number in range(10)]
    assert names_after({"info": {"features": {"label": {"names": names}}}}) == tuple(names)
    for note in (
        {"info": {"features": {"label": {"names": names[:9]}}}},
        {"info": {"features": {"label": {"names": [1] * 10}}}},
        {"info": {"features": {"label": {"names": 3}}}},
        {"info": [1]},
        "text",
    ):
        assert names_after(note)[0] == "airplane"


def replaced(forms, content, tmp_path, row, data):
    """A set whose test image in one row is other bytes."""
    forms.parquet(tmp_path, content)
    path = tmp_path / "test-00000-of-00001.parquet"
    table = pq.read_table(path)
    images = table.column("img").to_pylist()
    images[row]["bytes"] = data
    pq.write_table(table.set_column(0, "img", pa.array(images)), path)
    return tmp_path


def saved(image, kind="PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def huge_png() -> bytes:
    """A PNG of a few bytes whose header claims 40,000 x 40,000 pixels."""

    def chunk(name, data):
        checksum = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + header + data + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (saved(Image.new("RGB", (33, 32))), "expected 32x32 pixels, got 33x32"),
        (saved(Image.new("RGB", (2000, 2000)), "WEBP"), "expected 32x32 pixels, got 2000x2000"),
        (huge_png(), "truncated or no PNG, JPEG or WebP image"),
        (saved(Image.new("RGB", (32, 32)))[:60], "truncated or no PNG, JPEG or WebP image"),
        (saved(Image.new("RGB", (32, 32)), "JPEG")[:-40], "truncated or no"),
        (saved(Image.new("RGB", (32, 32)), "BMP"), "truncated or no"),
        (saved(Image.new("CMYK", (32, 32)), "JPEG"), "expected mode RGB, got CMYK"),
        (saved(Image.new("I;16", (32, 32))), "expected mode RGB, got I;16"),
        (b"no image at all", "truncated or no"),
        (b"", "it is missing"),
        (None, "it is missing"),
        (bytes(2**20 + 1), "expected at most 1048576 bytes, got 1048577"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_image_is_named_with_row_and_file(forms, cifar10, tmp_path, data, message):
    replaced(forms, cifar10, tmp_path, 6, data)
    with pytest.raises(UserError, match=rf"row 6 of .*test-00000-of-00001.parquet: .*{message}"):
        load("cifar10", tmp_path)


def test_rows_are_counted_through_the_file(forms, tmp_path):
    folder = replaced(forms, forms.content(train=1, test=600), tmp_path, 555, b"no image")
    with pytest.raises(UserError, match=r"image in row 555 of .*test-00000"):
        load("cifar10", folder)
    path = folder / "test-00000-of-00001.parquet"
    labels = [1] * 600
    labels[333] = 11
    pq.write_table(pq.read_table(path).set_column(1, "label", pa.array(labels)), path)
    with pytest.raises(UserError, match=r"labels 0 to 9 in .*, got 11 in row 333"):
        load("cifar10", folder)


@pytest.mark.parametrize("mode", ["L", "P", "1", "RGBA", "P with transparency"])
def test_images_stored_in_fewer_colours_are_expanded(forms, cifar10, tmp_path, mode):
    grey = (np.indices((32, 32)).sum(0) % 2 * 255).astype(np.uint8)
    image = Image.fromarray(grey).convert(mode[:4] if mode == "RGBA" else mode[0])
    options = {"transparency": b"\xff\x80"} if "transparency" in mode else {}
    replaced(forms, cifar10, tmp_path, 0, saved(image, **options))
    row = load("cifar10", tmp_path).test_x[0].numpy()
    np.testing.assert_array_equal(row, np.broadcast_to(grey, (3, 32, 32)))


def test_grey_sets_take_coloured_encodings_of_grey(forms, mnist, tmp_path):
    forms.parquet(tmp_path, mnist, image="image")
    path = tmp_path / "test-00000-of-00001.parquet"
    table = pq.read_table(path)
    images = table.column("image").to_pylist()
    rgb = Image.fromarray(mnist.test_x[2, 0]).convert("RGB")
    images[2]["bytes"] = saved(rgb, "WEBP", lossless=True)
    pq.write_table(table.set_column(0, "image", pa.array(images)), path)
    mnist.assert_equals(load("mnist", tmp_path))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 10, 3], "labels 0 to 9 in .*, got 10 in row 2"),
        ([0, -1, 1, 3], "got -1 in row 1"),
        ([0, 1, 2, None], "got none in row 3"),
        ([0.0, 1.0, 2.0, 3.0], "whole numbers in column label of .*, got double"),
        (["a", "b", "c", "d"], "whole numbers in column label of .*, got string"),
    ],
)
def test_labels_that_do_not_fit_are_named(forms, tmp_path, labels, message):
    content = forms.content(train=4, test=4)
    forms.parquet(tmp_path, content)
    path = tmp_path / "train-00000-of-00001.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(1, "label", pa.array(labels)), path)
    with pytest.raises(UserError, match=message):
        load("cifar10", tmp_path)


def test_columns_that_are_missing_or_of_another_kind_are_named(forms, cifar10, tmp_path):
    forms.parquet(tmp_path / "a", cifar10, image="picture")
    with pytest.raises(UserError, match=r"column img or image in .*, got picture, label"):
        load("cifar10", tmp_path / "a")
    forms.parquet(tmp_path / "b", cifar10)
    with pytest.raises(UserError, match=r"column fine_label for cifar100 in .*, got img, label"):
        load("cifar100", tmp_path / "b")
    table = pa.table({"img": [[1, 2]], "label": [1]})
    for split in ("train", "test"):
        (tmp_path / "c").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "c" / f"{split}.parquet")
    with pytest.raises(UserError, match=r"encoded images in column img of .*, got list"):
        load("cifar10", tmp_path / "c")


def test_a_file_without_rows_is_refused(forms, cifar10, tmp_path):
    forms.parquet(tmp_path, cifar10)
    path = tmp_path / "train-00000-of-00001.parquet"
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(UserError, match=r"expected 1 to 200000 images in .*, got 0"):
        load("cifar10", tmp_path)


def test_a_file_cut_anywhere_is_one_sentence(forms, cifar10, tmp_path):
    forms.parquet(tmp_path, cifar10)
    path = tmp_path / "train-00000-of-00001.parquet"
    whole = path.read_bytes()
    for length in (0, 3, 8, 1000, len(whole) // 2, len(whole) - 4, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=f"cannot read .*{path.name}: it is truncated"):
            load("cifar10", tmp_path)


@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_damaged_file_is_read_or_refused_and_nothing_else(forms, tmp_path_factory, position, bit):
    folder = tmp_path_factory.mktemp("damaged")
    forms.parquet(folder, forms.content(train=2, test=2))
    path = folder / "train-00000-of-00001.parquet"
    data = bytearray(path.read_bytes())
    # Half of the attempts hit the description at the end, the other half anything.
    span = min(600, len(data)) if position < 0.5 else len(data)
    data[len(data) - 1 - int(position * span)] ^= 1 << bit
    path.write_bytes(data)
    sentence = ""
    try:
        load("cifar10", folder, cache=False)
    except UserError as error:
        sentence = str(error)
    assert "\n" not in sentence
