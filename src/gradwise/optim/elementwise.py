"""Optimizers whose update is a formula for each value: three ways to run it, one to write it down.

A method gives the formula twice, for one tensor (`_single`, which reads like the paper and runs
under `differentiable=True`) and for lists of tensors (`_multi`, few calls, any device, compiled by
torch.compile). A compiled kernel may do the same in one pass (`gradwise.backends`): on the CPU for
all methods, on a GPU for some.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, overload

import torch
from torch import Tensor

from gradwise.backends import choose, update
from gradwise.backends.gpu import update as gpu
from gradwise.errors import UserError
from gradwise.layout import real_view
from gradwise.optim.base import FoldingOptimizer, Params, Transforms, check, check_lr
from gradwise.optim.fold import Fold
from gradwise.optim.share import (
    PLAIN,
    Group,
    Share,
    as_reals,
    buckets,
    by_device,
    mapped,
    part_here,
)

_Step = update.Update | gpu.Update
_NARROW = (torch.float16, torch.bfloat16)


class ElementwiseOptimizer(FoldingOptimizer):
    """Base of the optimizers with a formula for each value.

    Args:
        params: as torch.optim takes them.
        defaults: the method's own options; `lr` and `weight_decay` are checked here.
        transform: transforms of the gradients, folded into the update.
        foreach: update lists of tensors at once. None: where it pays.
        maximize: go up instead of down.
        capturable: keep step counts on the device, so that a CUDA graph can hold the step.
        differentiable: let autograd through the step; the plain loop over tensors runs then.
        fused: a compiled kernel, on the CPU or a GPU. None: where there is one and `foreach` is
            None.

    Raises:
        UserError: where an argument is out of its bounds or contradicts another.
    """

    by_value = True
    counts: ClassVar[bool] = True  # whether there is a `step` in the state
    wide: ClassVar[bool] = True  # state and arithmetic in float32 for parameters of 16 bits
    scalars: ClassVar[tuple[str, ...]] = ()
    decay: ClassVar[Literal["coupled", "decoupled", "own"]] = "coupled"

    def __init__(
        self,
        params: Params,
        defaults: Group,
        *,
        transform: Transforms | None,
        foreach: bool | None,
        maximize: bool,
        capturable: bool,
        differentiable: bool,
        fused: bool | None,
    ) -> None:
        check_lr(defaults["lr"])
        check("weight_decay", defaults.get("weight_decay", 0.0), 0.0)
        if foreach and fused:
            raise UserError("expected at most one of foreach and fused to be True, got both")
        if differentiable and (foreach or fused):
            raise UserError("expected foreach and fused not to be True with differentiable=True")
        options = {
            "foreach": foreach,
            "maximize": maximize,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
        }
        super().__init__(params, {**defaults, **options}, transform)

    # What a method writes.

    def _buffers(self, group: Group) -> tuple[str, ...]:
        """Names of the state tensors, shaped like the parameter, that begin with zeros."""
        raise NotImplementedError

    def _kernel(self, group: Group) -> str | None:
        """The name of the compiled kernel for these options; None where there is none."""
        return None

    def _numbers(self, group: Group) -> tuple[float, ...]:
        """The method's own constants, in the order its kernel takes them."""
        raise NotImplementedError

    def _extras(self, group: Group) -> dict[str, Any]:
        """What else the method's kernel takes, by name."""
        return {}

    def _single(
        self,
        param: Tensor,
        grad: Tensor,
        buffers: Sequence[Tensor],
        step: Tensor | None,
        group: Group,
    ) -> None:
        """Update one parameter and its state in place; `grad` is not to be written."""
        raise NotImplementedError

    def _multi(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        buffers: Sequence[list[Tensor]],
        steps: list[Tensor],
        group: Group,
    ) -> None:
        """The same for lists of tensors of one device and type."""
        raise NotImplementedError

    def _before(self, shares: list[Share], fold: Fold | None) -> None:
        """Called once a step, before any parameter changes, with all that will be updated."""

    # The step.

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all parameters that have a gradient.

        Args:
            closure: evaluates the model anew and returns the loss.

        Returns:
            The closure's loss, or None.

        Raises:
            RuntimeError: for a sparse gradient.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            shares = self._shares()
            fold = self._decided()
            self._before(shares, fold)
            for share in shares:
                self._update(share, fold)
        return loss

    def _shares(self) -> list[Share]:
        shares, first = [], 0
        for number, group in enumerate(self.param_groups):
            params: list[Tensor] = []
            grads: list[Tensor] = []
            steps: list[Tensor] = []
            buffers: list[list[Any]] = [[] for _ in (*self._buffers(group), *self.scalars)]
            self._init_group(group, params, grads, steps, *buffers)
            all_of_it = enumerate(group["params"], first)
            places = [i for i, param in all_of_it if param.grad is not None]
            first += len(group["params"])
            if params:
                options = {**group, "lr": _readable(group)}
                shares.append(Share(number, options, params, grads, steps, buffers, places))
        return shares

    def _init_group(
        self,
        group: Group,
        params: list[Tensor],
        grads: list[Tensor],
        steps: list[Tensor],
        *buffers: list[Any],
    ) -> None:
        """Fill the empty lists, making state where there is none; torch.compile knows the name."""
        self._prepare()
        names = self._buffers(group)
        for param in group["params"]:
            grad = param.grad
            if grad is None:
                continue
            if grad.layout != torch.strided:
                raise RuntimeError(f"{type(self).__name__} does not support sparse gradients")
            params.append(part_here(param))
            grads.append(part_here(grad))
            if not names and not self.counts:
                continue  # nothing to remember
            state = self.state[param]
            if self.counts and "step" not in state:
                device = param.device if group["capturable"] else "cpu"
                state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            for name in names:
                if name not in state:
                    state[name] = self._fresh(param, group)
            for name in self.scalars:
                if name not in state:
                    wide = param.dtype in (torch.float64, torch.complex128)
                    dtype = torch.float64 if wide else torch.float32
                    state[name] = torch.zeros((), dtype=dtype, device=param.device)
            if self.counts:
                if group["capturable"] and state["step"].device != param.device:
                    state["step"] = state["step"].to(param.device)
                steps.append(state["step"])
            for values, name in zip(buffers, (*names, *self.scalars), strict=True):
                values.append(part_here(state[name]))

    def _fresh(self, param: Tensor, group: Group) -> Tensor | None:
        """A state tensor before the first step."""
        dtype = torch.float32 if self.wide and param.dtype in _NARROW else param.dtype
        return torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)

    def _update(self, share: Share, fold: Fold | None) -> None:
        """The share's update, by the kernel, by lists or one tensor after the other."""
        group = share.group
        if not group["differentiable"]:
            left = self._by_kernel(share, fold)
            if len(left) < len(share.params):
                share = share.only(left)
            if share.params and _by_lists(group, share.params):
                for bucket in buckets(share):
                    self._update_many(bucket, fold)
                return
        for i in range(len(share.params)):
            self._update_one(share.only([i]), fold)

    def _by_kernel(self, share: Share, fold: Fold | None) -> list[int]:
        """Update by compiled kernels what they take; the entries of the share that are left."""
        group = share.group
        left: list[int] = []
        for device, here in by_device(share.params).items():
            step = None if device is None else self._compiled_on(share, device)
            rest = list(range(len(here)))
            if step is not None:
                part = share if len(here) == len(share.params) else share.only(here)
                rest = step(
                    **self._given(part, fold),
                    lr=group["lr"],
                    numbers=self._numbers(group),
                    decoupled=self._decoupled(group),
                    **self._extras(group),
                )
            left += [here[i] for i in rest]
        left.sort()
        if group["fused"] and left and not torch.compiler.is_compiling():
            first = share.params[left[0]]
            why = self._why_not(group, first.device) or "dense, and in memory as its gradient"
            raise UserError(
                f"expected what {type(self).__name__}'s compiled kernel takes with fused=True, got "
                f"{first.dtype} on {first.device}: {why}"
            )
        return left

    def _given(self, share: Share, fold: Fold | None) -> dict[str, Any]:
        """What any kernel takes of a share: its tensors, and what is done to gradients first."""
        params, grads, buffers, steps = as_reals(share)
        return {
            "params": params,
            "grads": grads,
            "buffers": buffers,
            "steps": steps,
            "coupled": self._coupled(share.group),
            "maximize": share.group["maximize"],
            "fold": mapped(share, fold),
        }

    def _named(self, group: Group) -> str | None:
        """The name of the CPU's kernel for a group, None where these options have none."""
        kept = group["capturable"] or group["differentiable"]
        return None if kept else self._kernel(group)

    def _compiled_on(self, share: Share, device: torch.device) -> _Step | None:
        """The compiled step of a group's parameters on a device; None: by torch's own calls."""
        compiled = self._compiled(share) if device.type == "cpu" else None
        if compiled is not None or not _asked(share.group):
            return compiled
        kernel = self._kernel(share.group)
        if kernel is None or self._why_not(share.group, device) is not None:
            return None
        steps: dict[tuple[int, torch.device, str, bool], gpu.Update]
        steps = self.__dict__.setdefault("_device_steps", {})  # in no checkpoint and no copy
        key = (share.number, device, kernel, bool(share.group["capturable"]))
        if key not in steps:
            steps[key] = gpu.Update(kernel, key[-1])
        return steps[key]

    def _compiled(self, share: Share) -> update.Update | None:
        """The CPU's compiled step of a group, which remembers where its tensors lie."""
        if not _asked(share.group):
            return None
        kernel = self._named(share.group)
        if kernel is None or _missing(kernel) is not None:
            return None
        steps: dict[tuple[int, str], update.Update]
        steps = self.__dict__.setdefault("_compiled_steps", {})  # in no checkpoint and no copy
        key = (share.number, kernel)
        if key not in steps:
            steps[key] = update.Update(kernel)
        return steps[key]

    def _why_not(self, group: Group, device: torch.device) -> str | None:
        """Why there is no compiled step on a device, or None where there is one."""
        backend = choose(device)
        if device.type == "cpu" and backend != "triton":
            return _missing(self._named(group))
        kernel = None if group["differentiable"] else self._kernel(group)
        if kernel not in gpu.METHODS:
            return "there is none for these options there"
        return None if backend == "triton" else f"the backend is {backend!r}"

    def _update_one(self, share: Share, fold: Fold | None) -> None:
        group, target = share.group, share.params[0]
        step = share.steps[0].add_(1) if self.counts else None
        grad = share.grads[0]
        if fold is not None:
            grad = fold(share.places[0], grad, self.wide)
        grad = -grad if group["maximize"] else grad
        param, grad = real_view(target), real_view(grad.resolve_conj())
        buffers = [real_view(values[0]) for values in share.buffers]
        narrow = self.wide and param.dtype in _NARROW
        if narrow:
            param, grad = param.float(), grad.float()
        if coupled := self._coupled(group):
            grad = grad.add(param, alpha=coupled)
        if decoupled := self._decoupled(group):
            param.mul_(1 - group["lr"] * decoupled)
        self._single(param, grad, buffers, step, group)
        if narrow:
            real_view(target).copy_(param)

    def _update_many(self, share: Share, fold: Fold | None) -> None:
        group = share.group
        if self.counts:
            torch._foreach_add_(share.steps, 1.0)
        params, grads, buffers = self._prepared(share, fold)
        if decoupled := self._decoupled(group):
            torch._foreach_mul_(params, 1 - group["lr"] * decoupled)
        self._multi(params, grads, buffers, share.steps, group)
        if self.wide and share.params[0].dtype in _NARROW:
            torch._foreach_copy_([real_view(p) for p in share.params], params)

    def _prepared(
        self, share: Share, fold: Fold | None
    ) -> tuple[list[Tensor], list[Tensor], list[list[Any]]]:
        """Parameters, gradients and states of one device and type, as the method sees them.

        Gradients are mapped, negated and have their coupled decay; complex tensors are pairs of
        reals, and narrow parameters are copies in float32 where states are.
        """
        group, grads = share.group, share.grads
        if fold is not None:
            grads = fold.all(share.places, grads, self.wide)
        if group["maximize"]:
            grads = list(torch._foreach_neg(grads))
        params, grads, buffers, _ = as_reals(replace(share, grads=grads))
        if self.wide and params[0].dtype in _NARROW:
            params, grads = [p.float() for p in params], [g.float() for g in grads]
        if coupled := self._coupled(group):
            grads = list(torch._foreach_add(grads, params, alpha=coupled))
        return params, grads, buffers

    def _coupled(self, group: Group) -> float:
        """The weight decay that is added to the gradient."""
        return 0.0 if self._kind(group) != "coupled" else float(group.get("weight_decay", 0.0))

    def _decoupled(self, group: Group) -> float:
        """The weight decay that shrinks the parameter by a factor of its own."""
        return 0.0 if self._kind(group) != "decoupled" else float(group.get("weight_decay", 0.0))

    def _kind(self, group: Group) -> str:
        if "decoupled_weight_decay" in group:
            return "decoupled" if group["decoupled_weight_decay"] else "coupled"
        return self.decay


