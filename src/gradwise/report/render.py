"""The two documents on a compare run: a page and its Markdown twin."""

from typing import Any

from gradwise.report.dynamics import Dynamics
from gradwise.report.folder import CompareRun
from gradwise.report.grid import grid_rows
from gradwise.report.page import render_page, render_text
from gradwise.report.payload import build_payload
from gradwise.report.pictures import WIDTH, bars, strip
from gradwise.report.settings import settings_rows, version_rows
from gradwise.report.tables import method_rows
from gradwise.report.values import text, whole
from gradwise.report.verdict import headline, notes_of, sentences, title, warnings_of

__all__ = ["render_html", "render_markdown"]

SCRIPTS = (
    "core.js",
    "view.js",
    "chart.js",
    "lines.js",
    "controls.js",
    "scales.js",
    "heatmap.js",
    "panels.js",
    "pointer.js",
    "zoom.js",
    "dynamics.js",
    "main.js",
)
"""Our own scripts, in the order in which they are run."""


def render_html(run: CompareRun, dynamics: Dynamics) -> str:
    """The page as one self-contained document.

    Args:
        run: the compare run.
        dynamics: what its trials recorded.
    """
    return render_page("page.html.j2", _view(run, dynamics), build_payload(run, dynamics), SCRIPTS)


def render_markdown(run: CompareRun, dynamics: Dynamics) -> str:
    """The same tables and sentences as Markdown.

    Args:
        run: the compare run.
        dynamics: what its trials recorded.
    """
    return render_text("report.md.j2", _view(run, dynamics))


def _view(run: CompareRun, dynamics: Dynamics) -> dict[str, Any]:
    """What both documents show."""
    rows = method_rows(run)
    epochs = whole(run.settings.get("epochs"))
    return {
        "run": run,
        "title": title(run),
        "epochs": epochs,
        "headline": headline(run, rows),
        "sentences": sentences(run, rows),
        "notes": notes_of(run),
        "parameters": _parameters(run),
        "warnings": warnings_of(run, [*run.troubles, *dynamics.troubles]),
        "rows": rows,
        "rates": [f"{rate:.12g}" for rate in run.rates],
        "grid": grid_rows(run),
        "strip": strip(rows),
        "strip_width": WIDTH,
        "bars": {"wall": bars(rows, "wall"), "memory": bars(rows, "memory")},
        "settings": settings_rows(run),
        "versions": version_rows(run),
        "command": _command(run),
    }


def _parameters(run: CompareRun) -> str:
    """The size of the model, where the trials agree on it."""
    sizes = {whole(trial.result.get("parameters")) for trial in run.all_trials()} - {None}
    return f"{sizes.pop():,}" if len(sizes) == 1 else ""


def _command(run: CompareRun) -> str:
    """The command that made the run, where the configuration keeps it."""
    command = run.config.get("command")
    return text(command) if isinstance(command, str) else ""
