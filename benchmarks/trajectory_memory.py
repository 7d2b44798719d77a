"""Memory and time of a trajectory's hallmarks: streamed in pieces, or from all weights at once.

    python benchmarks/trajectory_memory.py [--checkpoints 1000] [--plain 10 20 40] [--threads 1]

`TrajectoryRecorder` with a folder records checkpoints of a Transformer of 10 million parameters
and reports. Beside it, the straightforward way: copy the flattened weights to a list, stack them
into a matrix in float32, multiply. It needs all of them in memory at once, so that it is run for
fewer checkpoints, and what it would take for all is extrapolated by a line through the points.

Every case is a process of its own, whose peak memory the system tells; what the process has taken
before the recording (Python, torch, the model) is told beside it. The folder takes 40 MB for each
checkpoint on disk.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from gradwise.analysis.trajectory import TrajectoryRecorder
from models import Transformer
from side_by_side import environment, save

GIB = 2**30


def peak() -> float:
    """The most memory that this process has held, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def move(model: torch.nn.Module, step: int) -> None:
    """Weights of the next checkpoint: a drift that slows down, and noise."""
    with torch.no_grad():
        for param in model.parameters():
            noise = torch.rand_like(param).sub_(0.5)
            param.add_(param, alpha=0.05 / (1 + step)).add_(noise, alpha=0.02 / (1 + step) ** 0.5)


def streamed(model: torch.nn.Module, count: int, folder: Path | None) -> dict[str, float]:
    """Record, then report."""
    recorder = TrajectoryRecorder(model, folder=folder)
    adding = []
    for step in range(count):
        move(model, step)
        begun = time.perf_counter()
        recorder.add(model)
        adding.append(time.perf_counter() - begun)
    recorded, begun, busy = peak(), time.perf_counter(), time.process_time()
    report = recorder.report()
    return {
        "add_s": float(np.median(adding)),
        "after_recording_gib": recorded,
        "report_s": time.perf_counter() - begun,
        "report_cpu_s": time.process_time() - busy,
        "mds": report.map.mds or math.nan,
        "mean_turn": report.turns.mean or math.nan,
    }


def stacked(model: torch.nn.Module, count: int) -> dict[str, float]:
    """All weights in one matrix."""
    kept, adding = [], []
    for step in range(count):
        move(model, step)
        begun = time.perf_counter()
        kept.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        adding.append(time.perf_counter() - begun)
    recorded, begun, busy = peak(), time.perf_counter(), time.process_time()
    weights = torch.stack(kept)
    norms = weights.norm(dim=1)
    cosines = weights @ weights.T / torch.outer(norms, norms)
    away = weights - weights[0]
    away @ away.T
    steps = weights.diff(dim=0)
    lengths = steps.norm(dim=1)
    turns = ((steps[1:] * steps[:-1]).sum(1) / (lengths[1:] * lengths[:-1])).clamp(-1, 1).acos()
    return {
        "add_s": float(np.median(adding)),
        "after_recording_gib": recorded,
        "report_s": time.perf_counter() - begun,
        "report_cpu_s": time.process_time() - busy,
        "mds": float(cosines.mean()),
        "mean_turn": float(turns.mean()),
    }


def one(way: str, count: int, threads: int) -> dict[str, object]:
    """What a case's own process does."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = Transformer()
    move(model, 10**9)
    before = peak()
    if way == "stacked":
        found = stacked(model, count)
    elif way == "in memory":
        found = streamed(model, count, None)
    else:
        with tempfile.TemporaryDirectory() as folder:
            found = streamed(model, count, Path(folder) / "trajectory")
    size = sum(p.numel() for p in model.parameters())
    told: dict[str, object] = {"way": way, "checkpoints": count, "parameters": size}
    return told | {"before_gib": before, "peak_gib": peak()} | found


def measured(way: str, count: int, threads: int) -> dict[str, object]:
    """A case in a process of its own."""
    words = [sys.executable, __file__, "--case", way, str(count), "--threads", str(threads)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    row: dict[str, object] = json.loads(done.stdout)
    print(
        f"{way:12s}{count:6d} checkpoints: {row['peak_gib']:6.2f} GiB at most "
        f"({row['before_gib']:.2f} before), add {1e3 * row['add_s']:7.1f} ms, "
        f"report {row['report_s']:7.1f} s, MDS {row['mds']:.6f}, "
        f"mean turn {row['mean_turn']:.6f}",
        flush=True,
    )
    return row


def main() -> None:
    """Run all cases and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoints", type=int, default=1000)
    parser.add_argument("--plain", type=int, nargs="+", default=[10, 20, 40])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(one(options.case[0], int(options.case[1]), options.threads)))
        return
    print(environment())
    rows = []
    for count in options.plain:
        rows += [measured(way, count, options.threads) for way in ("folder", "in memory")]
        rows.append(measured("stacked", count, options.threads))
    plain = [row for row in rows if row["way"] == "stacked"]
    rows.append(measured("folder", options.checkpoints, options.threads))
    if len(plain) > 1:
        counts = [row["checkpoints"] for row in plain]
        slope, base = np.polyfit(counts, [row["peak_gib"] for row in plain], 1)
        peak_gib = float(base + slope * options.checkpoints)
        print(
            f"stacked, extrapolated to {options.checkpoints} checkpoints: {peak_gib:.1f} GiB, "
            f"{peak_gib / rows[-1]['peak_gib']:.0f} times as much as streamed"
        )
        told = {"way": "stacked, extrapolated", "checkpoints": options.checkpoints}
        rows.append(told | {"peak_gib": peak_gib})
    save("trajectory_memory", rows)


if __name__ == "__main__":
    main()
