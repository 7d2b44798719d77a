"""`gradwise report`: write a comparison's page anew from its files."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(short_help="Write report.html and report.md from a comparison's folder.")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the paths as JSON.")
def report(run: Path, as_json: bool) -> None:
    """Write RUN/report.html and RUN/report.md from what is in the folder.

    The page is one file that opens offline. Nothing is trained or changed; an unfinished
    comparison gives a page on what there is.
    """
    from gradwise.cli.output import print_json
    from gradwise.report import write_report

    pages = write_report(run)
    if as_json:
        print_json({"pages": [str(page) for page in pages]})
        return
    for page in pages:
        click.echo(str(page))
