"""The verdicts of the last committed runs, whose pages are under docs/reproductions."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

__all__ = ["verdicts"]


def verdicts() -> dict[str, dict[str, Any]]:
    """By recipe: `scale`, `verdict`, `date` and `versions` of its last committed run."""
    file = resources.files("gradwise.reproduce").joinpath("verdicts.json")
    found: dict[str, dict[str, Any]] = json.loads(file.read_text("utf-8"))
    return found
