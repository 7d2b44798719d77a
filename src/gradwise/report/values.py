"""Reading what may be wrong: JSON files and the values in them, none of which is trusted.

A run folder may be half written, edited by hand or made by somebody else. So every value is
looked at before it is used: what is not of the expected kind becomes "not there".
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradwise.errors import UserError

__all__ = ["FORMAT", "interval", "number", "numbers", "read_object", "text", "whole"]

FORMAT = 1
"""The newest layout of `config.json` and `summary.json` that this version reads."""


def number(value: object) -> float | None:
    """A finite number, or None for anything else.

    Args:
        value: a value as it came from JSON.

    Examples:
        >>> number(3), number("3"), number(True), number(float("nan"))
        (3.0, None, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:  # JSON's whole numbers have no bound
        return None
    return found if math.isfinite(found) else None


def whole(value: object) -> int | None:
    """A whole number that is not negative, or None for anything else.

    Args:
        value: a value as it came from JSON.

    Examples:
        >>> whole(3), whole(3.0), whole(-1), whole(None)
        (3, None, None, None)
    """
    return value if type(value) is int and 0 <= value < 2**53 else None


def numbers(value: object) -> list[float | None]:
    """A list of numbers with None where there is no finite one; empty if it is no list.

    Args:
        value: a value as it came from JSON.

    Examples:
        >>> numbers([1, None, "x"])
        [1.0, None, None]
    """
    return [number(item) for item in value] if isinstance(value, list) else []


def interval(value: object) -> tuple[float, float] | None:
    """A pair of ascending numbers, or None for anything else.

    Args:
        value: a value as it came from JSON.

    Examples:
        >>> interval([0.1, 0.2]), interval([0.2, 0.1]), interval(None)
        ((0.1, 0.2), None, None)
    """
    found = numbers(value)
    if len(found) != 2 or found[0] is None or found[1] is None or found[0] > found[1]:
        return None
    return found[0], found[1]


def text(value: object) -> str:
    """A value as a reader should see it.

    Args:
        value: a value as it came from JSON.

    Examples:
        >>> text("sgd"), text(0.1), text(True), text([1, "a"]), text(None)
        ('sgd', '0.1', 'yes', '1, a', '–')
    """
    if isinstance(value, str):
        return value
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {text(item)}" for key, item in value.items()) or "–"
    if isinstance(value, Sequence):
        return ", ".join(text(item) for item in value) or "–"
    return str(value)


def read_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Args:
        path: the file.

    Raises:
        UserError: where it is missing, cannot be read, is not a JSON object, or says that a
            newer version of gradwise wrote it.
    """
    try:
        # NaN and Infinity are not JSON, yet Python writes them unless it is told otherwise.
        content = json.loads(path.read_bytes(), parse_constant=lambda _: None)
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise UserError(f"{path} is damaged: {reason}") from None
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise UserError(f"{path} is damaged: expected a JSON object, got a {kind}")
    written = content.get("format", FORMAT)
    if type(written) is not int or written < 1:
        raise UserError(f"{path} is damaged: expected format to be a whole number >= 1")
    if written > FORMAT:
        raise UserError(
            f"{path} was written by a newer gradwise: it has format {written}, "
            f"this version reads up to {FORMAT}"
        )
    return content
