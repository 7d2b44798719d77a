"""Attach transforms to any torch optimizer: measure, decide and apply before each update."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gradwise import backends
from gradwise.affine import Affine
from gradwise.attach.checkpoint import CheckpointHooks
from gradwise.attach.hook import StepHook
from gradwise.errors import UserError
from gradwise.layout import Layout, layout_of
from gradwise.moments import Moments, measure_layout, with_params
from gradwise.transforms import Autoscale, State, Transform, chain, decide

Observer = Callable[["Attachment"], None]


class Attachment:
    """Transforms at work on an optimizer; made by `attach`.

    Attributes:
        optimizer: the torch optimizer (unwrapped where a library had wrapped it).
        transform: the transforms as one chain.
        moments: of the last step's gradients before the transforms, in the gradients' true unit
            (a loss scale is divided out); None before the first step.
        affine: the map of the last step, in the same unit.
        state: the transform's state; its 0-d entries are the transform's own numbers.
        observers: called with the attachment after each application.
        extremes: whether `moments` has min and max, which cost reads of their own.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, transform: Transform, names: Mapping[int, str]
    ) -> None:
        self.optimizer = optimizer
        self.transform = transform
        self.moments: Moments | None = None
        self.affine = Affine()
        self.state: State | None = None
        self.observers: list[Observer] = []
        self.extremes = False
        self._names = dict(names)  # by id of the parameter
        self._layouts: dict[tuple[object, ...], Layout] = {}
        self._skipped: Tensor | None = None
        self._hook = StepHook(optimizer, self._transform_gradients)
        self._checkpoint = CheckpointHooks(optimizer, self._save, self._load)

    def __repr__(self) -> str:
        kind = type(self.optimizer).__name__
        return f"Attachment({kind}, {self.transform!r}, skipped={self.skipped})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Attachment:
        optimizer = copy.deepcopy(self.optimizer, memo)
        names = self.names  # by place, because the copy's parameters are other objects
        places = (p for group in optimizer.param_groups for p in group["params"])
        by_id = {id(p): name for p, name in zip(places, names, strict=True)}
        twin = _install(optimizer, copy.deepcopy(self.transform, memo), by_id)
        memo[id(self)] = twin
        twin.load_state_dict(copy.deepcopy(self.state_dict(), memo))
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
    def numbers(self) -> dict[str, Tensor]:
        """The transforms' own numbers of the last step, 0-d, such as `0.Autoscale[trend].alpha`."""
        return {key: value for key, value in (self.state or {}).items() if value.dim() == 0}

    def detach(self) -> None:
        """Leave the optimizer as it was; calling it again does nothing."""
        self._hook.remove()
        self._checkpoint.remove()
        if getattr(self.optimizer, _ATTRIBUTE, None) is self:
            delattr(self.optimizer, _ATTRIBUTE)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs; `optimizer.state_dict()` carries it as well."""
        return {
            "transform": self.transform.name,
            "state": dict(self.state or {}),
            "skipped": torch.zeros(()) if self._skipped is None else self._skipped,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`.

        Raises:
            UserError: where it belongs to other transforms.
        """
        name = state_dict.get("transform")
        if name != self.transform.name:
            raise UserError(f"expected state of {self.transform.name!r}, got state of {name!r}")
        state = {key: value.clone() for key, value in state_dict["state"].items()}
        self.state = state or None
        self._skipped = state_dict["skipped"].clone()

    def _save(self) -> dict[str, Tensor]:
        if self.state is None or self._skipped is None:
            return {}
        prefix = self.transform.name
        tensors = {f"{prefix}:{key}": value for key, value in self.state.items()}
        return {**tensors, f"{prefix}:skipped": self._skipped}

    def _load(self, tensors: dict[str, Tensor]) -> bool:
        prefix = f"{self.transform.name}:"
        if not all(key.startswith(prefix) for key in tensors):
            return False
        state = {key.removeprefix(prefix): value for key, value in tensors.items()}
        skipped = state.pop("skipped", torch.zeros(()))
        name = self.transform.name
        self.load_state_dict({"transform": name, "state": state, "skipped": skipped})
        return True

    @torch.no_grad()
    def _transform_gradients(self) -> None:
        """Measure, decide, apply: one read and one write of the gradients, no host sync."""
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        grads = [p.grad for p in params]
        layout = self._layout(grads)
        if not any(layout.present):
            return
        moments = measure_layout(grads, layout, extremes=self.extremes)
        scale = getattr(self.optimizer, "grad_scale", None)
        found_inf = getattr(self.optimizer, "found_inf", None)
        if scale is not None:  # fused optimizers divide by it themselves, after this hook
            scale = scale.to(moments.device, moments.mean.dtype)
            moments = moments.through(Affine(scale=scale.reciprocal()))
        if self.transform.needs_params:
            moments = with_params(moments, params)
        ok = moments.all_finite
        if found_inf is not None:
            ok = ok & (found_inf.to(moments.device) == 0).all()
        if self._skipped is None:
            self._skipped = torch.zeros((), dtype=torch.int64, device=moments.device)
        if self.state is None:
            self.state = self.transform.init(moments)
        elif any(value.device != moments.device for value in self.state.values()):
            self.state = {key: value.to(moments.device) for key, value in self.state.items()}
        self._skipped = self._skipped.to(moments.device) + ~ok
        affine, self.state = decide(self.transform, moments, self.state, ok)
        stored = affine if scale is None else affine.in_units_of(scale)
        backends.apply(grads, stored, layout)
        self.moments, self.affine = moments, affine
        for observe in self.observers:
            observe(self)

    def _layout(self, grads: list[Tensor | None]) -> Layout:
        # Shapes are the parameters'; only which gradients are there and sparse can change.
        key = (*(None if g is None else g.layout for g in grads),)
        layout = self._layouts.get(key)
        if layout is None:
            for name, grad in zip(self.names, grads, strict=True):
                if grad is not None and hasattr(grad, "to_local"):
                    raise UserError(
                        f"gradient {name!r} is a DTensor: sharded parameters are not supported yet"
                    )
            layout = layout_of(grads, self.names, self.transform.per)
            self._layouts[key] = layout
        return layout


