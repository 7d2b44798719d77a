"""Python runs this at the start of every process below `gradwise watch -- ...`.

It must cost nothing and break nothing: it waits for torch's optimizers to be imported, and then for
one of them to make a step. Only then gradwise itself is imported.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


def _run_hidden() -> None:
    """Run the `sitecustomize` that would have been run if this one were not before it."""
    here = os.path.dirname(os.path.abspath(__file__))
    elsewhere = [path for path in sys.path if os.path.abspath(path) != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", elsewhere)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


class _OnImport(importlib.abc.MetaPathFinder):
    """Registers the hook as soon as the module with torch's optimizer class is there."""

    name = "torch.optim.optimizer"

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def load_and_register(module: ModuleType) -> None:
            load(module)
            module.register_optimizer_step_pre_hook(_before_step)

        spec.loader.exec_module = load_and_register  # type: ignore[method-assign]
        return spec


_gave_up = False


def _before_step(optimizer: Any, args: Any, kwargs: Any) -> None:
    global _gave_up
    if _gave_up:
        return
    try:
        from gradwise.script.follow import follow
    except ImportError as error:
        _gave_up = True
        sys.stderr.write(f"gradwise: nothing is watched, because {error}\n")
        return
    follow(optimizer)


if os.environ.get("GRADWISE_WATCH"):
    sys.meta_path.insert(0, _OnImport())
_run_hidden()
