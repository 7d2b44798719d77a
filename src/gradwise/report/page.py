"""One self-contained page from a template, a payload and the package's scripts."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

from gradwise._version import __version__
from gradwise.report.encode import embed
from gradwise.report.markdown import address, code, code_block, escape

__all__ = ["render_page", "render_text"]

STYLES = ("page.css", "parts.css")
"""The style sheets that all pages have."""


def render_page(
    template: str,
    view: Mapping[str, Any],
    payload: Mapping[str, Any] | None = None,
    scripts: Sequence[str] = (),
    styles: Sequence[str] = (),
) -> str:
    """A page that needs no network and no other file.

    Args:
        template: name of its template.
        view: what the template shows.
        payload: what the scripts draw, as plain JSON values; the template sees it as `charts`.
            None for a page without any.
        scripts: names of our own scripts, in the order in which they are run.
        styles: names of style sheets besides those that all pages have.
    """
    sources, sheets = [], [_assets([*STYLES, *styles])]
    if payload is not None:
        sources = [_asset("vendor/uPlot.iife.min.js"), _assets(scripts)]
        sheets = [_asset("vendor/uPlot.min.css"), *sheets]
    page = _environment(html=True).get_template(template)
    return page.render(
        **view,
        version=__version__,
        charts=payload,
        # Escaped by embed, and no HTML inside a script.
        payload=None if payload is None else Markup(embed(payload)),  # noqa: S704
        scripts=[Markup(one) for one in sources],  # noqa: S704 - the package's own files
        styles=[Markup(one) for one in sheets],  # noqa: S704 - the package's own files
        policy=_policy(sources, sheets),
    )


def render_text(template: str, view: Mapping[str, Any]) -> str:
    """A Markdown document.

    Args:
        template: name of its template.
        view: what the template shows.
    """
    return _environment(html=False).get_template(template).render(**view, version=__version__)


def _asset(name: str) -> str:
    return resources.files("gradwise.report").joinpath(name).read_text("utf-8")


def _assets(names: Sequence[str]) -> str:
    return "\n".join(_asset(f"assets/{name}") for name in names)


def _policy(scripts: Sequence[str], styles: Sequence[str]) -> str:
    """A content security policy that admits these very scripts and styles and nothing else."""

    def hashes(sources: Sequence[str]) -> str:
        digests = (base64.b64encode(hashlib.sha256(one.encode()).digest()) for one in sources)
        return " ".join(f"'sha256-{digest.decode()}'" for digest in digests) or "'none'"

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
    environment.filters["address"] = address
    return environment