_ATTRIBUTE = "_gradwise_attachment"  # dropped by deepcopy and pickle, as torch's hooks are


def _install(
    optimizer: torch.optim.Optimizer, transform: Transform, names: Mapping[int, str]
) -> Attachment:
    before: Attachment | None = getattr(optimizer, _ATTRIBUTE, None)
    if before is not None:
        before.detach()
    attachment = Attachment(optimizer, transform, names)
    if before is not None:
        attachment.observers.extend(before.observers)
    setattr(optimizer, _ATTRIBUTE, attachment)
    return attachment


def attach(
    optimizer: torch.optim.Optimizer, *transforms: Transform, model: nn.Module | None = None
) -> Attachment:
    """Transform the gradients of every step of an optimizer, just before it uses them.

    Works through the optimizer's own step hook: training loops, LR schedulers, closures (LBFGS
    included), GradScaler with plain and fused optimizers and gradient accumulation stay as they
    are. The transforms' state rides in `optimizer.state_dict()`, so that an ordinary checkpoint
    resumes it. A step whose gradients hold a NaN or an infinity is left alone and counted.

    Args:
        optimizer: any `torch.optim.Optimizer`, or a wrapper of one with an `optimizer` attribute.
        transforms: applied in this order; none measures only.
        model: gives the parameters their names in `moments` and reports; without it the names come
            from an optimizer made of `model.named_parameters()`, or are numbers.

    Returns:
        The `Attachment`. Attaching anew replaces it; `detach()` removes it. A deep copy or pickle
        of an optimizer bears no hooks: attach to the copy, or copy the attachment.

    Raises:
        UserError: where the first argument is no optimizer or one of the others no transform.

    Examples:
        >>> import torch, gradwise as gw
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> attachment = gw.attach(optimizer, gw.transforms.ClipNorm(1.0), model=model)
        >>> model(torch.ones(4, 3)).sum().backward()
        >>> optimizer.step()
        >>> attachment.moments.names, round(attachment.moments.total_norm.item(), 4)
        (('weight', 'bias'), 11.3137)
    """
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner  # Accelerate's and Lightning's wrappers take no hooks
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UserError(f"expected a torch.optim.Optimizer, got {type(optimizer).__name__}")
    for transform in transforms:
        if not isinstance(transform, Transform):
            raise UserError(f"expected gradwise transforms, got {type(transform).__name__}")
    names = {} if model is None else {id(p): name for name, p in model.named_parameters()}
    return _install(optimizer, chain(*transforms), names)


def autoscale(optimizer: torch.optim.Optimizer, model: nn.Module | None = None) -> Attachment:
    """Hyperparameter-free gradient normalisation for any torch optimizer: one line.

    The same as `attach(optimizer, Autoscale(), model=model)`; see `Autoscale` and `attach`.

    Examples:
        >>> import torch, gradwise as gw
        >>> model = torch.nn.Linear(3, 2)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> _ = gw.autoscale(optimizer)
    """
    return attach(optimizer, Autoscale(), model=model)
