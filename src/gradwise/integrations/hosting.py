"""What the integrations share: what a user asks them for, and how it is done to an optimizer."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import Enum
from numbers import Real
from pathlib import Path
from typing import Any, Final, TypedDict

import torch
from torch import Tensor, nn

from gradwise.attach import Attachment, Wrapper, attach, unwrapped
from gradwise.errors import UserError
from gradwise.integrations.hosted import HostedWatch, Part
from gradwise.transforms import Transform, chain
from gradwise.watch.alerts import Alert
from gradwise.watch.columns import PerLayer, step_metrics
from gradwise.watch.rules import AnyRule
from gradwise.watch.sinks import Sink
from gradwise.watch.watch import watch_of

FOLDER = "gradwise"  # within the host's own folder
# Not `attached`, whose attachment without transforms would take a checkpoint that is theirs.
_ATTACHMENT = "_gradwise_attachment"
_RESERVED = {
    *step_metrics(extremes=True),
    *("alpha", "skipped", "backwards", "noise_scale", "time", "lr"),
    *("step", "first_step", "last_step"),
}
_RESERVED_GROUPS = ("lr/", "transform/")


def host(*modules: str, package: str) -> Any:
    """A module of the library that an integration is for.

    It is `Any` to who checks types, so that this takes no library.

    Args:
        modules: its names, where several will do; one that the program has imported already comes
            first, then they come in this order.
        package: what to install where there is none.

    Raises:
        ImportError: where none can be imported.
    """
    reasons = []
    for name in sorted(modules, key=lambda name: name not in sys.modules):
        try:
            return importlib.import_module(name)
        except ImportError as error:
            reasons.append(str(error))
    raise ImportError(f"this needs {package}: pip install {package} ({'; '.join(reasons)})")


class Place(Enum):
    """Where a run is recorded, if not in a folder that the user names."""

    HOST = "in the host's own folder"


HOST: Final = Place.HOST
Out = str | Path | Place | None
# Sinks, or a function that makes those of one run from its name, where there are several runs.
Sinks = Sequence[Sink] | Callable[[str], Sequence[Sink]]


class WatchOptions(TypedDict, total=False):
    """The options of `gradwise.watch`, which is where each is explained."""

    every: int
    per: PerLayer
    rules: Sequence[AnyRule] | None
    on_alert: Callable[[Alert], None] | None
    weights_every: int
    histograms: int
    directions: int
    noise_every: int
    batch_size: int | None
    resume_from: int | None
    meta: Mapping[str, Any] | None


class Request:
    """What a user asked an integration for; it has no state, so it can be copied and pickled.

    Args:
        out: the run folder, None for none, or `HOST`.
        transforms: to attach.
        sinks: who else gets the numbers.
        options: of `gradwise.watch`.
        always: whether to watch whatever the rest says, and not only where that comes to anything.

    Raises:
        UserError: where an option is not known, or there is nothing to do.
    """

    def __init__(
        self,
        out: Out,
        transforms: Iterable[Transform],
        sinks: Sinks,
        options: Mapping[str, Any],
        always: bool = False,
    ) -> None:
        known = WatchOptions.__annotations__
        for name in options:
            if name not in known:
                raise UserError(f"expected options among {', '.join(known)}, got {name!r}")
        self.out = Path(out) if isinstance(out, str) else out
        self.transforms = tuple(transforms)
        self.sinks = sinks
        self.options = dict(options)
        heard = bool(sinks) or any(options.get(name) is not None for name in ("rules", "on_alert"))
        self.watches = always or out is not None or heard
        if not self.watches and not self.transforms:
            raise UserError("expected out, transforms, sinks, rules or on_alert, got none of them")

    def __repr__(self) -> str:
        out = "HOST" if self.out is HOST else repr(None if self.out is None else str(self.out))
        given = {
            "transforms": list(self.transforms) or None,
            "sinks": self.sinks or None,
            **self.options,
        }
        parts = [f"{name}={value!r}" for name, value in given.items() if value is not None]
        return ", ".join([f"out={out}", *parts])

    def attach(
        self, optimizer: torch.optim.Optimizer | Wrapper, model: nn.Module | None = None
    ) -> Attachment | None:
        """Attach the transforms, unless the optimizer has the same already, with their state.

        Returns:
            Their attachment; None where there are none.
        """
        if not self.transforms:
            return None
        there: Attachment | None = getattr(unwrapped(optimizer), _ATTACHMENT, None)
        if there is None or repr(there.transform) != repr(chain(*self.transforms)):
            there = attach(optimizer, *self.transforms, model=model)
        return there

    def watch(
        self,
        optimizer: torch.optim.Optimizer | Wrapper,
        model: nn.Module | None,
        out: str | Path | None,
        name: str | None = None,
    ) -> HostedWatch:
        """Attach the transforms, then a watch.

        A watch that the optimizer had is closed. Where a checkpoint has been loaded into the
        optimizer under that watch, the new one goes on from the checkpoint.

        Args:
            optimizer: wrapped or not.
            model: gives the layers their names.
            out: the run folder, or None.
            name: of the run, where the host has several optimizers.

        Raises:
            UserError: where several runs would share a sink.
        """
        sinks = self.sinks
        if callable(sinks):
            sinks = sinks("" if name is None else name)
        elif sinks and name is not None:
            raise UserError(
                "expected sinks to be a function of a run's name where there are several "
                f"optimizers, got {len(sinks)} sinks"
            )
        self.attach(optimizer, model)
        options = copy.copy(self.options)
        if options.get("rules") is not None:  # rules have a memory, and each run needs its own
            options["rules"] = copy.deepcopy(options["rules"])
        if isinstance(model, Part):
            options["meta"] = {"model": model.whole, **(options.get("meta") or {})}
        before = watch_of(optimizer)
        watch = HostedWatch(optimizer, model, out, sinks=sinks, **options)
        if isinstance(before, HostedWatch):
            watch.load_state_dict(before.loaded)
        return watch


def scalars_of(metrics: Mapping[str, Any], host: str) -> dict[str, float | Tensor]:
    """The numbers among a host's metrics, under names that a run has room for.

    Args:
        metrics: numbers, tensors and whatever else by name.
        host: goes before a name that gradwise uses itself: "grad_norm" becomes "trainer/grad_norm".

    Examples:
        >>> scalars_of({"loss": 0.5, "grad_norm": 2, "note": "warm"}, "trainer")
        {'loss': 0.5, 'trainer/grad_norm': 2.0}
    """
    found: dict[str, float | Tensor] = {}
    for name, value in metrics.items():
        taken = name in _RESERVED or name.startswith(_RESERVED_GROUPS)
        key = f"{host}/{name}" if taken else name
        if isinstance(value, Tensor):
            if value.numel() == 1 and not value.is_complex():
                found[key] = value
        elif isinstance(value, Real):
            found[key] = float(value)
    return found


def refuse_engines(how: str) -> None:
    """Refuse a training whose engine keeps gradients where torch's optimizers do not see them.

    Parameters that are sharded by torch itself are `attach`'s to judge.

    Args:
        how: what the host calls the way it trains.

    Raises:
        UserError: where it is such a way.
    """
    if any(word in how.upper() for word in ("DEEPSPEED", "MEGATRON")):
        raise UserError(
            "expected gradients in the parameters' .grad, whole or sharded by FSDP2 or tensor "
            f"parallel, got {how}, which keeps them elsewhere"
        )


def folder_of(optimizer: torch.optim.Optimizer | Wrapper, at: int) -> str:
    """The name of the run of one of several optimizers: `0-Adam`."""
    return f"{at}-{type(unwrapped(optimizer)).__name__}"
