"""`load`: one name to one checked data set."""

import difflib
import os
from pathlib import Path

import torch

from gradwise.errors import UserError
from gradwise.lab.data import binary, cache, idx, parquet, pickles
from gradwise.lab.data.cache import Key
from gradwise.lab.data.catalog import IMAGE_SETS, ImageSet
from gradwise.lab.data.dataset import Dataset, from_arrays
from gradwise.lab.data.digits import digits_version, read_digits
from gradwise.lab.data.forms import Raw, locate
from gradwise.lab.data.user import load_user

# What is exact and quick to read comes first: where a folder has the same set twice, the
# published pixels win over an encoding of them.
_FORMS = (
    pickles.FOLDER,
    binary.FOLDER,
    pickles.ARCHIVE,
    binary.ARCHIVE,
    idx.IDX,
    parquet.PARQUET,
)

_DIGITS = ImageSet(
    name="digits",
    shape=(1, 8, 8),
    num_classes=10,
    # The strokes fill the 8x8 frame from top to bottom: one pixel is as far as they can move.
    crop_padding=1,
    flip=False,
    class_names=tuple("0123456789"),
    label_column="",
    folders=(),
)


def available() -> tuple[str, ...]:
    """Names of the built-in sets.

    Examples:
        >>> available()
        ('digits', 'cifar10', 'cifar100', 'fashion-mnist', 'mnist')
    """
    return (_DIGITS.name, *IMAGE_SETS)


def load(
    name: str, data_dir: str | os.PathLike[str] | None = None, *, cache: bool = True
) -> Dataset:
    """Load a data set by name.

    `digits` comes with scikit-learn. `cifar10` and `cifar100` are read from a folder in any of
    their usual forms: Parquet with encoded images, the published python pickles or binary files,
    unpacked or as the published .tar.gz. `fashion-mnist` and `mnist` are read from idx files,
    gzipped or not, or from Parquet. Anything else is `module:function`, a function that returns
    `(train_x, train_y, test_x, test_y)` as tensors or numpy arrays, or a `Dataset`; it is found
    with the current directory on the module search path and gets `data_dir` if it takes an
    argument.

    Args:
        name: a built-in name or `module:function`.
        data_dir: the folder that holds the set's files, or a folder above it; `digits` needs
            none.
        cache: keep the decoded set on disk (see `gradwise.lab.data.cache`) and take it from
            there the next time. Data of a user's function is never kept.

    Returns:
        The checked data set. Its tensors may be mapped from the cache: writing to them changes
        this process's copy alone.

    Raises:
        UserError: the name is unknown, the files are missing, incomplete, damaged or hostile, or
            what they hold does not fit; says which file, value and row.

    Examples:
        >>> load("digits", cache=False).train_x.shape
        torch.Size([1437, 1, 8, 8])
        >>> load("cifar11")
        Traceback (most recent call last):
        gradwise.errors.UserError: expected data to be one of digits, cifar10, cifar100, \
fashion-mnist, mnist or module:function, got 'cifar11', did you mean cifar10?
    """
    folder = None if data_dir is None else Path(data_dir).expanduser()
    if ":" in name:
        return load_user(name, folder)
    try:
        if name == _DIGITS.name:
            return _digits(cache)
        if name in IMAGE_SETS:
            return _image_set(IMAGE_SETS[name], folder, cache)
    except ModuleNotFoundError as error:
        raise UserError(
            f"reading {name} needs {error.name}, which comes with gradwise[lab]"
        ) from error
    except OSError as error:
        where = error.filename or folder or name
        raise UserError(f"cannot read {where}: {error.strerror or error}") from error
    close = difflib.get_close_matches(name.lower(), available(), n=1)
    hint = f", did you mean {close[0]}?" if close else ""
    raise UserError(
        f"expected data to be one of {', '.join(available())} or module:function, "
        f"got {name!r}{hint}"
    )


def _digits(use_cache: bool) -> Dataset:
    key = cache.version_key(_DIGITS.name, "scikit-learn", digits_version())
    kept = _fetch(key, _DIGITS) if use_cache else None
    if kept is not None:
        return kept
    dataset = _build(_DIGITS, read_digits())
    if use_cache:
        cache.store(key, dataset)
    return dataset


def _image_set(known: ImageSet, folder: Path | None, use_cache: bool) -> Dataset:
    if folder is None:
        raise UserError(f"expected a folder (data_dir) with the files of {known.name}, got none")
    found = locate(known, folder, _FORMS)
    key = cache.files_key(known.name, found.files)
    kept = _fetch(key, known) if use_cache else None
    if kept is not None:
        return kept
    dataset = _build(known, found.read())
    # Files that somebody was still writing are not what the key says.
    if use_cache and cache.files_key(known.name, found.files) == key:
        cache.store(key, dataset)
    return dataset


def _fetch(key: Key, known: ImageSet) -> Dataset | None:
    kept = cache.fetch(
        key,
        num_classes=known.num_classes,
        crop_padding=known.crop_padding,
        flip=known.flip,
    )
    return kept if kept is not None and kept.in_shape == known.shape else None


def _build(known: ImageSet, raw: Raw) -> Dataset:
    arrays = (raw.train.images, raw.train.labels, raw.test.images, raw.test.labels)
    # Arrays that lie in the bytes of a file are read-only, which torch does not know.
    train_x, train_y, test_x, test_y = (
        torch.from_numpy(array if array.flags.writeable else array.copy()) for array in arrays
    )
    return from_arrays(
        known.name,
        train_x,
        train_y,
        test_x,
        test_y,
        num_classes=known.num_classes,
        crop_padding=known.crop_padding,
        flip=known.flip,
        class_names=raw.class_names or known.class_names,
    )
