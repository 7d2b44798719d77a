"""Optimizers that step within backward, one a parameter: there, not all gradients exist at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain as joined
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gradwise.affine import Affine
from gradwise.attach.attachment import Attachment, install
from gradwise.attach.checkpoint import CheckpointHooks, checked, fits, flatten, plain, unflatten
from gradwise.attach.functions import Wrapper, check_transforms, names_in, unwrapped
from gradwise.attach.hook import within_nested_backward
from gradwise.attach.placement import spread_over_processes
from gradwise.errors import UserError
from gradwise.layout import Layout
from gradwise.moments import Moments
from gradwise.transforms import Lagged, State, Transform
from gradwise.transforms.base import keep

T = TypeVar("T")
_PREFIX = "gradwise-in-backward:"  # of entries in the first optimizer's checkpoint


class InBackward:
    """Transforms at work on optimizers that step within backward; made by `attach_in_backward`.

    A step is over when every optimizer has stepped. Where some have no gradient, it is over when
    the next backward pass begins or somebody asks for anything here. Passes that others call
    (reentrant activation checkpoints) count to those.

    Args:
        optimizers: all that step in one backward pass.
        transform: the transforms, lagging.
        names: of parameters, by their id.

    Attributes:
        attachments: one an optimizer, in their order, each with what its own last step led to.
        transform: the transforms, lagging.
    """

    def __init__(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        transform: Lagged,
        names: Mapping[int, str],
    ) -> None:
        self.transform = transform
        self._pending: dict[Attachment, tuple[Moments, Tensor]] = {}
        self._layouts: dict[tuple[int, ...], tuple[Layout, list[Layout]]] = {}
        self._task = -1  # the last backward pass that something is pending of; they count up
        self._moments: Moments | None = None
        self._state: State | None = None
        self._skipped: Tensor | None = None
        self._loaded = False  # whether the state is out of a checkpoint and has not been used yet

        def make(*arguments: Any) -> Attachment:
            return _Member(self, *arguments)

        self.attachments = tuple(install(o, transform, names, make=make) for o in optimizers)
        self._checkpoint = CheckpointHooks(optimizers[0], self._save, self._load, _PREFIX)

    def __repr__(self) -> str:
        return f"InBackward({len(self.attachments)} optimizers, {self.transform!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> InBackward:
        raise UserError(
            "expected attach_in_backward with copies of the optimizers, got a deep copy of what it "
            "returned"
        )

    @property
    def names(self) -> tuple[str, ...]:
        """One name a parameter, in the optimizers' order."""
        return tuple(joined.from_iterable(one.names for one in self.attachments))

    @property
    def moments(self) -> Moments | None:
        """Of all gradients of the last step before the transforms; None before the first one."""
        self._settle()
        return self._moments

    @property
    def state(self) -> State | None:
        """The transforms' state after the last step, with the factors that the next one uses."""
        self._settle()
        return self._state

    @property
    def numbers(self) -> dict[str, Tensor]:
        """The transforms' own numbers of the last step, 0-d, such as `0.Autoscale[trend].alpha`."""
        return {key: value for key, value in (self.state or {}).items() if value.dim() == 0}

    @property
    def skipped(self) -> int:
        """Steps that decided nothing, as a gradient was not finite; asking waits for the device."""
        self._settle()
        return 0 if self._skipped is None else int(self._skipped)

    def detach(self) -> None:
        """Leave the optimizers as they were; calling it again does nothing."""
        self._checkpoint.remove()
        for attachment in self.attachments:
            attachment.detach()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs; the first optimizer's `state_dict()` carries it as well."""
        self._settle()
        none = torch.zeros((), dtype=torch.int64)
        return {
            "transform": self.transform.name,
            "state": plain(self._state or {}, self.transform.growing),
            "skipped": none if self._skipped is None else self._skipped,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`; its tensors are copied.

        Raises:
            UserError: where it belongs to other transforms or is none; nothing is changed then.
        """
        state, self._skipped = checked(state_dict, self.transform.name)
        self._state, self._loaded = state or None, True
        self._pending.clear()

    def _save(self) -> dict[str, Any]:
        self._settle()
        return {} if self._skipped is None else flatten(self.state_dict())

    def _load(self, entries: dict[str, Any]) -> None:
        if entries:
            self.load_state_dict(unflatten(entries, self.transform.name))
        else:
            self._state = self._skipped = None
            self._pending.clear()

    def _part(self, member: Attachment, moments: Moments, ok: Tensor) -> Affine:
        """The map for the gradients of one optimizer, whose step this is."""
        task = torch._C._current_graph_task_id()
        if member in self._pending or (task > self._task and not within_nested_backward()):
            self._finish()  # the step before, in which some had no gradient
        self._task = max(task, self._task)
        affine = self.transform.now(moments, self._state_for(moments)).where(ok)
        self._pending[member] = moments, ok
        if len(self._pending) == len(self.attachments):
            self._finish()
        return affine

    def _settle(self) -> None:
        if self._pending and torch._C._current_graph_task_id() == -1:
            self._finish()

    @torch.no_grad()
    def _finish(self) -> None:
        """Decide for the next step from all gradients of this one."""
        there = [self._pending[one] for one in self.attachments if one in self._pending]
        if not there:
            return
        self._pending = {}
        self.transform.check(self.names)
        moments = self._whole([part for part, _ in there])
        ok = torch.stack([fine.to(moments.device, non_blocking=True) for _, fine in there]).all()
        state = self._state_for(moments)
        self._state = keep(ok, self.transform.after(moments, state), state)
        self._moments = moments
        if self._skipped is None:
            self._skipped = torch.zeros((), dtype=torch.int64, device=ok.device)
        self._skipped = self._skipped.to(ok.device) + ~ok

    def _state_for(self, moments: Moments) -> State:
        """The state that the last step left, on the moments' device."""
        if self._state is None or self._loaded:
            fresh = self.transform.init(moments)
            if self._state is None or not fits(self._state, fresh):
                return fresh
        return {key: value.to(moments.device) for key, value in self._state.items()}

    def _whole(self, parts: list[Moments]) -> Moments:
        """The moments of several optimizers' gradients as those of one list."""
        key = tuple(id(part.layout) for part in parts)
        if key not in self._layouts:
            layouts = [part.layout for part in parts]  # kept, so that the key stays theirs
            self._layouts = {key: (_joined(layouts), layouts)}
        whole = _concatenated(parts, self._layouts[key][0])
        if (params := [part.params for part in parts if part.params is not None]) == []:
            return whole
        return replace(whole, params=_concatenated(params, _joined([p.layout for p in params])))


class _Member(Attachment):
    """One of the optimizers' attachments: it measures and applies, its group decides."""

    def __init__(self, group: InBackward, *arguments: Any) -> None:
        self._group = group
        super().__init__(*arguments)

    def prepare(self) -> None:
        """Refuse to be traced; see `Attachment`."""
        raise UserError(
            "expected optimizers that step within backward to be left out of torch.compile"
        )

    def _check_moment(self, params: list[Tensor]) -> None:
        if self._shards is not None or spread_over_processes(params):
            _refuse_shards()

    def _choose(self, moments: Moments, ok: Tensor) -> tuple[Affine, State]:
        return self._group._part(self, moments, ok), {}


def attach_in_backward(
    optimizers: Iterable[torch.optim.Optimizer | Wrapper]
    | Mapping[Any, torch.optim.Optimizer | Wrapper],
    *transforms: Transform,
    model: nn.Module | None = None,
    lagged: bool = False,
) -> InBackward:
    """Transform the gradients of optimizers that step within backward, each when its own are there.

    For loops that save the memory of gradients by an optimizer a parameter, which steps in a hook
    on it and drops its gradient before the next one is computed. What follows from a layer's own
    gradient (centring, ZNorm, AGC) is exact there. What is common to all layers, such as
    autoscale's alpha or the factor of clipping, cannot be known before the last gradient is there;
    with `lagged=True` the one that the step before decided on is used, see
    `gradwise.transforms.Lagged`.

    A gradient that is not finite is left alone, as are others of that step that came before it;
    the step then decides nothing.

    Args:
        optimizers: all that step in one backward pass, or a dict with them as values, such as
            torchtune's `optim_map`; those of `torch.distributed.optim` are found with
            `_get_in_backward_optimizers(model)`.
        transforms: applied in this order.
        model: gives the parameters their names.
        lagged: let what is common to all layers come from the step before.

    Returns:
        The `InBackward`: moments, state and numbers of all layers together. The first optimizer's
        `state_dict()` carries the transforms' state.

    Raises:
        UserError: where there are no optimizers, a transform needs all gradients and `lagged` is
            False, or parameters are sharded.

    Examples:
        >>> import torch, gradwise as gw
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2))
        >>> optimizers = {p: torch.optim.SGD([p], lr=0.1) for p in model.parameters()}
        >>> attached = gw.attach_in_backward(
        ...     optimizers, gw.transforms.Autoscale(), model=model, lagged=True
        ... )
        >>> def step(param):
        ...     optimizers[param].step()
        ...     optimizers[param].zero_grad()
        >>> for param in model.parameters():
        ...     _ = param.register_post_accumulate_grad_hook(step)
        >>> model(torch.ones(4, 3)).square().sum().backward()
        >>> attached.names[0], float(attached.numbers["0.Autoscale[trend].alpha"])
        ('0.weight', 1.0)
    """
    given = optimizers.values() if isinstance(optimizers, Mapping) else optimizers
    plain = [unwrapped(optimizer) for optimizer in given]
    check_transforms(transforms)
    if not plain:
        raise UserError("expected the optimizers that step within backward, got none")
    for transform in transforms:
        if transform.common and not lagged:
            raise UserError(
                f"{transform.name} needs the gradients of all layers, which are not there within "
                "backward: expected lagged=True, which takes what is common to all layers from the "
                "step before, got lagged=False"
            )
    for optimizer in plain:
        if spread_over_processes([p for g in optimizer.param_groups for p in g["params"]]):
            _refuse_shards()
    return InBackward(plain, Lagged(*transforms), names_in(model))


def _refuse_shards() -> None:
    raise UserError(
        "expected parameters that are whole on this process where optimizers step within backward, "
        "got sharded ones (DTensor): call step() after backward, with gradwise.attach"
    )


def _join(what: Callable[[Layout], tuple[T, ...]], layouts: Sequence[Layout]) -> tuple[T, ...]:
    return tuple(joined.from_iterable(map(what, layouts)))


def _joined(layouts: Sequence[Layout]) -> Layout:
    """The layout of several lists of tensors as one list."""
    return Layout(
        _join(lambda one: one.names, layouts),
        _join(lambda one: one.shapes, layouts),
        _join(lambda one: one.numels, layouts),
        _join(lambda one: one.rows, layouts),
        _join(lambda one: one.dense, layouts),
        _join(lambda one: one.present, layouts),
        _join(lambda one: one.dtypes, layouts),
    )


def _concatenated(parts: Sequence[Moments], layout: Layout) -> Moments:
    """The moments of several lists of tensors as one list, on the first one's device."""
    home = parts[0].device

    def cat(what: Callable[[Moments], Tensor]) -> Tensor:
        return torch.cat([what(part).to(home, non_blocking=True) for part in parts])

    def cat_known(what: Callable[[Moments], Tensor | None]) -> Tensor | None:
        found = [value for value in map(what, parts) if value is not None]
        known = len(found) == len(parts)
        return torch.cat([v.to(home, non_blocking=True) for v in found]) if known else None

    return Moments(
        layout,
        cat(lambda part: part.count),
        cat(lambda part: part.mean),
        cat(lambda part: part.m2),
        cat(lambda part: part.nonfinite),
        cat_known(lambda part: part.min),
        cat_known(lambda part: part.max),
        cat_known(lambda part: part.zeros),
    )
