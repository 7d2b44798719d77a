"""Lines of text whose parts have a meaning, which a screen turns into colours."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from rich.cells import cell_len, chop_cells, set_cell_size

__all__ = ["Line", "ending", "fitted", "joined", "plain", "ruled", "spread", "width_of", "wrapped"]

Line = list[tuple[str, str]]
"""Pieces of text with what they mean: "", "dim", "bold", "good", "warning", "error", "spark",
"key", "head", "bad head" or "sorted". The text of layers has been through `text.shown`."""


def plain(line: Line) -> str:
    """A line without its meaning.

    Args:
        line: the line.

    Examples:
        >>> plain([("loss", "dim"), (" 0.5", "bold")])
        'loss 0.5'
    """
    return "".join(text for text, _ in line)


def width_of(line: Line) -> int:
    """Cells that a line takes.

    Args:
        line: the line.
    """
    return cell_len(plain(line))


def ending(text: str, width: int, cut: str) -> str:
    """Text in so many cells; what is too long loses its beginning.

    Names of layers, and of folders, differ at their end more often than at their beginning.

    Args:
        text: one line.
        width: cells.
        cut: stands where something is left out.

    Examples:
        >>> ending("encoder.layers.11.attn.weight", 16, "…")
        '….11.attn.weight'
        >>> ending("head", 6, "…")
        'head  '
    """
    if cell_len(text) <= width:
        return set_cell_size(text, width)
    while text and cell_len(text) > width - cell_len(cut):
        text = text[1:]
    return set_cell_size(cut + text, width)


def fitted(line: Line, width: int) -> Line:
    """A line in exactly so many cells, cut or filled at its end.

    Args:
        line: the line.
        width: cells.

    Examples:
        >>> fitted([("loss", "dim"), (" 0.5", "bold")], 6)
        [('loss', 'dim'), (' 0', 'bold')]
    """
    found: Line = []
    left = width
    for text, style in line:
        if left <= 0:
            break
        length = cell_len(text)
        if length > left:
            text, length = set_cell_size(text, left), left
        found.append((text, style))
        left -= length
    if left > 0:
        found.append((" " * left, ""))
    return found


def spread(left: Line, right: Line, width: int) -> Line:
    """Two lines in one, at its two ends; the left one gives way.

    Args:
        left: for the beginning.
        right: for the end.
        width: cells of both.

    Examples:
        >>> plain(spread([("a name", "")], [("live", "")], 8))
        'a n live'
    """
    room = width - width_of(right) - 1
    if room <= 0:
        return fitted(right, width)
    return [*fitted(left, room), (" ", ""), *right]


def ruled(line: Line, width: int) -> Line:
    """A line of a title in so many cells.

    Args:
        line: the title.
        width: cells.
    """
    return [(text, style or "head") for text, style in fitted(line, width)]


def wrapped(text: str, width: int) -> list[str]:
    """Text in lines of at most so many cells, broken between words where that is possible.

    Args:
        text: one line.
        width: cells.

    Examples:
        >>> wrapped("two words", 5)
        ['two', 'words']
    """
    if width < 1:
        return []
    found: list[str] = []
    for line in textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False):
        # Counted in characters so far, which may take two cells each.
        found.extend(chop_cells(line, width) if cell_len(line) > width else [line])
    return found


def joined(parts: Sequence[Line], between: str, width: int) -> Line:
    """As many parts as fit into so many cells, with something between them.

    Args:
        parts: the parts, the most important first; those that do not fit are left out.
        between: what stands between two.
        width: cells there are.

    Examples:
        >>> plain(joined([[("step 1", "")], [("a long part", "")], [("lr 2", "")]], " | ", 14))
        'step 1 | lr 2'
    """
    found: Line = []
    left = width
    for part in parts:
        needed = width_of(part) + (cell_len(between) if found else 0)
        if needed <= left:
            found.extend([(between, "dim"), *part] if found else part)
            left -= needed
    return found
