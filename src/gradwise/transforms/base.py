"""Decide: what every transform is, and the one place where it meets gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from gradwise import backends
from gradwise.affine import Affine
from gradwise.layout import Per
from gradwise.moments import Moments, measure

State = dict[str, Tensor]
Part = Literal["scale", "shift"]


class Transform(ABC):
    """A pure function from moments and state to an affine map and new state.

    A transform knows neither optimizers nor hooks. Its state is a flat dict of tensors on the
    gradients' device; 0-d entries are its own numbers (alpha, thresholds), which a recorder may
    show. Nothing in a transform reads a value on the host.

    Attributes:
        per: the segments it needs, "tensor" or "row"; it also works on a finer cut.
        needs_params: whether it needs `moments.params`.
        growing: keys of the state's entries that get longer from step to step.
        common: parts of its map that depend on other tensors or on earlier steps. The rest follows
            from this step's moments of the tensor alone, so that it can be decided for one tensor
            before the others' gradients are there.
    """

    per: Per = "tensor"
    needs_params: bool = False
    growing: tuple[str, ...] = ()
    common: tuple[Part, ...] = ("scale", "shift")

    def init(self, moments: Moments) -> State:
        """State before the first step, on the moments' device."""
        return {}

    @abstractmethod
    def __call__(self, moments: Moments, state: State) -> tuple[Affine, State]:
        """The map for these moments, and the state after them; neither argument is changed."""

    def check(self, names: Sequence[str]) -> None:  # noqa: B027  # most have nothing to check
        """Raise a `UserError` where it speaks of a parameter that is not among `names`."""

    @property
    def name(self) -> str:
        """Short name for logs and checkpoints."""
        return type(self).__name__

    @overload
    def update(
        self,
        grads: Sequence[Tensor],
        state: State | None = None,
        params: Sequence[Tensor] | None = None,
    ) -> tuple[list[Tensor], State]: ...

    @overload
    def update(
        self,
        grads: Sequence[Tensor | None],
        state: State | None = None,
        params: Sequence[Tensor] | None = None,
    ) -> tuple[list[Tensor | None], State]: ...

    @overload
    def update(
        self,
        grads: Mapping[str, Tensor],
        state: State | None = None,
        params: Mapping[str, Tensor] | None = None,
    ) -> tuple[dict[str, Tensor], State]: ...

    @torch.no_grad()
    def update(
        self,
        grads: Sequence[Tensor | None] | Mapping[str, Tensor],
        state: State | None = None,
        params: Sequence[Tensor] | Mapping[str, Tensor] | None = None,
    ) -> tuple[list[Tensor] | list[Tensor | None] | dict[str, Tensor], State]:
        """The transformed gradients, as a function: nothing is written in place.

        Args:
            grads: a list of tensors, with None where there is none, or a dict by name as
                `torch.func` gives.
            state: what the last call returned; None begins.
            params: the parameters, for transforms that need them.

        Returns:
            New gradients in the same container, and the new state. Where a gradient holds a NaN
            or an infinity, gradients and state come back as they were.

        Raises:
            ValueError: where the transform needs `params` and none are given.
        """
        names = list(grads) if isinstance(grads, Mapping) else None
        tensors: list[Tensor | None]
        tensors = list(grads.values()) if isinstance(grads, Mapping) else list(grads)
        weights = None
        if params is not None and self.needs_params:
            weights = (
                [params[name] for name in names or ()]
                if isinstance(params, Mapping)
                else list(params)
            )
        moments = measure(tensors, names, per=self.per, params=weights)
        affine, state = decide(self, moments, state if state is not None else self.init(moments))
        new = [None if tensor is None else tensor.clone() for tensor in tensors]
        backends.apply(new, affine, moments.layout)
        if names is None:
            return new, state
        return {k: v for k, v in zip(names, new, strict=True) if v is not None}, state


def decide(
    transform: Transform, moments: Moments, state: State, ok: Tensor | None = None
) -> tuple[Affine, State]:
    """Ask a transform, but let a step with non-finite gradients pass without a trace.

    Args:
        transform: what decides.
        moments: of this step's gradients.
        state: before this step.
        ok: 0-d bool; False leaves gradients and state as they are. None: all values are finite.

    Returns:
        The transform's answer where `ok`, the identity and the old state elsewhere; see `keep`.
    """
    if transform.needs_params and moments.params is None:
        raise ValueError(f"{transform.name} relates gradients to parameters: pass params=")
    transform.check(moments.names)
    if ok is None:
        ok = moments.all_finite
    affine, new = transform(moments, state)
    if backends.holds(ok):  # what follows would choose the same, in many small calls
        return affine, new
    return affine.where(ok), keep(ok, new, state)


def keep(ok: Tensor, new: State, old: State) -> State:
    """The new state where the 0-d `ok` holds, the old one elsewhere, chosen on the device.

    State that grows (a history) gets NaN for a step that does not count.
    """
    return {key: _keep(ok, value, old.get(key)) for key, value in new.items()}


def _keep(ok: Tensor, new: Tensor, old: Tensor | None) -> Tensor:
    if old is None:
        return new
    if new.shape == old.shape:
        return torch.where(ok, new, old)
    return torch.cat([old, torch.where(ok, new[len(old) :], torch.nan)])
