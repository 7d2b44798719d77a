"""The methods that gradwise knows: what `gradwise methods` lists and `gradwise compare` runs.

A method joins by one file in `gradwise.transforms` (or, as an optimizer, in `gradwise.optim`) whose
class bears `@register(...)`; nothing else has to be edited.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal, TypeVar

from torch import nn

from gradwise.errors import UserError

Kind = Literal["transform", "optimizer"]
T = TypeVar("T", bound=Callable[..., Any])

_PACKAGES = ("gradwise.transforms", "gradwise.optim")
# What an optimizer's constructor takes besides the method's own numbers: objects that text cannot
# name, and switches for how it runs, which do not change what it computes.
_MACHINERY = frozenset(
    {"params", "model", "transform", "foreach", "fused", "capturable", "differentiable", "maximize"}
)
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class Method:
    """One method and where it comes from.

    Attributes:
        name: what `--methods` takes.
        kind: "transform" maps gradients under any optimizer, "optimizer" replaces it.
        factory: the class.
        defaults: arguments that `--methods NAME` passes where the class asks for one.
        summary: one line.
        paper: authors, title, year.
        url: where to read it.
        equation: what it computes; numbers are those of docs/methods.md.
        tag: how sure the form is: [V] seen in a primary source, [V2] in a secondary one, [D]
            derived, [R] recalled, [X] this library's reconstruction.
    """

    name: str
    kind: Kind
    factory: Callable[..., Any]
    defaults: dict[str, Any]
    summary: str
    paper: str
    url: str
    equation: str
    tag: str

    @property
    def arguments(self) -> dict[str, Any]:
        """What text may give, with its default; `inspect.Parameter.empty` where there is none.

        Of an optimizer these are its numbers and choices: what it works on, its transforms and how
        it runs on the device are not for text.
        """
        hidden = _MACHINERY if self.kind == "optimizer" else frozenset[str]()
        return {
            name: self.defaults.get(name, parameter.default)
            for name, parameter in inspect.signature(self.factory).parameters.items()
            if name not in hidden and parameter.kind not in _VARIADIC
        }

    def takes(self, argument: str) -> bool:
        """Whether the class has a parameter of that name, be it for text or not.

        Args:
            argument: the name.
        """
        return argument in inspect.signature(self.factory).parameters

    def signature(self) -> str:
        """The name with its arguments and their defaults, as `--methods` takes them."""
        parts = []
        for name, default in self.arguments.items():
            shown = "" if default is inspect.Parameter.empty else f"={default!r}"
            parts.append(f"{name}{shown}")
        return f"{self.name}({', '.join(parts)})" if parts else self.name


_METHODS: dict[str, Method] = {}


def register(
    name: str,
    *,
    kind: Kind = "transform",
    defaults: dict[str, Any] | None = None,
    summary: str,
    paper: str,
    url: str,
    equation: str,
    tag: str,
) -> Callable[[T], T]:
    """Class decorator that adds a method to the registry; the arguments are `Method`'s."""

    def add(factory: T) -> T:
        if name in _METHODS and _METHODS[name].factory.__qualname__ != factory.__qualname__:
            raise ValueError(f"a method named {name!r} is registered already")
        _METHODS[name] = Method(
            name, kind, factory, dict(defaults or {}), summary, paper, url, equation, tag
        )
        return factory

    return add


@cache
def _discover() -> None:
    for package_name in _PACKAGES:
        package = importlib.import_module(package_name)
        for module in pkgutil.iter_modules(package.__path__, package_name + "."):
            importlib.import_module(module.name)


def methods() -> dict[str, Method]:
    """All methods by name, sorted.

    Examples:
        >>> methods()["autoscale"].paper.split(",")[0]
        'V.-D. Yun'
    """
    _discover()
    return dict(sorted(_METHODS.items()))


def lookup(name: str) -> Method:
    """The method of that name.

    Raises:
        UserError: for an unknown name, with the nearest one.
    """
    known = methods()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"
    raise UserError(f"unknown method {name!r}{hint}")


def parse(spec: str) -> tuple[Method, dict[str, Any]]:
    """A method and its arguments from text such as `clip(max_norm=0.5)`.

    Only literal keyword arguments are read; nothing is evaluated.

    Raises:
        UserError: where the text is not of that form, the method is unknown or an argument is.

    Examples:
        >>> method, arguments = parse("clip(max_norm=0.5)")
        >>> method.name, arguments
        ('clip', {'max_norm': 0.5})
    """
    text = spec.strip()
    name, bracket, rest = text.partition("(")
    method = lookup(name.strip())
    arguments = dict(method.defaults)
    if bracket:
        arguments |= _literals(text, f"f({rest}")
    allowed = method.arguments
    for key in arguments:
        if key not in allowed:
            names = ", ".join(allowed) or "no arguments"
            raise UserError(f"method {method.name!r} takes {names}, got {key!r} in {text!r}")
    return method, arguments


def _literals(text: str, call: str) -> dict[str, Any]:
    message = f"expected a method such as clip(max_norm=0.5), got {text!r}"
    try:
        tree = ast.parse(call, mode="eval").body
        if not isinstance(tree, ast.Call) or tree.args:
            raise UserError(message)
        names = [keyword.arg for keyword in tree.keywords]  # None stands for **
        if None in names or len(set(names)) < len(names):
            raise UserError(message)
        return {str(k.arg): ast.literal_eval(k.value) for k in tree.keywords}
    except UserError:
        raise
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(message) from error


def build(spec: str) -> Any:
    """The transform, or the optimizer class with its arguments bound, that a text names.

    An optimizer's arguments are tried on a small layer, so that a wrong one is told here and not
    where training begins.

    Raises:
        UserError: as `parse` does, and where an argument is out of its bounds.

    Examples:
        >>> build("clip(max_norm=0.5)")
        ClipNorm(max_norm=0.5)
    """
    method, arguments = parse(spec)
    try:
        if method.kind == "transform":
            return method.factory(**arguments)
        bound = partial(method.factory, **arguments)
        _try_out(method, bound)
    except (TypeError, ValueError) as error:
        raise UserError(f"method {spec.strip()!r}: {error}") from error
    return bound


def _try_out(method: Method, optimizer: partial[Any]) -> None:
    layer = nn.Linear(2, 2)
    given: dict[str, Any] = {"model": layer} if method.takes("model") else {}
    if method.arguments.get("lr") is inspect.Parameter.empty and "lr" not in optimizer.keywords:
        given["lr"] = 1e-3
    optimizer(layer.named_parameters(), **given)
