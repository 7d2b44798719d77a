"""Finding the files of a built-in set: which folder, and in which of the usual forms."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gradwise.errors import UserError
from gradwise.lab.data.catalog import ImageSet

# More rows than any of the built-in sets has, by far; a file that claims more is not one of them.
MAX_ROWS = 200_000

# Folders that hold the files in copies made by the usual tools, besides those of the set's name.
_PLAIN_FOLDERS = ("plain_text", "data", "raw")


@dataclass(frozen=True)
class Split:
    """One half of a set as its files have it: uint8 `[N, C, H, W]` and int64 `[N]`."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Raw:
    """What the files hold; `class_names` is empty where they do not say."""

    train: Split
    test: Split
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Found:
    """The files of a set in one form, and how to read them."""

    files: tuple[Path, ...]
    read: Callable[[], Raw]


@dataclass(frozen=True)
class Form:
    """A way in which people keep image sets.

    Attributes:
        looks_like: for messages, what its files are called, given a set; None where the set was
            never published in this form.
        find: the files of the set in one folder, None if there are none of this form. Raises
            `UserError` where some are there and others are missing.
    """

    looks_like: Callable[[ImageSet], str | None]
    find: Callable[[Path, ImageSet], Found | None]


def locate(known: ImageSet, folder: Path, forms: tuple[Form, ...]) -> Found:
    """Find the files of a set in a folder or in one of the usual folders below it.

    Folders named after the set come first, so that one folder may hold several sets.

    Args:
        known: the set.
        folder: the user's folder.
        forms: the forms to look for, in order of preference within a folder.

    Returns:
        The files of the first folder that has any.

    Raises:
        UserError: there is no such folder, it holds nothing of the set, or files are missing.
    """
    if not folder.exists():
        raise UserError(f"found no folder {folder} to read {known.name} from")
    if not folder.is_dir():
        raise UserError(f"expected a folder to read {known.name} from, got the file {folder}")
    for candidate in _candidates(known, folder):
        for form in forms:
            found = form.find(candidate, known)
            if found is not None:
                return found
    looks = ", ".join(text for form in forms if (text := form.looks_like(known)) is not None)
    below = ", ".join((*known.folders, *_PLAIN_FOLDERS))
    raise UserError(
        f"found no files of {known.name} in {folder} or the usual folders below it ({below}): "
        f"looked for {looks}"
    )


def _candidates(known: ImageSet, folder: Path) -> Iterator[Path]:
    below = ("", *known.folders, *_PLAIN_FOLDERS)
    for parent in (*known.folders, ""):
        base = folder / parent
        if base.is_dir():
            yield from (path for name in below if (path := base / name).is_dir())


def require(known: ImageSet, folder: Path, names: tuple[str, ...]) -> tuple[Path, ...] | None:
    """The named files of a folder: None if none is there.

    Raises:
        UserError: some are there and some are not; names the first that is missing.
    """
    paths = tuple(folder / name for name in names)
    there = [path.is_file() for path in paths]
    if not any(there):
        return None
    if not all(there):
        missing, present = names[there.index(False)], names[there.index(True)]
        raise UserError(
            f"expected {missing} beside {present} in {folder}: the files of {known.name} "
            "are incomplete"
        )
    return paths


def join(parts: list[Split]) -> Split:
    """Put the parts of a split together, in their order."""
    if len(parts) == 1:
        return parts[0]
    return Split(
        np.concatenate([part.images for part in parts]),
        np.concatenate([part.labels for part in parts]),
    )
