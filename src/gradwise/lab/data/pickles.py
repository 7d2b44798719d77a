"""CIFAR as python pickles: the form in which its authors publish it."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from gradwise.errors import UserError
from gradwise.lab.data.catalog import ImageSet
from gradwise.lab.data.checks import check_labels
from gradwise.lab.data.forms import MAX_ROWS, Form, Found, Raw, Split, join, require
from gradwise.lab.data.members import Member, archive_members, folder_members
from gradwise.lab.data.unpickle import byte_array, int_list, read_pickle


@dataclass(frozen=True)
class _Layout:
    """File names and dictionary keys of one set."""

    archive: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    labels: str
    class_names: str


_LAYOUTS = {
    "cifar10": _Layout(
        archive="cifar-10-python.tar.gz",
        folder="cifar-10-batches-py",
        train=tuple(f"data_batch_{number}" for number in range(1, 6)),
        test=("test_batch",),
        meta="batches.meta",
        labels="labels",
        class_names="label_names",
    ),
    "cifar100": _Layout(
        archive="cifar-100-python.tar.gz",
        folder="cifar-100-python",
        train=("train",),
        test=("test",),
        meta="meta",
        labels="fine_labels",
        class_names="fine_label_names",
    ),
}


def _find_folder(folder: Path, known: ImageSet) -> Found | None:
    layout = _LAYOUTS.get(known.name)
    if layout is None:
        return None
    batches = require(known, folder, layout.train + layout.test)
    if batches is None:
        return None
    # The names of the classes are a courtesy: the batches are complete without them.
    meta = folder / layout.meta
    files = (*batches, meta) if meta.is_file() else batches
    return Found(files, lambda: _read(folder_members(files), layout, known, str(folder)))


def _find_archive(folder: Path, known: ImageSet) -> Found | None:
    layout = _LAYOUTS.get(known.name)
    if layout is None or not (folder / layout.archive).is_file():
        return None
    path = folder / layout.archive
    names = (*layout.train, *layout.test, layout.meta)
    return Found(
        (path,),
        lambda: _read(archive_members(path, layout.folder, names), layout, known, str(path)),
    )


def _read(members: Iterable[Member], layout: _Layout, known: ImageSet, where: str) -> Raw:
    splits: dict[str, Split] = {}
    class_names: tuple[str, ...] = ()
    for member in members:
        content = read_pickle(member.data, member.where)
        if member.name == layout.meta:
            class_names = _class_names(content, layout, known, member.where)
        else:
            splits[member.name] = _split(content, layout, known, member.where)
    for name in layout.train + layout.test:
        if name not in splits:
            raise UserError(f"found no {layout.folder}/{name} in {where}")
    return Raw(
        train=join([splits[name] for name in layout.train]),
        test=join([splits[name] for name in layout.test]),
        class_names=class_names,
    )


def _split(content: dict[str, object], layout: _Layout, known: ImageSet, where: str) -> Split:
    for key in ("data", layout.labels):
        if key not in content:
            raise UserError(f"expected the entry {key!r} in {where}, got {_some(list(content))}")
    channels, height, width = known.shape
    rows = byte_array(content["data"], channels * height * width, f"data in {where}")
    labels = int_list(content[layout.labels], f"{layout.labels} in {where}")
    if len(rows) != len(labels) or len(rows) > MAX_ROWS:
        raise UserError(
            f"expected one label an image and at most {MAX_ROWS} of them in {where}, "
            f"got {len(rows)} images and {len(labels)} labels"
        )
    check_labels(labels, known.num_classes, where)
    return Split(rows.reshape(-1, *known.shape), labels)


def _class_names(
    content: dict[str, object], layout: _Layout, known: ImageSet, where: str
) -> tuple[str, ...]:
    names = content.get(layout.class_names)
    if not isinstance(names, list) or len(names) != known.num_classes:
        raise UserError(
            f"expected a list of {known.num_classes} names as {layout.class_names} in {where}"
        )
    decoded = [name.decode("latin-1") if isinstance(name, bytes) else name for name in names]
    if not all(isinstance(name, str) for name in decoded):
        raise UserError(f"expected names of classes as {layout.class_names} in {where}")
    return tuple(str(name) for name in decoded)


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(name[:40]) for name in names[:8])
    return f"{shown}, ..." if len(names) > 8 else shown or "none"


def _looks_like_folder(known: ImageSet) -> str | None:
    layout = _LAYOUTS.get(known.name)
    return f"python pickles ({layout.train[0]}, {layout.test[0]})" if layout is not None else None


def _looks_like_archive(known: ImageSet) -> str | None:
    layout = _LAYOUTS.get(known.name)
    return f"their archive ({layout.archive})" if layout is not None else None


FOLDER = Form(_looks_like_folder, _find_folder)
ARCHIVE = Form(_looks_like_archive, _find_archive)
