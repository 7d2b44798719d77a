"""Measure: what one read of a list of gradients tells, and the algebra on top of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradwise import backends
from gradwise.affine import Affine
from gradwise.errors import UserError
from gradwise.layout import Layout, Per, layout_of


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean, spread, extremes and zeros of every segment of a list of tensors.

    All vectors have shape [S], one entry a segment (a tensor, or a row of one), and live on the
    tensors' device in float64 (float32 where the device has none). A segment without values has
    count, mean, m2, min and max 0. Complex values count as pairs of reals.

    Attributes:
        layout: which segments there are; `layout.names` are the tensors' names.
        count: int64, number of values.
        mean: in the gradients' unit.
        m2: sum of squared deviations from the mean, in the unit squared.
        nonfinite: int64, number of NaN and infinite values; mean and m2 are not finite then.
        min: smallest value, None where extremes were not asked for.
        max: largest value, None where extremes were not asked for.
        zeros: int64, number of values that are exactly 0 (of either sign). None where extremes
            were not asked for, and behind a map with a shift, which may make zeros anywhere.
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
    nonfinite: Tensor
    min: Tensor | None
    max: Tensor | None
    zeros: Tensor | None = None
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
        """[S] largest magnitude.

        Raises:
            ValueError: where extremes were not asked for.
        """
        if self.min is None or self.max is None:
            raise ValueError("extremes were not measured: ask for them with extremes=True")
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

        def gather(values: Tensor, reduce: str) -> Tensor:
            start = values.new_zeros(len(merged))
            return start.scatter_reduce(0, index, values, reduce, include_self=False)

        shared = self.layout.shared
        count = gather(self.count, "sum") if shared else merged.count(self.device)
        mean = gather(self.count * self.mean, "sum") / count.clamp(min=1)
        between = self.count * (self.mean - mean[index]).square()
        return Moments(
            merged,
            count,
            mean,
            gather(self.m2 + between, "sum"),
            gather(self.nonfinite, "sum"),
            None if self.min is None else gather(self.min, "amin"),
            None if self.max is None else gather(self.max, "amax"),
            None if self.zeros is None else gather(self.zeros, "sum"),
            None if self.params is None else self.params.per_tensor(),
        )

    def expand(self, per_tensor: Tensor) -> Tensor:
        """[S] from [T]: a value a tensor, repeated for each of its segments."""
        if self.layout.by_tensor:
            return per_tensor
        return per_tensor[self.layout.tensor_of_segment(self.device)]

    def divisor(self, which: Sequence[bool]) -> int | Tensor:
        """How many values the chosen tensors have, 1 where they have none.

        A 0-d tensor where other processes hold parts: what has no gradient there at this step does
        not count. Else a number, which costs nothing.

        Args:
            which: one flag a tensor.
        """
        if self.layout.shared:
            chosen = self.layout.mask(which, self.device, torch.bool)
            return torch.where(chosen, self.count, 0).sum().clamp(min=1)
        return max(self.layout.numel_of(tuple(which)), 1)

    def pooled(self, which: Sequence[bool] | None = None) -> Moments:
        """The chosen tensors as one vector: `Moments` of shape [1].

        Args:
            which: one flag a tensor; None takes all.
        """
        chosen = tuple(which) if which is not None else (True,) * len(self.layout)
        numel = self.layout.numel_of(tuple(chosen))
        layout = self.layout.cached(("pooled", numel), lambda: _one_vector(numel))
        on = (self.count > 0) & self.layout.mask(chosen, self.device, torch.bool)
        shared = self.layout.shared
        count = (
            torch.where(on, self.count, 0).sum().reshape(1) if shared else layout.count(self.device)
        )
        mean = torch.where(on, self.count * self.mean, 0.0).sum() / self.divisor(chosen)
        between = self.count * (self.mean - mean).square()
        m2 = torch.where(on, self.m2 + between, 0.0).sum()
        low, high = self.min, self.max
        if low is not None and high is not None:
            inf = float("inf") if numel > 0 else 0.0
            low = torch.where(on, low, inf).amin().reshape(1) if len(self) else mean.reshape(1)
            high = torch.where(on, high, -inf).amax().reshape(1) if len(self) else mean.reshape(1)
        nonfinite, zeros = (
            None if v is None else torch.where(on, v, 0).sum().reshape(1)
            for v in (self.nonfinite, self.zeros)
        )
        assert nonfinite is not None
        return Moments(layout, count, mean.reshape(1), m2.reshape(1), nonfinite, low, high, zeros)

    def through(self, affine: Affine) -> Moments:
        """The moments of the mapped tensors, without reading them.

        mean' = s (mean - k), m2' = s^2 m2; the extremes swap where s is negative. A factor keeps
        the zeros, but that 0 makes zeros of all finite values; values that become too small for
        their type are not seen.
        """
        if affine.is_identity:
            return self
        affine = affine.spread(self.layout)
        mean, m2, low, high, zeros = self.mean, self.m2, self.min, self.max, self.zeros
        if affine.shift is not None:
            shift = torch.where(self.count > 0, affine.shift, 0.0)
            mean = mean - shift
            low, high = (None if end is None else end - shift for end in (low, high))
            zeros = None
        if affine.scale is not None:
            mean, m2 = mean * affine.scale, m2 * affine.scale.square()
            if low is not None and high is not None:
                ends = low * affine.scale, high * affine.scale
                low, high = torch.minimum(*ends), torch.maximum(*ends)
            if zeros is not None:
                zeros = torch.where(affine.scale == 0, self.count - self.nonfinite, zeros)
        return replace(self, mean=mean, m2=m2, min=low, max=high, zeros=zeros)


def _one_vector(numel: int) -> Layout:
    return Layout(("pooled",), (torch.Size((numel,)),), (numel,), (1,), (True,), (True,))


@torch.no_grad()
def measure(
    tensors: Sequence[Tensor | None],
    names: Sequence[str] | None = None,
    *,
    per: Per = "tensor",
    params: Sequence[Tensor | None] | None = None,
    backend: str | None = None,
    extremes: bool = True,
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
        extremes: also measure min, max and zeros, which costs reads of their own where no kernel
            does all in one. Without them an accelerator counts non-finite values as 0 or 1 a
            segment.

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
    moments = measure_layout(tensors, layout, backend, extremes)
    return moments if params is None else with_params(moments, params, backend)


def with_params(
    moments: Moments, params: Sequence[Tensor | None], backend: str | None = None
) -> Moments:
    """The same moments with those of the parameters, in the same segments, as `params`.

    Raises:
        UserError: where there are not as many parameters as gradients, or shapes differ.
    """
    layout = moments.layout
    if len(params) != len(layout):
        raise UserError(
            f"expected one parameter for each of the {len(layout)} gradients, got {len(params)}"
        )
    there: list[Tensor | None] = []
    for name, shape, here, param in zip(
        layout.names, layout.shapes, layout.present, params, strict=True
    ):
        if here and (param is None or param.shape != shape):
            found = None if param is None else tuple(param.shape)
            raise UserError(
                f"expected parameter {name!r} of its gradient's shape {tuple(shape)}, got {found}"
            )
        there.append(param if here else None)
    own = layout.of_params(tuple(None if p is None else p.dtype for p in there))
    return replace(moments, params=measure_layout(there, own, backend, extremes=False))


def measure_layout(
    tensors: Sequence[Tensor | None],
    layout: Layout,
    backend: str | None = None,
    extremes: bool = True,
) -> Moments:
    """`measure` for a layout that is known already."""
    stats = backends.measure(tensors, layout, backend, extremes)
    return Moments(layout, layout.count(stats[0].device), *stats)
