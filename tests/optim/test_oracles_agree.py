"""Every optimizer with a formula for each value against its float64 oracle, on every route.

Parameters and states are compared after each of several steps. Types, shapes, memory layouts,
hyperparameters and absent gradients are Hypothesis's choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from optim_helpers import by, every_route, parameters, step
from oracle_cases import CASES, NARROW, WIDE, Case, models
from torch import Tensor

from reference.strategies import COMMON, LAYOUTS, as_array, as_arrays, bits, largest

DOUBLE = (torch.float64, torch.complex128)


def layouts(route: str) -> Sequence[str]:
    """What a route accepts when it has been asked for: the kernel refuses what has gaps."""
    return ("contiguous", "shifted") if route == "kernel" else LAYOUTS


def translated(chosen: dict[str, Any]) -> dict[str, Any]:
    """The options in the oracles' words."""
    known = dict(chosen)
    if "decoupled_weight_decay" in known:
        known["decoupled"] = known.pop("decoupled_weight_decay")
    return known


def assert_close(mine: Any, theirs: Any, rtol: float, scale: float, what: str) -> None:
    """Equal but for rounding, relative to the value and to the largest of the tensor so far."""
    np.testing.assert_allclose(mine, theirs, rtol=rtol, atol=rtol * scale, err_msg=what)


def snapshot(state: dict[str, Any]) -> dict[str, bytes]:
    return {name: bits(x) for name, x in state.items() if isinstance(x, Tensor)}


class Compared:
    """The library's optimizer and the oracle side by side."""

    def __init__(self, case: Case, route: str, start: list[Tensor], chosen: dict[str, Any]):
        self.case = case
        self.params = parameters(start)
        self.optimizer = case.cls(self.params, **chosen, **by(route))
        self.oracle = case.oracle(**translated(chosen))
        self.arrays: list[Any] = as_arrays(start)
        self.states = self.oracle.init([tuple(p.shape) for p in start])
        # Largest value so far: what is left of a large one by a subtraction has its rounding.
        self.tops = {(i, ""): largest(x) for i, x in enumerate(self.arrays)}

    def step(self, grads: list[Tensor | None]) -> None:
        kept = [(bits(p), snapshot(self.optimizer.state[p])) for p in self.params]
        before = as_arrays(self.params)
        if self.case.wide:
            # What is stored in 16 bits has been rounded: the oracle goes on from there.
            for i, p in enumerate(self.params):
                if p.dtype in NARROW:
                    self.arrays[i] = before[i]
        step(self.optimizer, self.params, grads)
        self.arrays, self.states = self.oracle.step(self.arrays, as_arrays(grads), self.states)
        for i, (p, g) in enumerate(zip(self.params, grads, strict=True)):
            if g is None:
                assert (bits(p), snapshot(self.optimizer.state[p])) == kept[i]
            else:
                self.parameter(i, p)
                self.state(i, p)

    def tolerance(self, dtype: torch.dtype) -> float:
        return self.case.rtol if dtype in DOUBLE else 1e-5

    def scale(self, i: int, name: str, value: Any) -> float:
        self.tops[i, name] = max(self.tops.get((i, name), 0.0), largest(np.asarray(value)))
        return self.tops[i, name]

    def parameter(self, i: int, p: Tensor) -> None:
        expected, found = self.arrays[i], as_array(p)
        if p.dtype not in NARROW:
            scale = self.scale(i, "", expected)
            assert_close(found, expected, self.tolerance(p.dtype), scale, f"parameter {i}")
            return
        # Rounded once, from float32: within half the gap to the next number, a hair on top.
        info = torch.finfo(p.dtype)
        gap = info.eps / 2 * np.abs(expected) + info.smallest_normal * info.eps
        assert (np.abs(found - expected) <= 1.01 * gap + 1e-5 * self.scale(i, "", expected)).all()

    def state(self, i: int, p: Tensor) -> None:
        mine, theirs = self.optimizer.state[p], self.states[i]
        if "step" in mine:
            assert float(mine["step"]) == theirs["step"]
        names = set(mine) - {"step"}
        assert names <= set(theirs)
        for name in names:
            if name in self.case.scalars:
                assert float(mine[name]) == pytest.approx(theirs[name], abs=1e-6)
                continue
            assert mine[name].shape == p.shape
            expected_dtype = torch.float32 if p.dtype in NARROW else p.dtype
            assert mine[name].dtype == expected_dtype
            scale = self.scale(i, name, theirs[name])
            rtol = min(self.tolerance(p.dtype), 1e-11 if p.dtype in DOUBLE else 1.0)
            assert_close(as_array(mine[name]), theirs[name], rtol, scale, f"{name} of {i}")


@every_route
@pytest.mark.parametrize("name", CASES)
@settings(COMMON, max_examples=25)
@given(data=st.data())
def test_wide_types(name, route, data):
    case = CASES[name]
    chosen = data.draw(case.options, "options")
    if route == "kernel":
        chosen.pop("amsgrad", None)  # no kernel does that
    # One cosine over tensors of two types is as coarse as the coarser.
    alike = chosen.get("scope") == "global"
    start, path = data.draw(models(WIDE, layouts(route), alike), "model")
    compared = Compared(case, route, start, chosen)
    for grads in path:
        compared.step(grads)


@every_route
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.wide])
@settings(COMMON, max_examples=15)
@given(data=st.data())
def test_parameters_of_16_bits(name, route, data):
    case = CASES[name]
    chosen = data.draw(case.options, "options")
    start, path = data.draw(models((*NARROW, torch.float32), layouts(route)), "model")
    compared = Compared(case, route, start, chosen)
    for grads in path:
        compared.step(grads)


def test_every_state_is_compared():
    """After one step the library keeps the states that the oracle keeps, and no others."""
    for name, case in CASES.items():
        p = torch.nn.Parameter(torch.ones(2, 3))
        p.grad = torch.ones(2, 3)
        chosen = {"lr": 0.1, **({"momentum": 0.5} if name == "sgd" else {})}
        optimizer = case.cls([p], **chosen)
        optimizer.step()
        kept = {*case.oracle.buffers, *case.scalars}
        if name == "adamw":
            kept.remove("max_exp_avg_sq")
        elif name == "adagradota":
            kept -= {"exp_avg"} - set(optimizer.state[p])
        assert set(optimizer.state[p]) - {"step"} == kept, name
