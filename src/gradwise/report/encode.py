"""Numbers and names, packed so that the page stays small and nothing in them can break out."""

import base64
import json
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["LEVELS", "embed", "pack", "rounded", "rounded_list"]

LEVELS = 65_533
"""Steps between the smallest and the largest value of a packed matrix."""


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


def pack(values: npt.NDArray[Any]) -> dict[str, Any]:
    """A matrix of positive numbers on a logarithmic scale, in two bytes each.

    Code 0 says that there is no number, 1 that it is zero, and k >= 2 stands for
    10 ** (low + (k - 2) * (high - low) / LEVELS). Over ten decades that is good to four digits.

    Args:
        values: [rows, columns]; what is negative or not finite counts as "no number".

    Returns:
        `rows`, `columns`, `low` and `high` (decimal logarithms) and `codes`, the matrix row by
        row as little-endian numbers of 16 bits in base64.

    Examples:
        >>> packed = pack(np.array([[1e-4, 1.0], [0.0, np.nan]]))
        >>> packed["low"], packed["high"], list(base64.b64decode(packed["codes"]))
        (-4.0, 0.0, [2, 0, 255, 255, 1, 0, 0, 0])
    """
    wide = np.asarray(values, np.float64)
    positive = np.isfinite(wide) & (wide > 0)
    codes = np.where(wide == 0, 1, 0).astype("<u2")
    low = high = 0.0
    if positive.any():
        logs = np.log10(wide[positive])
        low, high = float(logs.min()), float(logs.max())
        share = (logs - low) / (high - low) if high > low else np.zeros_like(logs)
        codes[positive] = 2 + np.rint(share * LEVELS).astype("<u2")
    return {
        "rows": wide.shape[0],
        "columns": wide.shape[1],
        "low": low,
        "high": high,
        "codes": base64.b64encode(codes.tobytes()).decode("ascii"),
    }


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
