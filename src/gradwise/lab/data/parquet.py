"""Image sets as Parquet files with encoded images, the form of the Hugging Face hub."""

import re
from pathlib import Path

from gradwise.errors import UserError
from gradwise.lab.data.catalog import ImageSet
from gradwise.lab.data.forms import Form, Found, Raw

_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.parquet$")


def _find(folder: Path, known: ImageSet) -> Found | None:
    train, test = _files(folder, "train"), _files(folder, "test")
    if not train and not test:
        return None
    for split, files, other in (("train", train, test), ("test", test, train)):
        if not files:
            raise UserError(
                f"expected {split}-*.parquet beside {other[0].name} in {folder}: the files of "
                f"{known.name} are incomplete"
            )
        _check_shards(files)
    return Found(train + test, lambda: _read(train, test, known))


def _read(train: tuple[Path, ...], test: tuple[Path, ...], known: ImageSet) -> Raw:
    # Arrow and Pillow take a while to import, which nobody should pay whose data is in the cache.
    from gradwise.lab.data import decode

    return Raw(
        decode.read_split(train, known),
        decode.read_split(test, known),
        decode.class_names(train[0], known),
    )


def _files(folder: Path, split: str) -> tuple[Path, ...]:
    for place, pattern in ((folder, f"{split}-*.parquet"), (folder / split, "*.parquet")):
        files = tuple(sorted(place.glob(pattern)))
        if files:
            return files
    single = folder / f"{split}.parquet"
    return (single,) if single.is_file() else ()


def _check_shards(files: tuple[Path, ...]) -> None:
    """Refuse a download that stopped halfway: the names say how many files there must be."""
    numbered = [(path, match) for path in files if (match := _SHARD.search(path.name))]
    for path, match in numbered:
        total = int(match[2])
        if total != len(files):
            raise UserError(
                f"expected {total} files like {path.name} in {path.parent}, got {len(files)}"
            )


def _looks_like(known: ImageSet) -> str | None:
    return "Parquet (train-*.parquet, test-*.parquet)"


PARQUET = Form(_looks_like, _find)
