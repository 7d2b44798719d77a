"""Models that come from the user's own code, named `module:function`."""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn

from gradwise.errors import UserError


@contextmanager
def _current_directory_first() -> Iterator[None]:
    """Let imports find the user's files, and take the entry away again afterwards.

    Left in place, a file of the user's called like a standard module would shadow it for
    whatever is imported much later.
    """
    here = os.getcwd()
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with suppress(ValueError):  # the user's code may have rearranged the list
            sys.path.remove(here)


def _said(error: BaseException) -> str:
    """Return the type and the first line of `error`, for a message of one sentence."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _find(spec: str) -> Callable[..., Any]:
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute or ":" in attribute or module_name.startswith("."):
        raise UserError(f"expected model as module:function, got {spec!r}")
    try:
        found: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a script may parse its arguments on import
        raise UserError(
            f"model {spec!r}: importing {module_name!r} failed with {_said(error)}"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise UserError(f"model {spec!r}: {module_name!r} has no {attribute!r}")
        found = getattr(found, part)
    if not callable(found):
        raise UserError(
            f"model {spec!r}: expected a function or a class, got {type(found).__name__}"
        )
    function: Callable[..., Any] = found
    return function


def _accepted(function: Callable[..., Any], offers: dict[str, Any], spec: str) -> dict[str, Any]:
    """Return those of `offers` that `function` takes by name; an error if it needs others."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise UserError(f"model {spec!r}: its signature cannot be read") from error
    parameters = signature.parameters.values()
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters)
    by_name = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    given = {key: value for key, value in offers.items() if takes_all or key in by_name}
    try:
        signature.bind(**given)
    except TypeError as error:
        raise UserError(
            f"model {spec!r}: expected a function that can be called with num_classes and "
            f"in_shape or with nothing, got the signature {signature}"
        ) from error
    return given


def _check_logits(
    model: nn.Module, spec: str, *, num_classes: int, in_shape: tuple[int, ...]
) -> None:
    """Run `model` once on zeros; it must give [2, num_classes] and be none the wiser for it.

    Found here, a wrong width is one sentence; found by the loss on an accelerator, it is an
    assertion inside a kernel. The run leaves modes and random state as they were, and evaluation
    mode keeps it out of batch-norm statistics. Lazy modules get their shapes from it.
    """
    modes = [(module, module.training) for module in model.modules()]
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            out = model.eval()(torch.zeros(2, *in_shape, device=device))
    except Exception as error:
        raise UserError(
            f"model {spec!r}: it failed on an input of shape {[2, *in_shape]} with {_said(error)}"
        ) from error
    finally:
        for module, mode in modes:
            module.training = mode
    if not isinstance(out, torch.Tensor) or tuple(out.shape) != (2, num_classes):
        shape = list(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
        raise UserError(
            f"model {spec!r}: expected logits of shape {[2, num_classes]} for an input of shape "
            f"{[2, *in_shape]}, got {shape}"
        )


def load(spec: str, *, num_classes: int, in_shape: tuple[int, ...]) -> nn.Module:
    """Import `module`, call `function` and check that what it returns is a usable model.

    Args:
        spec: `module:function`; the module is looked for in the current directory first. A class
            will do as well as a function. It is given those of `num_classes` and `in_shape` that
            it takes by name.
        num_classes: Number of logits that the model must give.
        in_shape: Shape of one sample.

    Raises:
        UserError: If the function cannot be imported or called, or what it returns is no module,
            has nothing to train, or does not map [B, *in_shape] to [B, num_classes].
    """
    with _current_directory_first():
        function = _find(spec)
        given = _accepted(function, {"num_classes": num_classes, "in_shape": in_shape}, spec)
        try:
            model = function(**given)
        except Exception as error:
            raise UserError(f"model {spec!r}: calling it failed with {_said(error)}") from error
    if not isinstance(model, nn.Module):
        raise UserError(
            f"model {spec!r}: expected it to return a torch.nn.Module, got {type(model).__name__}"
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"model {spec!r}: it has no parameter to train")
    _check_logits(model, spec, num_classes=num_classes, in_shape=in_shape)
    return model
