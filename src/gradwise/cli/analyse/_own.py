"""Functions of the user's, named `module:function`: found, called, and told apart from our own."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from gradwise.errors import UserError

__all__ = ["find", "guarded", "offered", "user_code"]


@contextlib.contextmanager
def user_code() -> Iterator[None]:
    """Where code of the user's runs: it finds its neighbours, and prints to standard error.

    The current directory stays on the search path, for what is imported late.
    """
    here = os.getcwd()
    if here not in sys.path:
        sys.path.append(here)
    importlib.invalidate_caches()
    with contextlib.redirect_stdout(sys.stderr):
        yield


@contextlib.contextmanager
def guarded(what: str) -> Iterator[None]:
    """Say in one sentence what failed in somebody else's code, and where.

    Args:
        what: whose it is, such as "data mine:load".

    Raises:
        UserError: for every exception but that.
    """
    try:
        yield
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a script may parse its arguments on import
        message = " ".join(str(error).split())
        said = f"{type(error).__name__}: {message}" if message else type(error).__name__
        frames = traceback.extract_tb(error.__traceback__)[1:]  # the first one is this function
        where = f" (line {frames[-1].lineno} of {frames[-1].filename})" if frames else ""
        raise UserError(f"{what} failed with {said}{where}") from error


def find(spec: str, what: str) -> Callable[..., Any]:
    """Import the module and take the function from it.

    Args:
        spec: `module:function`.
        what: "model", "data" or "loss", for messages.

    Raises:
        UserError: where there is none.
    """
    module_name, _, attribute = spec.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), *attribute.split("."))):
        raise UserError(f"expected {what} as module:function, got {spec!r}")
    with guarded(f"{what} {spec}"):
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            # A module that this one imports in vain is a failure of its own.
            if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
                raise
            raise UserError(
                f"found no module {error.name} for {what} {spec} in {os.getcwd()} or on the "
                "module search path"
            ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise UserError(f"found no function {attribute} in module {module_name} for {what}")
        found = getattr(found, part)
    if not callable(found):
        raise UserError(f"expected {what} {spec} to be a function, got {type(found).__name__}")
    function: Callable[..., Any] = found
    return function


def offered(
    function: Callable[..., Any], spec: str, what: str, offers: dict[str, Any]
) -> dict[str, Any]:
    """Those of `offers` that the function takes by name.

    Args:
        function: the user's.
        spec: its name.
        what: "model" or "data", for messages.
        offers: what there is; None for what is not known, which is kept from it.

    Raises:
        UserError: where it needs others.
    """
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return {}
    plain = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    given = {p.name: offers[p.name] for p in plain if offers.get(p.name) is not None}
    for p in plain:
        if p.default is not p.empty or p.name in given:
            continue
        if p.name in offers:
            raise UserError(
                f"{what} {spec} needs {p.name}, which is not known here: give it a default"
            )
        raise UserError(
            f"expected {what} {spec} to need nothing but {' and '.join(offers)}, got {p.name}"
        )
    return given
