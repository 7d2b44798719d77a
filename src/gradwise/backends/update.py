"""The optimizers' step on the CPU: one pass of a compiled kernel over weight, gradient and state.

What a step would otherwise do to the gradient first (the transform's map, its sign, the decay) is
done to a block of it on the way, so it costs no pass of its own and `.grad` keeps its bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from operator import is_

import torch
from torch import Tensor

from gradwise.backends.compiler import kernels
from gradwise.backends.launch import launch
from gradwise.backends.segments import tell_autograd
from gradwise.backends.update_inputs import KERNELS, SOURCE, Fold, takes
from gradwise.backends.update_plan import Plan

__all__ = ["KERNELS", "Fold", "Update", "missing", "takes"]


def missing(kind: str) -> str | None:
    """Why that kernel cannot run here, or None where it can; compiles all at the first call.

    Raises:
        ValueError: where there is no kernel of that name.
    """
    if kind not in KERNELS:
        raise ValueError(f"expected one of {', '.join(KERNELS)}, got {kind!r}")
    library = kernels(SOURCE)
    return library if isinstance(library, str) else None


class Update:
    """The step of one method on one parameter group; remembers where the group's tensors lie.

    An optimizer keeps one a group and kind. It holds references to the parameters and states it
    was called with last, never to gradients, and is not part of any checkpoint. Before each step
    it looks at what may have changed (identity, address, the gradients' memory order), which takes
    less than a microsecond a tensor; nothing is read through an address that was not looked at.

    Args:
        kind: one of `KERNELS`, which says how many states of the parameter's shape, which 0-d
            states after them, and which numbers a method takes, in that order.

    Examples:
        >>> weight, momentum = torch.ones(3), torch.zeros(3)
        >>> step = Update("sgd")
        >>> step([weight], [torch.tensor([1.0, 2.0, 3.0])], [[momentum]], [], lr=0.1,
        ...      numbers=(0.9, 0.0, 0.0))
        []
        >>> weight
        tensor([0.9000, 0.8000, 0.7000])
    """

    def __init__(self, kind: str) -> None:
        why = missing(kind)
        if why is not None:
            raise RuntimeError(why)
        self.kind = kind
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
        cosine: Tensor | None = None,
    ) -> list[int]:
        """Count the step, then update parameters and states in place.

        The gradient that a method sees is `(g - shift) * scale`, negated for `maximize`, plus
        `coupled` times the parameter; the parameter is then multiplied by `1 - lr * decoupled`.

        Args:
            params: dense, real (complex ones as real views).
            grads: dense, one a parameter; only read.
            buffers: the states of the parameters' shapes, one list a state with an entry a
                parameter; then, one list each, the 0-d float32 or float64 states (HGM's alignment).
            steps: 0-d, float32 or float64, what each parameter counted before this step; an empty
                list where "sgd" does not count (it then damps the first gradient like any other).
            lr: 0-d where it is a tensor, of any float type and on any device.
            numbers: the method's own, named in `KERNELS`; flags as 0 and 1.
            coupled: decay added to the gradient.
            decoupled: decay of the parameter itself, in units of the learning rate.
            maximize: ascend.
            fold: the map that a transform decided, its layout and the parameters' places in it.
            cosine: 0-d, for "hgm" one number for all parameters instead of each one's own.

        Returns:
            The places of the parameters that the kernel cannot take (see `takes`). Nothing of them
            was changed, nor their step counted: they are left to torch's own calls.

        Raises:
            ValueError: where the lists differ in length or are not those of the method.
        """
        plan = self._planned(params, grads, buffers, steps, fold)
        plan.set(lr, coupled, decoupled, maximize, numbers, cosine, fold)
        if plan.taken:
            if plan.reduces and cosine is None:
                launch("gradwise_update_reduce", plan.values, plan.pieces, plan.work)
            launch("gradwise_update_begin", 0, len(plan.taken), plan.work)
            launch("gradwise_update", plan.values, plan.pieces, plan.work)
            tell_autograd(plan.params)
        return plan.left

    def sums(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        buffers: Sequence[Sequence[Tensor]],
        steps: Sequence[Tensor],
        *,
        coupled: float | Tensor = 0.0,
        maximize: bool = False,
        fold: Fold | None = None,
    ) -> tuple[Tensor, list[int]]:
        """What HGM's cosine is made of, of the gradients as its update would see them.

        Args:
            params: as for the update, like all that follows.
            grads: dense, one a parameter.
            buffers: with the momentum as the first state.
            steps: not counted here.
            coupled: decay added to the gradient.
            maximize: ascend.
            fold: the map that a transform decided.

        Returns:
            float64 [3, T] with `<g, m>`, `|g|^2` and `|m|^2` of each of T parameters, and the
            places of those that the kernel cannot take, whose columns are 0.

        Raises:
            ValueError: for another method than "hgm", and as the update.
        """
        if self.kind != "hgm":
            raise ValueError(f"expected the kernel 'hgm', got {self.kind!r}")
        plan = self._planned(params, grads, buffers, steps, fold)
        plan.set(0.0, coupled, 0.0, maximize, (0.0,) * len(KERNELS[self.kind].numbers), None, fold)
        out = torch.zeros(3, len(params), dtype=torch.float64)
        if plan.taken:
            launch("gradwise_update_reduce", plan.values, plan.pieces, plan.work)
            out[:, plan.taken] = plan.sums()
        return out, plan.left

    def _planned(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        buffers: Sequence[Sequence[Tensor]],
        steps: Sequence[Tensor],
        fold: Fold | None,
    ) -> Plan:
        """The plan for these tensors, with the addresses of these gradients."""
        plan = self._plan
        if (
            plan is None
            or len(grads) != len(plan.numels)
            or len(params) != len(plan.numels)
            or len(plan.held) != len(params) * (1 + len(buffers)) + len(steps)
            or not all(map(is_, chain(params, *buffers, steps), plan.held))
            or not plan.fits(grads, fold)
        ):
            plan = self._plan = Plan(self.kind, params, grads, buffers, steps, fold)
        return plan
