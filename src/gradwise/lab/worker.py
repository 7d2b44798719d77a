"""A process for one trial: `python -m gradwise.lab.worker TRIAL.json`.

Events go to standard output, one JSON object a line; everything else goes to standard error, which
the runner keeps as the trial's log. Exit code 0: the result is written; 2: the user asked for
something impossible; 1: the trial failed; 3: whoever listened is gone.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any


def _emit(event: dict[str, Any]) -> None:
    try:
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # The runner was killed: stop here, the last checkpoint is good.
        os._exit(3)


def run(spec_path: Path) -> dict[str, Any]:
    """Run the trial that a file describes.

    Args:
        spec_path: JSON with `settings`, `method`, `seed` and `folder`.

    Returns:
        The trial's result, as written to `result.json`.
    """
    from gradwise.lab.data import load
    from gradwise.lab.files import read_json
    from gradwise.lab.methods import resolve
    from gradwise.lab.settings import Settings
    from gradwise.lab.trial import Trial

    spec = read_json(spec_path)
    settings = Settings.from_dict(spec["settings"])
    arm = resolve(spec["method"], settings.optimizer)
    data_dir = None if settings.data_dir is None else Path(settings.data_dir)
    dataset = load(settings.data, data_dir).subset(settings.limit_train, settings.limit_test)
    return Trial(settings, arm, spec["seed"], dataset, Path(spec["folder"]), _emit).run()


def main(arguments: list[str]) -> int:
    """Run one trial and say how it went."""
    from gradwise.errors import UserError

    try:
        result = run(Path(arguments[0]))
    except UserError as error:
        _emit({"event": "error", "kind": "user", "message": str(error)})
        return 2
    except OSError as error:
        _emit({"event": "error", "kind": "failure", "message": str(error)})
        return 1
    except Exception as error:
        traceback.print_exc()
        line = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {line[0] if line else 'no message'}"
        _emit({"event": "error", "kind": "failure", "message": reason})
        return 1
    _emit({"event": "done", "status": result["status"], "accuracy": result["test_accuracy"]})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
