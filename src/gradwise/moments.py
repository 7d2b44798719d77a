"""Measure: what one read of a list of gradients tells, and the algebra on top of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradwise import backends
from gradwise.affine import Affine
from gradwise.layout import Layout, Per, layout_of


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean, spread and extremes of every segment of a list of tensors.

    All vectors have shape [S], one entry a segment (a tensor, or a row of one), and live on the
    tensors' device in float64 (float32 where the device has none). A segment without values has
    count, mean, m2, min and max 0. Complex values count as pairs of reals.

    Attributes:
        layout: which segments there are; `layout.names` are the tensors' names.
        count: int64, number of values.
        mean: in the gradients' unit.
        m2: sum of squared deviations from the mean, in the unit squared.
        min: smallest value.
        max: largest value.
        nonfinite: int64, number of NaN and infinite values; mean and m2 are not finite then.
        params: moments of the parameters in the same layout, for transforms that relate the
            gradients to them.

    Examples:
        >>> import torch
        >>> moments = measure([torch.tensor([[1.0, 3.0], [5.0, 7.0]])], ["weight"])
        >>> moments.mean.item(), moments.var.item(), moments.max_abs.item()
        (4.0, 5.0, 7.0)
        >>> moments.layout.names
        ('weight',)
    """

    layout: Layout
    count: Tensor
    mean: Tensor
    m2: Tensor
    min: Tensor
    max: Tensor
    nonfinite: Tensor
    params: Moments | None = None

    def __len__(self) -> int:
        return self.layout.segments

    @property
    def names(self) -> tuple[str, ...]:
        """One name a tensor."""
        return self.layout.names

    @property
    def device(self) -> torch.device:
        """Where the vectors live."""
        return self.mean.device

    @property
    def var(self) -> Tensor:
        """[S] population variance, m2 / count; 0 for an empty segment."""
        return self.m2 / self.count.clamp(min=1)

    @property
    def std(self) -> Tensor:
        """[S] population standard deviation."""
        return self.var.sqrt()

    @property
    def sumsq(self) -> Tensor:
        """[S] sum of squares, m2 + count mean^2."""
        return self.m2 + self.count * self.mean.square()

    @property
    def norm(self) -> Tensor:
        """[S] Euclidean norm."""
        return self.sumsq.sqrt()

    @property
    def max_abs(self) -> Tensor:
        """[S] largest magnitude."""
        return torch.maximum(self.max, -self.min)

    @property
    def total_norm(self) -> Tensor:
        """0-d Euclidean norm of all tensors as one vector."""
        return self.sumsq.sum().sqrt()

    @property
    def all_finite(self) -> Tensor:
        """0-d bool: no value of any tensor is NaN or infinite."""
        return self.nonfinite.sum() == 0

    def per_tensor(self) -> Moments:
        """One segment a tensor; rows are merged exactly (Chan, Golub and LeVeque's update)."""
        if self.layout.by_tensor:
            return self
        merged = self.layout.merged
        index = self.layout.tensor_of_segment(self.device)
        count = merged.count(self.device)

        def gather(values: Tensor, reduce: str) -> Tensor:
            start = values.new_zeros(len(merged))
            return start.scatter_reduce(0, index, values, reduce, include_self=False)

        mean = gather(self.count * self.mean, "sum") / count.clamp(min=1)
        between = self.count * (self.mean - mean[index]).square()
        return Moments(
            merged,
            count,
            mean,
            gather(self.m2 + between, "sum"),
            gather(self.min, "amin"),
            gather(self.max, "amax"),
            gather(self.nonfinite, "sum"),
            None if self.params is None else self.params.per_tensor(),
        )

    def expand(self, per_tensor: Tensor) -> Tensor:
        """[S] from [T]: a value a tensor, repeated for each of its segments."""
        if self.layout.by_tensor:
            return per_tensor
        return per_tensor[self.layout.tensor_of_segment(self.device)]

    def pooled(self, which: Sequence[bool] | None = None) -> Moments:
        """The chosen tensors as one vector: `Moments` of shape [1].

        Args:
            which: one flag a tensor; None takes all.
        """
        chosen = tuple(which) if which is not None else (True,) * len(self.layout)
        numel = sum(n for n, c in zip(self.layout.numels, chosen, strict=True) if c)
        layout = Layout(("pooled",), (torch.Size((numel,)),), (numel,), (1,), (True,), (True,))
        on = (self.count > 0) & self.layout.mask(chosen, self.device, torch.bool)
        count = layout.count(self.device)
        mean = torch.where(on, self.count * self.mean, 0.0).sum() / max(numel, 1)
        between = self.count * (self.mean - mean).square()
        m2 = torch.where(on, self.m2 + between, 0.0).sum()
        inf, zero = float("inf"), torch.zeros_like(mean)
        low, high = zero, zero
        if numel > 0:
            low = torch.where(on, self.min, inf).amin()
            high = torch.where(on, self.max, -inf).amax()
        nonfinite = torch.where(on, self.nonfinite, 0).sum()
        mean, m2, low, high, nonfinite = (v.reshape(1) for v in (mean, m2, low, high, nonfinite))
        return Moments(layout, count, mean, m2, low, high, nonfinite)

    def through(self, affine: Affine) -> Moments:
        """The moments of the mapped tensors, without reading them.

        mean' = s (mean - k), m2' = s^2 m2; the extremes swap where s is negative.
        """
        if affine.is_identity:
            return self
        affine = affine.spread(self.layout)
        mean, m2, low, high = self.mean, self.m2, self.min, self.max
        if affine.shift is not None:
            here = self.count > 0
            mean, low, high = (
                torch.where(here, value - affine.shift, value) for value in (mean, low, high)
            )
        if affine.scale is not None:
            mean, m2 = mean * affine.scale, m2 * affine.scale.square()
            ends = low * affine.scale, high * affine.scale
            low, high = torch.minimum(*ends), torch.maximum(*ends)
        return replace(self, mean=mean, m2=m2, min=low, max=high)


