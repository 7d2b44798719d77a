"""What gradwise costs on a GPU, beside what the bytes alone would take.

    python benchmarks/gpu.py [--json FILE] [--rounds 50] [--cases large-bfloat16,small]

Needs a CUDA device; `--device cpu --small` runs the same code at toy size, to see that it works,
and marks nothing as measured. First the bandwidth B of a copy within the device is measured. A call
that moves k times the bytes G of all gradients should take k G / B; that is predicted from B alone.
Calls are interleaved in random order and timed by events on the device; every figure is a median
with quartiles. Kernels, host synchronisations and CUDA-graph capture are tried last.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

import gradwise as gw
from gradwise import backends
from gradwise.affine import Affine
from gradwise.layout import layout_of
from side_by_side import environment, interleaved, quartiles

TYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass
class Case:
    """A list of gradients to work on.

    Attributes:
        name: for the table.
        shapes: of the tensors.
        dtype: of all of them.
    """

    name: str
    shapes: list[tuple[int, ...]]
    dtype: torch.dtype

    @property
    def numel(self) -> int:
        """Values in all tensors."""
        return sum(torch.Size(shape).numel() for shape in self.shapes)

    @property
    def bytes(self) -> int:
        """G, the bytes of all gradients."""
        return self.numel * self.dtype.itemsize


def decoder(width: int, hidden: int, depth: int, vocabulary: int) -> list[tuple[int, ...]]:
    """The shapes of a decoder's weights: embedding, and matrices and norms of each block."""
    shapes: list[tuple[int, ...]] = [(vocabulary, width)]
    for _ in range(depth):
        shapes += [(3 * width, width), (width, width), (hidden, width), (hidden, width)]
        shapes += [(width, hidden), (width,), (width,)]
    return [*shapes, (width,)]


def cases(small: bool) -> list[Case]:
    """About a billion parameters in two types, and a model of many small tensors."""
    large = decoder(64, 176, 2, 500) if small else decoder(2048, 5632, 18, 50_000)
    many = [(17, 9), (9,)] * (15 if small else 1000)
    if not small:
        many = [(64, 48), (64,)] * 1000
    found = [Case(f"large-{name}", large, dtype) for name, dtype in TYPES.items()]
    return [*found, Case("small", many, torch.float32)]


