"""Attach transforms to any torch optimizer: measure, decide and apply before each update."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any

import torch
from torch import Tensor

from gradwise import backends
from gradwise.affine import Affine
from gradwise.attach.checkpoint import CheckpointHooks, checked, fits, flatten, plain, unflatten
from gradwise.attach.hook import StepHook, is_rehearsal, within_backward
from gradwise.attach.placement import spread_over_processes
from gradwise.attach.shards import Shards, Spread
from gradwise.errors import UserError
from gradwise.layout import Layout, layout_of
from gradwise.moments import Moments, measure_layout, with_params
from gradwise.transforms import State, Transform, decide

Observer = Callable[["Attachment"], None]
# What a reader is given: the attachment, the gradients, and the loss scale that is still in them.
Reader = Callable[["Attachment", Sequence[Tensor | None], Tensor | None], None]
_NOTHING = "identity"  # the name of no transforms
LAYOUTS = 16  # kept of an optimizer whose parameters get gradients in changing company


@dataclass(frozen=True, eq=False)
class _Decision:
    """What one step's gradients led to."""

    grads: list[Tensor | None]  # the parts that are here
    layout: Layout  # of them
    moments: Moments  # of whole gradients
    affine: Affine  # of them, in their true unit
    stored: Affine  # of the parts that are here, in the unit that they are stored in
    state: State
    ok: Tensor  # 0-d bool: everything is finite


