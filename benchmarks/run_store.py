"""What the run store costs at size: writing, reading, and looking at a run while it is written.

    python benchmarks/run_store.py [--layers 5000] [--steps 20000] [--keep-steps N] [--plain]

Writes a run as fast as the disk takes it, in blocks of 64 steps; reads it in the ways that the
live view and the report do; has a second process continue it at some steps a second while this one
looks at it once a second; amends records. With `--plain` the same values are also written to one
Parquet file by pandas' means, in the order of the steps, and read by pandas.

Values are log-normal around a level of each layer, so the mantissas do not compress; weight norms
are measured every tenth step, as the watch does it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq

from gradwise.watch.store import RunWriter, load
from side_by_side import environment, quartiles

METRICS = (
    *("norm", "mean", "std", "nonfinite", "var", "max_abs", "zeros"),
    *("weight_norm", "update_ratio"),
)
SCALARS = tuple(f"scalar_{i:02d}" for i in range(25))
BLOCK = 64
NEWEST = 60


class Values:
    """Blocks of made-up records, a copy of a ring with another factor each time."""

    def __init__(self, layers: int, metrics: int = len(METRICS)) -> None:
        self.metrics = METRICS[:metrics]
        draw = np.random.default_rng(0)
        level = draw.normal(size=layers)
        self.names = [f"blocks.{i // 12}.part{i % 12}.weight" for i in range(layers)]
        self.ring = {
            name: np.exp(0.2 * draw.normal(size=(BLOCK, layers)) + level) for name in METRICS
        }
        self.ring["zeros"] = draw.random((BLOCK, layers)) * (np.arange(layers) % 10 == 0)
        self.ring["nonfinite"] = np.zeros((BLOCK, layers))
        others = (np.arange(layers) + np.arange(BLOCK)[:, None]) % 10 != 0
        for name in ("weight_norm", "update_ratio"):
            self.ring[name][others] = np.nan
        self.draw = draw

    def block(self, first: int, count: int = BLOCK) -> tuple[np.ndarray, dict, dict]:
        """The records of some steps."""
        factor = np.exp(self.draw.normal(size=(count, 1)))
        factors = {"zeros": 1.0, "nonfinite": 1.0}
        layers = {n: self.ring[n][:count] * factors.get(n, factor) for n in self.metrics}
        return (
            np.arange(first, first + count),
            layers,
            {name: self.draw.normal(size=count) for name in SCALARS},
        )


def clock(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class Table:
    """Prints medians and quartiles and keeps them."""

    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []

    def times(self, case: str, seconds: list[float]) -> None:
        """One line of times."""
        low, median, high = quartiles([1e3 * s for s in seconds])
        longest = 1e3 * max(seconds)
        print(
            f"{case:52s}{median:10.1f} ms   quartiles {low:8.1f} ..{high:8.1f}"
            f"   longest {longest:8.1f}",
            flush=True,
        )
        row = {"case": case, "median_ms": median, "quartiles_ms": [low, high]}
        self.rows.append(row | {"longest_ms": longest, "rounds": len(seconds)})

    def figure(self, case: str, value: float, unit: str) -> None:
        """One line with one number."""
        print(f"{case:52s}{value:10.4g} {unit}", flush=True)
        self.rows.append({"case": case, "value": value, "unit": unit})


def write(folder: Path, values: Values, steps: int, keep: int | None, table: Table) -> None:
    """Stage one: everything at once."""
    seconds, busy = [], []
    layers = len(values.names)
    writer = RunWriter(folder, values.names, layer_metrics=values.metrics, keep_steps=keep)
    for first in range(0, steps, BLOCK):
        block = values.block(first, min(BLOCK, steps - first))
        begun = time.thread_time()
        seconds.append(clock(lambda block=block: writer.append(*block)))
        busy.append(time.thread_time() - begun)
    seconds.append(clock(writer.close))
    assert writer.errors == 0
    table.times(f"append {BLOCK} steps, in bulk", seconds[:-1])
    table.times(f"append {BLOCK} steps, in bulk, processor time", busy)
    table.figure("close", seconds[-1] * 1e3, "ms")
    table.figure("writing", layers * steps * len(values.metrics) / sum(seconds) / 1e6, "M values/s")
    sizes = {
        part: sum(path.stat().st_size for path in (folder / part).rglob("*.parquet"))
        for part in ("layers", "pyramids", "steps")
    }
    kept = load(folder).metric("norm")[0].size
    table.figure("layers", sizes["layers"] / (layers * kept * len(values.metrics)), "bytes/value")
    table.figure(
        "pyramids", sizes["pyramids"] / (layers * steps * len(values.metrics)), "bytes/value"
    )
    table.figure("folder", sum(sizes.values()) / 2**30, "GiB")
    table.figure("files", len(list(folder.rglob("*.parquet"))), "files")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    table.figure("memory of this process, at most", peak, "GiB")


def read(folder: Path, table: Table, rounds: int) -> None:
    """Stage two: a finished run."""
    run = load(folder)
    last = run.last_step or 0
    first = int(run.layer(run.layer_names[0], ["norm"])["step"][0].as_py())
    middle = (first + last) // 2
    name = run.layer_names[len(run.layer_names) // 2]
    cases = {
        "open": lambda: load(folder),
        "refresh, nothing new": run.refresh,
        "one layer, all steps, all metrics": lambda: run.layer(name),
        "one layer, all steps, one metric": lambda: run.layer(name, ["norm"]),
        "one metric, newest 1000 steps, all layers": lambda: run.metric("norm", first=last - 999),
        "one metric, 1000 steps in the middle": lambda: run.metric(
            "norm", first=middle, last=middle + 999
        ),
        "all metrics, 1000 steps in the middle": lambda: run.window(middle, middle + 999),
        "one metric, whole run in 500 bins": lambda: run.downsampled("norm", 500),
        "all step metrics in 500 bins": lambda: run.downsampled_steps(500),
        "all metrics, latest row": lambda: run.latest(1),
        f"all metrics, newest {NEWEST} records": lambda: run.latest(NEWEST),
        "steps table": lambda: run.steps,
    }
    for case, call in cases.items():
        call()
        table.times(case, [clock(call) for _ in range(rounds)])


def amend(folder: Path, values: Values, table: Table, rounds: int) -> None:
    """Stage three: scalars that come late."""
    last = load(folder).last_step or 0
    with RunWriter(
        folder, values.names, layer_metrics=values.metrics, resume_from=last + 1, flush_every=1e6
    ) as writer:
        count = 4
        seconds: dict[str, list[float]] = {"newest": [], "in the middle": []}
        for i in range(rounds):
            writer.append(*values.block(last + 1 + i * count, count))
            writer.flush()
            for case, step in (("newest", last + (i + 1) * count), ("in the middle", last // 2)):
                scalars = {"accuracy": np.array([i + 0.5])}
                writer.amend(np.array([step]), scalars)
                # Not `flush`, which would merge as well.
                seconds[case].append(clock(lambda: writer._flusher.write(work=False)))
        assert writer.errors == 0
    for case, times in seconds.items():
        table.times(f"amending a record on the disk, {case}", times)


def live(folder: Path, values: Values, rate: float, length: float, table: Table) -> None:
    """Stage four: a second process records, this one looks once a second."""
    begin = (load(folder).last_step or 0) + 1
    size = map(str, (len(values.names), len(values.metrics), begin, rate, length))
    times: dict[str, list[float]] = {"open": [], "refresh": [], "latest": [], "steps": []}
    ages = []
    with subprocess.Popen(
        [sys.executable, __file__, "--writer", str(folder), *size],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        run = load(folder)
        end = time.monotonic() + length - 2
        while (now := time.monotonic()) < end:
            times["open"].append(clock(lambda: load(folder)))
            times["refresh"].append(clock(run.refresh))
            times["latest"].append(clock(lambda: run.latest(NEWEST)))
            times["steps"].append(clock(lambda: run.downsampled_steps(300)))
            ages.append(time.time() - float(run.latest(1, metrics=[]).scalars["time"][-1]))
            time.sleep(max(0.0, 1 - (time.monotonic() - now)))
        told = json.loads(process.stdout.read())
    table.times("live: open", times["open"][1:])
    table.times("live: refresh", times["refresh"][1:])
    table.times(f"live: newest {NEWEST} records, all metrics", times["latest"][1:])
    table.times("live: all step metrics in 300 bins", times["steps"][1:])
    table.times("live: age of the newest record seen", ages[1:])
    table.times("live: one append and flush_if_due of the writer", told)


def writer_process(words: list[str]) -> None:
    """Record at a rate, as a watch's background thread does."""
    folder, (layers, metrics, begin) = words[0], map(int, words[1:4])
    rate, length = map(float, words[4:])
    values = Values(layers, metrics)
    seconds = []
    with RunWriter(folder, values.names, layer_metrics=values.metrics, resume_from=begin) as writer:
        start = time.monotonic()
        step = begin
        ready = False
        while (now := time.monotonic() - start) < length:
            count = min(int(now * rate) - (step - begin), BLOCK)
            if count:
                steps, rows, scalars = values.block(step, count)
                scalars["time"] = np.full(count, time.time())
            began = time.perf_counter()
            if count:
                writer.append(steps, rows, scalars)
            writer.flush_if_due()
            seconds.append(time.perf_counter() - began)
            step += count
            if not ready and step > begin and not writer.steps_waiting:
                print("ready", flush=True)
                ready = True
            time.sleep(0.25)
        assert writer.errors == 0
    print(json.dumps(seconds), flush=True)


