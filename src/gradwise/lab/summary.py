"""From the trials' results to `summary.json`: intervals, comparisons, fairness, versions."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from gradwise._version import __version__
from gradwise.lab.grid import budget, choose, grid_notes, of_rate
from gradwise.lab.job import Job
from gradwise.lab.methods import Arm
from gradwise.lab.outcome import FINISHED
from gradwise.lab.statistics import compare, mean_ci

PACKAGES = ("torch", "numpy", "scipy", "statsmodels", "scikit-learn", "pyarrow")


def summarise(
    out: Path,
    config: dict[str, Any],
    arms: Sequence[Arm],
    results: Mapping[Job, dict[str, Any] | None],
    failed: Mapping[Job, str],
    test_rows: int,
    held_out: int = 0,
) -> dict[str, Any]:
    """Everything `summary.json` holds.

    Args:
        out: the comparison's folder, for relative paths.
        config: as in `config.json`.
        arms: the methods.
        results: of all trials, None where there is none; within a method seed by seed.
        failed: why trials have no result.
        test_rows: rows in the test set; accuracies are multiples of its inverse.
        held_out: rows held out of the training set, where methods run with a grid of learning
            rates; their results are then those of the rate that was chosen.
    """
    rates = _grid(config)
    of_arm = {arm.name: {j: r for j, r in results.items() if j.method == arm.name} for arm in arms}
    chosen = {name: choose(rates, own) if rates else None for name, own in of_arm.items()}
    # While nothing is known, a method is what it is with the first rate: not run yet.
    shown = {
        name: of_rate(chosen[name] if chosen[name] or not rates else rates[0], own)
        for name, own in of_arm.items()
    }
    accuracy = {
        name: {job.seed: float(r["test_accuracy"]) for job, r in own.items() if r is not None}
        for name, own in shown.items()
    }
    comparisons = compare(config["baseline"], accuracy, resolution=1.0 / test_rows)
    methods = {arm.name: _method(out, arm, shown[arm.name], failed) for arm in arms}
    told: dict[str, Any] = {
        "format": 1,
        "baseline": config["baseline"],
        "methods": methods,
        "comparisons": [asdict(comparison) for comparison in comparisons],
        "fairness": _fairness(results),
        "notes": _notes(config, arms, results),
        "config": config,
        "versions": _versions(results),
        "finished": all(result is not None for result in results.values()),
    }
    if rates:
        for name, own in of_arm.items():
            methods[name]["grid"] = [_of_rate(out, rate, own, failed) for rate in rates]
        missing = sum(result is None for result in results.values())
        seeds = len(config["seeds"])
        told["notes"] = [*grid_notes(rates, seeds, held_out, chosen, missing), *told["notes"]]
        told["grid"] = {
            "learning_rates": list(rates),
            "seeds": seeds,
            "trials_per_method": len(rates) * seeds,
            "budget": budget(rates, seeds),
            "chosen_by": "mean validation accuracy",
            "validation_rows": held_out,
            "final": not missing,
        }
    return told


def _grid(config: dict[str, Any]) -> tuple[float, ...]:
    """The learning rates in ascending order; empty where there is no grid of them."""
    rates = config["settings"]["lr"]
    return tuple(sorted(rates)) if isinstance(rates, list) else ()


def _accuracy(results: Mapping[Job, dict[str, Any] | None], key: str) -> dict[str, Any]:
    values = [None if r is None else float(r[key]) for r in results.values()]
    present = [value for value in values if value is not None]
    mean, interval = mean_ci(present) if present else (None, None)
    return {"values": values, "mean": mean, "ci95": interval}


def _ends(
    out: Path, results: Mapping[Job, dict[str, Any] | None], failed: Mapping[Job, str]
) -> dict[str, Any]:
    """How the trials ended and where they are, seed by seed."""
    return {
        "status": [
            result["status"] if result is not None else "failed" if job in failed else "missing"
            for job, result in results.items()
        ],
        "failures": {str(job.seed): reason for job, reason in failed.items() if job in results},
        "folder": [str(job.folder.relative_to(out)) for job in results],
    }


def _of_rate(
    out: Path,
    rate: float,
    results: Mapping[Job, dict[str, Any] | None],
    failed: Mapping[Job, str],
) -> dict[str, Any]:
    """What became of a method with one learning rate of the grid."""
    own = of_rate(rate, results)
    return {
        "learning_rate": rate,
        "validation_accuracy": _accuracy(own, "validation_accuracy"),
        "test_accuracy": _accuracy(own, "test_accuracy"),
        **_ends(out, own, failed),
    }


def _method(
    out: Path, arm: Arm, results: Mapping[Job, dict[str, Any] | None], failed: Mapping[Job, str]
) -> dict[str, Any]:
    done = [result for result in results.values() if result is not None]

    def average(key: str) -> dict[str, float | None]:
        numbers = [float(r[key]) for r in done if r.get(key) is not None]
        return {"mean": sum(numbers) / len(numbers) if numbers else None}

    ends = _ends(out, results, failed)
    return {
        "test_accuracy": _accuracy(results, "test_accuracy"),
        "seeds": [job.seed for job in results],
        "status": ends["status"],
        "failures": ends["failures"],
        "wall_time_s": average("wall_time_s"),
        "samples_per_s": average("samples_per_s"),
        "peak_memory_bytes": average("peak_memory_bytes"),
        "skipped": sum(int(r["skipped"]) for r in done),
        "learning_rate": done[0].get("learning_rate") if done else None,
        "folder": ends["folder"],
        "summary": arm.summary,
        "paper": arm.paper,
        "url": arm.url,
        "tag": arm.tag,
    }


def _fairness(results: Mapping[Job, dict[str, Any] | None]) -> dict[str, Any]:
    """Whether all methods began with the same weights and saw the same batches, seed by seed."""
    differences = []
    equal = {"init_checksum": True, "batches_checksum": True}
    for seed in sorted({job.seed for job in results}):
        same_seed = {j.arm: r for j, r in results.items() if j.seed == seed and r is not None}
        for key in equal:
            # A trial that diverged stopped early: it saw fewer batches.
            seen = {
                method: result[key]
                for method, result in same_seed.items()
                if key == "init_checksum" or result["status"] == FINISHED
            }
            if len(set(seen.values())) > 1:
                equal[key] = False
                differences.append(f"seed {seed}: {key} differs between {', '.join(seen)}")
    return {**{f"{key}_equal": value for key, value in equal.items()}, "differences": differences}


def _notes(
    config: dict[str, Any], arms: Sequence[Arm], results: Mapping[Job, dict[str, Any] | None]
) -> list[str]:
    notes = []
    rate = config["settings"]["lr"]
    if not isinstance(rate, list) and not all(arm.plain for arm in arms):
        told = "its optimizer's usual learning rate" if rate is None else f"learning rate {rate:g}"
        notes.append(
            f"Every method ran with {told}; none was tuned. Methods that change the scale of the "
            "gradient may want another one."
        )
    solving = [arm.name for arm in arms if arm.closure is not None]
    if solving:
        notes.append(
            f"{', '.join(solving)}: each step evaluates the batch several times, so that equal "
            "epochs are not equal work; compare the times as well."
        )
    seeds = len(config["seeds"])
    if seeds == 1:
        notes.append("One seed shows no spread, so nothing can be said about differences.")
    elif seeds < 5:
        notes.append(
            f"{seeds} seeds find only large differences; "
            "'no difference detected' does not mean that there is none."
        )
    for what, seen in (("devices", _devices(results)), ("versions", _ran_with(results))):
        if len(seen) > 1:
            notes.append(f"The trials ran with different {what}: {'; '.join(seen)}.")
    return notes


def _devices(results: Mapping[Job, dict[str, Any] | None]) -> list[str]:
    return sorted({str(result.get("device")) for result in results.values() if result is not None})


def _ran_with(results: Mapping[Job, dict[str, Any] | None]) -> list[str]:
    """The different sets of versions that trials ran with, each as text."""
    versions = [result.get("versions") for result in results.values() if result is not None]
    return sorted({", ".join(f"{k} {v}" for k, v in (found or {}).items()) for found in versions})


def _versions(results: Mapping[Job, dict[str, Any] | None]) -> dict[str, str]:
    versions = {"gradwise": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    versions["device"] = ", ".join(_devices(results)) or "none"
    versions["cpu"] = torch.backends.cpu.get_cpu_capability()
    versions["platform"] = platform.platform(terse=True)
    return versions
