"""`gradwise analyse`: measurements that cost more than a look at the gradients, on any model."""

from __future__ import annotations

import click

from gradwise.cli.analyse.implicit_bias import implicit_bias
from gradwise.cli.analyse.landscape import landscape
from gradwise.cli.analyse.noise import noise
from gradwise.cli.analyse.online import online
from gradwise.cli.analyse.sparsity import sparsity
from gradwise.cli.analyse.stability import stability
from gradwise.cli.analyse.trajectory import trajectory

__all__ = ["analyse"]


@click.group(short_help="Measure noise, landscape, sparsity and more on a model of yours.")
def analyse() -> None:
    """Analyse a model: built-in, or yours as MODULE:FUNCTION, on built-in data or yours.

    Each analysis prints a table, what it means in a sentence, and with --out writes a page.

    \b
    Examples:
      gradwise analyse noise
      gradwise analyse landscape --model resnet20 --data cifar10 --data-dir ~/data --limit 2000
      gradwise analyse sparsity --model mine:net --data mine:loader --weights last.pt --out runs/a
    """  # noqa: D301 - a real backspace: click keeps the lines that follow


for command in (implicit_bias, landscape, noise, online, sparsity, stability, trajectory):
    analyse.add_command(command)