class Clock:
    """Times calls: by events on a GPU, by the host's clock elsewhere."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wait(self) -> None:
        """Until the device is idle."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def measure(
        self, calls: dict[str, Callable[[], object]], prepare: Callable[[], None], rounds: int
    ) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
        """Seconds on the device and on the host of every call in every round, interleaved.

        The host's are until the call returns, while the device may still be at it.
        """
        there: dict[str, list[float]] = {name: [] for name in calls}

        def timed(name: str, call: Callable[[], object]) -> Callable[[], object]:
            def run() -> None:
                if self.device.type != "cuda":
                    start = time.perf_counter()
                    call()
                    there[name].append(time.perf_counter() - start)
                    return
                events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
                events[0].record()
                call()
                events[1].record()
                pending.append((name, events))

            return run

        pending: list[tuple[str, list[torch.cuda.Event]]] = []

        def ready() -> None:
            prepare()
            self.wait()
            while pending:
                name, (start, end) = pending.pop()
                there[name].append(start.elapsed_time(end) / 1e3)

        warmup = max(rounds // 5, 3)
        wrapped = {name: timed(name, call) for name, call in calls.items()}
        host = interleaved(wrapped, ready, rounds, warmup)
        ready()
        return {name: values[warmup:] for name, values in there.items()}, host


def copy_bandwidth(clock: Clock, size: int, rounds: int) -> float:
    """Bytes per second that a copy within the device reads and writes, the median."""
    source = torch.zeros(size, dtype=torch.uint8, device=clock.device)
    target = torch.empty_like(source)
    found, _ = clock.measure({"copy": lambda: target.copy_(source)}, lambda: None, rounds)
    return 2 * size / quartiles(found["copy"])[1]


class NoUpdate(torch.optim.Optimizer):
    """An optimizer that does nothing, so that the hook alone is timed."""

    def step(self, closure=None):
        """Do nothing."""


def gradient_calls(case: Case, device: torch.device, folder: str):
    """The calls on gradients alone: name, how often they move G, and the call."""
    params = [
        torch.nn.Parameter(torch.zeros(s, dtype=case.dtype, device=device)) for s in case.shapes
    ]
    for param in params:
        param.grad = torch.randn_like(param)
    grads = [param.grad for param in params]
    saved = [grad.clone() for grad in grads]
    layout = layout_of(grads)
    both = torch.full((2, layout.segments), 0.9, dtype=torch.float64, device=device)
    both[1] = 1e-3
    affine = Affine(both[0], both[1])
    named = [(f"weight{i}", param) for i, param in enumerate(params)]
    scaled, watched = NoUpdate(named, {}), NoUpdate(named, {})
    gw.autoscale(scaled)
    watch = gw.watch(watched, None, Path(folder) / case.name, rules=(), weights_every=0)
    moments = gw.moments.measure_layout
    calls = {
        "measure": (1, lambda: moments(grads, layout, extremes=False)),
        "measure with extremes": (1, lambda: moments(grads, layout)),
        "apply": (2, lambda: backends.apply(grads, affine, layout)),
        "autoscale step, attached": (3, scaled.step),
        "clip_grad_norm_": (3, lambda: torch.nn.utils.clip_grad_norm_(params, 1.0, foreach=True)),
        "watch alone": (1, watched.step),
        "measure, foreach backend": (2, lambda: moments(grads, layout, "foreach", extremes=False)),
    }
    return calls, lambda: torch._foreach_copy_(grads, saved), watch, scaled


def update_calls(case: Case, device: torch.device):
    """AdamW with and without a transform, each with states of its own."""
    grads = [torch.randn(s, device=device).to(case.dtype) for s in case.shapes]

    params = [torch.nn.Parameter(torch.zeros_like(grad)) for grad in grads]  # of all, in turn
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad

    def ours(**options):
        return lambda params: gw.optim.AdamW(params, lr=1e-6, **options)

    autoscale = gw.transforms.Autoscale
    makes = {
        "torch AdamW(fused)": (7, lambda p: torch.optim.AdamW(p, lr=1e-6, fused=True)),
        "AdamW": (7, ours()),
        "AdamW + autoscale, folded": (8, ours(transform=autoscale())),
        "AdamW + autoscale, capturable": (8, ours(transform=autoscale(), capturable=True)),
    }
    return {name: (passes, make(params)) for name, (passes, make) in makes.items()}


def count_kernels(call: Callable[[], object], device: torch.device) -> int | None:
    """Kernels and copies that a call starts on the device; None where there is no device."""
    if device.type != "cuda":
        return None
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        call()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profiled.events())


def waits(call: Callable[[], object], device: torch.device) -> str | None:
    """The first thing in a call that made the host wait, "" for none; None without a device."""
    if device.type != "cuda":
        return None
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        return (str(error).splitlines() or ["unknown"])[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return ""


def captured(step: Callable[[], object], device: torch.device) -> str | None:
    """Whether a step can be captured in a CUDA graph and replayed: "" or why not."""
    if device.type != "cuda":
        return None
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    try:
        with torch.cuda.stream(side):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=side):
            step()
        graph.replay()
        torch.cuda.synchronize()
    except RuntimeError as error:
        return (str(error).splitlines() or ["unknown"])[0]
    return ""


def rows_of(case: Case, passes, timed, bandwidth: float) -> list[dict[str, object]]:
    """Print the table of a case and return its rows."""
    there, host = timed
    size = f"{len(case.shapes)} tensors, {case.numel / 1e6:.4g} M, {case.dtype}"
    print(f"\n{case.name}: {size}, G = {case.bytes / 1e6:.4g} MB")
    head = ("predicted ms", "median ms", "quartiles", "of the copy", "host ms")
    print(f"{'':32s}" + "".join(f"{h:>20s}" for h in head))
    rows = []
    for name, values in there.items():
        moved = passes[name] * case.bytes
        low, median, high = quartiles([1e3 * v for v in values])
        predicted, share = 1e3 * moved / bandwidth, 1e3 * moved / bandwidth / median
        on_host = quartiles([1e3 * v for v in host[name]])[1]
        shown = (f"{predicted:.4f}", f"{median:.4f}", f"{low:.4f}..{high:.4f}", f"{share:.2f}")
        print(f"{name:32s}" + "".join(f"{s:>20s}" for s in (*shown, f"{on_host:.4f}")))
        rows.append(
            {"case": case.name, "call": name, "passes_of_G": passes[name], "G_bytes": case.bytes}
            | {"predicted_ms": predicted, "median_ms": median, "quartiles_ms": [low, high]}
            | {"share_of_copy": share, "host_median_ms": on_host}
        )
    return rows


