"""From folders to `report.html` and `report.md`: what is in them, and where the pages go."""

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from gradwise.errors import UserError
from gradwise.report.dynamics import read_dynamics
from gradwise.report.folder import read_run
from gradwise.report.render import render_html, render_markdown
from gradwise.report.watched import read_records, render_records, slug
from gradwise.watch.store.files import replace_file

__all__ = ["MOST_RUNS", "write_report"]

MOST_RUNS = 6
"""More runs than this are too many for one page: their curves could not be told apart."""

_MARKS = {".html": b'<meta name="generator" content="gradwise ', ".md": b"Written by gradwise "}

# What is wrong with the place that was asked for. All else, a full disk first of all, is not the
# user's mistake, and the same command may do better later.
_PLACE = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR,
    errno.ENAMETOOLONG, errno.EINVAL, errno.ELOOP,
}  # fmt: skip


def write_report(*runs: Path, out: Path | None = None) -> list[Path]:
    """Write the page on a comparison, a run, or several runs side by side, and its Markdown twin.

    The page needs no network and no other file. Both are written from what the folders hold at
    this moment: what is missing, damaged or still to come is named, the rest is shown. A report
    that was there is replaced as a whole, or stays as it was.

    Args:
        runs: the folder that `gradwise compare` wrote, or folders of watched runs.
        out: the page's file, whose name ends in `.html`; the Markdown goes beside it. None writes
            `report.html` into the folder, or, for several runs, `report-a-b.html` (after their
            names) into the first one.

    Returns:
        The paths of the two files.

    Raises:
        UserError: where a folder is neither, they do not go together, one is damaged or of a newer
            version, or the report may not be written there.
        OSError: where it could not be written for another reason, a full disk for instance.
    """
    compared = _compared(runs)
    _check_out(out)
    if compared:
        run = read_run(runs[0])
        dynamics = read_dynamics(run)
        page, words = render_html(run, dynamics), render_markdown(run, dynamics)
        own = runs[0] / "report.html"
    else:
        records = read_records(runs)
        page, words = render_records(records)
        own = runs[0] / (f"report-{slug(records)}.html" if len(runs) > 1 else "report.html")
    html = own if out is None else out
    written = [html, html.with_suffix(".md")]
    for path, content in zip(written, (page, words), strict=True):
        _write(path, content, own=out is None)
    return written


def _compared(runs: Sequence[Path]) -> bool:
    """Whether it is a comparison; where it is not, every folder is that of a run."""
    if not runs:
        raise UserError("expected the folder of a run or of a comparison, got none")
    kinds = {path: _is_comparison(path) for path in runs}
    comparison = next((path for path, found in kinds.items() if found), None)
    if comparison is None:
        if len({path.resolve() for path in runs}) < len(runs):
            raise UserError("expected different runs, got the same folder twice")
        if len(runs) > MOST_RUNS:
            raise UserError(f"expected at most {MOST_RUNS} runs side by side, got {len(runs)}")
        return False
    if len(runs) > 1:
        raise UserError(
            f"expected runs to put side by side, but {comparison} is a comparison, which has a "
            "page of its own"
        )
    return True


def _is_comparison(path: Path) -> bool:
    if not path.is_dir():
        what = "is not a folder" if path.exists() else "does not exist"
        raise UserError(f"expected the folder of a run or of a comparison, but {path} {what}")
    if (path / "run.json").is_file():
        return False
    if (path / "config.json").is_file():
        return True
    raise UserError(
        f"{path} is the folder of neither a run nor a comparison: it has no run.json and no "
        "config.json"
    )


def _check_out(out: Path | None) -> None:
    """Refuse a place where something else would be lost."""
    if out is None:
        return
    if out.suffix != ".html" or out.is_dir():
        raise UserError(f"expected out to be a file whose name ends in .html, got {out}")
    for suffix, mark in _MARKS.items():
        path = out.with_suffix(suffix)
        try:
            content = path.read_bytes()
        except OSError:  # not there, or else writing will tell
            continue
        if content and mark not in content:
            raise UserError(f"{path} is there already and is no report of gradwise: it stays")


def _write(path: Path, content: str, *, own: bool) -> None:
    try:
        replace_file(path, content.encode())
    except OSError as error:
        if error.errno not in _PLACE:
            raise
        reason = error.strerror or os.strerror(error.errno or 0)
        hint = "; --out FILE.html puts it elsewhere" if own else ""
        raise UserError(f"{path} cannot be written: {reason}{hint}") from None
