"""What watching costs a training step, beside what people use today.

    python benchmarks/watch_cost.py [--rounds 60] [--threads 2]

Of each way the cost in the training thread is timed, on the gradients of a real model and for all
of its layers at every step; and beside it, in the same process, whole training steps (forward,
backward, SGD with momentum), which the costs are a share of. What a watch does in its
background thread is counted as CPU seconds. Cockpit is timed where it can be imported, on a model
that it can extend.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradwise as gw
from gradwise.lab.models import build
from models import Transformer
from side_by_side import environment, interleaved, quartiles, save


class NoUpdate(torch.optim.Optimizer):
    """An optimizer that does nothing, so that what hangs on its step alone is timed."""

    def step(self, closure=None):
        """Do nothing."""


def workload(name: str) -> tuple[nn.Module, Callable[[], Tensor]]:
    """A model and what computes its loss on a batch."""
    torch.manual_seed(0)
    if name == "transformer-10m":
        model: nn.Module = Transformer()
        tokens = torch.randint(96, (4, 129))

        def loss() -> Tensor:
            logits = model(tokens[:, :-1])
            return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

        return model, loss
    model = build(name, num_classes=10, in_shape=(3, 32, 32))
    images, labels = torch.randn(128, 3, 32, 32), torch.randint(10, (128,))
    return model, lambda: F.cross_entropy(model(images), labels)


def item_loop(model: nn.Module) -> Callable[[], object]:
    """Three numbers a parameter, each asked for."""

    def call() -> dict[str, float]:
        found = {}
        for name, p in model.named_parameters():
            found[f"{name}/norm"] = p.grad.norm().item()
            found[f"{name}/mean"] = p.grad.mean().item()
            found[f"{name}/std"] = p.grad.std().item()
        return found

    return call


def tensorboard(model: nn.Module, folder: str) -> Callable[[], object] | None:
    """A histogram of every gradient into an event file."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    writer, steps = SummaryWriter(folder), iter(range(10**9))

    def call() -> None:
        step = next(steps)
        for name, p in model.named_parameters():
            writer.add_histogram(name, p.grad, step)

    return call


def wandb_watch(model: nn.Module, folder: str) -> Callable[[], object] | None:
    """What `wandb.watch(model, log_freq=1)` does with every gradient, and a log."""
    os.environ |= {"WANDB_MODE": "offline", "WANDB_DIR": folder, "WANDB_SILENT": "true"}
    try:
        import wandb
        from wandb.integration.torch.wandb_torch import TorchHistory
    except ImportError:
        return None
    run = wandb.init(project="benchmark", dir=folder)
    history = TorchHistory()

    def call() -> None:
        for name, p in model.named_parameters():
            history.log_tensor_stats(p.grad.data, f"gradients/{name}")
        run.log({"loss": 0.0})

    return call


def cockpit_step() -> tuple[Callable[[], object], Callable[[], object]] | None:
    """A small network's step with Cockpit's first-order quantities at every step, and without."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from backpack import extend
            from cockpit import Cockpit, quantities
    except ImportError:
        return None
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(3072, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()]
    plain, watched = (nn.Sequential(*layers, nn.Linear(256, 10)) for _ in range(2))
    watched = extend(nn.Sequential(*[type(m)(*_shape(m)) for m in plain]))
    individual = extend(nn.CrossEntropyLoss(reduction="none"))
    loss_of = extend(nn.CrossEntropyLoss())
    every = lambda step: True  # noqa: E731 - what Cockpit calls a schedule
    cockpit = Cockpit(
        watched.parameters(),
        quantities=[quantities.GradNorm(every), quantities.GradHist1d(every)],
    )  # fmt: skip
    images, labels = torch.randn(128, 3, 32, 32), torch.randint(10, (128,))
    first, second = (torch.optim.SGD(m.parameters(), lr=1e-3) for m in (plain, watched))
    steps = iter(range(10**9))

    def without() -> None:
        first.zero_grad()
        F.cross_entropy(plain(images), labels).backward()
        first.step()

    def with_cockpit() -> None:
        second.zero_grad()
        outputs = watched(images)
        loss = loss_of(outputs, labels)
        losses = individual(outputs, labels)
        with cockpit(
            next(steps),
            info={
                "batch_size": 128,
                "individual_losses": losses,
                "loss": loss,
                "optimizer": second,
            },
        ):
            loss.backward(create_graph=cockpit.create_graph(0))
        second.step()

    return without, with_cockpit


def _shape(layer: nn.Module) -> tuple[int, ...]:
    return (layer.in_features, layer.out_features) if isinstance(layer, nn.Linear) else ()


def background(optimizer: torch.optim.Optimizer, seconds: float, pause: float) -> float:
    """CPU seconds a step of gradwise's threads, while steps come at a real pace.

    Not of the process's other threads: torch's workers, which measure with the training thread,
    wait for more in a loop that takes time where nothing comes.
    """
    clocks = [
        time.pthread_getcpuclockid(thread.ident)
        for thread in threading.enumerate()
        if thread.name.startswith("gradwise") and thread.ident is not None
    ]
    before, steps = sum(map(time.clock_gettime, clocks)), 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        optimizer.step()
        steps += 1
        time.sleep(pause)
    return (sum(map(time.clock_gettime, clocks)) - before) / steps


def main() -> None:
    """Time all ways on both models and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--models", default="resnet20,transformer-10m")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(environment())
    rows: list[dict[str, object]] = []
    for name in options.models.split(","):
        with tempfile.TemporaryDirectory() as folder:
            rows += measured(name, options.rounds, Path(folder))
    found = cockpit_step()
    if found is not None:
        times = interleaved(dict(zip(("without", "with"), found, strict=True)), rounds=30)
        extra = [b - a for a, b in zip(times["without"], times["with"], strict=True)]
        share = quartiles([e / a for e, a in zip(extra, times["without"], strict=True)])
        print(f"\nCockpit, norm and histogram, MLP: {share[1]:.0%} of a step more")
        rows.append({"case": "cockpit on an MLP", "share_of_step": share[1], "quartiles": share})
    else:
        print("\nCockpit is not installed here")
    save("watch_cost", rows)


