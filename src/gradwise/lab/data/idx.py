"""The idx files of MNIST and Fashion-MNIST, plain or gzipped."""

import gzip
import io
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gradwise.errors import UserError
from gradwise.lab.data.catalog import ImageSet
from gradwise.lab.data.checks import check_labels
from gradwise.lab.data.forms import MAX_ROWS, Form, Found, Raw, Split, require

_SETS = ("fashion-mnist", "mnist")
_STEMS = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def _find(folder: Path, known: ImageSet) -> Found | None:
    if known.name not in _SETS:
        return None
    # Each file may be unpacked or not; the unpacked one is read sooner.
    names = tuple(stem if (folder / stem).is_file() else f"{stem}.gz" for stem in _STEMS)
    files = require(known, folder, names)
    if files is None:
        return None
    return Found(files, lambda: _read(files, known))


def _read(files: tuple[Path, ...], known: ImageSet) -> Raw:
    _, height, width = known.shape
    splits = []
    for images_path, labels_path in (files[:2], files[2:]):
        images = _read_idx(images_path, (height, width))
        labels = _read_idx(labels_path, ()).astype(np.int64)
        if len(images) != len(labels):
            raise UserError(
                f"expected as many labels in {labels_path} as images in {images_path}, "
                f"got {len(labels)} and {len(images)}"
            )
        check_labels(labels, known.num_classes, str(labels_path))
        splits.append(Split(images.reshape(-1, *known.shape), labels))
    train, test = splits
    return Raw(train, test)


def _read_idx(path: Path, row_shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Read an idx file of unsigned bytes whose rows have a known shape.

    The header is compared with what is expected and with the file's size before anything of
    the size that it claims is read, so neither a wrong header nor a gzip bomb costs memory.
    """
    axes = 1 + len(row_shape)
    try:
        with _open(path) as stream:
            header = stream.read(4 + 4 * axes)
            if len(header) < 4 + 4 * axes:
                raise EOFError
            zero, kind, found_axes = struct.unpack(">HBB", header[:4])
            if (zero, kind, found_axes) != (0, 8, axes):
                raise UserError(
                    f"expected the idx header 000008{axes:02x} in {path}, got {header[:4].hex()}"
                )
            shape = struct.unpack(f">{axes}I", header[4:])
            if shape[1:] != row_shape or not 1 <= shape[0] <= MAX_ROWS:
                raise UserError(
                    f"expected 1 to {MAX_ROWS} rows of shape {row_shape} in {path}, "
                    f"got {shape[0]} of shape {shape[1:]}"
                )
            size = int(np.prod(shape, dtype=np.int64))
            _check_size(path, len(header) + size)
            data = stream.read(size)
            # Reading past the end makes gzip compare its checksum.
            if len(data) < size or stream.read(1):
                claim = "more" if len(data) < size else "less"
                raise UserError(
                    f"{path} claims {claim} than it holds: expected {size} bytes after the header"
                )
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"cannot read {path}: it is truncated or damaged") from error
    return np.frombuffer(data, np.uint8).reshape(shape)


def _check_size(path: Path, expected: int) -> None:
    """Compare a claim with the file's size: exactly if plain, with the best ratio if gzipped."""
    held = path.stat().st_size
    # Deflate cannot shrink anything to less than 1/1032 of its size.
    fits = expected <= held * 1032 if path.suffix == ".gz" else expected == held
    if not fits:
        raise UserError(
            f"{path} claims {'more' if expected > held else 'less'} than it holds: "
            f"expected {expected} bytes, got {held}"
        )


def _open(path: Path) -> gzip.GzipFile | io.BufferedReader:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def _looks_like(known: ImageSet) -> str | None:
    return f"idx files ({_STEMS[0]} or .gz, ...)" if known.name in _SETS else None


IDX = Form(_looks_like, _find)
