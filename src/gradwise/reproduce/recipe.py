"""Recipes: what a paper claims, its settings as far as they are known, and how to shrink them."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from gradwise.errors import UserError

__all__ = ["SCALES", "Paper", "Recipe", "Setting", "load_recipe", "recipes"]

SCALES = ("smoke", "small", "full")
"""From seconds in a test, over minutes on two cores, to the paper's own size."""

_TAGS = ("[V]", "[V2]", "[D]", "[R]", "[X]")


@dataclass(frozen=True)
class Paper:
    """Where a claim comes from.

    Attributes:
        title: the paper's.
        authors: their names.
        venue: where and when it appeared.
        url: where it is; "" for what no paper says.
    """

    title: str
    authors: str
    venue: str
    url: str = ""

    @property
    def line(self) -> str:
        """All of it in a line."""
        if not self.url:  # a question of our own
            return self.title
        return ", ".join(part for part in (self.authors, f"“{self.title}”", self.venue) if part)


@dataclass(frozen=True)
class Setting:
    """One setting of an experiment.

    Attributes:
        value: the paper's where it is known; that of scale `full`.
        tag: how sure it is: [V] seen in the paper or its authors' code, [V2] in a secondary source,
            [D] derived or measured, [R] recalled, [X] this library's choice.
        why: what to know about it.
    """

    value: Any
    tag: str
    why: str = ""


@dataclass(frozen=True)
class Recipe:
    """One experiment.

    Attributes:
        name: as `gradwise reproduce` takes it.
        title: what it is about.
        experiment: the module of `gradwise.reproduce.experiments` that does it.
        claim: what the paper says, in a sentence.
        paper: where that is said.
        cost: by "small_cpu" and "full_gpu", in words.
        settings: by name.
        smaller: by scale, the values that are not those of `settings`.
    """

    name: str
    title: str
    experiment: str
    claim: str
    paper: Paper
    cost: Mapping[str, str]
    settings: Mapping[str, Setting]
    smaller: Mapping[str, Mapping[str, Any]]

    def at(self, scale: str, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The settings at a scale.

        Args:
            scale: one of `SCALES`.
            overrides: values to use instead, by name.

        Raises:
            UserError: where the scale or a name is unknown, or a value is of another kind.

        Examples:
            >>> load_recipe("diagonal-networks").at("full")["n"]
            40
        """
        if scale not in SCALES:
            raise UserError(f"expected scale to be one of {', '.join(SCALES)}, got {scale!r}")
        values = {name: setting.value for name, setting in self.settings.items()}
        values |= self.smaller.get(scale, {})
        for name, value in (overrides or {}).items():
            if name not in values:
                close = difflib.get_close_matches(name, values, n=1)
                hint = f", did you mean {close[0]}?" if close else ""
                raise UserError(
                    f"expected a setting of {self.name} ({', '.join(sorted(values))}), "
                    f"got {name!r}{hint}"
                )
            values[name] = _like(value, values[name], name)
        return values


def recipes() -> dict[str, Recipe]:
    """All recipes by name, in the order of their names.

    Examples:
        >>> "diagonal-networks" in recipes()
        True
    """
    folder = resources.files("gradwise.reproduce").joinpath("recipes")
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".toml"))
    return {recipe.name: recipe for recipe in map(_read, names)}


def load_recipe(name: str) -> Recipe:
    """One recipe.

    Args:
        name: as `gradwise reproduce --list` shows it.

    Raises:
        UserError: where there is none of that name.
    """
    known = recipes()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f", did you mean {close[0]}?" if close else ""
        raise UserError(f"expected a recipe, one of {', '.join(known)}, got {name!r}{hint}")
    return known[name]


@cache
def _read(file: str) -> Recipe:
    text = resources.files("gradwise.reproduce").joinpath("recipes", file).read_text("utf-8")
    try:
        return parse(file.removesuffix(".toml"), tomllib.loads(text))
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise UserError(f"recipe {file} is damaged: {error}") from error


def parse(name: str, content: Mapping[str, Any]) -> Recipe:
    """A recipe from what its file says.

    Args:
        name: the recipe's.
        content: the file's.

    Raises:
        UserError: where something is missing, has no tag or is smaller than nothing.
        KeyError: where a key is missing.
        TypeError: where one is too many.
    """
    settings = {key: Setting(**entry) for key, entry in content["settings"].items()}
    for key, setting in settings.items():
        if setting.tag not in _TAGS:
            raise UserError(
                f"recipe {name}: expected the tag of {key} to be one of {', '.join(_TAGS)}, "
                f"got {setting.tag!r}"
            )
    smaller = {scale: dict(content[scale]) for scale in SCALES[:-1]}
    for scale, values in smaller.items():
        for key, value in values.items():
            if key not in settings:
                raise UserError(f"recipe {name}: {scale} sets {key!r}, which is no setting of it")
            values[key] = _like(value, settings[key].value, key)
    known = {"title", "experiment", "claim", "paper", "cost", "settings", *smaller}
    unknown = sorted(set(content) - known)
    if unknown:
        raise UserError(f"recipe {name}: unknown key {unknown[0]!r}")
    return Recipe(
        name=name,
        title=content["title"],
        experiment=content["experiment"],
        claim=content["claim"],
        paper=Paper(**content["paper"]),
        cost=dict(content["cost"]),
        settings=settings,
        smaller=smaller,
    )


def read_override(text: str) -> tuple[str, Any]:
    """A setting from "name=value"; the value is JSON, or else a word.

    Args:
        text: what the user wrote.

    Raises:
        UserError: where there is no "=".

    Examples:
        >>> read_override("gammas=[0.02, 0.05]"), read_override("model=resnet20")
        (('gammas', [0.02, 0.05]), ('model', 'resnet20'))
    """
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise UserError(f"expected a setting as NAME=VALUE, got {text!r}")
    try:
        return name.strip(), json.loads(value)
    except (ValueError, RecursionError):
        return name.strip(), value.strip()


def _like(value: Any, known: Any, name: str) -> Any:
    """The value, where it is of the same kind as the one known."""
    if isinstance(known, bool) or isinstance(value, bool):
        fits = isinstance(known, bool) and isinstance(value, bool)
    elif isinstance(known, float):
        fits = isinstance(value, int | float)
    else:
        fits = isinstance(value, type(known))
    if not fits:
        raise UserError(
            f"expected {name} to be a {_kind(known)} like {known!r}, got {name}={value!r}"
        )
    return float(value) if isinstance(known, float) else value


def _kind(value: Any) -> str:
    kinds = {bool: "truth value", int: "whole number", float: "number", str: "word", list: "list"}
    return kinds.get(type(value), "table")
