"""The optimizers' step on a GPU: SGD and AdamW with a map of the gradients folded in.

Two launches a parameter group (what the step needs of its counts, then the update) where all is of
one type, whatever the number of parameters. `.grad` is only read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gradwise.backends.gpu import launching
from gradwise.backends.gpu.launching import KernelError, kind_of, launch
from gradwise.backends.gpu.measuring import numbers_of
from gradwise.backends.gpu.tables import LEFT, keep_if_captured
from gradwise.backends.gpu.update_tables import BLOCK, OPTIONS, Plan
from gradwise.backends.segments import tell_autograd
from gradwise.backends.update_inputs import KERNELS, Fold, check

METHODS = {"sgd": 0, "adamw": 1}  # as in update_kernels.py
WARPS, TILE = 8, 128
_NUMBER, _LOGS = 3, 8  # where the method's numbers begin, and the logarithms of its betas


class Update:
    """The step of one method on the parameters of one group and device.

    Like `gradwise.backends.update.Update`, whose arguments it takes: it remembers where the tensors
    lie, and is no part of a checkpoint. A CUDA graph may hold its calls where it is capturable.

    Args:
        kind: one of `METHODS`.
        capturable: the counts are on the device, and not in host memory.
    """

    def __init__(self, kind: str, capturable: bool = False) -> None:
        if kind not in METHODS:
            raise ValueError(f"expected one of {', '.join(METHODS)}, got {kind!r}")
        self.kind, self.capturable = kind, capturable
        self._plan: Plan | None = None

    def __call__(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        buffers: Sequence[Sequence[Tensor]],
        steps: Sequence[Tensor],
        *,
        lr: float | Tensor,
        numbers: Sequence[float | Tensor],
        coupled: float | Tensor = 0.0,
        decoupled: float | Tensor = 0.0,
        maximize: bool = False,
        fold: Fold | None = None,
    ) -> list[int]:
        """Count the step, then update parameters and states in place.

        Args:
            params: of one device.
            grads: one a parameter; only read.
            buffers: the states, one list a state.
            steps: 0-d, what each counted before; empty where none are counted.
            lr: a number, or 0-d.
            numbers: the method's own.
            coupled: decay added to the gradient.
            decoupled: decay of the parameter itself, in units of the learning rate.
            maximize: ascend.
            fold: the map that a transform decided, its layout and the parameters' places in it.

        Returns:
            The places of the parameters that the kernels cannot take, which were left as they are.

        Raises:
            ValueError: where the lists differ in length or are not those of the method.
        """
        everything = list(range(len(params)))
        given = (coupled, decoupled, *numbers)
        if not params or launching.broken() is not None:
            return everything
        if any(isinstance(value, Tensor) for value in given):
            return everything  # known on the device alone
        plan = self._plan
        if plan is None or not plan.still_fits(params, grads, buffers, steps, fold):
            check(KERNELS[self.kind], params, grads, buffers, (), steps, fold)
            plan = self._plan = Plan(params, grads, buffers, steps, fold, self.capturable)
        plan.chunks.used(plan.device)
        keep_if_captured(plan.device, plan)
        taken = [i for i in everything if plan.lies[i] != LEFT]
        if not taken:
            return everything
        values = [float(value) for value in numbers]
        decays = float(coupled), float(decoupled)
        done = self._run(plan, grads, steps, lr, values, decays, maximize, fold)
        if done and not plan.there and steps:
            torch._foreach_add_([steps[i] for i in done], 1.0)
        tell_autograd([params[i] for i in done])
        written = set(done)
        return [i for i in everything if i not in written]

    def _run(
        self,
        plan: Plan,
        grads: Sequence[Tensor],
        steps: Sequence[Tensor],
        lr: float | Tensor,
        numbers: list[float],
        decays: tuple[float, float],
        maximize: bool,
        fold: Fold | None,
    ) -> list[int]:
        """Launch; the places of what was updated."""
        device, count, method = plan.device, len(grads), METHODS[self.kind]
        counts = [0.0] * count
        if steps and not plan.there:
            counts = [float(step.item()) + 1 for step in steps]
        rate = lr.detach().to(device, non_blocking=True) if isinstance(lr, Tensor) else None
        number = 0.0 if isinstance(lr, Tensor) else float(lr)
        options = plan.options([*_options((number, *decays), numbers, method), *counts])
        addresses = plan.where(grads)
        constants = torch.empty(3 * count, dtype=torch.float32, device=device)
        scale, scales = (None, 0) if fold is None else numbers_of(fold[0].scale, fold[1])
        shift, shifts = (None, 0) if fold is None else numbers_of(fold[0].shift, fold[1])
        chunks = plan.chunks
        try:
            launch(
                "prepare_updates",
                -(-count // TILE),
                device,
                options,
                options if rate is None else rate,
                addresses,
                constants,
                count,
                warps=4,
                METHOD=method,
                RATE_GIVEN=rate is not None,
                THERE=plan.there,
                TILE=TILE,
            )
        except KernelError:
            return []
        done: list[int] = []
        for at, group in enumerate(chunks.groups):
            try:
                launch(
                    "update_chunks",
                    group.size,
                    device,
                    addresses,
                    plan.mapped,
                    chunks.tensor,
                    chunks.start,
                    chunks.length,
                    chunks.segment,
                    options,
                    constants,
                    options if scale is None else scale,
                    options if shift is None else shift,
                    group.first,
                    count,
                    warps=WARPS,
                    KIND=kind_of(group.kinds[0]),
                    STATE=kind_of(group.kinds[1]),
                    METHOD=method,
                    STATES=plan.states,
                    BLOCK=BLOCK,
                    SCALES=scales,
                    SHIFTS=shifts,
                    MAXIMIZE=maximize,
                    NESTEROV=method == METHODS["sgd"] and bool(numbers[2]),
                    FAR=_far(method, numbers),
                    ALIGNED=group.aligned,
                )
            except KernelError:
                if plan.there:  # what is left counts its step itself
                    behind = [i for other in chunks.groups[at:] for i in other.members]
                    torch._foreach_sub_([steps[i] for i in behind], 1.0)
                break
            done += group.members
        return sorted(done)


def _far(method: int, numbers: list[float]) -> bool:
    """Whether the gradient has the greater weight in the first average."""
    return method == METHODS["adamw"] and 1 - numbers[0] >= 0.5


def _options(rates: tuple[float, float, float], numbers: list[float], method: int) -> list[float]:
    """The options as kernels read them, see update_kernels.py: rate, decays, the method's own."""
    found = [0.0] * OPTIONS
    found[:_NUMBER] = rates
    if method == METHODS["sgd"]:
        found[_NUMBER : _NUMBER + 2] = numbers[:2]
        return found
    beta1, beta2, eps = numbers
    weight = beta1 if _far(method, numbers) else 1 - beta1
    found[_NUMBER : _NUMBER + 4] = weight, beta2, 1 - beta2, eps
    found[_LOGS : _LOGS + 2] = (math.log(b) if b > 0 else -math.inf for b in (beta1, beta2))
    return found
