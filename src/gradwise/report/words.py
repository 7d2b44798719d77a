"""Numbers as people read them."""

import math

__all__ = [
    "MINUS",
    "accuracy_points",
    "duration",
    "join",
    "memory",
    "p_value",
    "percent",
    "plain",
    "plural",
    "ratio",
    "span",
]

MINUS = "−"
NONE = "–"


def _signed(shown: str, value: float, *, plus: bool) -> str:
    # A value that rounds to zero has no sign.
    zero = not shown.strip("0.")
    if zero or value == 0:
        return shown
    return (MINUS if value < 0 else "+" if plus else "") + shown


def percent(value: float | None) -> str:
    """A share as per cent with two decimals.

    Args:
        value: the share, 1 for all.

    Examples:
        >>> print(percent(0.91234), percent(None))
        91.23 % –
    """
    return NONE if value is None else f"{100 * value:.2f} %"


def accuracy_points(value: float | None) -> str:
    """A difference of two shares in percentage points, with its sign.

    Args:
        value: the difference, 1 for a hundred points.

    Examples:
        >>> accuracy_points(0.0123), accuracy_points(-0.5), accuracy_points(-1e-9)
        ('+1.23', '−50.00', '0.00')
    """
    if value is None:
        return NONE
    return _signed(f"{abs(100 * value):.2f}", value, plus=True)


def span(bounds: tuple[float, float] | None, *, signed: bool = False) -> str:
    """An interval of shares in per cent or points.

    Args:
        bounds: its ends.
        signed: whether they are differences.

    Examples:
        >>> span((0.9, 0.915)), span((-0.01, 0.02), signed=True), span(None)
        ('90.00 to 91.50', '−1.00 to +2.00', '–')
    """
    if bounds is None:
        return NONE
    low, high = (_signed(f"{abs(100 * end):.2f}", end, plus=signed) for end in bounds)
    return f"{low} to {high}"


def p_value(value: float | None) -> str:
    """A p-value with two digits that count.

    Args:
        value: the p-value.

    Examples:
        >>> p_value(0.0123), p_value(0.5), p_value(0.00004), p_value(1.0), p_value(None)
        ('0.012', '0.50', '< 0.001', '1.00', '–')
    """
    if value is None:
        return NONE
    if value < 0.001:
        return "< 0.001"
    return f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def plain(value: float | None) -> str:
    """A number with three digits that count and without an exponent where that is readable.

    Args:
        value: the number.

    Examples:
        >>> plain(1234.5), plain(0.01234), plain(1e-9), plain(17.0), plain(None)
        ('1,234', '0.0123', '1.00e-09', '17.0', '–')
    """
    if value is None or not math.isfinite(value):
        return NONE
    size = abs(value)
    if size >= 1e7 or 0 < size < 1e-3:
        return f"{value:.2e}"
    if size >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}" if size else "0"


def duration(seconds: float | None) -> str:
    """A time as people say it.

    Args:
        seconds: the time.

    Examples:
        >>> print(duration(0.1234), duration(9.87), duration(75), duration(4000), duration(None))
        0.12 s 9.9 s 1 min 15 s 1 h 07 min –
    """
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return NONE
    if seconds < 1:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes:02d} min"


def memory(size: float | None) -> str:
    """An amount of memory in binary units.

    Args:
        size: bytes.

    Examples:
        >>> print(memory(512), memory(3 * 2**20), memory(1.5 * 2**30), memory(None))
        512 B 3.0 MiB 1.5 GiB –
    """
    if size is None or not math.isfinite(size) or size < 0:
        return NONE
    if size < 1024:
        return f"{size:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if size < 1023.95:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:,.1f} TiB"


def ratio(value: float | None, base: float | None) -> str:
    """How many times the base a value is.

    Args:
        value: the value.
        base: what counts as one.

    Examples:
        >>> print(ratio(3.0, 2.0), ratio(3.0, 0.0), ratio(None, 1.0))
        1.50 × – –
    """
    if value is None or base is None or base <= 0:
        return NONE
    return f"{value / base:.2f} ×"


def plural(count: int, one: str, many: str = "") -> str:
    """A count with its noun.

    Args:
        count: how many.
        one: the noun for one.
        many: the noun for any other number; `one` with an s if empty.

    Examples:
        >>> plural(1, "seed"), plural(3, "seed"), plural(0, "entry", "entries")
        ('1 seed', '3 seeds', '0 entries')
    """
    return f"{count} {one if count == 1 else many or one + 's'}"


def join(names: list[str]) -> str:
    """A list as it is said.

    Args:
        names: the items.

    Examples:
        >>> join(["a"]), join(["a", "b"]), join(["a", "b", "c"])
        ('a', 'a and b', 'a, b and c')
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
