"""Interleaved timing in one process: medians, and ratios round by round with their spread."""

from __future__ import annotations

import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

import gradwise


def interleaved(
    calls: dict[str, Callable[[], object]],
    prepare: Callable[[], None] = lambda: None,
    rounds: int = 100,
    warmup: int = 10,
) -> dict[str, list[float]]:
    """Seconds of every call in every round; the order within a round is random.

    Args:
        calls: what to time, by name.
        prepare: runs before each call, outside the timing.
        rounds: counted rounds.
        warmup: rounds before them.
    """
    order = list(calls)
    shuffle = random.Random(0).shuffle
    times: dict[str, list[float]] = {name: [] for name in order}
    for i in range(warmup + rounds):
        shuffle(order)
        for name in order:
            prepare()
            start = time.perf_counter()
            calls[name]()
            seconds = time.perf_counter() - start
            if i >= warmup:
                times[name].append(seconds)
    return times


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile."""
    low, median, high = statistics.quantiles(values, n=4)
    return low, median, high


def table(title: str, times: dict[str, list[float]], against: str) -> list[dict[str, object]]:
    """Print medians and ratios to one of the calls, and return them as rows."""
    print(f"\n{title}")
    print(f"{'':34s}{'median ms':>10s}{'quartiles':>18s}{'x ' + against:>24s}{'quartiles':>15s}")
    rows = []
    for name, values in times.items():
        low, median, high = quartiles([1e3 * v for v in values])
        pairs = zip(values, times[against], strict=True)
        r_low, ratio, r_high = quartiles([a / b for a, b in pairs])
        print(
            f"{name:34s}{median:10.3f}{f'{low:.3f}..{high:.3f}':>18s}"
            f"{ratio:24.2f}{f'{r_low:.2f}..{r_high:.2f}':>15s}"
        )
        rows.append(
            {"case": title, "call": name, "median_ms": median, "quartiles_ms": [low, high]}
            | {f"ratio_to_{against}": ratio, "ratio_quartiles": [r_low, r_high]}
        )
    return rows


def environment() -> dict[str, object]:
    """What a figure depends on."""
    return {
        "gradwise": gradwise.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "cpu": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }


def save(name: str, rows: list[dict[str, object]]) -> None:
    """Write the rows with the environment beside the script, under results/."""
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"environment": environment(), "rows": rows}, indent=1) + "\n")
    print(
        f"\nwritten to {path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}"
    )
