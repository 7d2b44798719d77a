"""One measured step: its backward passes seen one by one, as squared norms at two batch sizes."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from gradwise.backends.segments import as_rows, wide_dtype
from gradwise.layout import real_view
from gradwise.watch.probes.hooks import (
    Hook,
    Method,
    after_accumulation,
    at_end_of_backward,
    before_accumulation,
    remove,
    trainable,
)
from gradwise.watch.probes.plain import holds_values

SEVERAL = "the optimizer evaluates its closure several times a step, so its passes are no batches"
SINGLE = "the measured step had one backward pass on one process"
NOTHING = "no backward pass reached the optimizer's parameters in the measured step"
CHANGED = "the gradients are set to zero or changed between the backward passes of one step"
PARTS = "the backward passes of a step do not all reach the same parameters"
PIECES = "the backward pass runs in pieces, so there is no moment when all gradients are reduced"
USED_UP = "the gradients are used up during the backward pass, before they are all there"
SPARSE = "the noise scale is not measured where gradients are sparse"
SHARDED = "the noise scale is not measured where gradients are sharded or made of other tensors"

_BLOCK = 256  # values that a CPU sums in float32
_LONG = 1 << 15  # values from which on that pays


@dataclass(slots=True)
class _Seen:
    """One parameter's gradients in this step."""

    passes: int = 0
    start: Tensor | None = None  # norm of what was there before the first
    incoming: Tensor | None = None  # norm of what is about to be added
    small: Tensor | None = None  # sum of squared norms of what was added
    big: Tensor | None = None  # norm of the sum so far
    mark: tuple[int, int] | None = None  # tells the sum as it was left at the last look