def run(case: Case, clock: Clock, bandwidth: float, rounds: int) -> list[dict[str, object]]:
    """All calls of one case."""
    device = clock.device
    with tempfile.TemporaryDirectory() as folder:
        calls, restore, watch, scaled = gradient_calls(case, device, folder)
        passes = {name: k for name, (k, _) in calls.items()}
        only = {name: call for name, (_, call) in calls.items()}
        rows = rows_of(case, passes, clock.measure(only, restore, rounds), bandwidth)
        for row in rows:
            call = only[str(row["call"])]
            row["kernels"], row["waits"] = count_kernels(call, device), waits(call, device)
        rows.append(
            {"case": case.name, "call": "autoscale step, attached, in a CUDA graph"}
            | {"fails": captured(scaled.step, device)}
        )
        watch.close()
    del calls, only, restore, scaled, watch
    for name, (k, optimizer) in (made := update_calls(case, device)).items():
        optimizer.step()  # makes the states
        made[name] = (k, optimizer.step)
    passes = {name: k for name, (k, _) in made.items()}
    only = {name: call for name, (_, call) in made.items()}
    updates = rows_of(case, passes, clock.measure(only, lambda: None, rounds), bandwidth)
    for row in updates:
        call = only[str(row["call"])]
        row["kernels"], row["waits"] = count_kernels(call, device), waits(call, device)
    rows += updates
    name = "AdamW + autoscale, capturable"
    rows.append(
        {"case": case.name, "call": f"{name}, in a CUDA graph"}
        | {"fails": captured(only[name], device)}
    )
    for row in rows:
        if "fails" in row or row["waits"]:
            about = row["fails"] if "fails" in row else f"waits: {row['waits']}"
            print(f"{row['call']}: {'works' if about == '' else about or 'not tried'}")
        elif row["kernels"] is not None:
            print(f"{row['call']}: {row['kernels']} kernels and copies, never waits")
    return rows


def main() -> int:
    """Measure, print and write; 2 where there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="toy sizes")
    parser.add_argument("--json", type=Path, help="where to write; default: not at all")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--cases", help="names, separated by commas; default: all")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(
            "there is no CUDA device: try --device cpu --small for a run without", file=sys.stderr
        )
        return 2
    chosen = cases(options.small)
    if options.cases is not None:
        names = options.cases.split(",")
        if unknown := set(names) - {case.name for case in chosen}:
            known = ", ".join(case.name for case in chosen)
            print(f"expected --cases of {known}, got {', '.join(sorted(unknown))}", file=sys.stderr)
            return 2
        chosen = [case for case in chosen if case.name in names]
    about = environment() | {"device": str(device), "backend": backends.choose(device)}
    if device.type == "cuda":
        about |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
        about["triton"] = __import__("triton").__version__ if about["backend"] == "triton" else None
    measured = device.type == "cuda" and not options.small
    torch.manual_seed(0)
    clock = Clock(device)
    bandwidth = copy_bandwidth(clock, 1 << (20 if options.small else 31), options.rounds)
    print(about)
    print(f"copy within the device: {bandwidth / 1e9:.4g} GB/s read and written")
    if not measured:
        print("toy sizes or no GPU: nothing here is a measurement")
    rows: list[dict[str, object]] = []
    for case in chosen:
        try:
            rows += run(case, clock, bandwidth, options.rounds)
        except torch.OutOfMemoryError:
            print(f"{case.name}: left out, the device has too little memory", file=sys.stderr)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if options.json is not None:
        result = {"measured": measured, "environment": about, "copy_bytes_per_s": bandwidth}
        options.json.write_text(json.dumps({**result, "rows": rows}, indent=1) + "\n")
        print(f"\nwritten to {options.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
