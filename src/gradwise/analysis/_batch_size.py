"""Which batch size pays: from a sweep, from a bound on the noise, from the gradient noise scale."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from gradwise.analysis._frozen import squared_norm
from gradwise.errors import UserError

Rule = Literal["sgd", "shb", "nshb"]


@dataclass(frozen=True)
class CriticalBatch:
    """Where a sweep of batch sizes reached the threshold with the fewest samples.

    Attributes:
        batch_size: b*, in samples; the smallest of several that are equally good.
        sfo: SFO(b*), gradients of single samples computed until the threshold.
        bracketed: whether the sweep has both a smaller and a larger batch size. Where it has not,
            b* is only the end of the sweep, and the best batch size may lie beyond.
        sizes: all batch sizes of the sweep, ascending.
        costs: SFO(b) of each; None where a run did not reach the threshold.
    """

    batch_size: int
    sfo: float
    bracketed: bool
    sizes: tuple[int, ...]
    costs: tuple[float | None, ...]

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values."""
        return {**asdict(self), "sizes": list(self.sizes), "costs": list(self.costs)}


def critical_batch_size(sweep: Iterable[tuple[int, int | None]]) -> CriticalBatch:
    """The batch size b* = argmin_b b K(b) that needs the fewest samples.

    Equation (10.4) of methods.md (Sato and Iiduka, arXiv 2402.02325) [V2]: K(b) are the steps until
    a threshold is reached, SFO(b) = b K(b) the samples. Steps are averaged over runs of the same
    batch size, and a batch size counts only if all its runs got there; both are this library's
    choice. Let every run go on until it reaches the threshold or a limit in samples, not in epochs
    of which a larger batch makes fewer steps.

    Args:
        sweep: (batch size, steps to the threshold) of each run; None for a run that never got
            there.

    Raises:
        UserError: where there are fewer than two batch sizes, none got there, or a number is not
            positive.

    Examples:
        >>> found = critical_batch_size([(8, 1000), (16, 480), (32, 300), (64, None)])
        >>> found.batch_size, found.sfo, found.bracketed
        (16, 7680.0, True)
    """
    runs: dict[int, list[int | None]] = {}
    for size, steps in sweep:
        if size < 1 or (steps is not None and steps < 1):
            raise UserError(f"expected batch size and steps >= 1, got ({size}, {steps})")
        runs.setdefault(size, []).append(steps)
    if len(runs) < 2:
        raise UserError(f"expected a sweep of at least two batch sizes, got {len(runs)}")
    sizes = tuple(sorted(runs))
    costs: list[float | None] = []
    for size in sizes:
        reached = [steps for steps in runs[size] if steps is not None]
        complete = len(reached) == len(runs[size])
        costs.append(size * math.fsum(reached) / len(reached) if complete else None)
    there = [(cost, size) for cost, size in zip(costs, sizes, strict=True) if cost is not None]
    if not there:
        raise UserError("expected a batch size all of whose runs reached the threshold, got none")
    sfo, best = min(there)
    return CriticalBatch(best, sfo, sizes[0] < best < sizes[-1], sizes, tuple(costs))


def c2_bound(
    batch_size: int, *, threshold: float, lr: float, rule: Rule = "sgd", beta: float = 0.9
) -> float:
    """The upper bound on the noise C^2 that a critical batch size b* allows.

    Sato and Iiduka, arXiv 2402.02325, with steps counted until the mean gradient norm is eps:

        sgd    C^2 < b* eps^2 / lr                                [V2]
        nshb   C^2 < b* eps^2 (1 - beta) / lr                     [X]
        shb    C^2 < b* eps^2 / (lr (1 + 1 / (1 - beta)^2))       [X]

    The two of momentum are this library's reading: they fit the reported numbers. All are bounds;
    the noise itself, which may be far smaller, is measured by `gradient_noise`.

    Args:
        batch_size: b*, in samples.
        threshold: eps > 0, in units of the gradient norm.
        lr: > 0.
        rule: which optimizer.
        beta: its momentum, without effect for "sgd".

    Returns:
        The bound, in squared units of the gradient norm.

    Raises:
        UserError: where a number is out of its bounds or the rule unknown.

    Examples:
        >>> c2_bound(512, threshold=0.5, lr=0.1)
        1280.0
    """
    if batch_size < 1:
        raise UserError(f"expected batch_size >= 1, got batch_size={batch_size}")
    for name, value in (("threshold", threshold), ("lr", lr)):
        if not 0 < value < math.inf:
            raise UserError(f"expected 0 < {name} < inf, got {name}={value}")
    if rule not in get_args(Rule):
        raise UserError(f"expected rule in {get_args(Rule)}, got rule={rule!r}")
    if not 0 <= beta < 1:
        raise UserError(f"expected 0 <= beta < 1, got beta={beta}")
    bound = batch_size * threshold**2 / lr
    if rule == "nshb":
        return bound * (1 - beta)
    return bound / (1 + 1 / (1 - beta) ** 2) if rule == "shb" else bound