def measure(
    tensors: Sequence[Tensor | None],
    names: Sequence[str] | None = None,
    *,
    per: Per = "tensor",
    params: Sequence[Tensor] | None = None,
    backend: str | None = None,
) -> Moments:
    """Measure a list of tensors, typically gradients, in one read.

    Sums are accumulated so that the variance keeps its digits where |mean| is much larger than
    the standard deviation, in float32 or wider whatever the tensors' dtype. On an accelerator
    nothing here makes the host wait.

    Args:
        tensors: dense or sparse, real or complex, in any memory format; None has no values.
        names: one a tensor, for reports.
        per: "tensor" for one segment a tensor, "row" for one a row of dimension 0.
        params: the parameters that the gradients belong to, measured in the same layout.
        backend: a name of `gradwise.backends.available()`; None chooses by device.

    Returns:
        `Moments` with vectors of shape [S].

    Raises:
        UserError: where the number of names or parameters does not fit, or `per` or `backend` is
            unknown.

    Examples:
        >>> import torch
        >>> grads = [torch.tensor([[3.0, 4.0]]), torch.tensor([0.0, 12.0])]
        >>> measure(grads).total_norm
        tensor(13., dtype=torch.float64)
    """
    layout = layout_of(tensors, names, per)
    moments = measure_layout(tensors, layout, backend)
    if params is None:
        return moments
    of_params = layout_of(list(params), layout.names, per)
    return replace(moments, params=measure_layout(list(params), of_params, backend))


def measure_layout(
    tensors: Sequence[Tensor | None], layout: Layout, backend: str | None = None
) -> Moments:
    """`measure` for a layout that is known already."""
    stats = backends.measure(tensors, layout, backend)
    return Moments(layout, layout.count(stats[0].device), *stats)