def _readable(group: Group) -> float | Tensor:
    """The learning rate, as a float where it lies in host memory."""
    lr = group["lr"]
    if not isinstance(lr, Tensor):
        return float(lr)
    kept = group["capturable"] or group["differentiable"] or torch.compiler.is_compiling()
    if kept or lr.device.type != "cpu":
        return lr.reshape(())
    return float(lr.item())


def _asked(group: Group) -> bool:
    """Whether a compiled step is wanted."""
    fused = group["fused"]
    asked = group["foreach"] is None if fused is None else bool(fused)
    return asked and not torch.compiler.is_compiling()


def _missing(kernel: str | None) -> str | None:
    """Why there is no compiled step, or None where there is one."""
    if kernel is None:
        return "there is none for these options"
    chosen = choose(torch.device("cpu"))
    return update.missing(kernel) if chosen == "native" else f"the backend is {chosen!r}"


def _by_lists(group: Group, params: list[Tensor]) -> bool:
    if torch.compiler.is_compiling():
        # A traced loop is unrolled anyway, and torch 2.13 loses calls in it that write to a 0-d
        # float64 tensor of the CPU and whose result is not used; calls on lists it keeps.
        return True
    if group["foreach"] is not None:
        return bool(group["foreach"])
    return all(type(p) in PLAIN for p in params)
