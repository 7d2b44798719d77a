"""A process for one job: the runner runs this file, with the path of its specification and a task.

The task is the module whose `run` does what the specification says; here is that of a trial.

Events go to standard output, one JSON object a line; everything else goes to standard error, which
the runner keeps as the trial's log. Exit code 0: the result is written; 2: the user asked for
something impossible; 1: the trial failed; 3: whoever listened is gone.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

Emit = Callable[[dict[str, Any]], None]

TASK = "gradwise.lab.worker"


def run(spec_path: Path, emit: Emit) -> dict[str, Any]:
    """Run the trial that a file describes.

    Args:
        spec_path: JSON with `settings`, `method`, `seed`, `folder` and `dataset`, the fingerprint
            of the data that all trials share.
        emit: told what happens.

    Returns:
        The trial's result, as written to `result.json`.

    Raises:
        UserError: where the specification is no good, or the data is not what it was.
        OSError: where the disk refuses.
    """
    from gradwise.errors import UserError
    from gradwise.lab.data import load
    from gradwise.lab.files import read_json
    from gradwise.lab.locks import own_folder
    from gradwise.lab.methods import resolve
    from gradwise.lab.settings import Settings
    from gradwise.lab.trial import Trial

    spec = read_json(spec_path)
    settings = Settings.from_dict(spec["settings"])
    arm = resolve(spec["method"], settings.optimizer)
    folder = Path(spec["folder"])
    with own_folder(folder):
        data_dir = None if settings.data_dir is None else Path(settings.data_dir)
        dataset = load(settings.data, data_dir).subset(settings.limit_train, settings.limit_test)
        if dataset.fingerprint != spec["dataset"]:
            raise UserError(
                f"data {settings.data!r} gave other rows than when the comparison began: it has to "
                "give the same ones each time, so fix the seed of whatever is random in it"
            )
        return Trial(settings, arm, spec["seed"], dataset, folder, emit).run()


def _prepare() -> None:
    """Make the process a good place for code of the user's and for equal numbers."""
    # Whatever the user's model imports late is found, but shadows nothing.
    sys.path.append(os.getcwd())
    import torch

    # A trial that goes on from a checkpoint has to give the numbers of one that never stopped.
    torch.backends.cudnn.deterministic = True


def main(arguments: Sequence[str], emit: Emit) -> int:
    """Run one job and say how it went.

    Args:
        arguments: the path of its specification, and the module whose `run` takes it.
        emit: told what happens, errors included.

    Returns:
        The exit code.
    """
    from gradwise.errors import UserError

    try:
        _prepare()
        result = import_module(arguments[1]).run(Path(arguments[0]), emit)
    except UserError as error:
        emit({"event": "error", "message": str(error)})
        return 2
    except OSError as error:
        traceback.print_exc()
        where = f": {error.filename}" if error.filename else ""
        message = f"{error.strerror or error}{where}"
        emit({"event": "error", "message": message, "errno": error.errno})
        return 1
    except Exception as error:
        traceback.print_exc()
        line = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {line[0] if line else 'no message'}"
        short = {"out_of_memory": True} if _out_of_memory(error) else {}
        emit({"event": "error", "message": reason, **short})
        return 1
    emit({"event": "done", "status": result["status"]})
    return 0


def _out_of_memory(error: Exception) -> bool:
    """Whether a device had not enough memory, for tensors or for what its libraries need."""
    import torch

    told = str(error)
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError)
        and any(text in told for text in ("CUDA error: out of memory", "_STATUS_ALLOC_FAILED"))
    )


def _bring_in(name: str, path: Path) -> ModuleType:
    """Import a file under a name, whatever else is installed under it."""
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    _here = Path(__file__).resolve().parent
    # First of all: the runner may be killed while torch is being loaded.
    _emit = _bring_in("_gradwise_lifeline", _here / "lifeline.py").Lifeline().emit
    _bring_in("gradwise", _here.parent / "__init__.py")
    from gradwise.lab import worker

    sys.exit(worker.main(sys.argv[1:], _emit))
