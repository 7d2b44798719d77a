"""Small training loops, their functional twins, and how to compare the two."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gradwise.attach import Attachment
from gradwise.transforms import (
    AGC,
    AutoClip,
    Autoscale,
    Center,
    ClipNorm,
    Transform,
    ZClip,
    ZNorm,
    chain,
)

SGD = torch.optim.SGD
# Sizes of the loss over the steps, so that transforms with a memory have something to answer to.
SIZES = (1.0, 6.0, 0.3, 20.0, 1.0)

TRANSFORMS: dict[str, Callable[[], Transform]] = {
    "none": chain,
    "autoscale": Autoscale,
    "autoscale-ratio": lambda: Autoscale("ratio"),
    "autoscale-log": lambda: Autoscale("log"),
    "autoscale-inverse": lambda: Autoscale("inverse"),
    "center": Center,
    "center-row": lambda: Center("row"),
    "znorm": ZNorm,
    "znorm-global": lambda: ZNorm("global"),
    "clip": lambda: ClipNorm(0.5),
    "autoclip": lambda: AutoClip(50),
    "zclip": lambda: ZClip(warmup=2, threshold=1.0, alpha=0.8, max_norm=2.0),
    "agc": lambda: AGC(clipping=0.1),
    "center+clip": lambda: chain(Center(), ClipNorm(0.5)),
    "autoscale+autoclip+agc": lambda: chain(Autoscale(), AutoClip(20), AGC(clipping=0.1)),
}


def network(*, bias: bool = True) -> nn.Sequential:
    """A convolution, a norm layer, and two linear layers; or matrices alone."""
    torch.manual_seed(3)
    if not bias:
        return nn.Sequential(nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Linear(5, 3, bias=False))
    return nn.Sequential(
        nn.Conv1d(1, 2, 3, bias=False),
        nn.GroupNorm(1, 2),
        nn.Flatten(),
        nn.Linear(8, 5),
        nn.Tanh(),
        nn.Linear(5, 3),
    )


def loss_of(model: nn.Module, step: int) -> Tensor:
    """The loss of a step: other data and another size each time, the same for every run."""
    generator = torch.Generator().manual_seed(100 + step)
    first = next(model.parameters())
    shape = (4, 1, 6) if first.dim() == 3 else (4, 6)
    data = torch.randn(shape, generator=generator).to(first.dtype)
    return SIZES[step % len(SIZES)] * (model(data) - 1).square().mean()


def backward(model: nn.Module, step: int) -> None:
    """Leave the gradients of a step, and nothing else, in the model."""
    model.zero_grad()
    loss_of(model, step).backward()


def train(model: nn.Module, optimizer: Any, steps: Sequence[int]) -> list[Tensor]:
    """Plain steps; the parameters after them."""
    for step in steps:
        backward(model, step)
        optimizer.step()
    return values(model)


def train_by_function(
    model: nn.Module, optimizer: Any, transform: Transform, steps: Sequence[int]
) -> list[Tensor]:
    """The same without a hook: the optimizer is fed what the function returns."""
    feed = Feed(model, transform)
    for step in steps:
        backward(model, step)
        feed()
        optimizer.step()
    return values(model)


class Feed:
    """Replaces gradients by what `transform.update` makes of them, with its state in between."""

    def __init__(self, model: nn.Module, transform: Transform) -> None:
        self.params = list(model.parameters())
        self.transform = transform
        self.state: dict[str, Tensor] | None = None

    def __call__(self) -> None:
        grads = [p.grad for p in self.params if p.grad is not None]
        params = [p.detach() for p in self.params if p.grad is not None]
        new, self.state = self.transform.update(grads, self.state, params)
        for param, grad in zip((p for p in self.params if p.grad is not None), new, strict=True):
            param.grad = grad


def values(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    """Whether two lists hold the same bits, NaN among them."""
    return len(first) == len(second) and all(
        a.dtype == b.dtype and torch.equal(a.nan_to_num(-77.0), b.nan_to_num(-77.0))
        for a, b in zip(first, second, strict=True)
    )


def same_state(first: dict[str, Tensor] | None, second: dict[str, Tensor] | None) -> bool:
    if first is None or second is None:
        return first is second
    return first.keys() == second.keys() and same(
        [first[key] for key in first], [second[key] for key in first]
    )


def copy_state(attachment: Attachment) -> dict[str, Tensor] | None:
    return None if attachment.state is None else copy.deepcopy(attachment.state)


def close(first: Sequence[Tensor], second: Sequence[Tensor], rtol: float = 1e-5) -> bool:
    """Equal up to `rtol` of each tensor's largest value."""
    return len(first) == len(second) and all(
        torch.allclose(a, b, rtol=rtol, atol=rtol * float(b.abs().max()) if b.numel() else 0.0)
        for a, b in zip(first, second, strict=True)
    )


def silence() -> warnings.catch_warnings:
    """Where other people's libraries warn."""
    return warnings.catch_warnings(action="ignore")
