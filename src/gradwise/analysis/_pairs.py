"""Runs on a data set and on its neighbours, and how far apart they end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gradwise.analysis._neighbours import Dataset, as_pair, neighbour, seeded
from gradwise.analysis._passes import Progress
from gradwise.errors import UserError


@dataclass(frozen=True)
class Stability:
    """How far the replacement of one sample moves what training gives.

    T steps, S seeds, K replaced samples.

    Attributes:
        steps: where runs were compared; None where only their ends were.
        indices: the K samples that were replaced, one at a time.
        samples: n, in the data set.
        seeds: of the S repetitions.
        squared_distances: |A(S) - A(S^(i))|^2, (T, S, K), float64, squared units of the parameters.
        train_loss: L_S(A(S)), (T, S), float64; None where it was not asked for.
        test_loss: the loss of A(S) on the test samples, (T, S), float64; or None.
        smoothness: G of the loss where it is known.
    """

    steps: tuple[int, ...] | None
    indices: tuple[int, ...]
    samples: int
    seeds: tuple[int, ...]
    squared_distances: Tensor
    train_loss: Tensor | None = None
    test_loss: Tensor | None = None
    smoothness: float | None = None

    @property
    def eps_squared(self) -> Tensor:
        """Squared l2 on-average argument stability (14.3), (T,): the mean over seeds and samples.

        An estimate of it, as the mean goes over the replaced samples and the seeds at hand.
        """
        return self.squared_distances.mean((1, 2))

    @property
    def error(self) -> Tensor | None:
        """Standard error of `eps_squared`, (T,), from the means of the seeds.

        Of one seed it comes from the replaced samples, and leaves out that another data set might
        have given another value; None for one of each.
        """
        values = self.squared_distances.mean(2)
        if values.shape[1] == 1:
            values = self.squared_distances[:, 0]
        count = values.shape[1]
        return None if count == 1 else values.std(1) / math.sqrt(count)

    @property
    def gap(self) -> Tensor:
        """Generalisation gap, test loss minus training loss, (T,), the mean over seeds.

        Raises:
            UserError: where no test samples were given.
        """
        if self.test_loss is None or self.train_loss is None:
            raise UserError("expected test samples for the generalisation gap, got none")
        return (self.test_loss - self.train_loss).mean(1)

    def bound(self, smoothness: float | None = None) -> Tensor:
        """What stability allows the expected gap to be, (T,), in units of the loss.

            E[L(A(S)) - L_S(A(S))] <= (G/2) eps^2 + sqrt(2 G E L_S(A(S))) eps         (14.4)

        for a non-negative, G-smooth loss; Lei and Ying 2020, as used by Lei, Jin and Ying, NeurIPS
        2022, arXiv 2209.09298 [R]. With estimates on its right side it is an estimate as well.

        Args:
            smoothness: G > 0, the largest curvature of a sample's loss over the parameters, in
                units of the loss over squared ones of the parameters; the known one where None.

        Raises:
            UserError: where G is neither given nor known, or not positive and finite, or the
                training loss was not measured.
        """
        value = self.smoothness if smoothness is None else smoothness
        if value is None or not 0 < value < math.inf:
            raise UserError(f"expected 0 < smoothness < inf, got smoothness={value}")
        if self.train_loss is None:
            raise UserError("expected the training loss for the bound, got runs without a loss")
        squared = self.eps_squared
        slope = (2 * value * self.train_loss.mean(1) * squared).sqrt()
        return value / 2 * squared + slope

    def to_dict(self) -> dict[str, Any]:
        """The fields and what follows from them as numbers and lists; None for what is not there.

        The bound is there where `smoothness` is known.
        """
        whole = self.test_loss is not None and self.train_loss is not None
        bounded = self.train_loss is not None and self.smoothness is not None
        return {
            "steps": None if self.steps is None else list(self.steps),
            "indices": list(self.indices),
            "samples": self.samples,
            "seeds": list(self.seeds),
            "squared_distances": self.squared_distances.tolist(),
            "train_loss": None if self.train_loss is None else self.train_loss.tolist(),
            "test_loss": None if self.test_loss is None else self.test_loss.tolist(),
            "smoothness": self.smoothness,
            "eps_squared": self.eps_squared.tolist(),
            "error": None if self.error is None else self.error.tolist(),
            "gap": self.gap.tolist() if whole else None,
            "bound": self.bound().tolist() if bounded else None,
        }


@dataclass(frozen=True)
class Point:
    """Where a run is at one step: its parameters, and its losses where they were asked for."""

    parameters: list[Tensor]
    train_loss: float = math.nan
    test_loss: float = math.nan


# (data set, seed, whether losses are asked for) -> points by step, or by None for the end alone
Run = Callable[[Dataset, int, bool], dict[int | None, Point]]


def measure(
    run: Run,
    data: Iterable[Any],
    replacements: Iterable[Any],
    indices: Sequence[int] | None,
    seeds: Sequence[int],
    check: bool,
    losses: tuple[bool, bool],
    progress: Progress | None,
) -> Stability:
    """Run on S and each S^(i), under the same random streams."""
    base, pool = as_pair(data, "data"), as_pair(replacements, "replacements")
    n, chosen = len(base[0]), list(range(len(pool[0])) if indices is None else indices)
    if len(chosen) != len(pool[0]) or not all(0 <= i < n for i in chosen):
        raise UserError(
            f"expected one index 0 <= i < {n} for each of {len(pool[0])} replacements, "
            f"got {len(chosen)} from {min(chosen, default=0)} to {max(chosen, default=0)}"
        )
    if not seeds:
        raise UserError("expected at least one seed, got none")
    total, done = len(seeds) * (len(chosen) + 1) + check, 0

    def play(dataset: Dataset, seed: int, judged: bool) -> dict[int | None, Point]:
        nonlocal done
        with seeded(seed):
            points = run(dataset, seed, judged)
        done += 1
        if progress is not None:
            progress(done, total)
        return points

    distances, judgements = [], []
    labels: list[int | None] = []
    for turn, seed in enumerate(seeds):
        first = play(base, seed, True)
        labels = list(first)
        if check and turn == 0 and any(_distances(first, play(base, seed, False))):
            raise UserError(
                f"expected the same parameters from two runs on the same data with seed={seed}, "
                "got different ones: derive all randomness from the seed, or pass check=False"
            )
        moved = [
            _distances(first, play(neighbour(base, i, (pool[0][k], pool[1][k])), seed, False))
            for k, i in enumerate(chosen)
        ]
        distances.append(moved)
        judgements.append([(p.train_loss, p.test_loss) for p in first.values()])
    judged = torch.tensor(judgements, dtype=torch.float64).permute(2, 1, 0)  # (2, T, S)
    steps = [label for label in labels if label is not None]
    return Stability(
        tuple(steps) if steps else None,
        tuple(chosen),
        n,
        tuple(seeds),
        torch.tensor(distances, dtype=torch.float64).permute(2, 0, 1).contiguous(),
        judged[0].contiguous() if losses[0] else None,
        judged[1].contiguous() if losses[1] else None,
    )


def _distances(a: dict[int | None, Point], b: dict[int | None, Point]) -> list[float]:
    if list(a) != list(b):
        raise UserError(f"expected the same steps from every run, got {[*a]} and then {[*b]}")
    return [_distance(a[step].parameters, b[step].parameters) for step in a]


def _distance(a: list[Tensor], b: list[Tensor]) -> float:
    """Squared Euclidean distance, in float64."""
    if [x.shape for x in a] != [x.shape for x in b]:
        raise UserError("expected parameters of the same shapes from every run, got others")
    total = 0.0
    for x, y in zip(a, b, strict=True):
        wide = torch.complex128 if x.is_complex() else torch.float64
        difference = (x.to(wide) - y.to(x.device, wide)).abs()
        total += float(difference.square().sum())
    if not math.isfinite(total):
        raise UserError(f"expected runs that stay finite, got a squared distance of {total}")
    return total
