"""What the optimizers' tests share: the ways an update can run, and short runs to look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from gradwise.backends import update
from reference.strategies import bits, values

Path = list[list[Tensor | None]]  # the gradients of all parameters, step by step

# The three ways an update runs on a CPU. The first is the readable form of the equations.
ROUTES: dict[str, dict[str, bool]] = {
    "loop": {"foreach": False, "fused": False},
    "lists": {"foreach": True, "fused": False},
    "kernel": {"fused": True},
}
each_route = pytest.mark.parametrize("route", ROUTES)
# Step counts that the host does not read; and nothing chosen, which is the kernel for what it
# takes, lists or the loop for the rest.
OTHERS: dict[str, dict[str, bool]] = {
    "capturable loop": {"foreach": False, "capturable": True},
    "capturable lists": {"foreach": True, "capturable": True},
    "unchosen": {},
}
every_route = pytest.mark.parametrize("route", [*ROUTES, *OTHERS])


def by(route: str) -> dict[str, bool]:
    """The options that choose a route; skips where no compiler is there for the kernel."""
    if route == "kernel" and (reason := update.missing("sgd")):
        pytest.skip(reason)
    return {**ROUTES, **OTHERS}[route]


def parameters(start: Sequence[Tensor]) -> list[torch.nn.Parameter]:
    """Copies to be trained, in the memory layout of the originals."""
    return [torch.nn.Parameter(torch.empty_like(x).copy_(x)) for x in start]


def put(params: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
    """Set every `.grad` to a copy."""
    for p, g in zip(params, grads, strict=True):
        p.grad = None if g is None else torch.empty_like(g).copy_(g)


def step(
    optimizer: torch.optim.Optimizer, params: Sequence[Tensor], grads: Sequence[Tensor | None]
) -> None:
    """One step, after which every `.grad` must hold what it held before."""
    put(params, grads)
    optimizer.step()
    for p, g in zip(params, grads, strict=True):
        assert bits(p.grad) == bits(g), "the step wrote to .grad"


def walk(
    make: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer],
    start: Sequence[Tensor],
    path: Sequence[Sequence[Tensor | None]],
) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """Parameters and states after all gradients of the path."""
    params = parameters(start)
    optimizer = make(params)
    for grads in path:
        step(optimizer, params, grads)
    return [p.detach() for p in params], [optimizer.state[p] for p in params]


class Probe:
    """Parameters that lie at 0 before each step of rate 1: what is left there is the step.

    No rounding hides the update, as it would on a parameter with a value of its own.
    """

    def __init__(self, cls: Callable[..., torch.optim.Optimizer], route: str, **options: Any):
        self.make = lambda params: cls(params, lr=1.0, **by(route), **options)
        self.params: list[torch.nn.Parameter] = []
        self.optimizer: torch.optim.Optimizer

    def take_all(self, grads: Sequence[Tensor | None]) -> list[Tensor]:
        """What one step takes off each parameter."""
        if not self.params:
            self.params = parameters([torch.zeros_like(g) for g in grads])  # type: ignore[arg-type]
            self.optimizer = self.make(self.params)
        with torch.no_grad():
            for p in self.params:
                p.zero_()
        step(self.optimizer, self.params, grads)
        return [-p.detach().clone() for p in self.params]

    def take(self, grad: Tensor) -> Tensor:
        """The same with one parameter."""
        return self.take_all([grad])[0]

    @property
    def state(self) -> dict[str, Any]:
        """State of the first parameter."""
        return self.optimizer.state[self.params[0]]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers."""
    return values(shape, dtype, seed, 1.0, 0.0, "normal")


def noise(steps: int, *shapes: tuple[int, ...], seed: int = 0) -> Path:
    """Standard normal gradients, float64."""
    return [
        [normal(*shape, seed=seed + 100 * t + i) for i, shape in enumerate(shapes)]
        for t in range(steps)
    ]


def close(a: Tensor, b: Tensor, rtol: float = 1e-12, atol: float = 0.0) -> None:
    """Equal but for rounding; `atol` in units of the largest value."""
    top = float(b.abs().max()) if b.numel() else 0.0
    torch.testing.assert_close(a, b, rtol=rtol, atol=atol * top)


@st.composite
def paths(
    draw: st.DrawFn,
    *,
    steps: tuple[int, int] = (1, 8),
    kinds: Sequence[str] = ("normal", "spiky", "constant", "zeros"),
    scales: tuple[int, int] = (-3, 3),
) -> list[Tensor]:
    """Gradients of one float64 parameter, scale and kind changing from step to step."""
    shape = draw(st.sampled_from([(5,), (2, 3), ()]))
    return [
        values(
            shape,
            torch.float64,
            draw(st.integers(0, 10_000)),
            10.0 ** draw(st.integers(*scales)),
            draw(st.sampled_from([0.0, 1.0])),
            draw(st.sampled_from(kinds)),
        )
        for _ in range(draw(st.integers(*steps)))
    ]
