"""What each of two processes does in the tests of DistributedDataParallel."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from gradwise.watch.probes.noise import NoiseProbe
from noise.loops import loss_of, network, vector
from noise.problems import Problem, regression

WORLD = 2
STEPS = 4

# name -> how gradients are reduced, and what the loop does
SCENARIOS: dict[str, dict[str, Any]] = {
    "one pass": {"passes": 1},
    "one pass, views of buckets": {"passes": 1, "gradient_as_bucket_view": True},
    "one pass, static graph": {"passes": 1, "static_graph": True},
    "one pass, looking for unused": {
        "passes": 1,
        "gradient_as_bucket_view": True,
        "find_unused_parameters": True,
    },
    "one pass, many buckets": {"passes": 1, "bucket_cap_mb": 1e-5},
    "one pass, zeroed in place": {
        "passes": 1,
        "gradient_as_bucket_view": True,
        "to_none": False,
    },
    "three passes": {"passes": 3},
    "three passes, views of buckets": {"passes": 3, "gradient_as_bucket_view": True},
    "three passes, zeroed in place": {
        "passes": 3,
        "gradient_as_bucket_view": True,
        "to_none": False,
    },
    "three passes, each reduced": {"passes": 3, "no_sync": False},
    "three passes, each reduced in views": {
        "passes": 3,
        "no_sync": False,
        "gradient_as_bucket_view": True,
    },
    "zeroed between": {"passes": 3, "between": True},
    "zeroed between in views": {
        "passes": 3,
        "between": True,
        "gradient_as_bucket_view": True,
        "to_none": False,
    },
    "found by the model": {"passes": 1, "model": True},
    "not wrapped, one pass": {"passes": 1, "wrap": False},
    "not wrapped, three passes": {"passes": 3, "wrap": False},
    "recomputed in pieces": {"passes": 1, "static_graph": True, "pieces": True},
    "wrapped in part": {"passes": 1, "part": True},
}


class Pieces(nn.Sequential):
    """Every layer's backward pass is one of its own, nested in the whole."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        for layer in self:
            x = checkpoint(layer, x, use_reentrant=True)
        return x


def scenario(
    rank: int,
    *,
    passes: int,
    to_none: bool = True,
    no_sync: bool = True,
    between: bool = False,
    model: bool = False,
    wrap: bool = True,
    part: bool = False,
    pieces: bool = False,
    **options: Any,
) -> list[dict[str, Any]]:
    """Some steps; what the probe found in them, and all that there was to find."""
    plain = Pieces(*network()) if pieces else network()
    params = list(plain.parameters())
    net: nn.Module = plain
    if part:
        plain[0] = DistributedDataParallel(plain[0], **options)
    elif wrap:
        net = DistributedDataParallel(plain, **options)
    probe = NoiseProbe(params, every=1, model=net if model else None)
    optimizer = torch.optim.SGD(params, lr=0.05)
    if model:
        gc.freeze()  # the collector knows nothing of what is there now
    rows = []
    for step in range(STEPS):
        numbers = [1000 * step + 10 * m + rank for m in range(passes)]
        losses = [] if part or pieces else [loss_of(plain, number) for number in numbers]
        micro = [vector(torch.autograd.grad(loss, params)) for loss in losses]
        optimizer.zero_grad(set_to_none=to_none)
        for m, number in enumerate(numbers):
            held = wrap and not part and no_sync and m < passes - 1
            with net.no_sync() if held else contextlib.nullcontext():  # type: ignore[operator]
                (1024.0 * loss_of(net, number) / passes).backward()
            if between and m == 0:
                optimizer.zero_grad(set_to_none=to_none)
        with torch.no_grad():  # as a loss scaler and a trainer do before the step
            for p in params:
                assert p.grad is not None
                p.grad /= 1024.0
        torch.nn.utils.clip_grad_norm_(params, 0.01)
        probe.gradients([p.grad for p in params])
        backwards = probe.backwards
        optimizer.step()
        found = {key: float(value) for key, value in probe.end().items()}
        everybody: list[Any] = [None] * WORLD
        dist.all_gather_object(everybody, micro)
        rows.append(
            {
                "found": found,
                "micro": everybody,
                "reason": probe.reason,
                "backwards": backwards,
                "weights": vector(params),
            }
        )
    probe.close()
    if model:
        gc.unfreeze()
    return rows


def frozen_point(rank: int, problem: Problem, passes: int, steps: int) -> list[tuple[float, ...]]:
    """Samples of a problem whose noise is known, at a point that does not move."""
    net = DistributedDataParallel(problem.model())
    params = list(net.parameters())
    probe = NoiseProbe(params, every=1)
    generator = torch.Generator().manual_seed(77 + rank)
    samples = []
    for _ in range(steps + 1):
        net.zero_grad()
        for m in range(passes):
            with net.no_sync() if m < passes - 1 else contextlib.nullcontext():
                problem.loss(net, generator).backward()
        probe.gradients([p.grad for p in params])
        if found := probe.end():
            samples.append(tuple(float(value) for value in found.values()))
    return samples


def hooks_order(rank: int, view: bool) -> dict[str, list[float]]:
    """Norms of one parameter's gradient as its hooks see it, before and after the reduction."""
    plain = network()
    net = DistributedDataParallel(plain, gradient_as_bucket_view=view)
    weight = plain[0].weight
    seen: dict[str, list[float]] = {"before": [], "after": [], "end": [], "local": []}
    weight.register_hook(lambda g: seen["before"].append(float(g.norm())))
    weight.register_post_accumulate_grad_hook(
        lambda p: seen["after"].append(float(p.grad.norm()))  # type: ignore[union-attr]
    )
    for step in range(3):
        (local,) = torch.autograd.grad(loss_of(plain, 10 * step + rank), weight)
        seen["local"].append(float(local.norm()))
        seen["before"].clear() if step == 0 else seen["before"].pop()
        net.zero_grad()
        loss_of(net, 10 * step + rank).backward()
        assert isinstance(weight.grad, Tensor)
        seen["end"].append(float(weight.grad.norm()))
    return seen


def work(rank: int, folder: str) -> None:
    """All of it, with the results in a file a process."""
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=WORLD)
    try:
        results: dict[str, Any] = {}
        jobs: dict[str, Callable[[], Any]] = {
            "order": lambda: hooks_order(rank, False),
            "order in views": lambda: hooks_order(rank, True),
            "truth, 1 pass": lambda: frozen_point(rank, regression(), 1, 400),
            "truth, 2 passes": lambda: frozen_point(rank, regression(), 2, 400),
        }
        for name, options in SCENARIOS.items():
            jobs[name] = lambda options=options: scenario(rank, **options)
        for name, job in jobs.items():
            results[name] = job()
            gc.collect()  # wrappers end before their process group does
        torch.save(results, Path(folder) / f"rank-{rank}.pt")
    finally:
        dist.destroy_process_group()
