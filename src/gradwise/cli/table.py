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
from gradwise.lab.job import rate_text
from gradwise.lab.statistics import NO_DIFFERENCE

_STYLES = {"better": "green", "worse": "red", "baseline": "dim"}


def print_comparison(summary: dict[str, Any]) -> None:
    """Print accuracies, differences and verdicts, the grid if there is one, notes and failures.

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
    if "grid" in summary:
        _print_grid(screen, summary)
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
        for entry in method.get("grid", ()):
            if entry["learning_rate"] != method["learning_rate"]:
                rate = rate_text(entry["learning_rate"])
                lines += [
                    f"{name} lr {rate} seed {seed} failed: {reason}"
                    for seed, reason in entry["failures"].items()
                ]
    lines.extend(f"not a fair comparison: {d}" for d in summary["fairness"]["differences"])
    if not summary["finished"]:
        lines.append("The same command tries again what is missing.")
    return lines


def _row(summary: dict[str, Any], name: str) -> dict[str, str]:
    """What is shown of a method; empty where there is nothing."""
    method = summary["methods"][name]
    compared = next((c for c in summary["comparisons"] if c["method"] == name), None)
    seconds = method["wall_time_s"]["mean"]
    rate = method["learning_rate"]
    row = {
        "name": name,
        **({"lr": "-" if rate is None else rate_text(rate)} if "grid" in summary else {}),
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
        chosen = ("lr",) if "lr" in rows[0] else ()
        for title in (*chosen, "test accuracy", against, "p", "time"):
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
        rate = f" lr {row['lr']}" if "lr" in row else ""
        line = Text.assemble((row["name"], "bold"), f"{rate}: {row['accuracy']}, ")
        screen.print(line.append(row["verdict"], style=_STYLES.get(row["verdict"], "")))
        details = [f"{row['difference']} {against}, p {row['p']}"] if row["difference"] else []
        screen.print(Text(f"  {', '.join([*details, row['time']])}"))
    screen.print()


def _print_grid(screen: Console, summary: dict[str, Any]) -> None:
    """Validation accuracies by method and learning rate; a list where a table is too wide."""
    grid = summary["grid"]
    title = f"validation accuracy by learning rate, {grid['budget']}; * is chosen"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    table.add_column("lr", no_wrap=True)
    for rate in grid["learning_rates"]:
        table.add_column(rate_text(rate), justify="right", no_wrap=True)
    rows = {
        name: [_cell(entry, method["learning_rate"]) for entry in method["grid"]]
        for name, method in summary["methods"].items()
    }
    for name, cells in rows.items():
        table.add_row(Text(name), *map(Text, cells))
    screen.print("", title, "", sep="\n")
    wide = Measurement.get(screen, screen.options.update(width=1000), table).maximum
    if wide <= screen.width:
        screen.print(table, "")
        return
    for name, cells in rows.items():
        pairs = zip(grid["learning_rates"], cells, strict=True)
        told = ", ".join(f"{rate_text(rate)}: {cell}" for rate, cell in pairs)
        screen.print(Text.assemble((name, "bold"), f"  {told}"))
    screen.print()


def _cell(entry: dict[str, Any], chosen: float | None) -> str:
    """The mean of a method with one learning rate, and what did not go well."""
    mean = entry["validation_accuracy"]["mean"]
    text = "-" if mean is None else f"{100 * mean:.2f} %"
    diverged = entry["status"].count("diverged")
    told = f" ({diverged} diverged)" if diverged else ""
    return f"{text}{told}{'*' if entry['learning_rate'] == chosen else ' '}"


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
