"""Compare methods side by side: same weights, same batches, several seeds, one summary."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gradwise.errors import UserError
from gradwise.lab.data import load
from gradwise.lab.files import write_json
from gradwise.lab.folder import claim, locked
from gradwise.lab.methods import resolve_all
from gradwise.lab.models import build
from gradwise.lab.runner import Job, Listener, run_jobs
from gradwise.lab.settings import Settings, check_names, cores, resolve_device
from gradwise.lab.summary import summarise


def compare_methods(
    settings: Settings,
    methods: Sequence[str],
    seeds: Sequence[int],
    out: str | Path,
    *,
    baseline: str | None = None,
    jobs: int | None = None,
    command: str | None = None,
    listen: Listener = lambda job, event: None,
) -> dict[str, Any]:
    """Train every method with every seed and compare their test accuracy with the baseline's.

    Finished trials in `out` are not run again, interrupted ones go on from their last checkpoint:
    the same call after a kill at any moment gives the numbers of an uninterrupted one.

    Args:
        settings: what all trials share.
        methods: such as `["sgd", "autoscale", "clip(max_norm=0.5)"]`; see `resolve`.
        seeds: one trial a method and seed.
        out: the comparison's folder.
        baseline: what the others are compared with; None takes the first method without a
            transform, or else the first.
        jobs: processes at a time; None fills the CPU cores, or is 1 on a GPU.
        command: the command line that asked for it, for the report.
        listen: told about each trial's progress.

    Returns:
        What `summary.json` holds.

    Raises:
        UserError: for anything that the user has to change, before any trial runs.
    """
    arms = resolve_all(methods, settings.optimizer)
    check_names("seeds", [str(seed) for seed in seeds])
    names = [arm.name for arm in arms]
    plain = [arm.name for arm in arms if not arm.transform.transforms]
    baseline = (plain or names)[0] if baseline is None else baseline.replace(" ", "")
    if baseline not in names:
        raise UserError(f"expected the baseline to be one of {', '.join(names)}, got {baseline!r}")
    if jobs is not None and jobs < 1:
        raise UserError(f"expected jobs >= 1, got jobs={jobs}")
    if jobs is None:
        on_cpu = resolve_device(settings.device).type == "cpu"
        jobs = max(cores() // settings.threads, 1) if on_cpu else 1

    data_dir = None if settings.data_dir is None else Path(settings.data_dir)
    dataset = load(settings.data, data_dir).subset(settings.limit_train, settings.limit_test)
    build(settings.model, num_classes=dataset.num_classes, in_shape=dataset.in_shape)
    fingerprint, test_rows = dataset.fingerprint, len(dataset.test_y)
    del dataset  # the trials load their own
    gc.collect()

    out = Path(out)
    with locked(out):
        config = {
            "settings": settings.to_dict(),
            "methods": names,
            "seeds": list(seeds),
            "baseline": baseline,
            "dataset": fingerprint,
            "command": command,
        }
        claim(out, config)
        # Seed by seed, so that an early look compares all methods on the seeds there are.
        trials = [
            Job(arm.name, seed, out / "trials" / arm.folder / f"seed-{seed}")
            for seed in seeds
            for arm in arms
        ]
        for job in trials:
            result = job.result()
            if result is not None:
                listen(job, {"event": "kept", **result})
        missing = [job for job in trials if job.result() is None]
        failed = run_jobs(missing, settings, jobs, listen)
        summary = summarise(out, config, arms, trials, failed, test_rows)
        write_json(out / "summary.json", summary)
    return summary
