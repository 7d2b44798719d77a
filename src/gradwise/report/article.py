"""Pages made of words, tables and pictures: what an analysis or a reproduction ends in.

`report.html` opens offline, its pictures inside it; `report.md` says the same with the pictures as
files beside it.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gradwise.errors import UserError
from gradwise.report.page import render_page, render_text
from gradwise.watch.store.files import replace_file

__all__ = ["Article", "Part", "Picture", "Table", "write_article"]

_WIDTH = re.compile(rb'<svg[^>]*? width="([0-9.]+)pt"')
_PIXELS = 840 / (7.2 * 72)  # of a page a point
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Table:
    """A table of words.

    Attributes:
        title: its caption.
        header: names of the columns.
        rows: as many cells each.
        note: what to know about it.

    Raises:
        UserError: where a row has another number of cells than the header.

    Examples:
        >>> Table("Accuracy", ("method", "mean"), (("sgd", "91.2 %"),)).to_dict()["rows"]
        [['sgd', '91.2 %']]
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.header):
                raise UserError(
                    f"expected rows of {len(self.header)} cells in table {self.title!r}, "
                    f"got one of {len(row)}"
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain values; rows as lists."""
        return {**asdict(self), "header": [*self.header], "rows": [[*row] for row in self.rows]}

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Of each column whether it holds numbers, which stand to the right."""
        columns = list(zip(*self.rows, strict=True)) or [() for _ in self.header]
        return tuple(
            bool(column) and all(not cell or cell[0] in "-−+±0123456789<>≈—" for cell in column)
            for column in columns
        )


@dataclass(frozen=True)
class Picture:
    """A picture with its words.

    Attributes:
        name: the file's, without ending: small letters, digits and dashes.
        caption: what it shows and how to read it.
        alt: the same for somebody who cannot see it.
        svg: the file's content.

    Raises:
        UserError: where the name is none for a file.
    """

    name: str
    caption: str
    alt: str
    svg: bytes

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise UserError(
                f"expected a picture's name of small letters, digits and dashes, got {self.name!r}"
            )

    @property
    def width(self) -> int | None:
        """How wide it is shown, in pixels, where there is room; None where the file is silent.

        A picture of 7.2 inches, as wide as matplotlib's letters ask for, fills the page.
        """
        told = _WIDTH.search(self.svg[:2000])
        return None if told is None else round(float(told[1]) * _PIXELS)

    @property
    def uri(self) -> str:
        """The picture as an address that holds it."""
        return f"data:image/svg+xml;base64,{base64.b64encode(self.svg).decode()}"


@dataclass(frozen=True)
class Part:
    """A section of a page, in this order.

    Attributes:
        title: its heading.
        paragraphs: words.
        points: a list of a badge's word ("" for none) and a sentence each.
        tables: of words.
        pictures: with captions.
        facts: pairs of a name and a value.
        code: a command, or "".
    """

    title: str
    paragraphs: tuple[str, ...] = ()
    points: tuple[tuple[str, str], ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    code: str = ""

    @property
    def id(self) -> str:
        """The heading as an address inside the page."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-") or "part"


@dataclass(frozen=True)
class Article:
    """A page.

    Attributes:
        title: what it is about.
        kicker: what kind of page it is, above the title.
        lead: the answer in a sentence or two.
        badge: one word of verdict, or "".
        source: the paper's title, authors and place in one line, or "".
        url: where the paper is, or "".
        parts: what follows.
    """

    title: str
    kicker: str
    lead: str
    parts: tuple[Part, ...]
    badge: str = ""
    source: str = ""
    url: str = ""

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All of them."""
        return tuple(picture for part in self.parts for picture in part.pictures)


def write_article(article: Article, folder: Path) -> list[Path]:
    """Write `report.html`, `report.md` and the pictures' files; each is whole or stays as it was.

    Args:
        article: the page; no two of its pictures have the same name.
        folder: an existing one.

    Returns:
        The two pages' paths.

    Raises:
        UserError: where two pictures have the same name.
        OSError: where the system refuses.
    """
    _check_names(article.pictures)
    html, words = folder / "report.html", folder / "report.md"
    for picture in article.pictures:
        replace_file(folder / f"{picture.name}.svg", picture.svg)
    replace_file(words, render_text("article.md.j2", {"article": article}).encode())
    page = render_page(
        "article.html.j2",
        {"article": article, "title": article.title},
        styles=("article.css",),
    )
    replace_file(html, page.encode())
    return [html, words]


def _check_names(pictures: Sequence[Picture]) -> None:
    names = [picture.name for picture in pictures]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"expected every picture to have a name of its own, got {name!r} twice")
