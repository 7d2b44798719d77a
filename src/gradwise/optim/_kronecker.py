"""Kronecker factors of the Fisher matrix: what a layer's inputs and its outputs' gradients tell.

The Fisher matrix of a layer's weight is approximated by `A (x) S`, A the second moment of what goes
in and S that of the loss's gradient with respect to what comes out [R] (K-FAC, arXiv 1503.05671;
convolutions as in KFC, arXiv 1602.01407: positions of an image count as further samples of the
same layer). Hooks that gather them are on the layers for one evaluation of the loss at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

Layer = nn.Linear | nn.Conv2d
LAYERS = (nn.Linear, nn.Conv2d)


def layers_of(model: nn.Module) -> list[Layer]:
    """The layers of a model that have a Kronecker-factored Fisher matrix, in its order."""
    return [module for module in model.modules() if isinstance(module, LAYERS)]


def groups_of(layer: Layer) -> int:
    """How many independent maps the layer consists of: 1, or a convolution's groups."""
    return layer.groups if isinstance(layer, nn.Conv2d) else 1


def rows_in(layer: Layer, x: Tensor, homogeneous: bool) -> tuple[Tensor, int]:
    """What the layer multiplies its weight with, and for how many samples.

    Args:
        layer: the layer.
        x: its input: [N, ..., in] or [in] of a Linear, [N, in, h, w] or [in, h, w] of a Conv2d.
        homogeneous: whether to append the 1 that the bias is multiplied with.

    Returns:
        [g, N T, m] with T positions a sample and m values, in the order of the weight's own
        (in / g, kernel rows, kernel columns), and N.
    """
    if isinstance(layer, nn.Conv2d):
        x = x if x.dim() == 4 else x.unsqueeze(0)
        count, groups = x.shape[0], layer.groups
        patches = functional.unfold(
            _padded(layer, x), layer.kernel_size, layer.dilation, stride=layer.stride
        )
        positions = patches.shape[-1]
        patches = patches.reshape(count, groups, -1, positions)
        rows = patches.permute(1, 0, 3, 2).reshape(groups, count * positions, -1)
    else:
        count = x.shape[0] if x.dim() > 1 else 1
        rows = x.reshape(1, -1, x.shape[-1])
    return (functional.pad(rows, (0, 1), value=1.0) if homogeneous else rows), count


def rows_out(layer: Layer, grad: Tensor) -> Tensor:
    """The gradient of a layer's output as [g, N T, out / g]."""
    if isinstance(layer, nn.Conv2d):
        grad = grad if grad.dim() == 4 else grad.unsqueeze(0)
        count, _, height, width = grad.shape
        parts = grad.reshape(count, layer.groups, -1, height, width)
        return parts.permute(1, 0, 3, 4, 2).flatten(1, 3)
    return grad.reshape(1, -1, grad.shape[-1])


def _padded(layer: nn.Conv2d, x: Tensor) -> Tensor:
    # unfold pads both sides alike with zeros; a convolution also knows "same", which may not be
    # alike, and other values.
    if layer.padding == "valid":
        return x
    amounts: list[int] = []
    for axis in (1, 0):  # functional.pad begins with the last dimension
        if layer.padding == "same":
            total = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
            amounts += [total // 2, total - total // 2]
        else:
            amounts += [int(layer.padding[axis])] * 2
    if not any(amounts):
        return x
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return functional.pad(x, amounts, mode=mode)


def joined(layer: Layer, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A gradient in the factors' form: [g, out / g, m], the bias as the last column."""
    groups = groups_of(layer)
    parts = weight.reshape(groups, weight.shape[0] // groups, -1)
    if bias is None:
        return parts
    return torch.cat([parts, bias.reshape(groups, -1, 1)], dim=-1)


def parted(joint: Tensor, weight: Tensor, with_bias: bool) -> tuple[Tensor, Tensor | None]:
    """The inverse of `joined`: weight's part, shaped like `weight`, and bias's."""
    if not with_bias:
        return joint.reshape(weight.shape), None
    return joint[..., :-1].reshape(weight.shape), joint[..., -1].reshape(-1)


class Tally:
    """Sums up both factors of one layer while the loss is evaluated and differentiated.

    With N samples in dimension 0, T positions each and a loss that is the mean over samples,
    `A = sum(a a^T) / N` and `S = N sum(d d^T) / T`, d the gradient of that loss: the gradients of
    single samples' losses are N d. Of a layer that is used several times, each use adds T positions
    to every sample.

    Args:
        homogeneous: whether the bias belongs to the factored weight.
        isotropic: for A and for S, whether only the mean of the diagonal is kept.
        mean: whether the loss is the mean over samples; else it is the sum.
        dtype: to sum in.
    """

    def __init__(
        self, homogeneous: bool, isotropic: tuple[bool, bool], mean: bool, dtype: torch.dtype
    ) -> None:
        self.homogeneous = homogeneous
        self.isotropic = isotropic
        self.mean = mean
        self.dtype = dtype
        self.positions = 0
        self.counting = False
        self._sums: tuple[Tensor, Tensor] | None = None

    def watch(self, layer: Layer, args: tuple[Any, ...], kwargs: Any, output: Any) -> None:
        """Forward hook: be told of the gradient of this output."""
        x = args[0] if args else kwargs.get("input")
        whole = isinstance(x, Tensor) and x.numel() and isinstance(output, Tensor)
        if whole and output.requires_grad:
            output.register_hook(partial(self._add, layer, x.detach()))

    @torch.no_grad()
    def _add(self, layer: Layer, x: Tensor, grad: Tensor) -> None:
        # Derivatives that the closure takes itself pass here too, and so does the second one.
        if not self.counting:
            return
        with torch.autocast(x.device.type, enabled=False):
            a, count = rows_in(layer, x.to(self.dtype), self.homogeneous)
            d = rows_out(layer, grad.detach().to(self.dtype))
            weight = count if self.mean else 1 / count
            new = (
                _second(a, self.isotropic[0]).div_(count),
                _second(d, self.isotropic[1]).mul_(weight),
            )
        self.positions += a.shape[1] // count
        old = self._sums
        self._sums = new if old is None else (old[0] + new[0], old[1] + new[1])

    def factors(self) -> tuple[Tensor, Tensor] | None:
        """A [g, m, m] and S [g, out / g, out / g], or [g, 1, 1]; None where there was nothing."""
        if self._sums is None:
            return None
        return self._sums[0], self._sums[1] / self.positions


def _second(rows: Tensor, isotropic: bool) -> Tensor:
    if isotropic:
        return (rows.square().sum((1, 2)) / rows.shape[-1])[:, None, None]
    return rows.mT @ rows


class Gathering:
    """Puts hooks on layers while it is entered, and takes them off again.

    Args:
        tallies: for each layer, where its uses are summed up.
    """

    def __init__(self, tallies: Mapping[Layer, Tally]) -> None:
        self._tallies = tallies
        self._handles: Iterable[RemovableHandle] = ()

    def __enter__(self) -> Gathering:
        self._handles = [
            layer.register_forward_hook(tally.watch, with_kwargs=True, prepend=True)
            for layer, tally in self._tallies.items()
        ]
        return self

    def count(self) -> None:
        """From now on gradients are those of the loss, until the end."""
        for tally in self._tallies.values():
            tally.counting = True

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for tally in self._tallies.values():
            tally.counting = False
        for handle in self._handles:
            handle.remove()
