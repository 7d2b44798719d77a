"""What a name in `--methods` means: an optimizer, and transforms on its gradients."""

from __future__ import annotations

import difflib
import hashlib
import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gradwise import registry
from gradwise.errors import UserError
from gradwise.transforms import Chain, chain

# Optimizers that need what a comparison does not give: a closure, sparse gradients, or parameters
# that are all matrices.
_UNUSABLE = {"lbfgs", "sparseadam", "muon"}
OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    name.lower(): cls
    for name, cls in sorted(vars(torch.optim).items())
    if inspect.isclass(cls)
    and issubclass(cls, torch.optim.Optimizer)
    and cls is not torch.optim.Optimizer
    and name.lower() not in _UNUSABLE
}
# Common starting points for the models of the lab; everything else starts at 1e-3.
DEFAULT_LR = {"sgd": 0.1, "asgd": 0.1, "adagrad": 1e-2, "adadelta": 1.0, "adafactor": 1e-2}


@dataclass(frozen=True)
class Arm:
    """One method of a comparison.

    Attributes:
        name: the text it was given as, without spaces.
        optimizer: name of the optimizer.
        options: arguments of the optimizer beyond the settings.
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
    def folder(self) -> str:
        """A name for files: readable, and unique where characters had to go."""
        slug = re.sub(r"[^A-Za-z0-9._=-]+", "-", self.name).strip("-.")[:48]
        if slug == self.name:
            return slug
        return f"{slug}-{hashlib.sha256(self.name.encode()).hexdigest()[:8]}"


def check_optimizer(name: str) -> None:
    """Raise a `UserError` with the nearest name where there is no such optimizer."""
    if name in OPTIMIZERS:
        return
    if name in _UNUSABLE:
        raise UserError(
            f"optimizer {name!r} cannot be compared here: it needs a closure, sparse gradients or "
            "matrix parameters alone"
        )
    near = difflib.get_close_matches(name, OPTIMIZERS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(OPTIMIZERS)}"
    raise UserError(f"unknown optimizer {name!r}{hint}")


def split_methods(text: str) -> list[str]:
    """The methods in a comma-separated list; commas inside brackets belong to arguments.

    Examples:
        >>> split_methods("sgd, clip(max_norm=0.5), zclip(warmup=10, threshold=3)")
        ['sgd', 'clip(max_norm=0.5)', 'zclip(warmup=10,threshold=3)']
    """
    return _split(text, ",")


def resolve(spec: str, default_optimizer: str) -> Arm:
    """The arm that a text names.

    A text is an optimizer (`sgd`, `adamw`), `none` (the default optimizer, plain), a transform with
    or without arguments (`autoscale`, `clip(max_norm=0.5)`), or several joined by `+`, applied from
    left to right (`adamw+center+clip`).

    Raises:
        UserError: for an unknown name, with the nearest one, or wrong arguments.

    Examples:
        >>> arm = resolve("center+clip(max_norm=0.5)", "sgd")
        >>> arm.optimizer, arm.transform
        ('sgd', chain(Center(per='tensor'), ClipNorm(max_norm=0.5)))
    """
    name = re.sub(r"\s+", "", spec)
    optimizer, transforms, told = default_optimizer, [], []
    for i, part in enumerate(_split(name, "+")):
        if part == "none":
            continue
        if part in OPTIMIZERS:
            if i > 0:
                raise UserError(f"expected the optimizer first in method {name!r}, got it later")
            optimizer = part
            continue
        method = registry.parse(_known(part))[0]
        transforms.append(registry.build(part))
        told.append(method)
    if not transforms:
        told_line = f"torch.optim.{OPTIMIZERS[optimizer].__name__}, gradients as they are"
        return Arm(name, optimizer, {}, chain(), told_line, "", "", "")
    return Arm(
        name,
        optimizer,
        {},
        chain(*transforms),
        "; then ".join(m.summary for m in told),
        "; ".join(dict.fromkeys(m.paper for m in told)),
        told[0].url,
        "; ".join(dict.fromkeys(m.tag for m in told)),
    )


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
    """The arm's optimizer over a model's parameters, named as the model names them."""
    cls = OPTIMIZERS[arm.optimizer]
    wanted = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, **arm.options}
    known = inspect.signature(cls).parameters
    options = {key: value for key, value in wanted.items() if key in known}
    if arm.optimizer == "rmsprop":  # its momentum is another thing than SGD's, and off by default
        options.pop("momentum")
    return cls(model.named_parameters(), **options)


def _known(part: str) -> str:
    """Check a name against transforms and optimizers together, for a better hint."""
    name = part.partition("(")[0]
    transforms = [n for n, m in registry.methods().items() if m.kind == "transform"]
    if name in transforms:
        return part
    if name in _UNUSABLE:
        check_optimizer(name)
    everything = [*transforms, *OPTIMIZERS, "none"]
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
