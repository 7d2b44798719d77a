"""The moment just before an optimizer uses its gradients, whatever the training loop looks like."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch

_STEP_MODULE = "torch.optim.optimizer"  # where torch's wrapper around every `step` lives


class StepHook:
    """Calls a function once a step when all gradients are there.

    torch calls step hooks before the closure runs, so where there is a closure (Lightning, LBFGS)
    it is replaced by one that runs the function after it; LBFGS evaluates it several times a step,
    and each evaluation counts. A subclass whose `step` calls `super().step()` fires the hooks
    twice; only the outer call counts.

    Args:
        optimizer: where the hooks go.
        run: called without arguments, gradients ready.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, run: Callable[[], None]) -> None:
        self._run = run
        self._outer: FrameType | None = None  # of the step under way; None between steps
        # Compiled steps get exactly one graph break, here.
        before = torch.compiler.disable(self._before)  # type: ignore[no-untyped-call]
        after = torch.compiler.disable(self._after)  # type: ignore[no-untyped-call]
        self._handles = [
            optimizer.register_step_pre_hook(before),
            optimizer.register_step_post_hook(after),
        ]

    def remove(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _before(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        frame = _step_frame()
        # A step that raised leaves its frame behind; one that is still running is above us.
        if self._outer is not None and self._outer is not frame and _is_running(self._outer, frame):
            return None
        self._outer = frame
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._run()
            return None

        def closure_then_run() -> Any:
            loss = closure()
            self._run()
            return loss

        if len(args) > 1:
            return (args[0], closure_then_run, *args[2:]), kwargs
        return args, {**kwargs, "closure": closure_then_run}

    def _after(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if self._outer is _step_frame():
            self._outer = None


def _step_frame() -> FrameType | None:
    """The frame of torch's wrapper around the `step` that called the hook."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") != _STEP_MODULE:
        frame = frame.f_back
    return frame


def _is_running(frame: FrameType, inner: FrameType | None) -> bool:
    while inner is not None:
        if inner is frame:
            return True
        inner = inner.f_back
    return False
