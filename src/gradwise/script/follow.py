"""Inside the watched script: every optimizer that makes a step gets a `Watch`."""

from __future__ import annotations

import gc
import json
import logging
import os
import sys
import warnings
import weakref
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradwise.script.environment import VARIABLE
from gradwise.watch.place import WatchWarning, is_taken, siblings
from gradwise.watch.watch import Watch, watch_of

# Optimizers that are watched, or cannot be.
_seen: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()


@torch.compiler.disable  # type: ignore[untyped-decorator]
def follow(optimizer: torch.optim.Optimizer) -> None:
    """Watch an optimizer from the step that is about to be made, if it is not watched yet.

    Whatever goes wrong is told on the terminal's error stream, and the script goes on.

    Args:
        optimizer: whose step begins.
    """
    if optimizer in _seen:
        return
    _seen.add(optimizer)
    if watch_of(optimizer) is not None:  # the script does it itself
        return
    try:
        _watch(optimizer)
    except Exception as error:
        _tell(f"{type(optimizer).__name__} is not watched, because {error}")


def _watch(optimizer: torch.optim.Optimizer) -> None:
    _show_log()
    options: dict[str, Any] = json.loads(os.environ[VARIABLE])
    out = Path(options.pop("out"))
    if len(_seen) > 1:  # the first has the folder asked for, the next ones those beside it
        out = next(folder for folder in siblings(out) if not is_taken(folder))
    model = model_of(optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WatchWarning)  # names like group0.0 are no one's fault
        Watch(optimizer, model, out, **options)


def model_of(optimizer: torch.optim.Optimizer) -> nn.Module | None:
    """The module that holds an optimizer's parameters, found among all objects there are.

    Of several that hold equally many it is the one with the fewest others around it, so that names
    are as short as can be: the model inside a wrapper for distributed training, not the wrapper.

    Args:
        optimizer: whose parameters they are.

    Returns:
        None where no module has any of them.
    """
    wanted = {id(p) for group in optimizer.param_groups for p in group["params"]}
    best: tuple[int, int, nn.Module] | None = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some objects warn when they are looked at
        modules = [found for found in gc.get_objects() if _is_module(found)]
    for module in modules:
        own = [(name, id(p)) for name, p in module.named_parameters()]
        held = sum(key in wanted for _, key in own)
        if held == 0:
            continue
        rank = held, -sum(len(name) for name, _ in own)
        if best is None or rank > best[:2]:
            best = (*rank, module)
    return None if best is None else best[2]


def _is_module(found: object) -> bool:
    return issubclass(type(found), nn.Module)  # isinstance would ask proxies who they are


def _show_log() -> None:
    """Have what gradwise has to say appear on the terminal, unless the script cares for that."""
    log = logging.getLogger("gradwise")
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("gradwise: %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False


def _tell(message: str) -> None:
    print(f"gradwise: {message}", file=sys.stderr, flush=True)  # noqa: T201 - not our terminal
