"""Run a recipe: its cells or comparisons, what they say, and the page on it."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradwise.errors import UserError
from gradwise.lab.compare import compare_methods
from gradwise.lab.device import cores
from gradwise.lab.files import finite, read_json, write_json
from gradwise.lab.folder import locked
from gradwise.lab.job import Work
from gradwise.lab.process import JobProcess
from gradwise.lab.runner import Listener, run_all
from gradwise.reproduce.cells import CellJob
from gradwise.reproduce.outcome import outcome, write_page
from gradwise.reproduce.planning import Plan, plan
from gradwise.reproduce.task import SPEC, TASK, experiment, run_cell

__all__ = ["reproduce"]

CONFIG = "recipe.json"


def reproduce(
    name: str,
    *,
    scale: str = "small",
    out: str | Path,
    overrides: Mapping[str, Any] | None = None,
    jobs: int | None = None,
    data_dir: str | Path | None = None,
    device: str = "auto",
    command: str | None = None,
    listen: Listener | None = None,
) -> dict[str, Any]:
    """Run a recipe and judge the paper's claims by what comes out.

    What has been done in `out` is not done again: the same call after a kill goes on.

    Args:
        name: of the recipe.
        scale: one of `SCALES`.
        out: the folder for everything; gets `results.json`, `report.html`, `report.md` and the
            pictures.
        overrides: settings to change, by name; the page says which.
        jobs: processes at a time; None fills the CPU cores, or is 1 on a GPU. 0 does everything
            but comparisons in this process.
        data_dir: folder of the data's files, where the recipe reads any.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        command: the command line that asked for it, for the pages of comparisons.
        listen: told about progress, as by `compare_methods`.

    Returns:
        What `results.json` holds, and under `cells` the result of each cell or comparison.

    Raises:
        UserError: for anything that the user has to change, and where cells failed.
        OSError: where the disk is full; what was written before is whole.
    """
    planned = plan(name, scale=scale, overrides=overrides, data_dir=data_dir, device=device)
    if jobs is None:
        jobs = cores() if planned.settings["device"] == "cpu" else 1
    if jobs < 0:
        raise UserError(f"expected jobs >= 0, got jobs={jobs}")
    told = listen or (lambda job, event: None)
    out = Path(out)
    with locked(out, "reproduce", CONFIG):
        _claim(out, planned)
        if planned.comparisons:
            results, seconds = _compare(planned, out, jobs, command, told)
        else:
            results, seconds = _run_cells(planned, out, jobs, told)
        conclusion = experiment(planned.recipe.experiment).conclude(planned.settings, results)
        found = outcome(planned, conclusion, seconds)
        write_json(out / "results.json", found)
        write_page(planned, conclusion, found, out)
    return {**finite(found), "cells": results}


def _claim(out: Path, planned: Plan) -> None:
    """Write down what the folder is for, or check that it is for this."""
    settings = {key: value for key, value in planned.settings.items() if key != "data_dir"}
    config = finite({"recipe": planned.recipe.name, "scale": planned.scale, "settings": settings})
    path = out / CONFIG
    if path.exists():
        before = read_json(path)
        for key in ("recipe", "scale"):
            if before.get(key) != config[key]:
                raise UserError(
                    f"--out {out} holds {key} {before.get(key)!r}, not {config[key]!r}; "
                    "choose another --out"
                )
        was = before.get("settings")
        known = was if isinstance(was, dict) else {}
        for key, value in config["settings"].items():
            if key not in known or known[key] != value:
                raise UserError(
                    f"--out {out} was made with {key}={known.get(key)!r} and this has "
                    f"{key}={value!r}; choose another --out"
                )
    write_json(path, config)


def _compare(
    planned: Plan, out: Path, jobs: int, command: str | None, listen: Listener
) -> tuple[dict[str, Any], float]:
    """Run the comparisons one after another; their results, and the seconds of all trials."""
    results: dict[str, Any] = {}
    seconds = 0.0
    for one in planned.comparisons:

        def named(job: Work, event: dict[str, Any], name: str = one.name) -> None:
            nonlocal seconds
            if event["event"] in ("done", "kept"):
                seconds += event["wall_time_s"]
            listen(_Named(job, f"{name}: {job.label}"), event)

        folder = out / "comparisons" / one.name
        folder.parent.mkdir(exist_ok=True)
        summary = compare_methods(
            one.settings,
            one.methods,
            one.seeds,
            folder,
            baseline=one.baseline,
            jobs=jobs or 1,
            command=command,
            listen=named,
        )
        if not summary["finished"]:
            raise UserError(
                f"trials of {one.name} failed, see {folder / 'summary.json'}; the same command "
                "does them again"
            )
        results[one.name] = {"summary": summary, "folder": str(folder)}
    return results, seconds


@dataclass(frozen=True)
class _Named:
    """A trial with the name of its comparison."""

    job: Work
    label: str


def _run_cells(
    planned: Plan, out: Path, jobs: int, listen: Listener
) -> tuple[dict[str, Any], float]:
    """Run the cells that have no result; the results of all, and their seconds."""
    todo = [CellJob(cell, out / "cells" / cell.name) for cell in planned.cells]
    results = {job: job.result() for job in todo}
    for job, result in results.items():
        if result is not None:
            listen(job, {"event": "kept", **result})
    waiting = [job for job, result in results.items() if result is None]

    def follow(job: CellJob, event: dict[str, Any]) -> None:
        if event["event"] == "done":
            results[job] = {key: value for key, value in event.items() if key != "event"}
        listen(job, event)

    if jobs:
        failed = run_all(waiting, _starter(planned), jobs, follow)
        if failed:
            job, reason = next(iter(failed.items()))
            more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
            raise UserError(
                f"{job.label}{more} of {planned.recipe.name} failed: {reason}; its log is "
                f"{job.folder / 'log.txt'}, and the same command goes on"
            )
    else:
        _run_here(planned, waiting, follow)
    done = {job.label: result for job, result in results.items() if result is not None}
    seconds = sum(result["wall_time_s"] for result in done.values())
    return {label: result["value"] for label, result in done.items()}, seconds


def _starter(planned: Plan) -> Callable[[CellJob, queue.Queue[Any]], JobProcess]:
    """What makes the process of a cell."""

    def start(job: CellJob, events: queue.Queue[Any]) -> JobProcess:
        spec = {
            "experiment": planned.recipe.experiment,
            "settings": planned.settings,
            "cell": job.cell.name,
            "arguments": job.cell.arguments,
            "folder": str(job.folder.resolve()),
        }
        return JobProcess(job, (SPEC, spec), TASK, 1, events)

    return start


def _run_here(
    planned: Plan, waiting: list[CellJob], follow: Callable[[CellJob, dict[str, Any]], None]
) -> None:
    for job in waiting:
        follow(job, {"event": "start"})
        began = time.monotonic()
        result = run_cell(
            planned.recipe.experiment,
            planned.settings,
            job.cell,
            lambda event, job=job: follow(job, event),  # type: ignore[misc]  # its own job
        )
        job.folder.mkdir(parents=True, exist_ok=True)
        write_json(job.folder / "result.json", result)
        follow(job, {"event": "done", **result, "wall_time_s": time.monotonic() - began})