class Attachment:
    """Transforms at work on an optimizer; made by `attach`.

    Attributes:
        optimizer: the torch optimizer (unwrapped where a library had wrapped it).
        transform: the transforms as one chain.
        moments: of the last step's gradients before the transforms, in the gradients' true unit
            (a loss scale is divided out); None before the first step. Of whole gradients, where
            they are spread over processes.
        affine: the map of the last step, in the same unit.
        state: the transform's state; its 0-d entries are the transform's own numbers.
        readers: called before each application with the attachment, the gradients as they are then,
            and the loss scale that is still in them, or None; they must not change them.
        observers: called with the attachment after each application.
        extremes: whether `moments` has min, max and zeros, which may cost reads of their own.
        spread: which processes hold other parameters.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        transform: Transform,
        names: Mapping[int, str],
        spread: Spread | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.transform = transform
        self.moments: Moments | None = None
        self.affine = Affine()
        self.state: State | None = None
        self.readers: list[Reader] = []
        self.observers: list[Observer] = []
        self.extremes = False
        self.spread = spread or Spread()
        self._shards: Shards | None = None  # of `_params`; None where all of them are whole
        self._names = dict(names)  # by id of the parameter
        self._params: list[Tensor] = []  # that the layouts are of
        self._layouts: dict[tuple[object, ...], Layout] = {}
        self._ready: Layout | None = None  # of the gradients of a step that is being compiled
        self._loaded = False  # whether `state` is out of a checkpoint and has not been used yet
        self._kept: dict[str, Any] = {}  # state of other transforms, out of a checkpoint
        self._skipped: Tensor | None = None
        # An optimizer that folds the map into its own update asks for it when it is at that point.
        folds = getattr(optimizer, "folds_transforms", False)
        self._hook = None if folds else StepHook(optimizer, self._transform_gradients)
        self._checkpoint = CheckpointHooks(optimizer, self._save, self._load)

    def __repr__(self) -> str:
        kind = type(self.optimizer).__name__
        return f"Attachment({kind}, {self.transform!r}, skipped={self.skipped})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Attachment:
        optimizer = copy.deepcopy(self.optimizer, memo)
        names = self.names  # by place, because the copy's parameters are other objects
        places = (p for group in optimizer.param_groups for p in group["params"])
        by_id = {id(p): name for p, name in zip(places, names, strict=True)}
        twin = install(optimizer, copy.deepcopy(self.transform, memo), by_id, self.spread)
        twin.load_state_dict(self.state_dict())
        twin.extremes = self.extremes
        return twin

    @property
    def names(self) -> tuple[str, ...]:
        """One name a parameter, in the optimizer's order."""
        found = []
        for g, group in enumerate(self.optimizer.param_groups):
            given = group.get("param_names")
            for i, param in enumerate(group["params"]):
                fallback = given[i] if given else f"group{g}.{i}"
                found.append(self._names.get(id(param), fallback))
        return tuple(found)

    @property
    def skipped(self) -> int:
        """Steps left alone because something was not finite; asking waits for the device."""
        return 0 if self._skipped is None else int(self._skipped)

    @property
    def only_measures(self) -> bool:
        """Whether there are no transforms: it is there for somebody who watches."""
        return self.transform.name == _NOTHING

    def rename(self, names: Mapping[int, str]) -> None:
        """Call parameters, given by their `id`, by other names from the next step on."""
        self._names.update(names)
        self._params, self._layouts = [], {}

    @property
    def params(self) -> Sequence[Tensor]:
        """The optimizer's parameters as of the last step; another list where they changed."""
        return self._params

    @property
    def skips(self) -> Tensor | None:
        """`skipped` as a 0-d tensor on the device; None before the first step."""
        return self._skipped

    @property
    def numbers(self) -> dict[str, Tensor]:
        """The transforms' own numbers of the last step, 0-d, such as `0.Autoscale[trend].alpha`."""
        return {key: value for key, value in (self.state or {}).items() if value.dim() == 0}

    def detach(self) -> None:
        """Leave the optimizer as it was; calling it again does nothing."""
        if self._hook is not None:
            self._hook.remove()
        self._checkpoint.remove()
        if attachment_of(self.optimizer) is self:
            delattr(self.optimizer, _ATTRIBUTE)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs; `optimizer.state_dict()` carries it as well.

        torch's distributed checkpoints with `flatten_optimizer_state_dict` drop what others add to
        an optimizer's: save and load this beside it, and pass it to `load_state_dict` last.
        """
        none = torch.zeros((), dtype=torch.int64)
        return {
            "transform": self.transform.name,
            "state": plain(self.state or {}, self.transform.growing),
            "skipped": none if self._skipped is None else self._skipped,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`; its tensors are copied.

        State of the same transforms with other settings is found out at the next step: they begin
        anew then, with a warning.

        Raises:
            UserError: where it belongs to other transforms or is none; nothing is changed then.
        """
        state, self._skipped = checked(state_dict, self.transform.name)
        self.state = state or None
        self._loaded = True

    def _save(self) -> dict[str, Any]:
        own = {} if self._skipped is None else flatten(self.state_dict())
        return {**self._kept, **own}

    def _load(self, entries: dict[str, Any]) -> None:
        others = {k: v for k, v in entries.items() if not k.startswith(f"{_NOTHING}:")}
        own, self._kept = others, {}
        if self.only_measures:
            # Who only measures has no use for it; transforms that are attached later may have.
            own, self._kept = ({}, others) if others else (entries, {})
        if own:
            self.load_state_dict(unflatten(own, self.transform.name))
        else:
            self.state = self._skipped = None

    @torch.no_grad()
    def _transform_gradients(self) -> None:
        """Measure, decide, apply: one read and one write of the gradients, no host sync."""
        if (decided := self._decide()) is not None:
            backends.apply(decided.grads, decided.stored, decided.layout)
            self._keep(decided)

    @torch.no_grad()
    def decide(self) -> tuple[Affine, Layout] | None:
        """Measure and decide for the gradients as they are now, for who applies the map himself.

        Each call counts as a step: the transform's state goes on.

        Returns:
            The map and the layout of all parameters' gradients in the optimizer's order; None
            where there is no gradient.
        """
        if (decided := self._decide()) is None:
            return None
        self._keep(decided)
        return decided.stored, decided.layout

    @torch.no_grad()
    def prepare(self) -> None:
        """Make what depends on no value, for a step that torch.compile is about to trace.

        The layout, the constants that transforms take from it and the first state are objects of
        the host, which tracing could not make; it finds them made.
        """
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        grads = self._parts(params)
        if self._shards is not None:
            raise UserError(
                "expected parameters that are whole on this process in a compiled step, got "
                "sharded ones: leave optimizer.step() out of torch.compile"
            )
        self._ready = self._layout(grads)
        if any(self._ready.present):
            moments = measure_layout(grads, self._ready, "foreach", self.extremes)
            self._ready.warm()
            state, _ = self._begin(moments)
            if self.transform.needs_params:
                moments = with_params(moments, params)
            decide(self.transform, moments, state)

    def _begin(self, moments: Moments) -> tuple[State, Tensor]:
        """Have a state and a count before a step is decided: to be traced, loaded into or told."""
        # One tensor under two names, as an `init` may give, would stay one for who does that.
        self.state = {key: value.clone() for key, value in self._state_for(moments).items()}
        if self._skipped is None:
            self._skipped = torch.zeros((), dtype=torch.int64, device=moments.device)
        return self.state, self._skipped

    def _keep(self, decided: _Decision) -> None:
        self.moments, self.affine, self.state = decided.moments, decided.affine, decided.state
        if self._skipped is None:
            self._skipped = torch.zeros((), dtype=torch.int64, device=decided.ok.device)
        self._skipped = self._skipped.to(decided.ok.device) + ~decided.ok
        for observe in tuple(self.observers):
            observe(self)

    def _decide(self) -> _Decision | None:
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        if torch.compiler.is_compiling():
            grads, layout = [p.grad for p in params], self._ready
        else:
            self._check_moment(params)
            grads = self._parts(params)
            layout = self._layout(grads)
        assert layout is not None
        shards = self._shards
        if shards is None and not any(layout.present):
            return None
        moments = measure_layout(grads, layout, extremes=self.extremes)
        if self.transform.needs_params:
            moments = with_params(moments, params if shards is None else shards.local(params))
        if shards is not None:
            moments = shards.whole(moments, self.extremes)
        if not torch.compiler.is_compiling() and is_rehearsal():
            self._begin(moments)
            return None
        if shards is not None and not shards.met:
            known = self.state is not None
            self.state, self._skipped = shards.meet(known, *self._begin(moments))
        scale = found_inf = None
        if getattr(self.optimizer, "_step_supports_amp_scaling", False):
            scale = getattr(self.optimizer, "grad_scale", None)
            found_inf = getattr(self.optimizer, "found_inf", None)
        for read in tuple(self.readers):  # who reads a part must know that it is one
            read(self, grads if shards is None else [p.grad for p in params], scale)
        if scale is not None:  # such optimizers divide by it themselves, after this hook
            scale = scale.to(moments.device, moments.mean.dtype)
            moments = moments.through(Affine(scale=scale.reciprocal()))
        ok = moments.all_finite
        if found_inf is not None:
            ok = ok & (found_inf.to(moments.device) == 0).all()
        affine, state = self._choose(moments, ok)
        stored = affine if scale is None else affine.in_units_of(scale)
        if shards is not None:
            stored = shards.part(stored, layout)
        return _Decision(grads, layout, moments, affine, stored, state, ok)

    def _choose(self, moments: Moments, ok: Tensor) -> tuple[Affine, State]:
        """The map for these moments, in their unit, and the state after them."""
        return decide(self.transform, moments, self._state_for(moments), ok)

    def _check_moment(self, params: list[Tensor]) -> None:
        """Refuse a step that comes before all gradients are there, where that matters."""
        if self.transform.common and within_backward(params):
            raise UserError(
                f"{self.transform.name} needs all gradients, but this optimizer steps within "
                "backward, where others do not exist yet: call step() after backward, or use "
                "gradwise.attach_in_backward(optimizers, ..., lagged=True)"
            )

    def _state_for(self, moments: Moments) -> State:
        """The state to go on from, on the moments' device."""
        state = self.state
        if state is None:
            return self.transform.init(moments)
        if self._loaded:
            self._loaded = False
            fresh = self.transform.init(moments)
            if not fits(state, fresh):
                warnings.warn(
                    f"the transforms begin anew: the loaded state does not fit {self.transform!r}",
                    stacklevel=2,
                )
                return fresh
        if any(value.device != moments.device for value in state.values()):
            state = {key: _like(value, moments.mean) for key, value in state.items()}
        return state

    def _parts(self, params: list[Tensor]) -> list[Tensor | None]:
        """The gradients, or the parts of them that are here."""
        if len(params) != len(self._params) or not all(map(is_, params, self._params)):
            self._params, self._layouts = params, {}  # other parameters: other shapes and names
            self._shards = None
            if self.spread.group is not None or spread_over_processes(params):
                self._shards = Shards(params, self.names, self.transform.per, self.spread)
        grads = [p.grad for p in params]
        return grads if self._shards is None else self._shards.local(grads)

    def _layout(self, grads: list[Tensor | None]) -> Layout:
        # What can change is which gradients are there, their types and which are sparse.
        kinds = [None if g is None else g.dtype for g in grads]
        key = (*kinds, *[None if g is None else g.layout for g in grads])
        layout = self._layouts.get(key)
        if layout is None:
            if len(self._layouts) == LAYOUTS:
                del self._layouts[next(iter(self._layouts))]
            layout = self._layouts[key] = layout_of(grads, self.names, self.transform.per)
        return layout


