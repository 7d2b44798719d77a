"""Files that are whole or not there: atomic writes, and JSON that a reader can trust."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from gradwise.errors import UserError
from gradwise.watch.store.files import replace_file


def write_json(path: Path, value: Any) -> None:
    """Write JSON in one step: a crash or a full disk leaves the old file as it was.

    NaN and infinities become null, so that any reader takes it.

    Args:
        path: the file; its folder must exist.
        value: dicts, lists and plain values.

    Raises:
        OSError: where the system refuses.

    Examples:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.json"
        >>> write_json(path, {"loss": float("nan"), "step": 3})
        >>> read_json(path)
        {'loss': None, 'step': 3}
    """
    replace_file(path, (to_json(value) + "\n").encode())


def to_json(value: Any, *, ascii_only: bool = False) -> str:
    """JSON as people read it, without NaN and infinities.

    Args:
        value: dicts, lists and plain values.
        ascii_only: write other characters as escapes, for a stream that may not know them.
    """
    return json.dumps(finite(value), indent=2, allow_nan=False, ensure_ascii=ascii_only)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: the file.

    Raises:
        UserError: where the file is missing or is not one.
    """
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: it is not valid JSON") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it holds no JSON object")
    return value


def finite(value: Any) -> Any:
    """The value with NaN and infinities replaced by None, all the way down.

    Args:
        value: dicts, lists, tuples (which become lists) and plain values.

    Examples:
        >>> finite({"p": (0.5, float("inf"))})
        {'p': [0.5, None]}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value
