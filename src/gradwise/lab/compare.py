"""Compare methods side by side: same weights, same batches, several seeds, one summary."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from gradwise.errors import UserError
from gradwise.lab.cluster import Cluster, plan_there, run_there
from gradwise.lab.data import Dataset, load
from gradwise.lab.files import write_json
from gradwise.lab.folder import claim, locked
from gradwise.lab.holdout import held_out_rows, hold_out
from gradwise.lab.job import Job, trial_folder
from gradwise.lab.methods import Arm, make_optimizer, resolve_all
from gradwise.lab.models import build
from gradwise.lab.process import Event
from gradwise.lab.runner import Listener, run_jobs
from gradwise.lab.seeding import seed_everything
from gradwise.lab.settings import Settings, check_seeds
from gradwise.lab.sharing import plan
from gradwise.lab.summary import summarise


def compare_methods(
    settings: Settings,
    methods: Sequence[str],
    seeds: Sequence[int],
    out: str | Path,
    *,
    baseline: str | None = None,
    jobs: int | None = None,
    per_device: int | None = None,
    cluster: Cluster | None = None,
    command: str | None = None,
    listen: Listener = lambda job, event: None,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Train every method with every seed and compare their test accuracy with the baseline's.

    Finished trials in `out` are not run again, interrupted ones go on from their last checkpoint:
    the same call after a kill at any moment gives the numbers of an uninterrupted one. The summary
    is written anew whenever a trial ends, so that there is one on what there is.

    Where `settings.lr` is a grid, every method runs with each of its learning rates and every seed,
    and is judged by the one whose mean accuracy is best on rows held out of the training set; the
    test set takes no part in the choice. Methods, seeds and learning rates can be added later.

    Args:
        settings: what all trials share.
        methods: such as `["sgd", "autoscale", "clip(max_norm=0.5)"]`; see `resolve`.
        seeds: one trial a method and seed.
        out: the comparison's folder.
        baseline: what the others are compared with; None takes the first of torch's optimizers
            without a transform, or else the first method without one, or else the first.
        jobs: processes at a time; None fills the CPU cores, or is `per_device` for each GPU. On a
            CPU it is kept within the cores, with a note.
        per_device: trials that share a GPU, as long as its memory allows; None for 1, or as many as
            `jobs` asks for. With `device="cuda"` they are spread over all GPUs that this process
            sees. No number depends on it but times.
        cluster: where trials run; None for this machine. `jobs` is then how many are sent at a
            time, as many as the cluster has room for where it is None, and "auto" stands for the
            device and precision that a worker takes. A worker that is lost costs no trial: it goes
            on from its checkpoint on another one.
        command: the command line that asked for it, for the report.
        listen: told about each trial's progress: `(job, event)` with "kept" (it had a result
            already), "start", "step", "epoch", "note", "done" or "failed" in `event["event"]`.
        tell: told in words what keeps everything waiting.

    Returns:
        What `summary.json` holds.

    Raises:
        UserError: for anything that the user has to change, before any trial runs.
        OSError: where the disk is full; what was written before is whole.
    """
    out = Path(out)
    arms = resolve_all(methods, settings.optimizer)
    check_seeds(seeds)
    if settings.validation is not None and not settings.grid:
        raise UserError(
            "expected a list of learning rates to choose from with "
            f"validation={settings.validation:g}, got lr={settings.lr}"
        )
    baseline = _baseline(baseline, arms)
    if cluster is None:
        settings = settings.resolved()
        planned = plan(settings, jobs, per_device)
    else:
        planned, settings = plan_there(cluster, settings, out, jobs, per_device, tell)

    data_dir = None if settings.data_dir is None else Path(settings.data_dir)
    dataset = load(settings.data, data_dir).subset(settings.limit_train, settings.limit_test)
    _rehearse(settings, arms, dataset)
    fingerprint, test_rows = dataset.fingerprint, len(dataset.test_y)
    held_out = 0
    if settings.validation is not None:
        held_out = held_out_rows(len(dataset.train_y), settings.validation)
    del dataset  # the trials load their own
    gc.collect()

    config = {
        "settings": settings.to_dict(),
        "methods": [arm.name for arm in arms],
        "seeds": list(seeds),
        "baseline": baseline,
        "dataset": fingerprint,
        "command": command,
    }
    # Seed by seed, so that an early look compares all methods on the seeds there are.
    trials = [
        Job(arm.name, seed, trial_folder(out / "trials" / arm.folder, seed, rate), rate)
        for seed in seeds
        for rate in settings.grid or (None,)
        for arm in arms
    ]
    with locked(out):
        claim(out, config)
        results = {job: job.result() for job in trials}
        failed: dict[Job, str] = {}
        said: set[str] = set()

        def summary() -> dict[str, Any]:
            told = summarise(out, config, arms, results, failed, test_rows, held_out)
            write_json(out / "summary.json", told)
            return told

        def follow(job: Job, event: Event) -> None:
            if event["event"] == "done":
                results[job] = {key: value for key, value in event.items() if key != "event"}
            elif event["event"] == "failed":
                failed[job] = event["reason"]
            if event["event"] in ("done", "failed"):
                summary()
            if event.get("once") and event["text"] in said:
                return
            said.add(event.get("text", ""))
            listen(job, event)

        for job, result in results.items():
            if result is not None:
                listen(job, {"event": "kept", **result})
        told = summary()  # one that was there knows nothing of what has been added since
        missing = [job for job, result in results.items() if result is None]
        if missing:
            if planned.note is not None:
                follow(missing[0], {"event": "note", "text": planned.note})
            shared = () if planned.slots is None else (planned.slots,)
            if cluster is None:
                run_jobs(missing, settings, fingerprint, planned.at_once, follow, *shared)
            else:
                run_there(cluster, missing, settings, fingerprint, out, planned.at_once, follow)
            told = summary()
    return told


def _baseline(asked: str | None, arms: Sequence[Arm]) -> str:
    names = [arm.name for arm in arms]
    plain = [arm.name for arm in arms if arm.plain]
    untouched = [arm.name for arm in arms if not arm.transform.transforms]
    baseline = (plain or untouched or names)[0] if asked is None else "".join(asked.split())
    if baseline not in names:
        raise UserError(f"expected the baseline to be one of {', '.join(names)}, got {baseline!r}")
    return baseline


def _rehearse(settings: Settings, arms: Sequence[Arm], dataset: Dataset) -> None:
    """Make what every trial will make, so that a misfit is told before any of them runs.

    Raises:
        UserError: where the model does not fit the data or an optimizer not the model.
    """
    rows = len(dataset.train_y)
    if rows < 2:
        raise UserError(f"expected at least 2 training rows to make a batch of, got {rows}")
    if settings.validation is not None:
        hold_out(dataset, settings.validation)
    for arm in arms:
        if arm.closure is not None and settings.amp == "fp16":
            raise UserError(
                f"method {arm.name!r} evaluates a batch several times a step, which a loss scale "
                "does not allow: choose amp='off' or 'bf16' instead of amp='fp16'"
            )
    seed_everything(0)
    try:
        model = build(settings.model, num_classes=dataset.num_classes, in_shape=dataset.in_shape)
        for arm in arms:
            for rate in settings.grid or (settings.learning_rate(arm.optimizer),):
                make_optimizer(arm, model, rate, settings.momentum, settings.weight_decay)
    except UserError:
        raise
    except (RuntimeError, MemoryError, TypeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"model {settings.model!r} cannot be trained with {dataset.num_classes} classes and "
            f"rows of shape {list(dataset.in_shape)}: {reason}"
        ) from error