class Cycle:
    """Hooks on every parameter from one step to the next.

    A hook before the accumulation sees the gradient of one backward pass, before any reduction.
    The sum is read in a hook after it, or, where processes average their gradients, at the end of
    the backward pass, when that is done. Whether the loss is divided by the number of passes M does
    not matter: g_b is one pass, g_B the sum divided by M.

    Args:
        params: of the optimizer.
        processes: over which `DistributedDataParallel` averages.

    Attributes:
        reason: why there will be no result; None as long as there may be one.
    """

    def __init__(self, params: Sequence[Tensor], processes: int) -> None:
        self.reason: str | None = None
        self._params = params
        self._processes = processes
        self._seen: dict[int, _Seen] = {}
        self._hooks: list[RemovableHandle] = []
        self._stepping = False
        self._waiting = False  # for the end of the backward pass
        self._between = False  # no gradient has arrived since the last one ended
        self._ends = 0
        for i, param in enumerate(params):
            if trainable(param):
                self._seen[i] = _Seen()
                self._hooks.append(before_accumulation(param, Hook(self._before, i)))
                self._hooks.append(after_accumulation(param, Hook(self._after, i)))
        weakref.finalize(self, remove, self._hooks).atexit = False

    def stepping(self) -> None:
        """The optimizer has all gradients; a backward pass after this is part of no batch."""
        self._stepping = True

    def passes(self) -> tuple[int, list[int]]:
        """The number of backward passes so far, and the parameters that all of them reached."""
        most = max((seen.passes for seen in self._seen.values()), default=0)
        return most, [i for i, seen in self._seen.items() if seen.passes == most > 0]

    def close(self) -> None:
        """Take the hooks off; what arrives later is not looked at."""
        remove(self._hooks)
        self._stepping = True

    @torch.no_grad()
    def result(self) -> dict[str, Tensor | float]:
        """The squared norms and the ratio of the batch sizes; nothing where `reason` says why."""
        self.close()
        reached = [seen for seen in self._seen.values() if seen.passes]
        passes, by_all = self.passes()
        if not reached:
            self._give_up(NOTHING)
        elif len(by_all) < len(reached):
            self._give_up(PARTS)
        elif passes * self._processes == 1:
            self._give_up(SINGLE)
        elif self._processes > 1 and self._ends != passes:
            self._give_up(PIECES)
        if self.reason is not None:
            return {}
        small = _total([seen.small for seen in reached]) / passes
        big = _total([None if seen.big is None else seen.big.square() for seen in reached])
        ratio: Tensor | float = float(passes * self._processes)
        starts = [seen.start for seen in reached if seen.start is not None]
        if starts:  # what was there is known to be zero on the device only
            ratio = torch.where(_total(starts).to(big.device) == 0, ratio, torch.nan)
        return {"noise_small": small, "noise_big": big / passes**2, "noise_ratio": ratio}

    def _give_up(self, reason: str) -> None:
        self.reason = self.reason or reason

    def _before(self, i: int, grad: Tensor) -> None:
        """A gradient is about to be added to the sum; or only looked at, by `autograd.grad`."""
        if not self._stepping:
            self._attempt(self._look_before, i, grad)

    def _after(self, i: int, param: Tensor) -> None:
        """The gradient has been added."""
        self._seen[i].passes += 1
        if self._stepping:
            self._give_up(SEVERAL)
        self._attempt(self._look_after, i, param)

    def _reduced(self, i: int, param: Tensor) -> None:
        """The backward pass is over, and the gradients are averaged where it was meant to."""
        self._waiting = False
        if not self._stepping:
            self._attempt(self._look_at_all, i, param)

    @torch.no_grad()
    def _attempt(self, look: Method, i: int, tensor: Tensor) -> None:
        """Look, unless it is too late for this step; what fails is no reason to end a training."""
        if self.reason is None:
            try:
                look(i, tensor)
            except Exception as error:
                kind = type(error).__name__
                self._give_up(f"measuring the noise scale failed with {kind}: {error}")

    def _look_before(self, i: int, grad: Tensor) -> None:
        seen, present = self._seen[i], self._params[i].grad
        if grad.layout != torch.strided or (present is not None and present.is_sparse):
            self._give_up(SPARSE)
        elif not holds_values(type(grad)):
            self._give_up(SHARDED)
        elif self._changed(seen, present):
            self._give_up(CHANGED)
        else:
            self._between = False
            if not seen.passes:
                seen.start = None if present is None else _norm(present)
            seen.incoming = _norm(grad)

    def _look_after(self, i: int, param: Tensor) -> None:
        seen = self._seen[i]
        if seen.incoming is None or param.grad is None:
            self._give_up(USED_UP)
            return
        if seen.small is None:
            seen.small = seen.incoming.square()
        else:
            seen.small = torch.addcmul(seen.small, seen.incoming, seen.incoming)
        seen.incoming = None
        if self._processes == 1:
            seen.big, seen.mark = _norm(param.grad), _mark(param.grad)
        elif not self._waiting:
            self._waiting = True
            at_end_of_backward(Hook(self._reduced, i), param)

    def _look_at_all(self, _: int, __: Tensor) -> None:
        self._ends, self._between = self._ends + 1, True
        for i, seen in self._seen.items():
            grad = self._params[i].grad
            if (grad is None) != (seen.passes == 0):
                self._give_up(USED_UP if grad is None else PARTS)
            elif grad is not None:
                seen.big, seen.mark = _norm(grad), _mark(grad)

    def _changed(self, seen: _Seen, present: Tensor | None) -> bool:
        """Whether anybody but backward wrote gradients since they were last looked at."""
        if self._processes == 1:
            return seen.passes > 0 and _mark(present) != seen.mark
        # Gradients may be views of one bucket, whose writes tell on all of them: so they are looked
        # at all together, before the first one arrives.
        both = [(self._params[i].grad, seen) for i, seen in self._seen.items() if seen.passes]
        return self._between and any(_mark(grad) != seen.mark for grad, seen in both)


def _mark(grad: Tensor | None) -> tuple[int, int] | None:
    """What changes where a gradient is replaced, or written by anybody."""
    return None if grad is None else (id(grad), grad._version)


def _norm(tensor: Tensor) -> Tensor:
    """0-d norm of a dense tensor, in float64 where the device has it."""
    values = real_view(tensor.detach().resolve_conj())
    wide = wide_dtype(values.device)
    if values.device.type == "cpu" and values.dtype != wide and values.numel() >= _LONG:
        flat = as_rows(values, 1)[0]  # four times as fast as in float64 throughout
        whole = flat.numel() // _BLOCK * _BLOCK
        blocks = _vector_norm(flat[:whole].view(-1, _BLOCK), torch.float32, dim=1)
        values = torch.cat((blocks, flat[whole:].float()))
    return _vector_norm(values, wide)


def _vector_norm(values: Tensor, dtype: torch.dtype, dim: int | None = None) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(values, dim=dim, dtype=dtype)
    return norm


def _total(values: Sequence[Tensor | None]) -> Tensor:
    """The 0-d sum over parameters, on the first accelerator among their devices."""
    by_device: dict[torch.device, list[Tensor]] = {}
    for value in values:
        assert value is not None
        by_device.setdefault(value.device, []).append(value)
    sums = [torch.stack(some).sum() for some in by_device.values()]
    # From the host to a device nobody waits; the other way somebody would.
    home = next((s.device for s in sums if s.device.type != "cpu"), sums[0].device)
    total = sums[0].to(home, non_blocking=True)
    for other in sums[1:]:
        total = total + other.to(home, non_blocking=True)
    return total
