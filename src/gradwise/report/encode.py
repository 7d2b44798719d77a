"""Numbers and names, packed so that the page stays small and nothing in them can break out."""

import base64
import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["LEVELS", "embed", "floats", "pack", "rounded", "rounded_list"]

LEVELS = {1: 252, 2: 65_532}
"""Steps between the smallest and the largest value of a packed row, by bytes a value."""

_DEEPEST = 1e30  # a row's unit is at most this many times smaller than its largest value


def rounded(value: float | None) -> float | int | None:
    """A number with four significant digits, whole where it is; None where it is not finite.

    Args:
        value: the number.

    Examples:
        >>> rounded(0.123456), rounded(12345.6), rounded(2.0), rounded(float("nan"))
        (0.1235, 12350, 2, None)
    """
    if value is None or not math.isfinite(value):
        return None
    short = float(f"{value:.4g}")
    return int(short) if short.is_integer() and abs(short) < 1e7 else short


def rounded_list(values: Iterable[float | None]) -> list[float | int | None]:
    """`rounded` for each of several numbers.

    Args:
        values: the numbers.

    Examples:
        >>> rounded_list([1.0, None, float("inf"), 1 / 3])
        [1, None, None, 0.3333]
    """
    return [rounded(value) for value in values]


def pack(values: npt.NDArray[Any], size: int = 2) -> dict[str, Any]:
    """A matrix in one or two bytes a value, each row on a scale of its own.

    Code 0 says that there is no number, 1 that it is zero, 2 that it is infinite, and k >= 3
    stands for unit * sinh(low + (k - 3) * (high - low) / LEVELS[size]). In a row without negative
    values the unit is the smallest of them, which makes the scale a logarithmic one: over ten
    decades two bytes are good to four digits. Otherwise it is about as large as most values are,
    and the scale even for these and logarithmic beyond.

    Args:
        values: [rows, columns].
        size: bytes a value, 1 or 2.

    Returns:
        `rows`, `columns`, `size`, `scales` (unit, low and high of each row, as little-endian
        doubles in base64) and `codes` (the matrix row by row, little-endian, in base64).

    Examples:
        >>> packed = pack(np.array([[1e-4, 1.0, 0.0, np.nan, np.inf]]))
        >>> list(base64.b64decode(packed["codes"]))
        [3, 0, 255, 255, 1, 0, 0, 0, 2, 0]
        >>> list(base64.b64decode(pack(np.array([[-1.0, 0.0, 1.0]]), size=1)["codes"]))
        [3, 1, 255]
    """
    wide = np.asarray(values, np.float64)
    counted = np.isfinite(wide) & (wide != 0)
    unit = _units(wide, counted)
    bent = np.zeros_like(wide)
    np.arcsinh(np.divide(wide, unit, out=bent, where=counted), out=bent, where=counted)
    low = np.min(bent, axis=1, keepdims=True, initial=np.inf, where=counted)
    high = np.max(bent, axis=1, keepdims=True, initial=-np.inf, where=counted)
    low, high = (np.where(np.isfinite(end), end, 0.0) for end in (low, high))
    codes = np.where(wide == 0, 1, np.where(np.isinf(wide), 2, 0)).astype(f"<u{size}")
    share = (bent - low) / np.where(high > low, high - low, 1.0)
    codes[counted] = 3 + np.rint(share * LEVELS[size])[counted].astype(codes.dtype)
    return {
        "rows": wide.shape[0],
        "columns": wide.shape[1],
        "size": size,
        "scales": _text(np.concatenate([unit, low, high], axis=1).astype("<f8")),
        "codes": _text(codes),
    }


def floats(values: npt.NDArray[Any]) -> str:
    """Numbers as they are, with seven digits: little-endian floats of four bytes, in base64.

    Args:
        values: of any shape, row by row.
    """
    with np.errstate(over="ignore"):  # what is too large becomes infinite
        return _text(np.asarray(values).astype("<f4"))


def _units(wide: npt.NDArray[np.float64], counted: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """The unit of each row [rows, 1]; 1 where there is no number."""
    sizes = np.abs(wide)
    unit = np.min(sizes, axis=1, keepdims=True, initial=np.inf, where=counted)
    largest = np.max(sizes, axis=1, keepdims=True, initial=0.0, where=counted)
    for row in np.flatnonzero((counted & (wide < 0)).any(axis=1)):
        unit[row] = np.quantile(sizes[row, counted[row]], 0.9)
    return np.where(np.isfinite(unit), np.maximum(unit, largest / _DEEPEST), 1.0)


def _text(array: npt.NDArray[Any]) -> str:
    return base64.b64encode(array.tobytes()).decode("ascii")


def embed(payload: object) -> str:
    r"""JSON that may stand between script tags, whatever strings it holds.

    Nothing in it can close the element, open a comment or end a line of script: everything but
    ASCII is escaped, and so are the characters that HTML gives a meaning.

    Args:
        payload: what `json.dumps` takes, without NaN and infinities.

    Raises:
        ValueError: for a number that JSON does not have.

    Examples:
        >>> print(embed({"name": "</script>"}))
        {"name":"\u003c/script\u003e"}
    """
    plain = json.dumps(payload, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return plain.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
