"""The ways in which people step within backward, and the plain loop that they ought to equal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attach.loops import loss_of, silence, values

with silence():  # it compiles with torch.jit
    from torch.distributed.optim import _apply_optimizer_in_backward, _get_in_backward_optimizers

LR = 0.02
Make = Callable[[list[Tensor]], torch.optim.Optimizer]


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=LR, momentum=0.9)


def by_hooks(model: nn.Module, make: Make) -> list[torch.optim.Optimizer]:
    """A hook on each parameter that steps its optimizer and drops the gradient."""
    optimizers = {p: make([p]) for p in model.parameters() if p.requires_grad}

    def step(param: Tensor) -> None:
        optimizers[param].step()
        optimizers[param].zero_grad()

    for param in optimizers:
        param.register_post_accumulate_grad_hook(step)
    return list(optimizers.values())


def by_torch(model: nn.Module, make: Make) -> list[torch.optim.Optimizer]:
    """torch.distributed.optim's own; it hooks the node that accumulates."""
    kind = type("Made", (), {"__new__": lambda _, params, **__: make(params)})
    _apply_optimizer_in_backward(kind, [p for p in model.parameters() if p.requires_grad], {})
    return _get_in_backward_optimizers(model)


class Wrapper:
    """In torchtune's style: one object for all optimizers, by the names of their parameters."""

    def __init__(self, optim_map: dict[str, torch.optim.Optimizer]) -> None:
        self.optim_map = optim_map

    def state_dict(self) -> dict[str, Any]:
        return {name: optimizer.state_dict() for name, optimizer in self.optim_map.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, state in state_dict.items():
            self.optim_map[name].load_state_dict(state)

    def set_lr(self, lr: float) -> None:
        for optimizer in self.optim_map.values():
            for group in optimizer.param_groups:
                group["lr"] = lr


def by_wrapper(model: nn.Module, make: Make) -> Wrapper:
    """torchtune's way: a dict by parameter for the hooks, a wrapper by name for everything else."""
    by_param = {p: make([p]) for p in model.parameters() if p.requires_grad}

    def step(param: Tensor) -> None:
        by_param[param].step()
        by_param[param].zero_grad()

    for param in by_param:
        param.register_post_accumulate_grad_hook(step)
    return Wrapper({n: by_param[p] for n, p in model.named_parameters() if p.requires_grad})


WAYS: dict[str, Callable[[nn.Module, Make], Any]] = {
    "hooks": by_hooks,
    "torch.distributed.optim": by_torch,
    "torchtune": lambda model, make: by_wrapper(model, make).optim_map,
}


def train_in_backward(model: nn.Module, steps: Sequence[int]) -> list[Tensor]:
    """Steps happen where the hooks are; the parameters after them."""
    for step in steps:
        loss_of(model, step).backward()
        assert all(p.grad is None for p in model.parameters())
    return values(model)
