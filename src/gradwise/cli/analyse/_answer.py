"""What an analysis ends in: tables in the terminal, JSON, and a folder with a page."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradwise.errors import UserError

if TYPE_CHECKING:
    from gradwise.report.article import Picture, Table
else:  # pages need more libraries than a help text should wait for
    Picture = Table = Any

__all__ = ["Answer", "check_out", "print_answer", "record", "write_folder"]

FORMAT = 1
FILE = "analysis.json"
_PAGES = ("report.html", "report.md")


def _no_pictures() -> tuple[Picture, ...]:
    return ()


@dataclass(frozen=True)
class Answer:
    """What an analysis found.

    Attributes:
        title: of the page.
        lead: what the numbers mean, in a sentence or two.
        tables: for terminal and page.
        found: the result as plain values.
        settings: the subcommand's own options.
        pictures: draws them; called where there is a page to put them on.
        notes: what it rests on, and what it cost, in sentences.
        source: the paper in one line, or "".
        url: where the paper is, or "".
        caution: what makes the numbers mean little, in a sentence, or "".
    """

    title: str
    lead: str
    tables: tuple[Table, ...]
    found: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    pictures: Callable[[], tuple[Picture, ...]] = _no_pictures
    notes: tuple[str, ...] = ()
    source: str = ""
    url: str = ""
    caution: str = ""


def record(answer: Answer, common: dict[str, Any], seconds: float) -> dict[str, Any]:
    """What `--json` prints and `analysis.json` holds.

    Args:
        answer: what was found.
        common: the common options' values as they were used.
        seconds: that it took.
    """
    from gradwise.lab.outcome import versions_in_full

    context = click.get_current_context()
    return {
        "format": FORMAT,
        "analysis": context.info_name,
        "lead": answer.lead,
        "caution": answer.caution,
        "found": answer.found,
        "settings": {**common, **answer.settings},
        "seconds": round(seconds, 2),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "versions": versions_in_full(),
        "command": shlex.join(["gradwise", *(context.find_root().obj or [])]),
    }


def print_answer(answer: Answer) -> None:
    """Print the tables and the sentence.

    Args:
        answer: what was found.
    """
    from rich import box
    from rich.table import Table as Printed
    from rich.text import Text

    from gradwise.cli.output import console

    screen = console()
    for table in answer.tables:
        printed = Printed(
            title=Text(table.title, style="bold"),
            title_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            show_edge=False,
        )
        for name, number in zip(table.header, table.numeric, strict=True):
            printed.add_column(Text(name), justify="right" if number else "left", overflow="fold")
        for row in table.rows:
            printed.add_row(*map(Text, row))
        screen.print(printed)
        if table.note:
            screen.print(Text(table.note, style="dim"))
        screen.print()
    screen.print(Text(answer.lead))
    if answer.caution:
        screen.print(Text(answer.caution, style="yellow"))


def check_out(out: Path) -> None:
    """Refuse a folder with something else in it, before any work is done.

    Args:
        out: the folder, which need not exist.

    Raises:
        UserError: where it is no folder, or holds what no analysis has written.
    """
    _former(out)


def write_folder(out: Path, answer: Answer, found: dict[str, Any]) -> Path:
    """Write `analysis.json`, the pages and the pictures; a former analysis there goes.

    Every file is whole or stays as it was. Should it end midway, the same command sets it right.

    Args:
        out: the folder.
        answer: what was found.
        found: its record.

    Returns:
        The page.

    Raises:
        UserError: where the folder cannot be written, or holds something else.
        OSError: where the disk is full.
    """
    from gradwise.lab.files import write_json
    from gradwise.lab.folder import locked
    from gradwise.report.article import Article, Part, write_article

    pictures = answer.pictures()
    rests = (*answer.notes, *([answer.caution] if answer.caution else []))
    article = Article(
        title=answer.title,
        kicker=f"gradwise · analysis · {found['analysis']}",
        lead=answer.lead,
        parts=(
            Part("What was measured", pictures=pictures, tables=answer.tables),
            *((Part("What it rests on", paragraphs=rests),) if rests else ()),
            Part("Settings", facts=_facts(found["settings"])),
            Part("How to run it again", facts=_circumstances(found), code=found["command"]),
        ),
        source=answer.source,
        url=answer.url,
    )
    files = [*_PAGES, *(f"{picture.name}.svg" for picture in pictures)]
    with locked(out, "analyse", FILE):
        former = _former(out)
        # All names first, so that a folder that broke off is still known for what it is.
        write_json(out / FILE, {**found, "files": sorted({*former, *files})})
        write_article(article, out)
        for name in former:
            if name not in files:
                (out / name).unlink(missing_ok=True)
        write_json(out / FILE, {**found, "files": sorted(files)})
    return out / _PAGES[0]


def _former(out: Path) -> list[str]:
    """Names of the files that a former analysis has left there."""
    from gradwise.lab.files import read_json
    from gradwise.lab.locks import LOCK_NAME

    if not out.exists():
        return []
    if not out.is_dir():
        raise UserError(f"expected --out to be a folder, {out} is not")
    names = sorted(path.name for path in out.iterdir())
    names = [name for name in names if name != LOCK_NAME and not name.endswith(".tmp")]
    if not names:
        return []
    known: list[str] = []
    if FILE in names:
        before = read_json(out / FILE)
        files = before.get("files")
        if before.get("format") != FORMAT or not isinstance(files, list):
            raise UserError(f"--out {out} is no folder of this gradwise analyse: it stays")
        known = [str(name) for name in files]
    foreign = [name for name in names if name not in (*known, FILE)]
    if foreign:
        raise UserError(
            f"--out {out} is not empty and no folder of gradwise analyse alone (it holds "
            f"{foreign[0]!r})"
        )
    return [name for name in known if name in names]


def _facts(settings: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    return tuple((name.replace("_", " "), _words(value)) for name, value in settings.items())


def _circumstances(found: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    facts = [*found["versions"].items(), ("date", found["date"])]
    return (*facts, ("time", f"{found['seconds']:.1f} s"))


def _words(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value)) or "none"
    if value is None:
        return "none"
    return f"{value:.12g}" if isinstance(value, float) else str(value)
