"""What the commands share in printing."""

from __future__ import annotations

import os
from typing import Any

import click
from rich.console import Console

from gradwise.lab.files import to_json

_WIDTH = 100


def print_json(value: Any) -> None:
    """JSON on standard output, for a program to read: plain ASCII, without NaN.

    Args:
        value: dicts, lists and plain values.
    """
    click.echo(to_json(value, ascii_only=True))


class Screen(Console):
    """A console that does not interpret data as markup, and leaves a broken pipe to the command.

    Args:
        err: print to standard error.
    """

    def __init__(self, err: bool = False) -> None:
        super().__init__(stderr=err, markup=False, highlight=False, emoji=False)

    def on_broken_pipe(self) -> None:
        """Go on raising: rich itself would end the process with exit code 1."""
        raise  # noqa: PLE0704 - rich calls this where it handles the error


def console() -> Console:
    """A console on standard output."""
    screen = Screen()
    if not screen.is_terminal and "COLUMNS" not in os.environ:
        screen.width = _WIDTH  # a file has no edge; this is what people can read
    return screen