def measured(name: str, rounds: int, folder: Path) -> list[dict[str, object]]:
    """The rows of one model."""
    model, loss_of = workload(name)
    params = list(model.parameters())
    trained = torch.optim.SGD(params, lr=1e-4, momentum=0.9)

    def train() -> None:
        trained.zero_grad()
        loss_of().backward()
        trained.step()

    train()
    plain, watched, every_weight, scaled, both = (NoUpdate(params, {"lr": 0.1}) for _ in range(5))
    watches = [
        gw.watch(watched, model, folder / "watch"),
        gw.watch(every_weight, model, folder / "weights", weights_every=1),
    ]
    gw.autoscale(scaled, model)
    gw.autoscale(both, model)
    watches.append(gw.watch(both, model, folder / "both"))
    calls: dict[str, Callable[[], object] | None] = {
        "a training step": train,
        "an empty step": plain.step,
        "gradwise watch": watched.step,
        "gradwise watch, weights each step": every_weight.step,
        "gradwise autoscale": scaled.step,
        "gradwise autoscale + watch": both.step,
        "a loop of .item()": item_loop(model),
        "TensorBoard add_histogram": tensorboard(model, str(folder / "tb")),
        "wandb.watch-like histograms": wandb_watch(model, str(folder)),
    }
    there = {key: call for key, call in calls.items() if call is not None}
    times = interleaved(there, rounds=rounds, warmup=12)
    step = quartiles(times["a training step"])[1]
    for watch in watches[1:]:
        watch.close()
    behind = background(watched, 15.0, step)
    watches[0].close()
    own = quartiles(times["gradwise watch"])[1]
    mean = sum(times["gradwise watch"]) / len(times["gradwise watch"])
    count = sum(p.numel() for p in params)
    print(f"\n{name}: {len(params)} tensors, {count / 1e6:.2f} M parameters")
    print(f"{'':36s}{'median ms':>10s}{'quartiles':>18s}{'of a step':>11s}{'x watch':>9s}")
    found = []
    for key, values in times.items():
        low, median, high = quartiles([1e3 * v for v in values])
        share, ratio = median / 1e3 / step, median / 1e3 / own
        print(f"{key:36s}{median:10.3f}{f'{low:.3f}..{high:.3f}':>18s}{share:11.2%}{ratio:9.1f}")
        found.append(
            {"case": name, "call": key, "median_ms": median, "quartiles_ms": [low, high]}
            | {"share_of_step": share, "ratio_to_watch": ratio}
        )
    print(
        f"{'gradwise watch, mean of all rounds':36s}{1e3 * mean:10.3f}{'':18s}{mean / step:11.2%}"
    )
    print(f"{'its thread, CPU':36s}{1e3 * behind:10.3f}{'':18s}{behind / step:11.2%}")
    found.append({"case": name, "call": "gradwise watch, mean", "ms": 1e3 * mean})
    found.append({"case": name, "call": "gradwise watch, its thread", "cpu_ms": 1e3 * behind})
    return found


if __name__ == "__main__":
    main()
