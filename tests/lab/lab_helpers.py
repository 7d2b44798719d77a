"""What the tests of the lab share: small settings, and results without what may differ."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa

from gradwise.lab.data import Dataset, load
from gradwise.lab.methods import resolve
from gradwise.lab.settings import Settings
from gradwise.lab.trial import Trial
from gradwise.watch import load as load_run

# What two runs of a trial may differ in.
MEASURED = ("wall_time_s", "samples_per_s", "peak_memory_bytes")


def tiny(**given: Any) -> Settings:
    """Settings of a trial of a fraction of a second."""
    base = {
        "model": "mlp",
        "epochs": 3,
        "batch_size": 32,
        "limit_train": 128,
        "limit_test": 64,
        "device": "cpu",
    }
    return Settings(**{**base, **given})


def data_of(settings: Settings) -> Dataset:
    return load(settings.data, settings.data_dir).subset(settings.limit_train, settings.limit_test)


def make_trial(
    folder: Path, settings: Settings | None = None, method: str = "sgd", seed: int = 0, **more: Any
) -> Trial:
    settings = settings or tiny()
    arm = resolve(method, settings.optimizer)
    return Trial(settings, arm, seed, data_of(settings), folder, **more)


def numbers(result: dict[str, Any]) -> dict[str, Any]:
    """A result without times and memory, as it is after a way through JSON."""
    kept = {key: value for key, value in result.items() if key not in MEASURED}
    return json.loads(json.dumps(kept))


def recorded(folder: Path) -> tuple[pa.Table, pa.Table]:
    """What a trial recorded: one row a step, and one a step and layer."""
    run = load_run(folder / "watch")
    return run.steps, run.layers


def same_tables(left: pa.Table, right: pa.Table) -> bool:
    """Whether tables are equal value by value, NaN and NaN too."""
    if left.schema != right.schema or left.num_rows != right.num_rows:
        return False
    for name in left.column_names:
        for a, b in zip(left[name].to_pylist(), right[name].to_pylist(), strict=True):
            both_nan = isinstance(a, float) and isinstance(b, float) and a != a and b != b
            if a != b and not both_nan:
                return False
    return True


def is_json_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def run_inline(jobs, settings, dataset, at_once, listen):
    """Stands for `run_jobs` where processes do not matter: one trial after another, in this one."""
    for job in jobs:
        listen(job, {"event": "start"})
        arm = resolve(job.method, settings.optimizer)
        data = data_of(settings)
        assert data.fingerprint == dataset
        own = job.settings(settings)
        result = Trial(
            own, arm, job.seed, data, job.folder, lambda event, job=job: listen(job, event)
        ).run()
        listen(job, {"event": "done", **result})
    return {}
