"""From a run folder to `report.html` and `report.md`."""

import base64
import hashlib
import os
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from gradwise._version import __version__
from gradwise.errors import UserError
from gradwise.report.dynamics import Dynamics, read_dynamics
from gradwise.report.encode import embed
from gradwise.report.folder import CompareRun, read_run
from gradwise.report.markdown import code, code_block, escape
from gradwise.report.payload import build_payload
from gradwise.report.pictures import WIDTH, bars, strip
from gradwise.report.settings import settings_rows, version_rows
from gradwise.report.tables import method_rows
from gradwise.report.values import text, whole
from gradwise.report.verdict import headline, notes_of, sentences, title, warnings_of
from gradwise.watch.store.files import replace_file

__all__ = ["render_html", "render_markdown", "write_report"]

SCRIPTS = ("core.js", "chart.js", "lines.js", "heatmap.js", "dynamics.js", "pointer.js", "main.js")
"""Our own scripts, in the order in which they are run."""

STYLES = ("page.css", "parts.css")
"""Our own style sheets."""


def write_report(run: Path) -> list[Path]:
    """Write `report.html` and `report.md` into the folder of a compare run.

    The page needs no network and no other file. Both are written from what the folder holds at
    this moment: trials that are missing, failed or diverged are named, the rest is shown. A
    report that was there is replaced as a whole, or stays as it was.

    Args:
        run: the folder that `gradwise compare` wrote.

    Returns:
        The paths of the two files.

    Raises:
        UserError: where it is no such folder, its `config.json` or `summary.json` is damaged or
            of a newer version, or the report cannot be written.
    """
    found = read_run(run)
    dynamics = read_dynamics(found)
    written = []
    for name, content in (
        ("report.html", render_html(found, dynamics)),
        ("report.md", render_markdown(found, dynamics)),
    ):
        path = run / name
        try:
            replace_file(path, content.encode())
        except OSError as error:
            reason = error.strerror or os.strerror(error.errno or 0)
            raise UserError(f"{path} cannot be written: {reason}") from None
        written.append(path)
    return written


def render_html(run: CompareRun, dynamics: Dynamics) -> str:
    """The page as one self-contained document.

    Args:
        run: the compare run.
        dynamics: what its trials recorded.
    """
    scripts = [
        _asset("vendor/uPlot.iife.min.js"),
        "\n".join(_asset(f"assets/{n}") for n in SCRIPTS),
    ]
    styles = [_asset("vendor/uPlot.min.css"), "\n".join(_asset(f"assets/{n}") for n in STYLES)]
    payload = build_payload(run, dynamics)
    page = _environment(html=True).get_template("page.html.j2")
    return page.render(
        **_view(run, dynamics),
        charts=payload,
        payload=Markup(embed(payload)),  # noqa: S704 - escaped by embed, and no HTML inside script
        scripts=[Markup(one) for one in scripts],  # noqa: S704 - the package's own files
        styles=[Markup(one) for one in styles],  # noqa: S704 - the package's own files
        policy=_policy(scripts, styles),
    )


def render_markdown(run: CompareRun, dynamics: Dynamics) -> str:
    """The same tables and sentences as Markdown.

    Args:
        run: the compare run.
        dynamics: what its trials recorded.
    """
    return _environment(html=False).get_template("report.md.j2").render(**_view(run, dynamics))


def _view(run: CompareRun, dynamics: Dynamics) -> dict[str, Any]:
    """What both documents show."""
    rows = method_rows(run)
    epochs = whole(run.settings.get("epochs"))
    return {
        "version": __version__,
        "run": run,
        "title": title(run),
        "epochs": epochs,
        "headline": headline(run, rows),
        "sentences": sentences(run, rows),
        "notes": notes_of(run),
        "parameters": _parameters(run),
        "warnings": warnings_of(run, [*run.troubles, *dynamics.troubles]),
        "rows": rows,
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


def _asset(name: str) -> str:
    return resources.files("gradwise.report").joinpath(name).read_text("utf-8")


def _policy(scripts: list[str], styles: list[str]) -> str:
    """A content security policy that admits these very scripts and styles and nothing else."""

    def hashes(sources: list[str]) -> str:
        digests = (base64.b64encode(hashlib.sha256(one.encode()).digest()) for one in sources)
        return " ".join(f"'sha256-{digest.decode()}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {hashes(scripts)}; style-src {hashes(styles)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _environment(*, html: bool) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("gradwise.report", "templates"),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined,
        finalize=None if html else escape,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["code"] = code
    environment.filters["block"] = code_block
    return environment
