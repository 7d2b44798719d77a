"""The result of a comparison as a table in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from gradwise.cli.output import console
from gradwise.lab.statistics import NO_DIFFERENCE

_STYLES = {"better": "green", "worse": "red", "baseline": "dim"}


def print_comparison(summary: dict[str, Any]) -> None:
    """Print accuracies, differences and verdicts, then notes and failures.

    Args:
        summary: what `summary.json` holds.
    """
    screen = console()
    rows = [_row(summary, name) for name in summary["methods"]]
    _print_rows(screen, rows, f"against {summary['baseline']}")
    settings, seeds = summary["config"]["settings"], summary["config"]["seeds"]
    screen.print(
        f"{settings['data']}, {settings['model']}, {settings['epochs']} epochs, "
        f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}; mean and 95 % interval over "
        "seeds, differences in points paired by seed, p corrected for the number of methods (Holm)."
    )
    for line in problems(summary):
        screen.print(Text(line, style="yellow"))
    for note in summary["notes"]:
        screen.print(Text(note, style="dim"))


def problems(summary: dict[str, Any]) -> list[str]:
    """Trials that did not end well, and unequal beginnings, a sentence each.

    Args:
        summary: what `summary.json` holds.
    """
    lines = []
    for name, method in summary["methods"].items():
        for seed, status in zip(method["seeds"], method["status"], strict=True):
            if status == "diverged":
                lines.append(f"{name} seed {seed} diverged and counts as guessing.")
            elif status == "failed":
                reason = method["failures"].get(str(seed), "unknown")
                lines.append(f"{name} seed {seed} failed: {reason}")
    lines.extend(f"not a fair comparison: {d}" for d in summary["fairness"]["differences"])
    if not summary["finished"]:
        lines.append("The same command tries again what is missing.")
    return lines


def _row(summary: dict[str, Any], name: str) -> dict[str, str]:
    """What is shown of a method; empty where there is nothing."""
    method = summary["methods"][name]
    compared = next((c for c in summary["comparisons"] if c["method"] == name), None)
    seconds = method["wall_time_s"]["mean"]
    row = {
        "name": name,
        "accuracy": _percent(method["test_accuracy"]),
        "difference": "",
        "p": "",
        "time": "-" if seconds is None else f"{seconds:.1f} s",
        "verdict": "baseline",
    }
    if compared is not None:
        row["difference"] = _points(compared["difference"], compared["ci95"])
        row["p"] = "-" if compared["p"] is None else f"{compared['p']:.3f}"
        row["verdict"] = compared["verdict"]
    return row


def _print_rows(screen: Console, rows: list[dict[str, str]], against: str) -> None:
    """A table where it fits, if need be with the verdict in two lines; else a list."""
    for verdict in (NO_DIFFERENCE, "\n".join(NO_DIFFERENCE.rsplit(" ", 1))):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
        table.add_column("method", no_wrap=True)
        for title in ("test accuracy", against, "p", "time"):
            table.add_column(title, justify="right", no_wrap=True)
        table.add_column("verdict", no_wrap=True)
        for row in rows:
            *plain, found = row.values()
            shown = verdict if found == NO_DIFFERENCE else found
            table.add_row(*map(Text, plain), Text(shown, style=_STYLES.get(found, "")))
        if (
            Measurement.get(screen, screen.options.update(width=1000), table).maximum
            <= screen.width
        ):
            screen.print(table, "")
            return
    for row in rows:
        line = Text.assemble((row["name"], "bold"), f": {row['accuracy']}, ")
        screen.print(line.append(row["verdict"], style=_STYLES.get(row["verdict"], "")))
        details = [f"{row['difference']} {against}, p {row['p']}"] if row["difference"] else []
        screen.print(Text(f"  {', '.join([*details, row['time']])}"))
    screen.print()


def _percent(accuracy: dict[str, Any]) -> str:
    if accuracy["mean"] is None:
        return "-"
    if accuracy["ci95"] is None:
        return f"{100 * accuracy['mean']:.2f} %"
    half = (accuracy["ci95"][1] - accuracy["ci95"][0]) / 2
    return f"{100 * accuracy['mean']:.2f} ± {100 * half:.2f} %"


def _points(difference: float | None, interval: Sequence[float] | None) -> str:
    if difference is None:
        return "-"
    text = f"{100 * difference:+.2f}"
    if interval is None:
        return text
    return f"{text} [{100 * interval[0]:+.2f}, {100 * interval[1]:+.2f}]"
