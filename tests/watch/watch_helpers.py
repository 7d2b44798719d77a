"""A small training, the oracle of what a watch records of it, and reading it back."""

from __future__ import annotations

import torch

import gradwise as gw


def network(width=6, lr=0.1, kind="SGD", named=True):
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, width), torch.nn.ReLU(), torch.nn.Linear(width, 3)
    )
    return model, getattr(torch.optim, kind)(model.parameters(), lr=lr)


def learn(model, optimizer, steps, watch=None, passes=1, seen=None):
    """Train, and keep copies of the gradients and weights around each step."""
    for i in range(steps):
        optimizer.zero_grad()
        for _ in range(passes):
            loss = model(torch.randn(8, 4)).square().mean() / passes
            loss.backward()
        if seen is not None:
            seen.append(
                {
                    "grads": [p.grad.double().clone() for p in model.parameters()],
                    "before": [p.detach().double().clone() for p in model.parameters()],
                }
            )
        optimizer.step()
        if seen is not None:
            seen[-1]["after"] = [p.detach().double().clone() for p in model.parameters()]
            seen[-1]["applied"] = [p.grad.double().clone() for p in model.parameters()]
        if watch is not None:
            watch.log(loss=loss, at=i)


def described(values):
    """Float64 statistics of a list of tensors as one vector."""
    flat = torch.cat([v.flatten() for v in values])
    return {
        "mean": flat.mean().item(),
        "std": flat.std(correction=0).item(),
        "var": flat.var(correction=0).item(),
        "norm": flat.norm().item(),
        "max_abs": flat.abs().max().item(),
        "zeros": (flat == 0).double().mean().item(),
        "nonfinite": float((~flat.isfinite()).sum()),
    }


def columns(run, layer):
    """One layer of a run, metric -> values."""
    return run.layer(layer).to_pydict()


def steps_of(folder):
    return gw.watch.load(folder).steps.to_pydict()
