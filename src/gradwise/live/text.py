"""Numbers, durations and names as people read them; names are never trusted."""

from __future__ import annotations

import math
import re

__all__ = ["count", "duration", "natural", "number", "one_line", "short", "shown"]

_LETTERS = re.compile(r"(\d+)")


def shown(text: str) -> str:
    r"""Text that a terminal cannot take for anything but text.

    Whatever is not printable becomes an escape that is: control characters above all, but also
    those that turn the direction of writing around.

    Args:
        text: anything, for instance a layer's name out of a file.

    Examples:
        >>> shown("conv\x1b[31m"), shown("[red]Größe")
        ('conv\\x1b[31m', '[red]Größe')
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    r"""Text with a space for whatever is not printable, as alerts name their layers.

    Args:
        text: anything.

    Examples:
        >>> one_line("a\tb")
        'a b'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else " " for c in text)


def number(value: float) -> str:
    """A number in three digits, at most eight characters or nine with a sign.

    Args:
        value: any; NaN is "nan".

    Examples:
        >>> [number(v) for v in (0.0, 1.0, 0.012345, 1234.5, 1.2345e-5, -3e12, float("inf"))]
        ['0', '1.00', '0.0123', '1234', '1.23e-5', '-3.00e12', 'inf']
    """
    size = abs(value)
    if not math.isfinite(value):
        return str(float(value))
    if size == 0:
        return "0"
    if 999.5 <= size < 99_999.5:
        return f"{value:.0f}"
    if 1e-3 <= size < 999.5:
        return f"{value:#.3g}".removesuffix(".")
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def short(value: float) -> str:
    """A number in as few characters as say the same, as people write settings.

    Args:
        value: any.

    Examples:
        >>> short(0.1), short(3e-07)
        ('0.1', '3e-7')
    """
    mantissa, sign, exponent = f"{value:.3g}".partition("e")
    return mantissa + (f"e{int(exponent)}" if sign else "")


def count(value: float) -> str:
    """A whole number with its thousands set apart; one that is none as `number` does.

    Args:
        value: any.

    Examples:
        >>> count(1234567), count(0.5)
        ('1,234,567', '0.500')
    """
    if math.isfinite(value) and value == int(value):
        return f"{int(value):,}"
    return number(value)


def duration(seconds: float) -> str:
    """How long something takes, in the one unit that says enough.

    Args:
        seconds: 0 or more.

    Examples:
        >>> [duration(s) for s in (0.4, 90, 3 * 3600, 3 * 86400)]
        ['0 s', '90 s', '3 h', '3 d']
    """
    for unit, size, least in (("d", 86_400, 2), ("h", 3600, 2), ("min", 60, 2)):
        if seconds >= least * size:
            return f"{int(seconds / size)} {unit}"
    return f"{int(seconds)} s"


def natural(name: str) -> tuple[tuple[str, int], ...]:
    """A key that sorts names as people do: layer 2 before layer 10.

    Args:
        name: a name.

    Examples:
        >>> sorted(["h.10.b", "h.2.b", "h.2.a"], key=natural)
        ['h.2.a', 'h.2.b', 'h.10.b']
    """
    parts = _LETTERS.split(name)
    numbers = [int(digits) for digits in parts[1::2]]
    return tuple(zip(parts[::2], [*numbers, -1], strict=True))
