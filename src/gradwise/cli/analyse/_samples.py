"""Data by name: a built-in set, tensors or arrays of the user's, or a loader."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import data as torch_data

from gradwise.cli.analyse._own import find, guarded, offered
from gradwise.cli.analyse._problem import Pair, Samples
from gradwise.errors import UserError
from gradwise.lab.data import Dataset, from_arrays, load

__all__ = ["Batches", "load_samples"]

_FORMS = (
    "(inputs, targets), a loader of such batches, (train_x, train_y, test_x, test_y) or a Dataset"
)


class Batches:
    """A user's loader whose failures are said in one sentence.

    Args:
        loader: gives batches (inputs, targets), and can be iterated again.
        name: what the user called it.
    """

    def __init__(self, loader: Iterable[Any], name: str) -> None:
        self._loader, self._name = loader, name
        # Where a loader's random streams are, which analyses leave as they were.
        self.sampler = getattr(loader, "sampler", None)
        self.batch_sampler = getattr(loader, "batch_sampler", None)
        self.generator = getattr(loader, "generator", None)

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        """The batches of one pass."""
        with guarded(f"data {self._name}"):
            batches = iter(self._loader)
        while True:
            with guarded(f"data {self._name}"):
                try:
                    batch = next(batches)
                except StopIteration:
                    return
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                got = f"{len(batch)} values" if isinstance(batch, tuple | list) else _kind(batch)
                raise UserError(
                    f"expected data {self._name} to give batches (inputs, targets), got {got}"
                )
            yield batch[0], batch[1]


class _CountedBatches(Batches):
    """Batches whose number is known before."""

    def __len__(self) -> int:
        with guarded(f"data {self._name}"):
            return len(self._loader)  # type: ignore[arg-type]  # made of what has a length


def load_samples(
    name: str,
    data_dir: Path | None,
    *,
    split: str = "train",
    limit: int | None = None,
    batch_size: int | None = None,
) -> Samples:
    """Load data by name.

    Args:
        name: a built-in set, or `module:function`.
        data_dir: folder of the files; the user's function gets it where it asks for it.
        split: "train" or "test".
        limit: at most so many samples, the first ones; None for all.
        batch_size: samples a batch where the user's function gives a `torch` data set; None
            for 64.

    Raises:
        UserError: where there are none, they are of no form that can be read, or a limit is out of
            its bounds.
    """
    if limit is not None and limit < 1:
        raise UserError(f"expected limit >= 1, got limit={limit}")
    if ":" not in name:
        return _of_lab(load(name, data_dir), name, split, limit)
    function = find(name, "data")
    arguments = offered(function, name, "data", {"data_dir": data_dir})
    with guarded(f"data {name}"):
        made = function(**arguments)
    if isinstance(made, Dataset):
        return _of_lab(made, name, split, limit)
    if isinstance(made, tuple | list) and len(made) == 4 and all(map(_is_array, made)):
        return _of_four([_tensor(x, name) for x in made], name, split, limit)
    if split != "train":
        raise UserError(
            f"expected data {name} to return (train_x, train_y, test_x, test_y) or a Dataset for "
            f"--split {split}, it returned one set"
        )
    if isinstance(made, torch_data.TensorDataset) and len(made.tensors) == 2:
        made = made.tensors
    if isinstance(made, tuple | list) and len(made) == 2 and all(map(_is_array, made)):
        return _of_pair((_tensor(made[0], name), _tensor(made[1], name)), name, limit)
    if isinstance(made, torch_data.Dataset) and not isinstance(made, torch_data.IterableDataset):
        made = torch_data.DataLoader(made, batch_size=batch_size or 64)
    return _of_loader(made, name, limit)


def _of_lab(dataset: Dataset, name: str, split: str, limit: int | None) -> Samples:
    """Standardised by channel as the lab's trials have it, without augmentation."""
    train, test = ((dataset.train_x, dataset.train_y), (dataset.test_x, dataset.test_y))
    chosen, other = (train, test) if split == "train" else (test, train)
    inputs, targets = _limited(chosen, name, limit)
    return Samples(
        name=name,
        data=(_standard(inputs, dataset), targets),
        count=len(inputs),
        in_shape=dataset.in_shape,
        num_classes=dataset.num_classes,
        other=(_standard(other[0], dataset), other[1]),
    )


def _standard(rows: Tensor, dataset: Dataset) -> Tensor:
    shape = (1, -1, *[1] * (rows.ndim - 2))
    scale = 255.0 if rows.dtype == torch.uint8 else 1.0
    rows = rows.to(torch.float32, copy=True).div_(scale)
    return rows.sub_(dataset.mean.view(shape)).div_(dataset.std.view(shape))


def _of_four(parts: list[Tensor], name: str, split: str, limit: int | None) -> Samples:
    """As the lab has it where that is a task of the lab's; otherwise as it is."""
    train, test = (parts[0], parts[1]), (parts[2], parts[3])
    of_lab = all(
        x.ndim >= 2 and (x.is_floating_point() or x.dtype == torch.uint8) and _are_classes(y)
        for x, y in (train, test)
    )
    if of_lab:
        rows = [x.float() if x.is_floating_point() else x for x in (parts[0], parts[2])]
        dataset = from_arrays(name, rows[0], parts[1].long(), rows[1], parts[3].long())
        return _of_lab(dataset, name, split, limit)
    chosen, other = (train, test) if split == "train" else (test, train)
    _check_pair(other, name)
    found = _of_pair(chosen, name, limit)
    return Samples(found.name, found.data, found.count, found.in_shape, found.num_classes, other)


