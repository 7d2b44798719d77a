"""What a name in `--methods` means: an optimizer, and transforms on its gradients."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from gradwise import registry
from gradwise.errors import UserError
from gradwise.transforms import Chain, chain

# Optimizers that need what a comparison does not give.
_UNUSABLE = {
    "lbfgs": "a closure over the whole training set",
    "sparseadam": "sparse gradients",
    "muon": "parameters that are all matrices",
    "rkalman": "the residuals of a regression",
}
# Optimizers that evaluate a batch as often as they like. "gradient": the closure computes the loss
# and leaves its gradients, as torch means it; "loss": the loss alone, because the optimizer, which
# knows the model, differentiates it itself.
Closure = Literal["gradient", "loss"]
CLOSURES: dict[str, Closure] = {"implicitsgd": "gradient", "reng": "loss", "ring": "loss"}
OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    name.lower(): cls
    for name, cls in sorted(vars(torch.optim).items())
    if inspect.isclass(cls)
    and issubclass(cls, torch.optim.Optimizer)
    and cls is not torch.optim.Optimizer
    and name.lower() not in _UNUSABLE
}
# Common starting points for the models of the lab; everything else starts at 1e-3.
DEFAULT_LR = {
    "sgd": 0.1,
    "gw-sgd": 0.1,
    "asgd": 0.1,
    "adagrad": 1e-2,
    "adadelta": 1.0,
    "adafactor": 1e-2,
}


@dataclass(frozen=True)
class Arm:
    """One method of a comparison.

    Attributes:
        name: the text it was given as, without spaces.
        optimizer: name of the optimizer, one of torch's or one of the registry.
        options: arguments that the optimizer was given in the text; they go before the settings.
        transform: what happens to the gradients; an empty chain for none.
        summary: one line on what it does.
        paper: where it is from, or empty.
        url: the same.
        tag: how sure the form is, or empty.
    """

    name: str
    optimizer: str
    options: dict[str, Any]
    transform: Chain
    summary: str
    paper: str
    url: str
    tag: str

    @property
    def plain(self) -> bool:
        """Whether it is one of torch's optimizers with the gradients as they are."""
        return self.optimizer in OPTIMIZERS and not self.transform.transforms

    @property
    def closure(self) -> Closure | None:
        """What its optimizer calls back for in a step; None where gradients are enough."""
        return CLOSURES.get(self.optimizer)

    @property
    def folder(self) -> str:
        """A name for files: readable, and unique where characters had to go."""
        slug = re.sub(r"[^A-Za-z0-9._=-]+", "-", self.name).strip("-.")[:48]
        if slug == self.name:
            return slug
        return f"{slug}-{hashlib.sha256(self.name.encode()).hexdigest()[:8]}"


def check_optimizer(name: str) -> None:
    """Raise a `UserError` with the nearest name where there is no such optimizer."""
    _check_usable(name)
    known = [*OPTIMIZERS, *_of_registry("optimizer")]
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"
    raise UserError(f"unknown optimizer {name!r}{hint}")


def _check_usable(name: str) -> None:
    if name in _UNUSABLE:
        raise UserError(f"optimizer {name!r} cannot be compared here: it needs {_UNUSABLE[name]}")


def _of_registry(kind: registry.Kind) -> dict[str, registry.Method]:
    known = registry.methods().items()
    return {name: m for name, m in known if m.kind == kind and name not in _UNUSABLE}


def usual_lr(optimizer: str) -> float:
    """The learning rate of an optimizer that nobody said anything about.

    Args:
        optimizer: its name. One of gradwise's has the default of its class, the published one where
            there is one; torch's have common starting points for the models of the lab.

    Examples:
        >>> usual_lr("sgd"), usual_lr("adamw")
        (0.1, 0.001)
    """
    own = _of_registry("optimizer").get(optimizer)
    if own is not None and optimizer not in DEFAULT_LR:
        usual = own.arguments.get("lr", inspect.Parameter.empty)
        return 1e-3 if usual is inspect.Parameter.empty else float(usual)
    return DEFAULT_LR.get(optimizer, 1e-3)


def split_methods(text: str) -> list[str]:
    """The methods in a comma-separated list; commas inside brackets belong to arguments.

    Examples:
        >>> split_methods("sgd, clip(max_norm=0.5), zclip(warmup=10, threshold=3)")
        ['sgd', 'clip(max_norm=0.5)', 'zclip(warmup=10,threshold=3)']
    """
    return _split(text, ",")


