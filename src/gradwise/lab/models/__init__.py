"""The networks that trials train, by name.

`available` lists the names, `build` makes a network. A model of your own is named
`module:function`.

Examples:
    >>> net = build("digits-resnet", num_classes=10, in_shape=(1, 8, 8))
    >>> [name for name, _ in net.named_children()]
    ['conv1', 'bn1', 'stage1', 'stage2', 'stage3', 'fc']
"""

import difflib
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn

from gradwise.errors import UserError
from gradwise.lab.models import _user
from gradwise.lab.models.mlp import MLP
from gradwise.lab.models.resnet import cifar_resnet, digits_resnet
from gradwise.lab.models.vgg import VGG16BN

__all__ = ["available", "build"]


@dataclass(frozen=True)
class _ImageModel:
    """A network for images [C, H, W] with both sides of at least `least_side` pixels."""

    make: Callable[..., nn.Module]
    least_side: int

    def __call__(self, name: str, num_classes: int, in_shape: tuple[int, ...]) -> nn.Module:
        if len(in_shape) != 3 or min(in_shape[1:]) < self.least_side:
            raise UserError(
                f"expected in_shape = [C, H, W] with H and W of at least {self.least_side} for "
                f"model {name!r}, got {list(in_shape)}"
            )
        return self.make(num_classes=num_classes, in_channels=in_shape[0])


def _mlp(name: str, num_classes: int, in_shape: tuple[int, ...]) -> nn.Module:
    return MLP(math.prod(in_shape), num_classes=num_classes)


_MODELS: dict[str, Callable[[str, int, tuple[int, ...]], nn.Module]] = {
    "digits-resnet": _ImageModel(digits_resnet, 8),
    "mlp": _mlp,
    "resnet20": _ImageModel(partial(cifar_resnet, 20), 8),
    "resnet32": _ImageModel(partial(cifar_resnet, 32), 8),
    "resnet56": _ImageModel(partial(cifar_resnet, 56), 8),
    "vgg16bn": _ImageModel(VGG16BN, 32),
}


def available() -> tuple[str, ...]:
    """Return the names that `build` knows, sorted.

    Examples:
        >>> "resnet20" in available()
        True
    """
    return tuple(sorted(_MODELS))


def build(name: str, *, num_classes: int, in_shape: tuple[int, ...]) -> nn.Module:
    """Make a freshly initialised network, on the CPU in float32 and in training mode.

    The weights come from torch's global random generator: seed it first for the same ones.

    Args:
        name: One of `available()`, or `module:function` for a model of your own. The module is
            looked for in the current directory first; the function (or class) is given those of
            `num_classes` and `in_shape` that it takes by name, be it none, and must return a
            `torch.nn.Module` that maps [B, *in_shape] to [B, num_classes].
        num_classes: Number of logits, at least 2.
        in_shape: Shape of one sample without the batch, [C, H, W] for images.

    Returns:
        The network, mapping [B, *in_shape] to logits [B, num_classes].

    Raises:
        UserError: If the name is unknown (the nearest known one is named), the shape does not fit
            the network, or the user's function cannot be used.

    Examples:
        >>> import torch
        >>> net = build("mlp", num_classes=3, in_shape=(20,))
        >>> net(torch.zeros(5, 20)).shape
        torch.Size([5, 3])
    """
    if num_classes < 2:
        raise UserError(f"expected num_classes >= 2, got num_classes={num_classes}")
    if not in_shape or min(in_shape) < 1:
        raise UserError(f"expected in_shape of positive sizes, got in_shape={list(in_shape)}")
    if ":" in name:
        return _user.load(name, num_classes=num_classes, in_shape=in_shape)
    if name not in _MODELS:
        raise UserError(
            f"unknown model {name!r}: did you mean {_nearest(name)!r}? (known: "
            f"{', '.join(available())}, or module:function for your own)"
        )
    return _MODELS[name](name, num_classes, in_shape)


def _nearest(name: str) -> str:
    def likeness(known: str) -> tuple[float, int]:
        ratio = difflib.SequenceMatcher(None, name.lower(), known).ratio()
        # Among equals the longer common beginning wins: resnet21 is nearer resnet20 than resnet32.
        same = itertools.takewhile(
            lambda ab: ab[0] == ab[1], zip(name.lower(), known, strict=False)
        )
        return ratio, sum(1 for _ in same)

    return max(available(), key=likeness)
