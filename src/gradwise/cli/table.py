"""The result of a comparison as a table in the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from gradwise.cli.output import console

_STYLES = {"better": "green", "worse": "red", "baseline": "dim"}


def print_comparison(summary: dict[str, Any]) -> None:
    """Print accuracies, differences and verdicts, then notes and failures."""
    screen = console()
    table = Table(title=None, pad_edge=False)
    table.add_column("method")
    for name in ("test accuracy", f"against {summary['baseline']}", "p", "time"):
        table.add_column(name, justify="right")
    table.add_column("verdict")
    comparisons = {c["method"]: c for c in summary["comparisons"]}
    for name, method in summary["methods"].items():
        compared = comparisons.get(name)
        verdict = "baseline" if name == summary["baseline"] else "-"
        difference, p = "", ""
        if compared is not None:
            verdict = compared["verdict"]
            difference = _points(compared["difference"], compared["ci95"])
            p = "-" if compared["p"] is None else f"{compared['p']:.3f}"
        seconds = method["wall_time_s"]["mean"]
        table.add_row(
            Text(name),
            _percent(method["test_accuracy"]),
            difference,
            p,
            "-" if seconds is None else f"{seconds:.1f} s",
            Text(verdict, style=_STYLES.get(verdict, "")),
        )
    screen.print(table)
    settings, seeds = summary["config"]["settings"], summary["config"]["seeds"]
    screen.print(
        f"{settings['data']}, {settings['model']}, {settings['epochs']} epochs, seeds "
        f"{', '.join(map(str, seeds))}; mean and 95 % interval over seeds, differences in points "
        "paired by seed, p corrected for the number of methods (Holm)."
    )
    for line in problems(summary):
        screen.print(Text(line, style="yellow"))
    for note in summary["notes"]:
        screen.print(Text(note, style="dim"))


def problems(summary: dict[str, Any]) -> list[str]:
    """Trials that did not end well, and unequal beginnings."""
    lines = []
    for name, method in summary["methods"].items():
        for seed, status in zip(method["seeds"], method["status"], strict=True):
            if status == "diverged":
                lines.append(f"{name} seed {seed} diverged and counts as guessing.")
            elif status == "failed":
                reason = method["failures"].get(str(seed), "unknown")
                lines.append(f"{name} seed {seed} failed: {reason}")
    lines.extend(f"not a fair comparison: {d}" for d in summary["fairness"]["differences"])
    return lines


def _percent(accuracy: dict[str, Any]) -> str:
    if accuracy["mean"] is None:
        return "-"
    text = f"{100 * accuracy['mean']:.2f} %"
    if accuracy["ci95"] is None:
        return text
    half = (accuracy["ci95"][1] - accuracy["ci95"][0]) / 2
    return f"{100 * accuracy['mean']:.2f} ± {100 * half:.2f} %"


def _points(difference: float | None, interval: list[float] | None) -> str:
    if difference is None:
        return "-"
    text = f"{100 * difference:+.2f}"
    if interval is None:
        return text
    return f"{text} [{100 * interval[0]:+.2f}, {100 * interval[1]:+.2f}]"