@dataclass(frozen=True)
class NoiseScaleEstimate:
    """What gradients of several batches at one point tell of the gradient noise scale.

    Attributes:
        trace: estimate of tr(Sigma), the expected squared distance of a single sample's gradient
            from the mean, in squared units of the gradient norm.
        signal: estimate of |G|^2, in the same unit; by chance it may come out negative.
        scale: B_simple = trace / signal, in samples; None where `signal` is not positive, as the
            noise then drowns the gradient.
        batches: how many gradients were seen.
    """

    trace: float
    signal: float
    scale: float | None
    batches: int

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self)


def gradient_noise_scale(
    gradients: Iterable[Sequence[Tensor | None]],
    batch_size: int,
    *,
    samples: int | None = None,
) -> NoiseScaleEstimate:
    """The gradient noise scale from the gradients of R batches of b samples at one point.

    McCandlish et al. 2018 (arXiv 1812.06162), appendix A [R]; unbiased parts [D]. The batches are
    the smaller size b, all together the larger size B = R b:

        |G|^2     = (B |g_B|^2 - b |g_b|^2) / (B - b)
        tr(Sigma) = (|g_b|^2 - |g_B|^2) / (1/b - 1/B)

    with |g_b|^2 the mean over the batches. Both are unbiased for batches that are drawn
    independently of each other; their ratio only nearly so. While training goes on, `gw.watch`
    measures the same without extra passes and averages over steps.

    Args:
        gradients: one list of tensors a batch, of the same shapes; read once, never held together.
        batch_size: b, samples in each batch.
        samples: n, where the batches are different parts of one set of n samples, none drawn twice
            (an epoch). Then the results describe that set: the spread of its samples around their
            mean gradient. Without correction |G|^2 would come out too small by tr(Sigma) / n.

    Raises:
        UserError: where there are fewer than two batches, shapes differ, a gradient is not finite,
            or the batches have more samples than there are.

    Examples:
        >>> import torch
        >>> batches = [[torch.tensor([3.0, 1.0])], [torch.tensor([3.0, -1.0])]]
        >>> gradient_noise_scale(batches, batch_size=8)
        NoiseScaleEstimate(trace=16.0, signal=8.0, scale=2.0, batches=2)
    """
    if batch_size < 1:
        raise UserError(f"expected batch_size >= 1, got batch_size={batch_size}")
    means: list[Tensor] = []
    spread, count = 0.0, 0  # Welford's: the sum of squared distances from the mean
    for given in gradients:
        wide = [_wide(grad) for grad in given if grad is not None]
        if count and [g.shape for g in wide] != [m.shape for m in means]:
            raise UserError(f"expected gradients of the same shapes, batch {count} has others")
        count += 1
        if count == 1:
            means = [torch.zeros_like(grad) for grad in wide]
        for mean, grad in zip(means, wide, strict=True):
            off = grad - mean
            mean += off / count
            spread += float((off * (grad - mean)).sum())
        if not math.isfinite(spread):
            raise UserError(f"expected finite gradients, those of batch {count - 1} are not")
    if count < 2:
        raise UserError(f"expected the gradients of at least two batches, got {count}")
    if samples is not None and samples < count * batch_size:
        raise UserError(
            f"expected samples >= {count} batches of {batch_size}, got samples={samples}"
        )
    # |g_b|^2 - |g_B|^2 is the spread per batch, taken without cancellation.
    trace = batch_size * spread / (count - 1)
    signal = squared_norm(means) - spread / (count - 1) / count
    if samples is not None:
        signal += trace / samples
        trace *= (samples - 1) / samples
    return NoiseScaleEstimate(trace, signal, trace / signal if signal > 0 else None, count)


def _wide(grad: Tensor) -> Tensor:
    """A gradient as dense real numbers in float64."""
    grad = grad.detach()
    dense = grad.to_dense() if grad.is_sparse else grad
    real = torch.view_as_real(dense.resolve_conj()) if dense.is_complex() else dense
    return real.to(torch.float64, copy=True)
