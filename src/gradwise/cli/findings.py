"""What `gradwise reproduce` prints: the list of recipes, and what came of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.padding import Padding
from rich.text import Text

from gradwise.cli.output import console
from gradwise.reproduce import Recipe
from gradwise.reproduce.claims import NOT_REPRODUCED, REPRODUCED

__all__ = ["as_dict", "print_found", "print_list"]

_STYLES = {REPRODUCED: "green", NOT_REPRODUCED: "red"}


def as_dict(recipe: Recipe, last: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the list says of a recipe, as plain values.

    Args:
        recipe: one of them.
        last: the verdict of its last committed run, or None.
    """
    return {
        "name": recipe.name,
        "title": recipe.title,
        "paper": recipe.paper.line,
        "url": recipe.paper.url,
        "claim": recipe.claim,
        "cost": dict(recipe.cost),
        "last": last,
    }


def print_list(known: Sequence[Recipe], last: Mapping[str, Mapping[str, Any]]) -> None:
    """Print the recipes with paper, claim, cost and verdict.

    Args:
        known: the recipes.
        last: verdicts of the last committed runs, by recipe.
    """
    screen = console()
    for recipe in known:
        line = Text(recipe.name, style="bold")
        if recipe.name in last:
            verdict = last[recipe.name]
            line.append("  ").append(_styled(verdict["verdict"]))
            line.append(f"  ({verdict['scale']}, {verdict['date']})", style="dim")
        else:
            line.append("  no run is committed", style="dim")
        screen.print(line)
        words = (
            f"{recipe.claim}\n{recipe.paper.line}\n"
            f"small on 2 CPU cores: {recipe.cost['small_cpu']}; "
            f"full on a GPU: {recipe.cost['full_gpu']}"
        )
        screen.print(Padding(Text(words, style="dim"), (0, 0, 1, 4)))
    screen.print(Text("Run one with: gradwise reproduce NAME", style="dim"))


def print_found(found: Mapping[str, Any]) -> None:
    """Print the claims with what was measured, and the verdict.

    Args:
        found: what `results.json` holds.
    """
    screen = console()
    for claim in found["claims"]:
        screen.print(_styled(claim["verdict"]).append(f": {claim['text']}", style="default"))
        screen.print(Padding(Text(claim["measured"], style="dim"), (0, 0, 1, 4)))
    screen.print(Text("All in all: ").append(_styled(found["verdict"])))


def _styled(verdict: str) -> Text:
    return Text(verdict, style=_STYLES.get(verdict, "yellow"))
