"""`gradwise report`: the page on a comparison, a watched run, or several runs side by side."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(short_help="Write the page on a comparison, a run, or runs side by side.")
@click.argument("runs", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="FILE.html",
    help="Where the page goes; the Markdown goes beside it. Nothing else is overwritten.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the paths as JSON.")
def report(runs: tuple[Path, ...], out: Path | None, as_json: bool) -> None:
    """Write report.html and report.md on what is in a folder.

    RUN is the folder of a comparison, or of a run that gradwise watched; of such runs there can
    be several, which are then shown side by side: on the same axes and colours, layers matched
    by name, in RUN/report-a-b.html of the first folder.

    The page is one file that opens offline. Nothing is trained or changed; what is still being
    written, or broke off, gives a page on what there is.
    """
    from gradwise.cli.output import print_json
    from gradwise.report import write_report

    pages = write_report(*runs, out=out)
    if as_json:
        print_json({"pages": [str(page) for page in pages]})
        return
    for page in pages:
        click.echo(str(page))
