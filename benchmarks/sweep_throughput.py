"""Trials an hour: `gradwise compare`, with its processes, beside a plain loop over the seeds.

    python benchmarks/sweep_throughput.py --device cpu --jobs 1,2 --rounds 5
    python benchmarks/sweep_throughput.py --device cuda --per-device 1,4,8 --model resnet20 \
        --data-dir DATA --epochs 10 --limit-train 0 --trials 8 --rounds 3

The plain loop is one process that trains one model after the other, as one writes it by hand: data
and augmentation on the device, SGD, the test set after each epoch, nothing recorded, nothing
checkpointed; on a CPU once with one thread and once with all cores. A comparison does all of that
with a process for each trial, and records, checks and checkpoints besides. Both are timed from the
start of their process to its end, with what Python and torch take to be loaded. The order within a
round is random; figures are medians with quartiles over the rounds.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.nn import functional as F

from gradwise.lab.augment import Augment
from gradwise.lab.data import Dataset, load
from gradwise.lab.device import cores
from gradwise.lab.models import build
from gradwise.lab.schedule import lr_factor
from gradwise.lab.settings import Settings
from side_by_side import environment, quartiles, save

LR, MOMENTUM, DECAY, EVAL_BATCH = 0.1, 0.9, 5e-4, 1024


def by_hand(asked: dict[str, object]) -> None:
    """Train a model for each seed, one after the other."""
    settings = Settings(**asked["settings"])  # type: ignore[arg-type]
    device = torch.device(settings.device)
    torch.set_num_threads(int(str(asked["threads"])))
    data_dir = None if settings.data_dir is None else Path(settings.data_dir)
    data = load(settings.data, data_dir).subset(settings.limit_train, settings.limit_test)
    augment = Augment(
        data.mean, data.std, data.crop_padding, data.flip, "standard", data.num_classes
    )
    for seed in range(int(str(asked["trials"]))):
        accuracy = _one(settings, data, augment, device, seed)
        print(f"seed {seed}: {100 * accuracy:.2f} %", file=sys.stderr)


def _one(
    settings: Settings, data: Dataset, augment: Augment, device: torch.device, seed: int
) -> float:
    torch.manual_seed(seed)
    model = build(settings.model, num_classes=data.num_classes, in_shape=data.in_shape)
    model = model.to(device, memory_format=torch.channels_last)
    x, y = data.train_x.to(device), data.train_y.to(device)
    test_x, test_y = data.test_x.to(device), data.test_y.to(device)
    batches = len(x) // settings.batch_size
    optimizer = torch.optim.SGD(model.parameters(), LR, MOMENTUM, weight_decay=DECAY)
    factor = lr_factor("cosine", batches * settings.epochs)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    draw = torch.Generator(device).manual_seed(seed)
    correct = 0
    dtype = {"bf16": torch.bfloat16}.get(settings.amp)
    for _ in range(settings.epochs):
        model.train()
        order = torch.randperm(len(x), generator=draw, device=device)
        for i in range(batches):
            index = order[i * settings.batch_size : (i + 1) * settings.batch_size]
            inputs, targets = augment(x[index], y[index], draw)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                loss = F.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        model.eval()
        correct = 0
        with torch.no_grad(), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            for start in range(0, len(test_x), EVAL_BATCH):
                outputs = model(augment.prepare_eval(test_x[start : start + EVAL_BATCH]))
                correct += int((outputs.argmax(1) == test_y[start : start + EVAL_BATCH]).sum())
    return correct / len(test_x)


def commands(options: argparse.Namespace) -> dict[str, list[str]]:
    """What is timed: command lines by name; `{out}` stands for a fresh folder."""
    limit = options.limit_train or None
    settings = {
        "data": options.data,
        "data_dir": options.data_dir,
        "model": options.model,
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "limit_train": limit,
        "device": options.device,
        "amp": options.amp,
    }
    script = [sys.executable, str(Path(__file__).resolve()), "--by-hand"]
    lab = [sys.executable, "-m", "gradwise.cli", "compare", "--methods", options.method]
    lab += ["--seeds", str(options.trials), "--out", "{out}", "--json"]
    lab += ["--lr", str(LR), "--record-every", str(options.record_every)]
    for name, value in settings.items():
        if value is not None:
            lab += [f"--{name.replace('_', '-')}", str(value)]
    found: dict[str, list[str]] = {}
    on_cpu = options.device == "cpu"
    for threads in sorted({1, cores()}) if on_cpu else [1]:
        asked = {"settings": settings, "threads": threads, "trials": options.trials}
        label = f"by hand, {threads} thread{'s' if threads > 1 else ''}" if on_cpu else "by hand"
        found[label] = [*script, json.dumps(asked)]
    flag, numbers = ("--jobs", options.jobs) if on_cpu else ("--per-device", options.per_device)
    for number in numbers.split(","):
        for compiled in ([], ["--compile"]) if options.compile else ([],):
            label = f"compare {flag} {number}{' --compile' if compiled else ''}"
            found[label] = [*lab, flag, number, *compiled]
    return found


def timed(command: list[str], scratch: Path) -> float:
    """Seconds that a command takes; its folder is gone afterwards.

    Raises:
        RuntimeError: where it fails; what it said is in the message.
    """
    out = scratch / "out"
    shutil.rmtree(out, ignore_errors=True)
    line = [part.replace("{out}", str(out)) for part in command]
    began = time.perf_counter()
    done = subprocess.run(line, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode != 0:
        raise RuntimeError(f"{line} failed: {done.stderr[-3000:]}")
    shutil.rmtree(out, ignore_errors=True)
    return seconds


def report(times: dict[str, list[float]], trials: int, title: str) -> list[dict[str, object]]:
    """Print trials an hour, and how many times that of the best loop by hand, round by round."""
    print(f"\n{title}")
    print(f"{'':34s}{'trials an hour':>16s}{'quartiles':>20s}{'x by hand':>12s}{'quartiles':>16s}")
    hands = [values for name, values in times.items() if name.startswith("by hand")]
    best = min(hands, key=lambda values: quartiles(values)[1])
    rows: list[dict[str, object]] = []
    for name, values in times.items():
        low, median, high = quartiles([3600 * trials / seconds for seconds in values])
        pairs = zip(best, values, strict=True)
        r_low, ratio, r_high = quartiles([hand / own for hand, own in pairs])
        print(
            f"{name:34s}{median:16.1f}{f'{low:.1f}..{high:.1f}':>20s}"
            f"{ratio:12.2f}{f'{r_low:.2f}..{r_high:.2f}':>16s}"
        )
        rows.append(
            {"case": title, "call": name, "trials_per_hour": median, "quartiles": [low, high]}
            | {"times_by_hand": ratio, "times_quartiles": [r_low, r_high], "seconds": values}
        )
    return rows


def main() -> None:
    """Time everything and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--by-hand", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data-dir")
    parser.add_argument("--model", default="digits-resnet")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--limit-train", type=int, default=0, help="0 for all rows")
    parser.add_argument("--method", default="sgd")
    parser.add_argument("--amp", default="off", choices=["off", "bf16"])
    parser.add_argument("--record-every", type=int, default=1)
    parser.add_argument("--trials", type=int, default=4, help="seeds a call")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--jobs", default="1,2", help="list, on a CPU")
    parser.add_argument("--per-device", default="1,2,4", help="list, on a GPU")
    parser.add_argument("--compile", action="store_true", help="with and without")
    options = parser.parse_args()
    if options.by_hand is not None:
        by_hand(options.by_hand)
        return
    if options.rounds < 2:
        parser.error("quartiles need --rounds of at least 2")
    print(environment())
    lines = commands(options)
    times: dict[str, list[float]] = {name: [] for name in lines}
    shuffle = random.Random(0).shuffle
    with tempfile.TemporaryDirectory() as scratch:
        for name, line in lines.items():  # decodes the data and fills the compilers' caches
            print(f"warm-up: {name}, {timed(line, Path(scratch)):.1f} s", flush=True)
        for _ in range(options.rounds):
            order = list(lines)
            shuffle(order)
            for name in order:
                times[name].append(timed(lines[name], Path(scratch)))
    where = options.device if options.device == "cpu" else torch.cuda.get_device_name()
    title = f"{options.trials} trials of {options.model} on {options.data}, {options.epochs} epochs"
    rows = report(times, options.trials, f"{title}, {where}, {cores()} cores")
    save(f"sweep_throughput_{options.device.split(':')[0]}_{options.model}", rows)


if __name__ == "__main__":
    main()
