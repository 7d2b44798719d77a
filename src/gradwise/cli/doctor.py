"""`gradwise doctor`: what gradwise sees on this machine, or in a run."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import click

PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "pyarrow",
    "scipy",
    "scikit-learn",
    "rich",
    "click",
    "jinja2",
)


@click.command(short_help="Show what gradwise sees on this machine, or explain a run.")
@click.option(
    "--run",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Explain what happened to the gradients of the run in this folder.",
)
@click.option("--data-dir", type=click.Path(path_type=Path), help="Also look for data sets here.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(run: Path | None, data_dir: Path | None, as_json: bool) -> int:
    """Show what gradwise sees: torch, devices and their types, backends, data sets.

    Exits with 1 where something that was found does not work.

    With --run, look at a run that was recorded instead: the rules that speak up while a training
    goes on are run over all its records, and what they find is explained: when it was, in which
    layers, what it means and what people do about it. Exits with 1 where that includes an error
    (not for warnings), and with 2 where there is no such run.
    """
    from gradwise.cli.output import print_json

    if run is not None:
        from gradwise.cli.doctor_run import doctor_run

        if data_dir is not None:
            raise click.UsageError("expected --run or --data-dir, got both")
        return doctor_run(run, as_json)
    data = _data(data_dir)  # first, because it may be the user's mistake
    facts: dict[str, Any] = {
        "versions": _versions(),
        "devices": _devices(),
        "backends": _backends(),
        "data": data,
        "cache": _cache(),
    }
    problems = [
        f"{row.get('device') or row.get('name')}: {row['problem']}"
        for row in (*facts["devices"], *data)
        if row["problem"]
    ]
    if as_json:
        print_json({**facts, "problems": problems})
    else:
        _print("versions", [{"package": p, "version": v} for p, v in facts["versions"].items()])
        for title in ("devices", "backends", "data"):
            _print(title, facts[title])
        click.echo(f"decoded data is kept in {facts['cache'] or 'no place: there is no home'}")
        for line in problems:
            click.secho(line, fg="red")
    return 1 if problems else 0


def _print(title: str, rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from gradwise.cli.output import console

    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False
    )
    columns = [name for name in rows[0] if name != "problem" or any(row[name] for row in rows)]
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(_shown(row[column])) for column in columns))
    console().print(table, "")


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def _versions() -> dict[str, str]:
    from gradwise._version import __version__

    found = {"gradwise": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _devices() -> list[dict[str, Any]]:
    import torch

    names = ["cpu"]
    names += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        names.append("mps")
    return [_device(name) for name in names]


def _device(name: str) -> dict[str, Any]:
    """Measure and transform a small gradient in every type, to see that it works there."""
    import torch

    import gradwise as gw
    from gradwise.errors import UserError
    from gradwise.lab.device import cores

    kind = torch.device(name).type
    dtypes: list[str] = []
    problem = None
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        try:
            grad = torch.ones(2, 2, device=name).to(dtype)
            gw.transforms.Autoscale().update([grad])
            dtypes.append(str(dtype).removeprefix("torch."))
        except (RuntimeError, TypeError, UserError) as error:
            if dtype == torch.float32:
                problem = str(error).splitlines()[0]
    about = ""
    if kind == "cpu":
        about = f"{cores()} cores, {torch.backends.cpu.get_cpu_capability()}"
    elif kind == "cuda" and problem is None:
        about = torch.cuda.get_device_name(name)
    return {"device": name, "about": about, "types": dtypes, "problem": problem}


def _backends() -> list[dict[str, Any]]:
    from gradwise import backends

    forced = os.environ.get(backends.ENVIRONMENT_VARIABLE)
    rows = []
    for name in backends.available():
        used = [device for device in ("cpu", "cuda") if _chosen(device) == name]
        note = f"forced by {backends.ENVIRONMENT_VARIABLE}" if forced == name else ""
        note = backends.missing(name) or note
        if name == "native" and not note and not backends.native.threaded():
            note = "on one thread: compiler or torch come without OpenMP"
        rows.append({"backend": name, "used on": used, "note": note})
    return rows


def _chosen(device: str) -> str | None:
    """The backend of a kind of device; None where another one is forced that cannot run there."""
    import torch

    from gradwise import backends
    from gradwise.errors import UserError

    try:
        return backends.choose(torch.device(device))
    except UserError:
        return None


def _data(data_dir: Path | None) -> list[dict[str, Any]]:
    from gradwise.errors import UserError
    from gradwise.lab.data import available, load

    if data_dir is not None and not data_dir.expanduser().is_dir():
        raise UserError(f"expected a folder as --data-dir, got {data_dir}")
    rows: list[dict[str, Any]] = []
    for name in available():
        about, problem = "", None
        if name != "digits" and data_dir is None:
            about = "needs --data-dir"
        else:
            try:
                about = str(load(name, data_dir))
            except UserError as error:
                # Not to have a set is no problem; to have half of one is.
                if str(error).startswith(f"found no files of {name} "):
                    about = "no files found"
                else:
                    problem = str(error)
        rows.append({"name": name, "about": about, "problem": problem})
    return rows


def _cache() -> str | None:
    from gradwise.lab.data.cache import cache_folder

    folder = cache_folder()
    return None if folder is None else str(folder)
