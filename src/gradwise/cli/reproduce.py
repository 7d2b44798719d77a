"""`gradwise reproduce`: a paper's experiment, its picture drawn anew, and whether it holds."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click


@click.command(short_help="Run a paper's experiment and judge its claim.")
@click.argument("name", required=False)
@click.option("--list", "listed", is_flag=True, help="Show all experiments and their verdicts.")
@click.option(
    "--scale",
    default="small",
    show_default=True,
    metavar="SCALE",
    help="smoke (seconds), small (minutes on two cores) or full (the paper's).",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path),
    help="Folder of the data's files, where the experiment reads any.",
)
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="NAME=VALUE",
    help="Change a setting, such as seeds=[0,1,2]; the page says so.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder for everything.  [default: runs/reproduce-NAME-SCALE]",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option("--jobs", type=int, help="Processes at a time.  [default: fills the CPU's cores]")
@click.option("--json", "as_json", is_flag=True, help="Print results.json, or the list as JSON.")
def reproduce(
    name: str | None,
    listed: bool,
    scale: str,
    data_dir: Path | None,
    changes: tuple[str, ...],
    out: Path | None,
    device: str,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Run the experiment NAME and say of each claim whether it was reproduced.

    The folder gets report.html and report.md (the paper's picture drawn from our data, the claims,
    our numbers with intervals, all settings with their sources) and results.json. After Ctrl-C or
    a crash, the same command goes on.

    \b
    Examples:
      gradwise reproduce --list
      gradwise reproduce diagonal-networks
      gradwise reproduce autoscale-accuracy --data-dir ~/data --scale small
      gradwise reproduce diagonal-networks --set seeds=[0,1] --set steps=20000 --out runs/dln
    """  # noqa: D301 - a real backspace: click keeps the lines that follow
    from gradwise.cli.findings import as_dict, print_found, print_list
    from gradwise.cli.output import print_json
    from gradwise.errors import UserError
    from gradwise.reproduce import load_recipe, recipes
    from gradwise.reproduce.verdicts import verdicts

    if listed:
        if name is not None:
            raise UserError(f"expected --list or the name of an experiment, got both: {name!r}")
        if as_json:
            known = verdicts()
            print_json([as_dict(one, known.get(one.name)) for one in recipes().values()])
        else:
            print_list(list(recipes().values()), verdicts())
        return
    if name is None:
        raise UserError("expected the name of an experiment; gradwise reproduce --list shows them")
    load_recipe(name)
    folder = out or Path("runs") / f"reproduce-{name}-{scale}"
    found = _run(name, folder, scale, data_dir, changes, device, jobs)
    if as_json:
        print_json({key: value for key, value in found.items() if key != "cells"})
    else:
        print_found(found)
        click.echo(f"\nreport: {folder / 'report.html'}")


def _run(
    name: str,
    folder: Path,
    scale: str,
    data_dir: Path | None,
    changes: tuple[str, ...],
    device: str,
    jobs: int | None,
) -> dict[str, Any]:
    from gradwise.cli.progress import follow
    from gradwise.errors import UserError
    from gradwise.reproduce import plan, reproduce
    from gradwise.reproduce.recipe import read_override

    if jobs is not None and jobs < 1:
        raise UserError(f"expected jobs >= 1, got jobs={jobs}")
    overrides = dict(map(read_override, changes))
    chosen: dict[str, Any] = {
        "scale": scale,
        "overrides": overrides,
        "data_dir": data_dir,
        "device": device,
    }
    planned = plan(name, **chosen)
    noun = "trials" if planned.comparisons else "parts"
    command = shlex.join(["gradwise", *click.get_current_context().find_root().obj])
    with follow(planned.units, noun) as listen:
        return reproduce(name, out=folder, jobs=jobs, command=command, listen=listen, **chosen)