def _like(value: Tensor, other: Tensor) -> Tensor:
    """On the other's device; numbers in the other's type, which is the widest there."""
    return value.to(other) if value.is_floating_point() else value.to(other.device)


_ATTRIBUTE = "_gradwise_attachment"  # dropped by deepcopy and pickle, as torch's hooks are


def attachment_of(optimizer: torch.optim.Optimizer) -> Attachment | None:
    """The attachment that an optimizer has, if any."""
    return getattr(optimizer, _ATTRIBUTE, None)


def install(
    optimizer: torch.optim.Optimizer,
    transform: Transform,
    names: Mapping[int, str],
    spread: Spread | None = None,
    make: Callable[..., Attachment] = Attachment,
) -> Attachment:
    """Attach transforms in the place of those before, whose names and observers stay.

    So does what was known of other processes, unless `spread` says something else.

    Args:
        optimizer: a torch optimizer.
        transform: the transforms, as one.
        names: of parameters, by their id.
        spread: which processes hold other parameters; None for what was known.
        make: makes the attachment of the four.
    """
    before = attachment_of(optimizer)
    if before is not None:
        before.detach()
        names = {**before._names, **names}
        spread = before.spread if spread is None else spread
    attachment = make(optimizer, transform, names, spread)
    if before is not None:  # the same lists: who observes may still leave by the old attachment
        attachment.readers, attachment.observers = before.readers, before.observers
        attachment.extremes = before.extremes
        if before._kept:
            attachment._load(before._kept)
    setattr(optimizer, _ATTRIBUTE, attachment)
    return attachment