def plain(folder: Path, table: Table, scratch: Path) -> None:
    """The same values in one file, in the order in which they come, as pandas would write it."""
    run = load(folder)
    last = run.last_step or 0
    path = scratch / "plain.parquet"
    names = list(run.layer_names)
    seconds = 0.0
    writer = None
    size = max(1, 2**20 // len(names))  # pandas' row groups
    for first in range(0, last + 1, size):
        block = run.window(first, first + size - 1)
        codes = np.tile(np.arange(len(names)), len(block.steps))
        columns = {
            "step": np.repeat(block.steps, len(names)),
            "layer": pandas.Categorical.from_codes(codes, categories=names),
        }
        values = {name: value.astype(np.float32).ravel() for name, value in block.layers.items()}
        frame = pandas.DataFrame(columns | values)
        start = time.perf_counter()
        chunk = pa.Table.from_pandas(frame, preserve_index=False)
        writer = writer or pq.ParquetWriter(path, chunk.schema)
        writer.write_table(chunk)
        seconds += time.perf_counter() - start
    assert writer is not None
    writer.close()
    amount = len(names) * (last + 1) * len(run.layer_metrics)
    table.figure("plain: writing", amount / seconds / 1e6, "M values/s")
    table.figure("plain: layers", path.stat().st_size / amount, "bytes/value")
    name, middle = run.layer_names[len(names) // 2], last // 2

    def between(low: int, high: int, columns: list[str] | None) -> object:
        where = [("step", ">=", low), ("step", "<=", high)]
        return pandas.read_parquet(path, columns=columns, filters=where)

    of_layer = [("layer", "==", name)]
    cases = {
        "plain: one layer, all steps, all metrics": lambda: pandas.read_parquet(
            path, filters=of_layer
        ),
        "plain: one layer, all steps, one metric": lambda: pandas.read_parquet(
            path, columns=["step", "norm"], filters=of_layer
        ),
        "plain: one metric, newest 1000 steps, all layers": lambda: between(
            last - 999, last, ["step", "layer", "norm"]
        ),
        "plain: one metric, 1000 steps in the middle": lambda: between(
            middle, middle + 999, ["step", "layer", "norm"]
        ),
        f"plain: all metrics, newest {NEWEST} records": lambda: between(
            last - NEWEST + 1, last, None
        ),
    }
    for case, call in cases.items():
        table.times(case, [clock(call) for _ in range(3)])


def main() -> None:
    """Run all stages and write the table."""
    if sys.argv[1:2] == ["--writer"]:
        writer_process(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=5000)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--metrics", type=int, default=len(METRICS), help="of each layer")
    parser.add_argument("--keep-steps", type=int)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--rate", type=float, default=10.0, help="steps a second while looking")
    parser.add_argument("--live", type=float, default=45.0, help="seconds of looking")
    parser.add_argument("--plain", action="store_true", help="also one file written by pandas")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    table = Table()
    machine = environment() | {
        "cores": os.cpu_count(),
        "load_average_before": os.getloadavg()[0],
        "numpy": np.__version__,
        "pyarrow": pa.__version__,
        "pandas": pandas.__version__,
    }
    print(machine)
    scratch = Path(tempfile.mkdtemp(dir=options.scratch))
    try:
        folder, values = scratch / "run", Values(options.layers, options.metrics)
        title = f"{options.layers} layers x {options.steps} steps x {options.metrics} metrics"
        print(f"\n{title}")
        write(folder, values, options.steps, options.keep_steps, table)
        read(folder, table, options.rounds)
        if options.plain:
            plain(folder, table, scratch)
        live(folder, values, options.rate, options.live, table)
        amend(folder, values, table, options.rounds)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    path = results / f"run_store_{options.layers}x{options.steps}.json"
    keep = {"title": title, "keep_steps": options.keep_steps, "rate": options.rate}
    content = {"environment": machine, "run": keep, "rows": table.rows}
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