def _of_pair(pair: Pair, name: str, limit: int | None) -> Samples:
    _check_pair(pair, name)
    classes = None
    if not pair[1].is_floating_point() and not pair[1].is_complex():
        classes = max(int(pair[1].max()) + 1, 2)
    inputs, targets = _limited(pair, name, limit)
    return Samples(name, (inputs, targets), len(inputs), tuple(inputs.shape[1:]), classes)


def _of_loader(loader: Any, name: str, limit: int | None) -> Samples:
    if isinstance(loader, Iterator):
        raise UserError(
            f"expected data {name} to return what can be iterated again, got {_kind(loader)}"
        )
    if not isinstance(loader, Iterable) or isinstance(loader, str | bytes | dict | Tensor):
        raise UserError(f"expected data {name} to return {_FORMS}, got {_kind(loader)}")
    count = None
    batches: Any = Batches(loader, name)
    if limit is not None:
        batches = _first(batches, limit)
        count = sum(_size(batch[1]) or _size(batch[0]) for batch in batches)
    elif _has_length(loader):
        batches = _CountedBatches(loader, name)
    first = next(iter(batches), None)
    if first is None:
        raise UserError(f"expected at least one batch from data {name}, got none")
    if (_size(first[0]) == 0 and _size(first[1]) == 0) or _is_scalar(first[1]):
        raise UserError(
            f"expected batches of samples from data {name}, got single ones: put them into a "
            "torch.utils.data.DataLoader"
        )
    shape = tuple(first[0].shape[1:]) if isinstance(first[0], Tensor) else None
    return Samples(name, batches, count, shape, None)


def _first(batches: Batches, limit: int) -> list[tuple[Any, Any]]:
    """The batches of the first samples, kept: a loader that shuffles would give others each time.

    The last one is cut where it sticks out.
    """
    kept: list[tuple[Any, Any]] = []
    left = limit
    for inputs, targets in batches:
        size = _size(targets) or _size(inputs)
        kept.append(
            (inputs, targets) if size <= left else (_cut(inputs, left), _cut(targets, left))
        )
        left -= min(size, left)
        if left == 0:
            break
    return kept


def _cut(value: Any, count: int) -> Any:
    if isinstance(value, Tensor):
        return value[:count] if value.ndim else value
    if isinstance(value, dict):
        return {key: _cut(item, count) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_cut(item, count) for item in value))
    if isinstance(value, tuple | list):
        return type(value)(_cut(item, count) for item in value)
    return value


def _size(value: Any) -> int:
    """Samples in a nest: the length of its first tensor, 0 where there is none."""
    if isinstance(value, Tensor):
        return len(value) if value.ndim else 0
    items = value.values() if isinstance(value, dict) else value
    if isinstance(value, dict | tuple | list):
        return next((size for item in items if (size := _size(item))), 0)
    return 0


def _limited(pair: Pair, name: str, limit: int | None) -> Pair:
    count = len(pair[0])
    if limit is not None and limit > count:
        raise UserError(f"expected 1 <= limit <= {count} for {name}, got limit={limit}")
    return pair[0][:limit], pair[1][:limit]


def _check_pair(pair: Pair, name: str) -> None:
    for what, tensor in (("inputs", pair[0]), ("targets", pair[1])):
        if tensor.ndim == 0 or len(tensor) == 0:
            raise UserError(f"expected {what} with samples from data {name}, got none")
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise UserError(f"expected finite {what} from data {name}, got NaN or infinity")
    if len(pair[0]) != len(pair[1]):
        raise UserError(
            f"expected as many targets as inputs from data {name}, got {len(pair[0])} inputs and "
            f"{len(pair[1])} targets"
        )


def _are_classes(targets: Tensor) -> bool:
    whole = not targets.is_floating_point() and not targets.is_complex()
    return whole and targets.ndim == 1 and targets.dtype != torch.bool


def _is_scalar(value: object) -> bool:
    return isinstance(value, Tensor) and value.ndim == 0


def _is_array(value: object) -> bool:
    return isinstance(value, Tensor | np.ndarray)


def _tensor(value: Any, name: str) -> Tensor:
    """A dense tensor in main memory; numpy's float64, its default, becomes torch's default."""
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_quantized:
            raise UserError(f"expected dense tensors from data {name}, got {value.layout}")
        return value.detach().cpu()
    if value.dtype.kind not in "biuf":
        raise UserError(f"expected arrays of numbers from data {name}, got {value.dtype}")
    native = value.astype(value.dtype.newbyteorder("="), order="C", copy=True)
    if native.dtype.kind == "f":
        return torch.from_numpy(native.astype(np.float64)).to(torch.get_default_dtype())
    return torch.from_numpy(native)


def _has_length(loader: Iterable[Any]) -> bool:
    try:
        size = len(loader)  # type: ignore[arg-type]  # not all have one, which is the question
    except TypeError:
        return False
    return math.isfinite(size)


def _kind(value: object) -> str:
    return f"a value of type {type(value).__name__}"
