"""What the commands share in printing."""

from __future__ import annotations

import json
from typing import Any

import click
from rich.console import Console

from gradwise.lab.files import finite


def print_json(value: Any) -> None:
    """JSON on standard output, for a program to read."""
    click.echo(json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False))


def console(err: bool = False) -> Console:
    """A console that does not interpret data as markup."""
    return Console(stderr=err, markup=False, highlight=False)
