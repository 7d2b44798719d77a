"""CIFAR in its binary version: records of label bytes and pixels, with no header."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gradwise.errors import UserError
from gradwise.lab.data.catalog import ImageSet
from gradwise.lab.data.checks import check_labels
from gradwise.lab.data.forms import MAX_ROWS, Form, Found, Raw, Split, join, require
from gradwise.lab.data.members import Member, archive_members, folder_members


@dataclass(frozen=True)
class _Layout:
    """File names of one set, and how many label bytes open a record; the last one is ours."""

    archive: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    label_bytes: int


_LAYOUTS = {
    "cifar10": _Layout(
        archive="cifar-10-binary.tar.gz",
        folder="cifar-10-batches-bin",
        train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        test=("test_batch.bin",),
        label_bytes=1,
    ),
    # CIFAR-100 writes the superclass before the class.
    "cifar100": _Layout(
        archive="cifar-100-binary.tar.gz",
        folder="cifar-100-binary",
        train=("train.bin",),
        test=("test.bin",),
        label_bytes=2,
    ),
}


def _find_folder(folder: Path, known: ImageSet) -> Found | None:
    layout = _LAYOUTS.get(known.name)
    if layout is None:
        return None
    files = require(known, folder, layout.train + layout.test)
    if files is None:
        return None
    return Found(files, lambda: _read(folder_members(files), layout, known, str(folder)))


def _find_archive(folder: Path, known: ImageSet) -> Found | None:
    layout = _LAYOUTS.get(known.name)
    if layout is None or not (folder / layout.archive).is_file():
        return None
    path = folder / layout.archive
    names = layout.train + layout.test
    return Found(
        (path,),
        lambda: _read(archive_members(path, layout.folder, names), layout, known, str(path)),
    )


def _read(members: Iterable[Member], layout: _Layout, known: ImageSet, where: str) -> Raw:
    splits = {member.name: _split(member, layout, known) for member in members}
    for name in layout.train + layout.test:
        if name not in splits:
            raise UserError(f"found no {layout.folder}/{name} in {where}")
    return Raw(
        train=join([splits[name] for name in layout.train]),
        test=join([splits[name] for name in layout.test]),
    )


def _split(member: Member, layout: _Layout, known: ImageSet) -> Split:
    channels, height, width = known.shape
    record = layout.label_bytes + channels * height * width
    size = len(member.data)
    if size == 0 or size % record:
        raise UserError(
            f"expected a whole number of records of {record} bytes in {member.where}, "
            f"got {size} bytes: it is truncated or of another set"
        )
    if size // record > MAX_ROWS:
        raise UserError(
            f"expected at most {MAX_ROWS} images in {member.where}, got {size // record}"
        )
    rows = np.frombuffer(member.data, np.uint8).reshape(-1, record)
    labels = rows[:, layout.label_bytes - 1].astype(np.int64)
    check_labels(labels, known.num_classes, member.where)
    pixels = np.ascontiguousarray(rows[:, layout.label_bytes :])
    return Split(pixels.reshape(-1, *known.shape), labels)


def _looks_like_folder(known: ImageSet) -> str | None:
    layout = _LAYOUTS.get(known.name)
    return (
        f"the binary version ({layout.train[0]}, {layout.test[0]})" if layout is not None else None
    )


def _looks_like_archive(known: ImageSet) -> str | None:
    layout = _LAYOUTS.get(known.name)
    return f"its archive ({layout.archive})" if layout is not None else None


FOLDER = Form(_looks_like_folder, _find_folder)
ARCHIVE = Form(_looks_like_archive, _find_archive)
