"""gradwise without the run-time type checks of the tests, which torch.compile cannot trace."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from importlib.abc import MetaPathFinder
from importlib.machinery import FileFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType

import gradwise

NAME = "gradwise"


class Unchecked(MetaPathFinder):
    """Finds gradwise's modules as they are on the disk, before beartype's import hook does.

    Args:
        folder: that the package is in.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] != NAME:
            return None
        for folder in path or [self.folder]:
            spec = FileFinder(folder, (SourceFileLoader, [".py"])).find_spec(fullname)
            if spec is not None:
                return spec
        return None


def _modules() -> dict[str, ModuleType]:
    return {n: m for n, m in sys.modules.items() if n.partition(".")[0] == NAME}


def _exchange(modules: dict[str, ModuleType]) -> dict[str, ModuleType]:
    """Put others in the place of gradwise's modules; those that were there."""
    before = _modules()
    for name in before:
        del sys.modules[name]
    sys.modules.update(modules)
    return before


@cache
def _unchecked() -> dict[str, ModuleType]:
    finder = Unchecked(str(Path(gradwise.__file__).parents[1]))
    before = _exchange({})
    sys.meta_path.insert(0, finder)
    try:
        importlib.import_module(f"{NAME}.optim")
        return _modules()
    finally:
        sys.meta_path.remove(finder)
        _exchange(before)


@contextmanager
def plain() -> Iterator[ModuleType]:
    """The unchecked package, in `sys.modules` while it lasts, as dynamo's guards look there."""
    before = _exchange(_unchecked())
    try:
        yield sys.modules[NAME]
    finally:
        _exchange(before)


def unchecked(entry):
    """An entry of the table with the class of the plain package; inside `plain` only."""
    return replace(entry, cls=getattr(sys.modules[f"{NAME}.optim"], entry.name))
