"""The noise of batch gradients around the gradient of the whole set, at one point."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradwise.analysis._frozen import device_of, frozen, squared_norm, trainable
from gradwise.analysis._passes import LossFn, Part, Progress, Source, mean_gradient
from gradwise.errors import UserError


@dataclass(frozen=True)
class GradientNoise:
    """How far gradients of batches lie from the gradient G of the whole set, at one point.

    Attributes:
        variance: E|g_b - G|^2, in squared units of the gradient norm (loss over parameter).
        error: standard error of `variance`; None for a single batch.
        c2: the same for batches of one sample, the C^2 of (10.2), as unbiased; None where a batch
            is the whole set, which tells nothing of its samples.
        norm: |G|, in units of the gradient norm.
        loss: mean loss of the set.
        batch_size: b, in samples.
        batches: R, batches that `variance` is the mean of.
        samples: n, in the set.
    """

    variance: float
    error: float | None
    c2: float | None
    norm: float
    loss: float
    batch_size: int
    batches: int
    samples: int

    @property
    def noise_scale(self) -> float | None:
        """B_simple = C^2 / |G|^2, in samples, with the exact G; None where either is not there.

        McCandlish et al. 2018 (arXiv 1812.06162) [R]: the batch size at which noise and gradient
        are equally large.
        """
        return None if self.c2 is None or self.norm == 0 else self.c2 / self.norm**2

    def to_dict(self) -> dict[str, Any]:
        """The fields and the noise scale as plain values."""
        return {**asdict(self), "noise_scale": self.noise_scale}


def gradient_noise(
    model: nn.Module,
    loss_fn: LossFn,
    data: Iterable[Any],
    *,
    batch_size: int | None = None,
    batches: int = 32,
    replacement: bool = False,
    chunk_size: int = 512,
    seed: int = 0,
    progress: Progress | None = None,
) -> GradientNoise:
    """Measure the noise of batch gradients around the gradient of the whole set.

    One pass over the data gives G, R batches give Vhat = mean_r |g_r - G|^2 and, by (10.2),

        Chat^2 = b Vhat                        drawn with replacement
        Chat^2 = b Vhat (n - 1) / (n - b)      drawn without

    both unbiased [D]; C^2 is the mean over the set of |g_i - G|^2.

    Args:
        model: measured in evaluation mode, left as it was.
        loss_fn: of outputs and targets, the mean over a batch.
        data: inputs and targets [n, ...] as two tensors, from which independent batches are drawn;
            or a loader without augmentation. The R batches of a loader are the first full ones of
            a second pass, so they are at most those of one pass, and random only if the loader
            shuffles or the data lie in random order; n is what one pass gives.
        batch_size: b, for tensors; a loader has its own.
        batches: R.
        replacement: whether a sample may come twice in a batch; for tensors.
        chunk_size: samples in one forward and backward pass, for tensors.
        seed: of the draws.
        progress: told (passes done, all passes), the latter 0 for a loader without a length.

    Raises:
        UserError: where an argument is out of its bounds, or the loss or a gradient not finite.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> model, loss_fn = nn.Linear(3, 1), nn.MSELoss()
        >>> data = torch.randn(40, 3), torch.randn(40, 1)
        >>> found = gradient_noise(model, loss_fn, data, batch_size=4, batches=50)
        >>> found.c2 == 4 * found.variance * 39 / 36
        True
    """
    noise, _ = measured_noise(
        model,
        loss_fn,
        data,
        batch_size=batch_size,
        batches=batches,
        replacement=replacement,
        chunk_size=chunk_size,
        seed=seed,
        progress=progress,
    )
    return noise


def measured_noise(
    model: nn.Module,
    loss_fn: LossFn,
    data: Iterable[Any],
    *,
    batch_size: int | None,
    batches: int,
    replacement: bool,
    chunk_size: int,
    seed: int,
    progress: Progress | None,
) -> tuple[GradientNoise, list[Tensor]]:
    """The noise, and G one tensor a trainable parameter."""
    if batches < 1:
        raise UserError(f"expected batches >= 1, got batches={batches}")
    params = list(trainable(model).values())
    source = Source(data, device_of(model), chunk_size)
    draws = _Draws(source, batch_size, batches, replacement, seed)
    total, done = (draws.passes + source.parts if source.parts else 0), 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    with frozen(model, data):
        loss, mean, samples = mean_gradient(model, loss_fn, params, source, tick)
        squares = []
        for parts in draws:
            _, found, _ = mean_gradient(model, loss_fn, params, parts, tick)
            squares.append(squared_norm([g - m for g, m in zip(found, mean, strict=True)]))
    if progress is not None and done < total:  # a loader's batches that are not full
        progress(total, total)
    count, b = len(squares), draws.size
    variance = math.fsum(squares) / count
    error = None
    if count > 1:
        error = math.sqrt(math.fsum((x - variance) ** 2 for x in squares) / (count - 1) / count)
    c2: float | None = b * variance
    if not replacement:
        c2 = b * variance * (samples - 1) / (samples - b) if samples > b else None
    norm = math.sqrt(squared_norm(mean))
    return GradientNoise(variance, error, c2, norm, loss, b, count, samples), mean


class _Draws:
    """The R batches, each in parts; `size` is b, known at the latest when the first is drawn."""

    def __init__(
        self, source: Source, size: int | None, batches: int, replacement: bool, seed: int
    ) -> None:
        n = source.samples
        if n is None and (size is not None or replacement):
            raise UserError("expected neither batch_size nor replacement beside a loader")
        if n is not None and (size is None or size < 1 or (size > n and not replacement)):
            raise UserError(f"expected 1 <= batch_size <= {n}, got batch_size={size}")
        self.size = size or 0
        self._source, self._batches, self._replacement = source, batches, replacement
        self._generator = torch.Generator().manual_seed(seed)
        self.passes = min(batches, source.parts)  # of a loader
        if n is not None:
            self.passes = batches * -(-self.size // source.chunk_size)

    def __iter__(self) -> Iterator[Iterable[Part]]:
        if self._source.samples is None:
            yield from self._first()
            return
        for _ in range(self._batches):
            yield self._source.chosen(self._index(self._source.samples))

    def _index(self, n: int) -> Tensor:
        if self._replacement:
            return torch.randint(n, (self.size,), generator=self._generator)
        return torch.randperm(n, generator=self._generator)[: self.size]

    def _first(self) -> Iterator[list[Part]]:
        """The loader's first R batches that are as large as its very first."""
        left = self._batches
        for part in self._source:
            self.size = self.size or part[2]
            if part[2] == self.size:
                yield [part]
                left -= 1
            if left == 0:
                return
