"""What attached autoscale costs a step, beside what people use today.

    python benchmarks/step_cost.py [--rounds 200] [--threads 2]

Every call works on the same gradients of a real model; before each one they are made anew, scaled
by a random factor, so that autoscale really scales in about half of the rounds. As in a backward
pass, the last layer's come first.
"""

from __future__ import annotations

import argparse
import random

import torch

import gradwise as gw
from models import with_gradients
from side_by_side import environment, interleaved, save, table


class NoUpdate(torch.optim.Optimizer):
    """An optimizer that does nothing, so that the hook alone is timed."""

    def step(self, closure=None):
        """Do nothing."""


def naive(params: list[torch.Tensor]) -> None:
    """Centre and scale by the global std, one parameter after the other."""
    grads = [p.grad for p in params if p.grad is not None and p.grad.dim() > 1]
    total = 0.0
    for grad in grads:
        grad.sub_(grad.mean())
        total += grad.square().sum().item()
    sigma = (total / sum(g.numel() for g in grads)) ** 0.5
    for grad in grads:
        grad.mul_(min(1.0, 1.0 / max(sigma, 1e-12)))


def znorm(params: list[torch.Tensor]) -> None:
    """ZNorm as one writes it by hand."""
    for p in params:
        if p.grad is not None and p.grad.dim() > 1:
            p.grad = (p.grad - p.grad.mean()) / (p.grad.std() + 1e-8)


def main() -> None:
    """Time all models and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--models", default="resnet20,resnet56,transformer-10m,transformer-100m")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(environment())
    rows = []
    for name in options.models.split(","):
        model = with_gradients(name)
        params = list(model.parameters())
        saved = [p.grad.clone() for p in params]
        plain, scaled, centred, clipped = (NoUpdate(params, {}) for _ in range(4))
        gw.autoscale(scaled)
        gw.attach(centred, gw.transforms.Center())
        gw.attach(clipped, gw.transforms.ClipNorm(1.0))
        draw = random.Random(1)

        def restore(params=params, saved=saved, draw=draw) -> None:
            factor = draw.uniform(0.5, 2.0)
            for p, value in zip(reversed(params), reversed(saved), strict=True):
                p.grad = value * factor

        calls = {
            "clip_grad_norm_": lambda p=params: torch.nn.utils.clip_grad_norm_(p, 1.0),
            "gradwise autoscale, attached": scaled.step,
            "gradwise Center, attached": centred.step,
            "gradwise ClipNorm(1), attached": clipped.step,
            "naive loop": lambda p=params: naive(p),
            "hand-written ZNorm": lambda p=params: znorm(p),
            "a step without anything": plain.step,
        }
        count = sum(p.numel() for p in params)
        title = f"{name}: {len(params)} tensors, {count / 1e6:.2f} M parameters"
        times = interleaved(calls, restore, rounds=options.rounds)
        rows += table(title, times, against="clip_grad_norm_")
    save("step_cost", rows)


if __name__ == "__main__":
    main()
