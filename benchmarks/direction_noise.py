"""Search-direction noise of three rules: one measurement for all, against one for each.

    python benchmarks/direction_noise.py [--data-dir DATA] [--limit 2000] [--rounds 3] [--out FILE]

ResNet-20 on the first images of CIFAR-10 (random pixels without `--data-dir`, at the same cost).
One measurement is a pass over all samples and R batches; the straightforward way makes it anew for
SGD, heavy ball and normalised heavy ball. Passes are counted, seconds are CPU seconds of the
process. Both ways give the same numbers, which is asserted.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradwise.analysis.noise import (
    Direction,
    DirectionNoise,
    gradient_noise,
    search_direction_noise,
)
from gradwise.lab.data import load
from gradwise.lab.models import build
from side_by_side import environment

RULES = (Direction.sgd(), Direction.heavy_ball(0.9), Direction.normalized(0.9))


class Counting(torch.nn.Module):
    """A model that counts the samples which pass through it."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model, self.samples = model, 0

    def forward(self, inputs: Tensor) -> Any:
        """The model's outputs."""
        self.samples += len(inputs)
        return self.model(inputs)


def together(model: Any, data: tuple[Tensor, Tensor], **how: Any) -> list[DirectionNoise]:
    """One measurement for all rules."""
    measured = gradient_noise(model, torch.nn.functional.cross_entropy, data, **how)
    return [DirectionNoise.at_rest(measured, rule) for rule in RULES]


def apart(model: Any, data: tuple[Tensor, Tensor], **how: Any) -> list[DirectionNoise]:
    """One measurement for each rule."""
    loss_fn = torch.nn.functional.cross_entropy
    return [search_direction_noise(model, loss_fn, data, rule, **how) for rule in RULES]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run both ways in turns, print and write seconds and samples."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path, help="folder with CIFAR-10")
    parser.add_argument("--limit", type=int, default=2000)
    parser.add_argument("--batches", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a JSON file")
    arguments = sys.argv[1:] if arguments is None else arguments
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if options.data_dir is None:
        data = torch.randn(options.limit, 3, 32, 32), torch.randint(10, (options.limit,))
    else:
        found = load("cifar10", options.data_dir).subset(options.limit, None)
        data = found.train_x.float() / 255, found.train_y
    model = Counting(build("resnet20", num_classes=10, in_shape=(3, 32, 32)))
    how = {"batch_size": options.batch_size, "batches": options.batches}
    print(environment())
    rows: dict[str, dict[str, Any]] = {}
    for _ in range(options.rounds):
        results = {}
        for name, way in (("together", together), ("apart", apart)):
            model.samples, start = 0, time.process_time()
            results[name] = way(model, data, **how)
            row = rows.setdefault(name, {"seconds": []})
            row["seconds"].append(time.process_time() - start)
            row["samples"] = model.samples
        for one, other in zip(results["together"], results["apart"], strict=True):
            assert abs(one.noise - other.noise) <= 1e-9 * other.noise
    for name, row in rows.items():
        low, high = min(row["seconds"]), max(row["seconds"])
        row["median_s"] = statistics.median(row["seconds"])
        spent = f"{row['median_s']:9.1f} s  ({low:.1f} to {high:.1f})"
        print(f"{name:10s}{row['samples']:8d} samples{spent}")
    if options.out is not None:
        words = ["DATA" if word == str(options.data_dir) else word for word in arguments]
        command = shlex.join(["python", "benchmarks/direction_noise.py", *words])
        shown = {"command": command, "environment": environment(), "rows": rows}
        options.out.write_text(json.dumps(shown, indent=1) + "\n")


if __name__ == "__main__":
    main()
