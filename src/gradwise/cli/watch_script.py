"""`gradwise watch -- python train.py`: run somebody's unchanged script and watch its optimizers."""

from __future__ import annotations

import shlex
import subprocess
import time
from pathlib import Path
from typing import Any

import click

from gradwise.errors import UserError


def run_watched(command: list[str], out: Path | None, **options: Any) -> int:
    """Run a command with every torch optimizer in it watched.

    Args:
        command: the program and its arguments.
        out: the run folder; None makes one below `runs/`.
        options: keywords of `gradwise.watch`, as plain JSON values.

    Returns:
        The command's own exit code, as a shell would tell it.

    Raises:
        UserError: where the program cannot be started.
    """
    from gradwise.script.environment import environment

    folder = (out or Path("runs") / _name(command)).absolute()
    there_before = folder.exists()
    try:
        # The user's own command, started without a shell.
        process = subprocess.Popen(command, env=environment({"out": str(folder), **options}))  # noqa: S603
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot run {shlex.join(command)}: {reason}") from None
    code = _wait(process)
    if not there_before and not folder.exists():
        click.echo(
            "gradwise: nothing was recorded: no torch optimizer made a step in a Python that has "
            "gradwise installed",
            err=True,
        )
    return code


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Wait for the end. The script decides how long it takes to save what it wants to save."""
    while True:
        try:
            code = process.wait()
        except KeyboardInterrupt:  # the script, which has the same terminal, got it as well
            continue
        except BaseException:  # SIGTERM and the like, which only we got
            process.terminate()
            process.wait()
            raise
        return code if code >= 0 else 128 - code


def _name(command: list[str]) -> str:
    """A folder's name: what is run, and when."""
    scripts = [Path(word).stem for word in command[1:] if word.endswith(".py")]
    name = scripts[0] if scripts else Path(command[0]).stem
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
