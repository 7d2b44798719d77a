"""What all optimizers of gradwise share: torch.optim's conventions, and transforms inside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain as concatenated
from typing import Any, ClassVar

import torch
from torch import Tensor

from gradwise.attach import attach, attachment_of
from gradwise.attach.placement import spread_over_processes
from gradwise.errors import UserError
from gradwise.optim.fold import Fold
from gradwise.transforms import Transform

Params = Iterable[Any]  # tensors, (name, tensor) pairs or dicts, as torch.optim takes them
Transforms = Transform | Sequence[Transform]


class FoldingOptimizer(torch.optim.Optimizer):
    """A torch optimizer that takes transforms of the gradients into its own update.

    The gradients are measured once a step, the transforms decide on one affine map, and the update
    applies it while it reads the gradient: nothing is written to `.grad`, so whoever looks at it
    after the step sees what backward left there. `attach`, `autoscale` and `watch` on such an
    optimizer use the same way. Unlike hooks, transforms survive deepcopy and pickle.

    Args:
        params: tensors, (name, tensor) pairs, or dicts with options of their own.
        defaults: every option with its default.
        transform: one transform or several, applied in order; None for none.

    Raises:
        UserError: where `transform` is none.
    """

    folds_transforms = True
    # Whether every value's update depends on that value alone, so that parts of a parameter can be
    # updated where they are.
    by_value: ClassVar[bool] = False

    def __init__(
        self, params: Params, defaults: dict[str, Any], transform: Transforms | None = None
    ) -> None:
        super().__init__(params, defaults)
        if transform is not None:
            attach(self, *(transform if isinstance(transform, Sequence) else (transform,)))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters; see `torch.optim.Optimizer`.

        Raises:
            UserError: where they are sharded and the method needs them whole.
        """
        super().add_param_group(param_group)
        if not self.by_value and spread_over_processes(self.param_groups[-1]["params"]):
            self.param_groups.pop()
            raise UserError(
                f"expected parameters that are whole on this process, got sharded ones (DTensor): "
                f"{type(self).__name__} relates the values of a parameter to each other"
            )

    def _prepare(self) -> None:
        """Called where torch.compile does not trace, before a step that it does."""
        attachment = attachment_of(self)
        if attachment is not None and torch.compiler.is_compiling():
            attachment.prepare()

    def _decided(self) -> Fold | None:
        """Decide for the gradients that are there now; None where nothing is to be mapped."""
        attachment = attachment_of(self)
        if attachment is None:
            return None
        decided = attachment.decide()
        if decided is None or decided[0].is_identity:
            return None
        return Fold(*decided)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        attachment = attachment_of(self)
        if attachment is not None and not attachment.only_measures:
            state["gradwise"] = {
                "transform": attachment.transform,
                "state": attachment.state_dict(),
                "names": attachment.names,
            }
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        carried = state.pop("gradwise", None)
        super().__setstate__(state)
        for group in self.param_groups:
            for option, default in self.defaults.items():
                group.setdefault(option, default)  # a checkpoint of a version without that option
        for own in self.state.values():
            if "step" in own and not isinstance(own["step"], Tensor):
                own["step"] = torch.tensor(float(own["step"]), dtype=torch.float32)
        if carried is not None:
            attachment = attach(self, carried["transform"])
            params = concatenated.from_iterable(group["params"] for group in self.param_groups)
            attachment.rename({id(p): n for p, n in zip(params, carried["names"], strict=True)})
            if carried["state"]["state"]:
                attachment.load_state_dict(carried["state"])

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a checkpoint; see `torch.optim.Optimizer.load_state_dict`.

        State keeps the type it was saved with, where torch would cast it to the parameter's: the
        float32 averages of a bfloat16 parameter stay float32. And it is copied, where torch may go
        on in the tensors of the checkpoint itself. Counts of steps that `capturable=True` had left
        on a device come back to the host with `capturable=False`.
        """
        super().load_state_dict(dict(state_dict))
        ids = concatenated.from_iterable(g["params"] for g in state_dict["param_groups"])
        params = concatenated.from_iterable(g["params"] for g in self.param_groups)
        for number, param in zip(ids, params, strict=True):
            for key, value in state_dict["state"].get(number, {}).items():
                mine = self.state[param].get(key)
                if not isinstance(mine, Tensor) or not isinstance(value, Tensor):
                    continue
                if mine is value or (key != "step" and mine.dtype != value.dtype):
                    self.state[param][key] = value.to(mine.device, copy=True)
        for group in self.param_groups:
            if group.get("capturable") is False:  # steps are read each time: not from a device
                for param in group["params"]:
                    own = self.state.get(param, {})
                    if isinstance(own.get("step"), Tensor):
                        own["step"] = own["step"].cpu()


def check(name: str, value: object, low: float, high: float = float("inf")) -> None:
    """Raise a `UserError` unless `low <= value`, and `value < high`; tensors are not looked at.

    Args:
        name: of the argument, for the sentence.
        value: what was given.
        low: least value that is allowed.
        high: first value that is not.

    Examples:
        >>> check("beta", 1.5, 0.0, 1.0)
        Traceback (most recent call last):
        gradwise.errors.UserError: expected 0 <= beta < 1, got beta=1.5
    """
    if isinstance(value, Tensor):
        return
    if not isinstance(value, int | float) or not low <= value < high:
        bound = f"{low:g} <= {name}" + (f" < {high:g}" if high != float("inf") else "")
        raise UserError(f"expected {bound}, got {name}={value!r}")


def check_lr(lr: object) -> None:
    """Raise a `UserError` unless `lr` is a number >= 0 or a tensor with one element."""
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise UserError(f"expected lr with one element, got lr of shape {tuple(lr.shape)}")
        return
    check("lr", lr, 0.0)


def check_betas(betas: Sequence[float]) -> None:
    """Raise a `UserError` unless there are two numbers in [0, 1)."""
    if len(betas) != 2:
        raise UserError(f"expected betas to be two numbers, got betas={betas!r}")
    for i, beta in enumerate(betas):
        check(f"betas[{i}]", beta, 0.0, 1.0)
