"""Data from a function of the user's, named `module:function`."""

import difflib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gradwise.errors import UserError
from gradwise.lab.data.checks import check_finite
from gradwise.lab.data.dataset import Dataset, from_arrays
from gradwise.lab.data.facts import fingerprint

_PARTS = ("train_x", "train_y", "test_x", "test_y")


def load_user(name: str, data_dir: Path | None) -> Dataset:
    """Call the user's function and check what it returns.

    The current directory comes first on the module search path while it runs. The function gets
    `data_dir` if it takes an argument; if none was given and the argument has a default, it is
    left to that.

    Args:
        name: `module:function`.
        data_dir: the user's data folder.

    Returns:
        The data set; a tuple of four arrays gets no crops and no flips.

    Raises:
        UserError: there is no such function, it fails, or it returns something else.
    """
    module_name, _, function_name = name.partition(":")
    parts = (*module_name.split("."), function_name)
    if not all(part.isidentifier() for part in parts):
        raise UserError(f"expected data as module:function, got {name!r}")
    with _current_directory_first():
        function = _find(name, module_name, function_name)
        arguments = _arguments(name, function, data_dir)
        with _own_failures(name):
            result = function(*arguments)
    if isinstance(result, Dataset):
        # A fingerprint that somebody else wrote would say nothing about the contents.
        for part in ("train_x", "test_x"):
            check_finite(getattr(result, part), f"{part} of {name}")
        tensors = [getattr(result, part) for part in _PARTS]
        return replace(result, name=name, fingerprint=fingerprint(*tensors))
    if not isinstance(result, tuple | list) or len(result) != len(_PARTS):
        got = f"{len(result)} values" if isinstance(result, tuple | list) else _kind(result)
        raise UserError(f"expected {name} to return ({', '.join(_PARTS)}) or a Dataset, got {got}")
    train_x, train_y, test_x, test_y = (
        _rows(value, f"{part} of {name}") if part.endswith("x") else _labels(value, part, name)
        for part, value in zip(_PARTS, result, strict=True)
    )
    return from_arrays(name, train_x, train_y, test_x, test_y)


@contextmanager
def _current_directory_first() -> Iterator[None]:
    here = os.getcwd()
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)


@contextmanager
def _own_failures(name: str) -> Iterator[None]:
    """Say in one sentence what failed in the user's code and where."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        message = " ".join(str(error).split())
        said = f"{type(error).__name__}: {message}" if message else type(error).__name__
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(
            f"data {name} failed with {said} (line {last.lineno} of {last.filename})"
        ) from error


def _find(name: str, module_name: str, function_name: str) -> Callable[..., object]:
    with _own_failures(name):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            # A module that this one imports in vain is a failure of its own.
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise
            raise UserError(
                f"found no module {error.name} for data {name} in {os.getcwd()} or on the "
                "module search path"
            ) from error
    function = getattr(module, function_name, None)
    if function is None:
        close = difflib.get_close_matches(function_name, dir(module), n=1)
        hint = f", did you mean {close[0]}?" if close else ""
        raise UserError(f"found no function {function_name} in module {module_name}{hint}")
    if not callable(function):
        raise UserError(f"expected {name} to be a function, got {_kind(function)}")
    checked: Callable[..., object] = function
    return checked


def _arguments(
    name: str, function: Callable[..., object], data_dir: Path | None
) -> tuple[Path | None, ...]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return ()
    needed = [
        parameter.name
        for parameter in parameters
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    positional = [
        parameter
        for parameter in parameters
        if parameter.kind
        in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD, parameter.VAR_POSITIONAL)
    ]
    first = positional[0].name if positional else None
    if any(parameter != first for parameter in needed):
        raise UserError(
            f"expected {name} to need at most one argument, the data folder, "
            f"got {', '.join(needed)}"
        )
    if not positional or (data_dir is None and not needed):
        return ()
    return (data_dir,)


def _array(value: object, what: str) -> Tensor:
    """A dense tensor in main memory of whatever the user returned."""
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_quantized:
            raise UserError(f"expected a dense tensor as {what}, got {value.layout}")
        return value.detach().cpu().contiguous()
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biuf":
            raise UserError(f"expected numbers as {what}, got {value.dtype}")
        native = value.astype(value.dtype.newbyteorder("="), order="C", copy=True)
        # numpy's long double has no counterpart in torch.
        if native.dtype.kind == "f" and native.dtype.itemsize > 8:
            native = native.astype(np.float64)
        return torch.from_numpy(native)
    raise UserError(f"expected a tensor or a numpy array as {what}, got {_kind(value)}")


def _rows(value: object, what: str) -> Tensor:
    rows = _array(value, what)
    if rows.is_floating_point():
        return rows.float()
    if rows.dtype != torch.uint8:
        raise UserError(f"expected bytes (uint8) or floats as {what}, got {rows.dtype}")
    return rows


def _labels(value: object, part: str, name: str) -> Tensor:
    labels = _array(value, f"{part} of {name}")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise UserError(f"expected whole numbers as {part} of {name}, got {labels.dtype}")
    return labels.long()


def _kind(value: object) -> str:
    return f"a value of type {type(value).__name__}"