def resolve(spec: str, default_optimizer: str) -> Arm:
    """The arm that a text names.

    A text is an optimizer of torch (`sgd`, `adamw`) or of gradwise, with or without arguments
    (`sgdf`, `hgm(gamma=0.3)`), `none` (the default optimizer, plain), a transform likewise
    (`autoscale`, `clip(max_norm=0.5)`), or several joined by `+`: an optimizer first, then
    transforms in the order they are applied (`adamw+center+clip`).

    Raises:
        UserError: for an unknown name, with the nearest one, or wrong arguments.

    Examples:
        >>> arm = resolve("center+clip(max_norm=0.5)", "sgd")
        >>> arm.optimizer, arm.transform
        ('sgd', chain(Center(per='tensor'), ClipNorm(max_norm=0.5)))
    """
    name = re.sub(r"\s+", "", spec)
    optimizer, options, transforms = default_optimizer, {}, []
    told: list[registry.Method] = []
    for i, part in enumerate(_split(name, "+")):
        if part == "none":
            continue
        method = None if part in OPTIMIZERS else _named(part)
        if method is not None and method.kind == "transform":
            transforms.append(registry.build(part))
            told.append(method)
            continue
        if i > 0:
            raise UserError(f"expected the optimizer first in method {name!r}, got it later")
        if method is None:
            optimizer = part
        else:
            optimizer, options = method.name, _options(method, part)
    own = _of_registry("optimizer").get(optimizer)
    if own is not None:
        told.insert(0, own)
    if not told:
        told_line = f"torch.optim.{OPTIMIZERS[optimizer].__name__}, gradients as they are"
        return Arm(name, optimizer, options, chain(), told_line, "", "", "")
    return Arm(
        name,
        optimizer,
        options,
        chain(*transforms),
        "; then ".join(m.summary for m in told),
        "; ".join(dict.fromkeys(m.paper for m in told)),
        told[0].url,
        "; ".join(dict.fromkeys(m.tag for m in told)),
    )


def _options(method: registry.Method, part: str) -> dict[str, Any]:
    """The arguments in the text of an optimizer, tried out."""
    given, usual = registry.parse(part)[1], method.defaults
    options = {key: value for key, value in given.items() if (key, value) not in usual.items()}
    if "lr" in options:
        raise UserError(f"learning rates are given with --lr and not in brackets, got {part!r}")
    registry.build(part)
    return options


def resolve_all(specs: Iterable[str], default_optimizer: str) -> list[Arm]:
    """All arms, each name once.

    Raises:
        UserError: as `resolve`, and for a method that is named twice.
    """
    arms: list[Arm] = []
    for spec in specs:
        arm = resolve(spec, default_optimizer)
        if any(arm.name == other.name for other in arms):
            raise UserError(f"expected every method once, got {arm.name!r} twice")
        arms.append(arm)
    if not arms:
        raise UserError("expected at least one method, got none")
    return arms


def make_optimizer(
    arm: Arm, model: nn.Module, lr: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """The arm's optimizer over a model's parameters, named as the model names them.

    One of gradwise's takes learning rate and weight decay from the settings, where its class has
    any; all its other numbers are its own.

    Args:
        arm: the method.
        model: on the device where it is trained.
        lr: peak learning rate.
        momentum: of torch's optimizers that have one.
        weight_decay: as the optimizer means it.
    """
    own = _of_registry("optimizer").get(arm.optimizer)
    if own is not None:
        given = {"lr": lr, "weight_decay": weight_decay, "model": model}
        given = {key: value for key, value in given.items() if own.takes(key)}
        made: torch.optim.Optimizer = own.factory(
            model.named_parameters(), **{**own.defaults, **given, **arm.options}
        )
        return made
    cls = OPTIMIZERS[arm.optimizer]
    wanted = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, **arm.options}
    known = inspect.signature(cls).parameters
    options = {key: value for key, value in wanted.items() if key in known}
    if arm.optimizer == "rmsprop":  # its momentum is another thing than SGD's, and off by default
        options.pop("momentum")
    return cls(model.named_parameters(), **options)


def _named(part: str) -> registry.Method:
    """The method that a text begins with; hints know transforms and optimizers together."""
    name = part.partition("(")[0]
    _check_usable(name)
    known = {**_of_registry("transform"), **_of_registry("optimizer")}
    if name in known:
        return known[name]
    everything = [*known, *OPTIMIZERS, "none"]
    near = difflib.get_close_matches(name, everything, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(everything)}"
    raise UserError(f"unknown method {name!r}{hint}")


def _split(text: str, separator: str) -> list[str]:
    parts, depth, current = [], 0, ""
    for character in re.sub(r"\s+", "", text):
        depth += (character == "(") - (character == ")")
        if character == separator and depth == 0:
            parts.append(current)
            current = ""
        else:
            current += character
    parts.append(current)
    if depth != 0 or any(not part for part in parts):
        raise UserError(f"expected methods such as sgd,autoscale,clip(max_norm=0.5), got {text!r}")
    return parts
