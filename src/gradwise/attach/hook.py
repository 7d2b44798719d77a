"""The moment just before an optimizer uses its gradients, whatever the training loop looks like."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

import torch
from torch import Tensor

_CHECKPOINTS = "torch.distributed.checkpoint.state_dict"
_STEP_MODULE = "torch.optim.optimizer"  # where torch's wrapper around every `step` lives
_ENGINE_CALL = "_engine_run_backward"  # what calls the engine
_FUNCTION_MODULE = "torch.autograd.function"  # where the engine calls Python's backward functions


class StepHook:
    """Calls a function once a step when all gradients are there.

    torch calls step hooks before the closure runs, so where there is a closure (Lightning, LBFGS)
    it is replaced by one that runs the function after it; LBFGS evaluates it several times a step,
    and each evaluation counts. A subclass whose `step` calls `super().step()` fires the hooks
    twice; only the outer call counts. Which call is the outer one is read from the call stack and
    remembered nowhere, so a step that raises leaves nothing behind.

    Args:
        optimizer: where the hook goes.
        run: called without arguments, gradients ready.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, run: Callable[[], None]) -> None:
        self._run = run
        # Compiled steps get exactly one graph break, here.
        before = torch.compiler.disable(self._before)  # type: ignore[no-untyped-call]
        self._handle = optimizer.register_step_pre_hook(before)

    def remove(self) -> None:
        """Take the hook off."""
        self._handle.remove()

    def _before(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if _steps_under_way(optimizer) > 1:
            return None
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if not callable(closure):  # None, or another thing that some optimizer's `step` takes
            self._run()
            return None

        def closure_then_run() -> Any:
            loss = closure()
            self._run()
            return loss

        if len(args) > 1:
            return (args[0], closure_then_run, *args[2:]), kwargs
        return args, {**kwargs, "closure": closure_then_run}


def within_backward(params: Iterable[Tensor]) -> bool:
    """Whether a backward pass is under way whose hooks on these parameters may be what runs.

    A step there comes before the gradients of other parameters exist. A loop of its own inside of
    somebody's backward function is none.

    Args:
        params: an optimizer's.
    """
    if torch._C._current_graph_task_id() == -1:
        return False
    # A node that accumulates says for whom; torch's FSDP calls the hooks from nodes that do not.
    mine = getattr(torch._C._current_autograd_node(), "variable", None)
    return any(p is mine or getattr(p, "_post_accumulate_grad_hooks", None) for p in params)


def within_nested_backward() -> bool:
    """Whether the backward pass that runs this was called by another one, on its way.

    So do activation checkpoints with `use_reentrant=True`. Only the call stack knows: from the call
    of the pass that this is in, it goes on to a backward function.
    """
    called = False
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if called and frame.f_globals.get("__name__") == _FUNCTION_MODULE:
            return True
        called = called or frame.f_code.co_name == _ENGINE_CALL
        frame = frame.f_back
    return False


def is_rehearsal() -> bool:
    """Whether the step that runs this only makes an optimizer's state exist.

    `torch.distributed.checkpoint.state_dict` makes such a step, with zeros for gradients and 0 for
    lr, before it saves or loads an optimizer without state. Only the call stack tells it from one
    of a training.
    """
    module = sys.modules.get(_CHECKPOINTS)
    make = getattr(module, "_init_optim_state", None)
    if make is None:
        return False
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code is make.__code__:
            return True
        frame = frame.f_back
    return False


def _steps_under_way(optimizer: torch.optim.Optimizer) -> int:
    """How many of torch's own frames around a `step` of this optimizer are on the call stack."""
    count = 0
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__") == _STEP_MODULE:
            count += frame.f_locals.get("self") is optimizer
        frame = frame.f_back
    return count
