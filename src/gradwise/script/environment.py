"""What the command tells the script's processes, through their environment."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

VARIABLE = "GRADWISE_WATCH"
_SITE = Path(__file__).parent / "site"


def environment(options: Mapping[str, Any]) -> dict[str, str]:
    """The environment in which every Python process watches its optimizers.

    Args:
        options: "out", and keywords of `gradwise.watch`, as plain JSON values.

    Examples:
        >>> environment({"out": "runs/a"})["GRADWISE_WATCH"]
        '{"out": "runs/a"}'
    """
    found = dict(os.environ)
    paths = [str(_SITE), *filter(None, [found.get("PYTHONPATH")])]
    found["PYTHONPATH"] = os.pathsep.join(paths)
    found[VARIABLE] = json.dumps(dict(options))
    return found
