"""What the process of a cell does: run its experiment's `run`, and leave the result in a file."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from gradwise.errors import UserError
from gradwise.lab.files import finite, read_json, write_json
from gradwise.lab.locks import own_folder
from gradwise.reproduce.cells import Cell

TASK = "gradwise.reproduce.task"
SPEC = "cell.json"

_EVERY = 0.2  # seconds between two events on how far a cell is


def experiment(name: str) -> Any:
    """The module of an experiment.

    Args:
        name: as a recipe has it.

    Raises:
        UserError: where it is no name of a module.
    """
    if not name.isidentifier() or name.startswith("_"):
        raise UserError(f"expected experiment to be the name of a module, got {name!r}")
    return import_module(f"gradwise.reproduce.experiments.{name}")


def run_cell(
    module: str, settings: dict[str, Any], cell: Cell, emit: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Run a cell in this process.

    Args:
        module: of the experiment.
        settings: as `run` of the experiment takes them.
        cell: what is to be done.
        emit: told how far it is.

    Returns:
        `arguments`, `value` (what the experiment gave, None for what is not finite), `wall_time_s`.
    """
    began, last = time.monotonic(), float("-inf")

    def tell(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _EVERY or done >= total:
            last = now
            emit({"event": "step", "step": done, "steps": total})

    tell(0, 1)
    value = finite(experiment(module).run(settings, cell.arguments, tell))
    return {"arguments": cell.arguments, "value": value, "wall_time_s": time.monotonic() - began}


def run(spec_path: Path, emit: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Run the cell that a file describes.

    Args:
        spec_path: JSON with `experiment`, `settings`, `cell`, `arguments` and `folder`.
        emit: told what happens.

    Returns:
        Its status; the result is in `result.json`.

    Raises:
        UserError: where the user has to change something.
        OSError: where the disk refuses.
    """
    import torch

    spec = read_json(spec_path)
    torch.set_num_threads(1)  # cells run side by side, and sums do not depend on the machine
    folder = Path(spec["folder"])
    with own_folder(folder):
        cell = Cell(spec["cell"], spec["arguments"])
        result = run_cell(spec["experiment"], spec["settings"], cell, emit)
        write_json(folder / "result.json", result)
    return {"status": "finished"}
